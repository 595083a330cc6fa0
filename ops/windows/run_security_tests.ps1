# The security cases of the requirements. Exits 1 if one fails.
. "$PSScriptRoot\common.ps1"
Invoke-Suite security @args
exit $LASTEXITCODE
