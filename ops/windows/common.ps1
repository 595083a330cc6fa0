# What the scripts share; each reads it with `. "$PSScriptRoot\common.ps1"`.
Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'

$InstallDir = 'C:\MessageBroker'
$Checkout = (Resolve-Path (Join-Path $PSScriptRoot '..\..')).Path
$Python = Join-Path $InstallDir 'venv\Scripts\python.exe'

# In the order of starting; they are stopped in the other.
$Services = @(
    'MessageBrokerMainServer',
    'MessageBrokerProjector',
    'MessageBrokerWorker',
    'MessageBrokerPortal',
    'MessageBrokerProxy'
)

function Assert-Administrator {
    $identity = [Security.Principal.WindowsIdentity]::GetCurrent()
    $principal = [Security.Principal.WindowsPrincipal]::new($identity)
    if (-not $principal.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)) {
        throw 'Run this in a PowerShell that was started as administrator.'
    }
}

# The broker's command line with the services' settings; its exit code is in $LASTEXITCODE.
function Invoke-Broker {
    if (-not (Test-Path $Python)) {
        throw "There is no $Python. Run install.ps1 first."
    }
    $env:BROKER_CONFIG = Join-Path $InstallDir 'broker.toml'
    & $Python -m broker @args
}

# What the broker made gets the rights of the installation again: with some Pythons, earlier versions made directories
# that only administrators could read, and no service.
function Reset-Rights {
    foreach ($directory in @("$InstallDir\data", "$InstallDir\certs")) {
        if (Test-Path $directory) {
            & icacls.exe $directory /reset /T /Q | Out-Null
            if ($LASTEXITCODE -ne 0) {
                throw "The rights of $directory could not be set."
            }
        }
    }
}

# A test suite. The suites start a Valkey and a MariaDB of their own, which there are for Linux: they run in WSL.
function Invoke-Suite {
    if (-not (Get-Command wsl.exe -ErrorAction SilentlyContinue)) {
        throw 'The suites need the Windows Subsystem for Linux: wsl --install'
    }
    & wsl.exe --cd $Checkout --exec ./broker test @args
}
