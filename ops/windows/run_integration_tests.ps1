# The integration cases of the requirements. Exits 1 if one fails.
. "$PSScriptRoot\common.ps1"
Invoke-Suite integration @args
exit $LASTEXITCODE
