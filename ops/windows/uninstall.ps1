# Takes services and program away. Settings, keys, certificates and data stay; -Purge removes them, too.
param([switch] $Purge)

. "$PSScriptRoot\common.ps1"
Assert-Administrator

& "$PSScriptRoot\stop.ps1"
foreach ($name in $Services) {
    if (Get-Service -Name $name -ErrorAction SilentlyContinue) {
        & "$InstallDir\services\$name.exe" uninstall
    }
}
Unregister-ScheduledTask -TaskName 'MessageBrokerBackup' -Confirm:$false -ErrorAction SilentlyContinue
foreach ($rule in @('Message broker: proxy', 'Message broker: portal')) {
    Remove-NetFirewallRule -DisplayName $rule -ErrorAction SilentlyContinue
}
foreach ($directory in @("$InstallDir\services", "$InstallDir\venv")) {
    if (Test-Path $directory) {
        Remove-Item $directory -Recurse -Force
    }
}
if ($Purge) {
    Remove-Item $InstallDir -Recurse -Force
} else {
    Write-Output "Kept: $InstallDir (settings, keys, certificates, archive)"
}
