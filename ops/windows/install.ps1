# Installs the broker from this checkout, or brings an installation up to it. Safe to run again; it starts nothing.
#   .\install.ps1 -WinSW C:\Downloads\WinSW-x64.exe
# Needs Python 3.11 or newer (py.exe) and WinSW 2.12. docs/operations-windows.md says what comes next.
param(
    [Parameter(Mandatory = $true)]
    [string] $WinSW
)

. "$PSScriptRoot\common.ps1"
Assert-Administrator

if (-not (Test-Path $WinSW)) {
    throw "There is no $WinSW."
}
& py.exe -3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'
if ($LASTEXITCODE -ne 0) {
    throw 'Python 3.11 or newer is needed (py.exe).'
}

# Running services hold the program's files.
& "$PSScriptRoot\stop.ps1"

foreach ($directory in @($InstallDir, "$InstallDir\data", "$InstallDir\data\log", "$InstallDir\services")) {
    New-Item -ItemType Directory -Path $directory -Force | Out-Null
}
# Keys, passwords and data: nobody but the system, administrators and the services' LocalService. By their numbers,
# because Windows translates their names.
& icacls.exe $InstallDir /inheritance:r /grant:r '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F' `
    '*S-1-5-19:(OI)(CI)M' | Out-Null
if ($LASTEXITCODE -ne 0) {
    throw "The rights of $InstallDir could not be set."
}

if (-not (Test-Path $Python)) {
    & py.exe -3 -m venv "$InstallDir\venv"
}
$pip = @('-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-input')
& $Python @pip --require-hashes -r "$Checkout\requirements.lock"
if ($LASTEXITCODE -ne 0) {
    throw 'The packages could not be installed.'
}
& $Python @pip --no-deps --no-build-isolation --force-reinstall $Checkout
if ($LASTEXITCODE -ne 0) {
    throw 'The broker could not be installed.'
}

if (-not (Test-Path "$InstallDir\broker.toml")) {
    Copy-Item "$PSScriptRoot\broker.toml" "$InstallDir\broker.toml"
}

foreach ($name in $Services) {
    # An upgrade may have changed the service itself: it is installed anew.
    if (Get-Service -Name $name -ErrorAction SilentlyContinue) {
        & "$InstallDir\services\$name.exe" uninstall
    }
    Copy-Item "$PSScriptRoot\services\$name.xml" "$InstallDir\services\$name.xml" -Force
    Copy-Item $WinSW "$InstallDir\services\$name.exe" -Force
    & "$InstallDir\services\$name.exe" install
    if ($LASTEXITCODE -ne 0) {
        throw "The service $name could not be installed."
    }
}
Write-Output "Installed. Next: $InstallDir\broker.toml, then prepare.ps1, firewall.ps1 and start.ps1."
