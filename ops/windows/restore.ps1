# Makes an installation of the newest backup in a directory. Goes into an empty data directory, Redis and database only.
#   .\restore.ps1 -Target E:\Backups
param(
    [Parameter(Mandatory = $true)]
    [string] $Target,
    [string] $PassphraseFile
)

. "$PSScriptRoot\common.ps1"
Assert-Administrator

$words = @('backup', 'restore', $Target, '--yes')
if ($PassphraseFile) {
    $words += @('--passphrase-file', (Resolve-Path $PassphraseFile).Path)
}
& "$PSScriptRoot\stop.ps1"
Invoke-Broker @words
$ended = $LASTEXITCODE
Reset-Rights
exit $ended
