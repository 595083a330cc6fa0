# Everything that has to pass before production: pre-flight, then the suites. Exits 1 if anything fails.
#   .\run_all_tests.ps1           all of it
#   .\run_all_tests.ps1 -Quick    without the load and security cases
param([switch] $Quick)

. "$PSScriptRoot\common.ps1"

$suites = @('functional', 'integration')
if (-not $Quick) {
    $suites += @('load', 'security')
}
$failed = @()

Write-Output '== pre-flight'
Invoke-Broker preflight
if ($LASTEXITCODE -ne 0) {
    $failed += 'pre-flight'
}
foreach ($suite in $suites) {
    Write-Output "== $suite"
    Invoke-Suite $suite
    if ($LASTEXITCODE -ne 0) {
        $failed += $suite
    }
}
if ($failed.Count -gt 0) {
    Write-Output "Failed: $($failed -join ', ')"
    exit 1
}
Write-Output 'All passed.'
if ($Quick) {
    Write-Output 'Not run: load, security.'
}
exit 0
