# Starts every service, the main server first.
. "$PSScriptRoot\common.ps1"
Assert-Administrator

foreach ($name in $Services) {
    Start-Service -Name $name
    Write-Output "$name runs"
}
