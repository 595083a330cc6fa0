"""Which processes an installation has, where they answer, and what says whether they run."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from broker.bootstrap import ROLES
from broker.cli.checks import Finding
from broker.embedded import probe
from broker.embedded.plan import plan
from broker.embedded.probe import Target
from broker.embedded.state import State, running
from broker.settings import Settings

ANSWER_SECONDS = 3.0

UNITS = {role: f"broker-{role}.service" for role in ROLES}
WINDOWS = {
    "server": "MessageBrokerMainServer",
    "gateway": "MessageBrokerProxy",
    "worker": "MessageBrokerWorker",
    "projector": "MessageBrokerProjector",
    "portal": "MessageBrokerPortal",
}
# Their services carry a version in the name on some machines: MySQL80.
WINDOWS_SERVERS = {"MySQL": ("mysql", "mariadb"), "Redis": ("memurai", "redis")}


def targets(settings: Settings) -> dict[str, Target]:
    """Each process's health page by its name: where `up` runs it, else where the settings put it."""
    planned = plan(settings)
    by_role = {one.role: one.target for one in planned}
    state = running(settings.data_dir)
    members = [one for one in state.members if one.url and one.role in by_role] if state is not None else []
    own = {one.role for one in members}
    found = {_name(one.role, one.name): one.target for one in planned if one.role not in own}
    for member in members:
        port = urlsplit(str(member.url)).port or 443
        found[_name(member.role, member.name)] = by_role[member.role]._replace(port=port)
    return found


def _name(role: str, name: str) -> str:
    """Several gateways answer on one port: they are one to whoever asks."""
    return role if role == "gateway" else name


async def check(settings: Settings, known: dict[str, Target]) -> Finding:
    """Every process runs, by the word of whatever runs them here; where nothing does, by its port."""
    state = running(settings.data_dir)
    if state is not None:
        return _of_up(state)
    if sys.platform == "win32":
        return of_windows(_windows_services())
    if units := await systemd():
        return _of_systemd(units)
    ours = {name: target for name, target in known.items() if name.partition("-")[0] in ROLES}
    deaf = [name for name, target in ours.items() if not await _answers(target)]
    if deaf:
        return _down(deaf, "start them: `broker up`, their systemd units, or their containers")
    return Finding("", "ok", f"{', '.join(ours)} answer")


async def _answers(target: Target) -> bool:
    """Whatever it answers: that a process is unwell is its own check's to say."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await probe.get(target, target.path)
    except (OSError, ValueError):  # TimeoutError is an OSError
        return False
    return True


async def systemd() -> dict[str, str]:
    """The state of each of our units that systemd knows; none where there are no such units."""
    program = shutil.which("systemctl")
    if program is None:
        return {}
    command = (program, "show", "--property=Id,LoadState,ActiveState", *UNITS.values())
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    said, _ = await process.communicate()
    return dict(_loaded(said.decode(errors="replace"))) if process.returncode == 0 else {}


async def units_here() -> tuple[Finding | None, frozenset[str]]:
    """What systemd or Windows' service manager says of ours, and the roles it runs; None: it has none."""
    if sys.platform == "win32":
        return windows_here(_windows_services())
    units = await systemd()
    if not units:
        return None, frozenset()
    return _here(_of_systemd(units), {role for role, unit in UNITS.items() if units.get(unit) == "active"})


def windows_here(found: dict[str, str]) -> tuple[Finding | None, frozenset[str]]:
    """As `units_here`, out of what the service manager says, each service with its state."""
    if not found.keys() & set(WINDOWS.values()):
        return None, frozenset()
    return _here(of_windows(found), {role for role, name in WINDOWS.items() if found.get(name) == "running"})


def _here(found: Finding, active: set[str]) -> tuple[Finding, frozenset[str]]:
    """Not every machine runs every role: those that do not run are named, wrong only where nothing does."""
    if active and found.status == "failed":
        found = found._replace(status="warning")
    return found, frozenset(active)


def _loaded(said: str) -> Iterator[tuple[str, str]]:
    """`systemctl show` separates units by an empty line."""
    for block in said.split("\n\n"):
        unit = dict(line.partition("=")[::2] for line in block.splitlines())
        if unit.get("LoadState") == "loaded":
            yield unit.get("Id", ""), unit.get("ActiveState", "")


def _of_up(state: State) -> Finding:
    bad = [f"{one.name} ({one.state}, {one.health})" for one in state.members if one.health != "ok"]
    if bad or state.phase != "running":
        return _down(bad or [state.phase], "`broker status` shows each; their words are in the log directory")
    return Finding("", "ok", f"{', '.join(one.name for one in state.members)} run (`up`, PID {state.pid})")


def _of_systemd(units: dict[str, str]) -> Finding:
    bad = [f"{unit} ({state})" for unit, state in units.items() if state != "active"]
    bad += [f"{unit} (not installed)" for unit in UNITS.values() if unit not in units]
    if bad:
        return _down(bad, f"systemctl start {bad[0].split()[0]}; journalctl -u {bad[0].split()[0]}")
    return Finding("", "ok", f"{', '.join(units)} are active")


def of_windows(found: dict[str, str]) -> Finding:
    """What the service manager says, each service with its state."""
    ours = [WINDOWS[role] for role in ROLES]
    bad = [f"{name} ({found.get(name, 'not installed')})" for name in ours if found.get(name) != "running"]
    for name, beginnings in WINDOWS_SERVERS.items():
        states = [state for service, state in found.items() if service.lower().startswith(beginnings)]
        # None at all: it runs on another machine, and its own check says whether it answers.
        if states and "running" not in states:
            bad.append(f"{name} ({states[0]})")
    if bad:
        return _down(bad, "Start-Service NAME; its last words are in the log directory")
    return Finding("", "ok", f"{', '.join(ours)} run")


def _windows_services() -> dict[str, str]:
    import psutil

    return {one.name(): one.status() for one in psutil.win_service_iter()}


def _down(names: Iterable[str], fix: str) -> Finding:
    return Finding("", "failed", f"not running: {', '.join(names)}", fix)
