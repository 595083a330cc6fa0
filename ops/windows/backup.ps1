# Makes a backup in a directory while everything runs; each adds what is new, the last 30 stay.
#   .\backup.ps1 -Target E:\Backups
#   .\backup.ps1 -Target E:\Backups -Daily 02:30     every night from now on, as a scheduled task
# Keys are sealed under the setting key_passphrase, or the passphrase in the file that -PassphraseFile names.
param(
    [Parameter(Mandatory = $true)]
    [string] $Target,
    [string] $PassphraseFile,
    [string] $Daily
)

. "$PSScriptRoot\common.ps1"
Assert-Administrator

$words = @('backup', 'create', $Target, '--keep', '30')
if ($PassphraseFile) {
    $words += @('--passphrase-file', (Resolve-Path $PassphraseFile).Path)
}
if (-not $Daily) {
    Invoke-Broker @words
    exit $LASTEXITCODE
}

$command = "-NoProfile -NonInteractive -File `"$PSScriptRoot\backup.ps1`" -Target `"$Target`""
if ($PassphraseFile) {
    $command += " -PassphraseFile `"$((Resolve-Path $PassphraseFile).Path)`""
}
$action = New-ScheduledTaskAction -Execute 'powershell.exe' -Argument $command
$trigger = New-ScheduledTaskTrigger -Daily -At $Daily
$settings = New-ScheduledTaskSettingsSet -StartWhenAvailable -ExecutionTimeLimit 0
Register-ScheduledTask -TaskName 'MessageBrokerBackup' -Action $action -Trigger $trigger -Settings $settings `
    -User 'NT AUTHORITY\SYSTEM' -RunLevel Highest -Force | Out-Null
Write-Output "A backup into $Target every day at $Daily."
