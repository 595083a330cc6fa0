# Stops every service in order, the proxy first: what is under way is finished, nothing new comes in.
. "$PSScriptRoot\common.ps1"
Assert-Administrator

for ($index = $Services.Count - 1; $index -ge 0; $index--) {
    $name = $Services[$index]
    if (Get-Service -Name $name -ErrorAction SilentlyContinue) {
        Stop-Service -Name $name
        Write-Output "$name stopped"
    }
}
