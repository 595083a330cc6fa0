# Schema, log, keys, certificates and first admin, then the seven checks. Safe to run again, after an upgrade too.
. "$PSScriptRoot\common.ps1"
Assert-Administrator

Invoke-Broker prepare
if ($LASTEXITCODE -ne 0) {
    exit $LASTEXITCODE
}
Reset-Rights
Invoke-Broker preflight
exit $LASTEXITCODE
