# The nine checks after a deployment. Exits 1 if one fails; -Json prints them for programs.
param([switch] $Json)

. "$PSScriptRoot\common.ps1"

if ($Json) {
    Invoke-Broker smoke --json
} else {
    Invoke-Broker smoke
}
exit $LASTEXITCODE
