# Lets producers reach the proxy; -Portal also opens the portal's port. Both ports are those of broker.toml.
param(
    [int] $GatewayPort = 8001,
    [int] $PortalPort = 8080,
    [switch] $Portal
)

. "$PSScriptRoot\common.ps1"
Assert-Administrator

function Open-Port([string] $Name, [int] $Port) {
    Remove-NetFirewallRule -DisplayName $Name -ErrorAction SilentlyContinue
    New-NetFirewallRule -DisplayName $Name -Direction Inbound -Action Allow -Protocol TCP -LocalPort $Port `
        -Program $Python | Out-Null
    Write-Output "$Name (TCP $Port) is open"
}

Open-Port 'Message broker: proxy' $GatewayPort
if ($Portal) {
    Open-Port 'Message broker: portal' $PortalPort
}
