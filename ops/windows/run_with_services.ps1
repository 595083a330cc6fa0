# Starts the services that do not run, waits until smoke_test.ps1 finds nothing, runs a suite, and stops again what it
# started, whatever came of it. Exits 1 if the services do not come up or the suite fails.
#   .\run_with_services.ps1                      the integration cases
#   .\run_with_services.ps1 -Suite functional
param(
    [ValidateSet('functional', 'integration', 'load', 'security', 'all')]
    [string] $Suite = 'integration',
    [int] $WaitSeconds = 120
)

. "$PSScriptRoot\common.ps1"
Assert-Administrator

$started = @()
$code = 1
try {
    foreach ($name in $Services) {
        if ((Get-Service -Name $name).Status -ne 'Running') {
            $started += $name
            Start-Service -Name $name
            Write-Output "$name runs"
        }
    }
    $end = (Get-Date).AddSeconds($WaitSeconds)
    do {
        $found = Invoke-Broker smoke
        $well = $LASTEXITCODE -eq 0
        if (-not $well) {
            Start-Sleep -Seconds 2
        }
    } until ($well -or (Get-Date) -gt $end)
    Write-Output $found
    if ($well) {
        Invoke-Suite $Suite
        $code = $LASTEXITCODE
    } else {
        Write-Output "The services were not well within $WaitSeconds seconds."
    }
} finally {
    for ($index = $started.Count - 1; $index -ge 0; $index--) {
        Stop-Service -Name $started[$index]
        Write-Output "$($started[$index]) stopped"
    }
}
exit $code
