"""The Linux kit: units that systemd takes and holds tightly, an installer that is safe to run again."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from broker.bootstrap import ROLES
from broker.cli import services
from broker.settings import Settings, load
from support import docs

KIT = docs.ROOT / "ops" / "linux"
BACKUP = KIT / "systemd" / "broker-backup.service"
UNITS = sorted(path for path in (KIT / "systemd").glob("*.service") if path != BACKUP)
TIMER = BACKUP.with_suffix(".timer")
ONCE = KIT / "systemd" / "broker-backup.service.d" / "once.conf"
COMMON = KIT / "systemd" / "broker-.service.d" / "common.conf"
PROGRAM = "/opt/broker/venv/bin/broker"
PAGE = docs.ROOT / "docs" / "operations-linux.md"

SYSTEMD = shutil.which("systemd-analyze")
DIRECTIVES = """
Description After Wants PartOf StartLimitIntervalSec WantedBy ExecStart Type User Group EnvironmentFile
StateDirectory StateDirectoryMode WorkingDirectory UMask Restart RestartSec KillSignal TimeoutStopSec
LimitNOFILE LimitCORE TasksMax OOMPolicy NoNewPrivileges CapabilityBoundingSet AmbientCapabilities
ProtectSystem ProtectHome ProtectClock ProtectControlGroups ProtectHostname ProtectKernelLogs
ProtectKernelModules ProtectKernelTunables ProtectProc PrivateDevices PrivateTmp RemoveIPC LockPersonality
RestrictAddressFamilies RestrictNamespaces RestrictRealtime RestrictSUIDSGID MemoryDenyWriteExecute
SystemCallArchitectures SystemCallFilter SystemCallErrorNumber
RequiresMountsFor TimeoutStartSec Nice ReadWritePaths OnCalendar RandomizedDelaySec Persistent
"""
KNOWN = set(DIRECTIVES.split())


def values_of(path: Path) -> list[list[str]]:
    """The words of every line that is no comment."""
    return [shlex.split(line) for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]


def values(path: Path) -> list[tuple[str, str]]:
    """Name and value of every line; a name may come more than once."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return [
        (name, value)
        for name, found, value in (line.partition("=") for line in lines if not line.startswith(("#", "[")))
        if found
    ]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program that is there, which `systemd-analyze verify` asks for."""
    copy = shutil.copytree(KIT / "systemd", tmp_path / "units")
    for path in copy.glob("*.service"):
        path.write_text(path.read_text("utf-8").replace(PROGRAM, sys.executable))
    return copy


def systemd(*args: str, units: Path) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["systemd-analyze", *args], env=environ, capture_output=True, text=True, check=False
    )


def test_there_is_a_unit_for_every_role() -> None:
    """Those that `smoke` asks for, each running its command, which exists with its options."""
    names = {path.name for path in UNITS}
    assert names == {*services.UNITS.values(), "broker-worker@.service"}
    assert set(services.UNITS) == set(ROLES)
    for path in UNITS:
        program, *words = shlex.split(dict(values(path))["ExecStart"])
        assert program == PROGRAM
        assert words[0] == re.split(r"[-@.]", path.name)[1]
        assert docs.problem(words) is None


def test_units_say_what_systemd_knows(units: Path) -> None:
    """Every name is systemd's; where systemd is installed its own parser takes them all, and sees a wrong one."""
    used = {name for path in [*UNITS, COMMON, BACKUP, ONCE, TIMER] for name, _ in values(path)}
    assert used <= KNOWN
    if SYSTEMD is None:  # The run's summary says that this was not shown (support/helpers.py).
        return
    shutil.copy(units / "broker-worker@.service", units / "broker-worker@0.service")
    backup = (BACKUP.name, TIMER.name)
    for name in [*services.UNITS.values(), "broker-worker@0.service", "broker.target", *backup]:
        done = systemd("verify", "--man=no", str(units / name), units=units)
        assert (done.stderr, done.returncode) == ("", 0), name
    path = units / "broker-gateway.service"
    path.write_text(path.read_text("utf-8").replace("[Service]\n", "[Service]\nRestrat=always\n"))
    assert "Restrat" in systemd("verify", "--man=no", str(path), units=units).stderr


def test_units_are_tightly_held(units: Path) -> None:
    """No privileges, nothing to write but their data; exposure as systemd counts it, from 0 to 10, is under 2."""
    common = dict(values(COMMON))
    assert common["CapabilityBoundingSet"] == ""
    assert common["ProtectSystem"] == "strict"
    held = {name for name, value in common.items() if value == "yes"}
    assert held >= {
        "NoNewPrivileges",
        "PrivateDevices",
        "PrivateTmp",
        "ProtectHome",
        "MemoryDenyWriteExecute",
    }
    if SYSTEMD is None:  # The run's summary says that this was not shown (support/helpers.py).
        return
    for name in (*services.UNITS.values(), BACKUP.name):
        done = systemd("security", "--offline=yes", name, units=units)
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
        assert found, done.stderr
        assert float(found[1]) < 2, name


def test_backups_run_once_and_may_write_where_they_go() -> None:
    """A command that exists, into the one place that its unit may write to and that the installer makes, every night.

    Where a disk is mounted there, it waits for that, and fails where it is away.
    """
    program, *words = shlex.split(dict(values(BACKUP))["ExecStart"])
    assert program == PROGRAM
    assert docs.problem(words) is None
    once = dict(values(ONCE))
    # What stays running is restarted; a backup comes with its timer. Drop-ins count in the order of their names.
    assert (once["Type"], once["Restart"], once["TimeoutStartSec"]) == ("oneshot", "no", "infinity")
    assert ONCE.name > COMMON.name
    assert once["ReadWritePaths"] == words[2] == "/var/backups/broker"
    assert dict(values(BACKUP))["RequiresMountsFor"] == words[2]
    assert ["d", words[2], "0700", "broker", "broker", "-"] in values_of(KIT / "tmpfiles.conf")
    assert dict(values(TIMER))["Persistent"] == "true"


def test_processes_are_given_time_to_finish() -> None:
    """Systemd waits for longer than the grace period, and never gives up on a process."""
    common = dict(values(COMMON))
    assert int(common["TimeoutStopSec"]) > Settings().grace_period
    assert common["StartLimitIntervalSec"] == "0"
    assert common["Restart"] == "always"


def test_workers_metrics_ports_are_nobody_s(tmp_path: Path) -> None:
    """Instances of the template take 9110 to 9119; no default of another process lies there."""
    line = dict(values(KIT / "systemd" / "broker-worker@.service"))["ExecStart"]
    assert line.endswith("--metrics-port 911%i")
    default = Settings()
    taken = {
        default.gateway_port,
        default.server_port,
        default.portal_port,
        default.worker_metrics_port,
        default.projector_metrics_port,
    }
    assert not taken & set(range(9110, 9120))


def test_the_settings_that_are_installed_are_valid() -> None:
    """Both files together give settings; every variable is one."""
    environ = {}
    for line in (KIT / "etc" / "broker.env").read_text("utf-8").splitlines():
        if not line.startswith("# "):
            name, _, value = line.lstrip("#").partition("=")
            environ[name] = shlex.split(value)[0] if shlex.split(value) else ""
    environ["BROKER_CONFIG"] = str(KIT / "etc" / "broker.toml")
    settings = load(environ=environ)
    assert settings.data_dir == Path("/var/lib/broker")
    assert settings.certs_dir == Path("/var/lib/broker/certs")
    assert settings.redis_url
    assert "CHANGE-ME" in str(settings.mysql_url)


def install(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(KIT / "install.sh"), "--root", str(root), *args], capture_output=True, text=True, check=False
    )


def test_the_installer_puts_everything_into_a_root_and_keeps_settings(tmp_path: Path) -> None:
    """Units, user, directories, command, settings; run again it brings all but the settings up to date."""
    root = tmp_path / "root"
    assert install(root, "--files-only").returncode == 0
    system = root / "usr" / "lib" / "systemd" / "system"
    assert {path.name for path in system.glob("*.service")} == {path.name for path in (*UNITS, BACKUP)}
    assert (system / TIMER.name).read_bytes() == TIMER.read_bytes()
    assert (system / "broker-backup.service.d" / ONCE.name).read_bytes() == ONCE.read_bytes()
    assert (system / "broker-.service.d" / "common.conf").read_bytes() == COMMON.read_bytes()
    secret = root / "etc" / "broker" / "broker.env"
    assert secret.stat().st_mode & 0o777 == 0o640
    secret.write_text("BROKER_LOG_LEVEL=debug\n")
    (system / "broker-gateway.service").write_text("old")
    again = install(root, "--files-only")
    assert again.returncode == 0
    assert "kept /etc/broker/broker.env" in again.stdout
    assert secret.read_text("utf-8") == "BROKER_LOG_LEVEL=debug\n"
    assert "old" not in (system / "broker-gateway.service").read_text("utf-8")


def test_uninstalling_takes_away_what_was_installed(tmp_path: Path) -> None:
    """Every file; settings, and what an operator added to the units, only with --purge, and backups never."""
    text = (KIT / "uninstall.sh").read_text("utf-8").replace("\\\n", " ")
    kept, purged = text.split('if [ "$purge" = yes ]; then')
    patterns = [
        {word for line in part.splitlines() if line.strip().startswith("rm -") for word in line.split()[2:]}
        for part in (kept, purged)
    ]
    root = tmp_path / "root"
    assert install(root, "--files-only").returncode == 0
    for path in root.rglob("*"):
        target = "/" / path.relative_to(root)
        taken = [
            any(fnmatch(str(place), one) for place in (target, *target.parents) for one in part)
            for part in patterns
        ]
        settings = target.is_relative_to("/etc/broker")
        assert path.is_dir() or taken == [not settings, settings], target
    assert {"/var/lib/broker", "/etc/systemd/system/broker-*.d"} <= patterns[1]
    assert not any("/var/backups" in one for part in patterns for one in part)


def test_user_and_directories_are_the_services_own(tmp_path: Path) -> None:
    """A system user without a shell, data that only it reads; where systemd is installed its programs make them."""
    assert values_of(KIT / "sysusers.conf") == [
        ["u", "broker", "-", "Message broker", "/var/lib/broker", "/usr/sbin/nologin"]
    ]
    assert ["d", "/var/lib/broker", "0700", "broker", "broker", "-"] in values_of(KIT / "tmpfiles.conf")
    if SYSTEMD is None:  # The run's summary says that this was not shown (support/helpers.py).
        return
    root = tmp_path / "root"
    assert install(root, "--files-only").returncode == 0
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        done = subprocess.run(
            [*command, f"--root={root}", "broker.conf"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    user = (root / "etc" / "passwd").read_text("utf-8").strip().split(":")
    assert (user[0], user[5], user[6]) == ("broker", "/var/lib/broker", "/usr/sbin/nologin")
    data = (root / "var" / "lib" / "broker").stat()
    assert data.st_mode & 0o777 == 0o700
    assert data.st_uid in {int(user[2]), os.getuid()}


def test_the_installer_says_what_it_does_not_know(tmp_path: Path) -> None:
    """A wrong option stops it before anything is written."""
    done = install(tmp_path / "root", "--fast")
    assert done.returncode == 1
    assert "unknown option --fast" in done.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh", "broker"])
def test_scripts_are_the_plain_shell_s(script: str) -> None:
    """`sh -n` takes them, and they may be run."""
    assert subprocess.run(["sh", "-n", str(KIT / script)], check=False).returncode == 0
    assert os.access(KIT / script, os.X_OK)


def test_units_are_enabled_and_disabled_by_name() -> None:
    """`systemctl` takes patterns of units that run; what it enables and disables has to be named."""
    for path in (KIT / "uninstall.sh", KIT / "install.sh", PAGE):
        for line in path.read_text("utf-8").splitlines():
            if re.search(r"systemctl (enable|disable)\b", line):
                assert "broker-*" not in line, (path.name, line)


def test_the_command_runs_as_the_services_user_with_their_settings(tmp_path: Path) -> None:
    """The wrapper reads broker.env and hands everything else on; called by anybody but root it stays that user."""
    text = (KIT / "broker").read_text("utf-8")
    (tmp_path / "broker.env").write_text("BROKER_WORKERS='7'\n")
    script = text.replace("/etc/broker/broker.env", str(tmp_path / "broker.env")).replace(
        "program=" + PROGRAM, f"program={shutil.which('env')}"
    )
    # Whoever runs the tests: the user of the services is that one here.
    script = script.replace("=broker ", f"={pwd.getpwuid(os.getuid()).pw_name} ")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert "BROKER_WORKERS=7" in done.stdout.splitlines(), done.stderr


def test_the_page_names_what_is_installed() -> None:
    """Units, ports, files and commands of docs/operations-linux.md are those of the kit and the code."""
    page = PAGE.read_text("utf-8")
    named = set(re.findall(r"\bbroker-[a-z]+\b", page))
    assert named == {f"broker-{role}" for role in (*ROLES, "backup")}
    assert f"port {Settings().gateway_port}" in page
    for line in docs.shell_lines(PAGE):
        words = line[1:] if line[0] == "sudo" else line
        if words[0] == "broker":
            assert docs.problem(words[1:]) is None, words
        if words[0].startswith("ops/"):
            assert (docs.ROOT / words[0]).is_file()
