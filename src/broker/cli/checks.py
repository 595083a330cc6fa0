"""The checks of `doctor`. Each answers findings and never raises for what it looks for."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from broker.embedded import ports
from broker.embedded.install import mariadb_programs
from broker.embedded.plan import claims
from broker.embedded.process import EmbeddedError
from broker.embedded.state import State, running
from broker.embedded.urls import resolve
from broker.embedded.valkey import binary
from broker.errors import BrokerError, LogRefused
from broker.settings import Settings

RENEW_DAYS = 30
START = "start it with `broker up`"


class Finding(NamedTuple):
    """`fix` says what to do; empty when there is nothing to do."""

    name: str
    status: Literal["ok", "warning", "failed", "skipped"]
    detail: str
    fix: str = ""


def failed(findings: list[Finding]) -> bool:
    return any(one.status == "failed" for one in findings)


async def run(settings: Settings) -> list[Finding]:
    """All checks, in the order in which trouble is best understood."""
    from broker.cli import services

    state = running(settings.data_dir)
    units, active = (None, frozenset[str]()) if state else await services.units_here()
    return [
        python(),
        dependencies(),
        disk(settings),
        *embedded(settings),
        *([units._replace(name="processes")] if units else processes(state)),
        *([] if state else listening(settings, active)),
        await redis(settings, embedded_down=settings.redis_url is None and state is None),
        await log(settings, embedded_down=settings.redis_url is None and state is None),
        *await mysql(settings, embedded_down=settings.mysql_url is None and state is None),
        *certificates(settings),
        keyring(settings),
        backups(settings),
        *private_files(settings),
    ]


def python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", "ok", f"{version} at {sys.executable}")


def dependencies() -> Finding:
    """Every distribution that this installation asks for."""
    missing = [name for name in _required() if not _installed(name)]
    if missing:
        fix = "pip install --require-hashes -r requirements.lock, or remove .venv and run ./broker again"
        return Finding("dependencies", "failed", f"missing: {', '.join(missing)}", fix)
    return Finding("dependencies", "ok", f"all {len(list(_required()))} are installed")


def disk(settings: Settings) -> Finding:
    place = settings.data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free // (1024 * 1024)
    least = settings.disk_free_min_mb
    detail = f"{free} MB free for {settings.data_dir}"
    if free < least:
        fix = f"free some space: below {least} MB (disk_free_min_mb) the gateway answers 503 log_full"
        return Finding("disk", "failed", detail, fix)
    return Finding("disk", "warning" if free < 4 * least else "ok", detail)


def embedded(settings: Settings) -> Iterator[Finding]:
    """The programs of the embedded servers, where they are used."""
    if settings.redis_url is None:
        try:
            yield Finding("valkey", "ok", str(binary()))
        except EmbeddedError as error:
            yield Finding("valkey", "failed", error.detail)
    if settings.mysql_url is None:
        try:
            yield Finding("mariadb", "ok", str(mariadb_programs()[0]))
        except EmbeddedError as error:
            yield Finding("mariadb", "failed", error.detail, "`broker up` installs it when run as root")


def processes(state: State | None) -> Iterator[Finding]:
    """What `up` runs."""
    if state is None:
        yield Finding("processes", "skipped", f"`up` does not run on this data directory; {START}")
        return
    bad = [member for member in state.members if member.health != "ok"]
    for member in bad:
        fix = f"see log/{member.role}.log in the data directory"
        yield Finding(member.name, "failed", f"{member.state}, {member.health}: {member.detail}", fix)
    if not bad:
        what = ", for inspection: nothing is accepted or delivered" if state.inspection else ""
        yield Finding("processes", "ok", f"all {len(state.members)} are well{what}")


def listening(settings: Settings, active: Collection[str] = ()) -> Iterator[Finding]:
    """The ports that roles would take, besides those that are `active`: they have theirs."""
    theirs = tuple(f"{role}_" for role in active)
    wanted = [claim for claim in claims(settings) if claim.port and not claim.setting.startswith(theirs)]
    taken = [problem for claim in wanted if (problem := ports.problem_with(claim))]
    for problem in taken:
        yield Finding("ports", "failed", problem, "end that process, or choose another port with the setting")
    if not taken and not active:
        free = ", ".join(str(claim.port) for claim in wanted)
        yield Finding("ports", "ok", f"{free} are free" if free else "any free ones are taken")


async def redis(settings: Settings, *, embedded_down: bool) -> Finding:
    """Reachable, and durable."""
    if embedded_down:
        return Finding("redis", "skipped", f"the embedded Valkey is not running; {START}")
    from broker.events import connection, durability

    url = str(resolve(settings).redis_url)
    client = connection.connect(url, timeout=settings.redis_timeout)
    try:
        report = await durability.check(client, settings)
    except BrokerError as error:
        return Finding("redis", "failed", str(error), "check redis_url and the server's configuration")
    finally:
        await client.aclose()
    detail = f"version {report.version}, WAITAOF {'known' if report.waitaof else 'not known'}"
    if report.problems or report.unchecked:
        return Finding("redis", "warning", " ".join([detail, *report.problems, *report.unchecked]))
    return Finding("redis", "ok", f"{detail}, keeps every acknowledged write")


async def log(settings: Settings, *, embedded_down: bool) -> Finding:
    """Whether Redis holds the log that this data directory knows, and nobody refuses it."""
    if embedded_down:
        return Finding("log", "skipped", f"the embedded Valkey is not running; {START}")
    from broker.events import connection, log_identity, standing
    from broker.events.keys import LogKeys

    client = connection.connect(str(resolve(settings).redis_url), timeout=settings.redis_timeout)
    try:
        if not await log_identity.exists(client, settings):
            return Finding("log", "skipped", "there is none yet; `broker up` begins one")
        identity = await log_identity.load(client, settings)
        streams = await standing.look(client, LogKeys(settings.log_name, identity.partitions))
    except LogRefused as error:
        return Finding("log", "failed", error.detail)
    except BrokerError as error:
        return Finding("log", "skipped", str(error))
    finally:
        await client.aclose()
    refused = [f"{name}: {one.refused}" for name, one in streams.items() if one.refused is not None]
    if refused:
        return Finding(
            "log", "failed", "; ".join(refused), "`broker streams repair` brings back what was lost"
        )
    return Finding("log", "ok", f"{identity.log_id}, {identity.partitions} partitions")


async def mysql(settings: Settings, *, embedded_down: bool) -> list[Finding]:
    """Reachable, its version, its schema."""
    if embedded_down:
        return [Finding("mysql", "skipped", f"the embedded MariaDB is not running; {START}")]
    import asyncio

    from broker.projections import schema
    from broker.projections.store import Store

    url = str(resolve(settings).mysql_url)
    try:
        store = Store(url)
        try:
            version = (await store.select("SELECT VERSION() AS version"))[0]["version"]
        finally:
            await store.close()
        current, head = await asyncio.to_thread(schema.revisions, url)
    except BrokerError as error:
        return [Finding("mysql", "failed", str(error), "check mysql_url, the server and its user's rights")]
    found = [Finding("mysql", "ok", f"version {version}")]
    if current == head:
        return [*found, Finding("schema", "ok", f"revision {head}")]
    return [
        *found,
        Finding("schema", "failed", f"revision {current}, newest is {head}", "run `broker migrate`"),
    ]


def certificates(settings: Settings) -> Iterator[Finding]:
    """The dates of every certificate under the certificates directory."""
    from broker import clock
    from broker.services.ca.authority import read_certificate

    paths = sorted(settings.certs_dir.rglob("*.crt"))
    if not paths:
        yield Finding("certificates", "skipped", f"none in {settings.certs_dir}; `broker up` makes them")
        return
    now = clock.now_ms()
    soon = []
    for path in paths:
        try:
            issued = read_certificate(path)
        except (BrokerError, OSError, ValueError) as error:
            yield Finding("certificates", "failed", f"{path}: {error}", "remove it and run `broker up`")
            continue
        end = clock.iso(issued.not_after_ms)[:10]
        if issued.not_before_ms > now or issued.not_after_ms <= now:
            yield Finding(
                "certificates", "failed", f"{path} is not valid now (ends {end})", "run `broker up`"
            )
        elif issued.not_after_ms <= now + RENEW_DAYS * 86_400_000:
            soon.append(f"{path} ends {end}")
    if soon:
        yield Finding("certificates", "warning", "; ".join(soon), "`broker up` renews them")
    else:
        yield Finding("certificates", "ok", f"{len(paths)} in {settings.certs_dir}")


def keyring(settings: Settings) -> Finding:
    """There, private, and opened by the passphrase."""
    from broker.events.keyring import Keyring

    if not settings.keyring_path.exists():
        return Finding("keyring", "skipped", f"no {settings.keyring_path} yet; `broker up` makes it")
    try:
        opened = Keyring.load(settings.keyring_path, settings.key_passphrase)
    except BrokerError as error:
        return Finding("keyring", "failed", str(error))
    return Finding("keyring", "ok", f"{settings.keyring_path}, active key {opened.active_id}")


def backups(settings: Settings) -> Finding:
    """Whether one was made lately."""
    from broker import clock
    from broker.events.backup import record

    try:
        found = record.read(settings)
    except (OSError, ValueError) as error:
        return Finding("backups", "warning", str(error), "the next `broker backup create` writes it again")
    if found.made is None:
        return Finding("backups", "skipped", "none was made here yet; `broker backup create DIR` makes one")
    whole = f"whole on {clock.iso(found.verified.at_ms)[:10]}" if found.verified else "never verified here"
    detail = f"{found.made.name} in {found.made.target}; {whole}"
    hours = (clock.now_ms() - found.made.at_ms) / 3_600_000
    if hours > record.LATE_HOURS:
        fix = "find out why none was made since: the timer's or the task's log"
        return Finding("backups", "warning", f"{detail}; that was {hours:.0f} hours ago", fix)
    return Finding("backups", "ok", detail)


def private_files(settings: Settings) -> Iterator[Finding]:
    """Keys and passwords that others on this machine could read."""
    if sys.platform == "win32":
        return
    secret = [settings.data_dir / "admin-password", settings.data_dir / "mariadb" / "password"]
    secret += [*settings.certs_dir.rglob("*.key"), settings.ca_key_path]
    opened = [path for path in dict.fromkeys(secret) if _open_to_others(path)]
    if opened:
        names = " ".join(str(path) for path in opened)
        yield Finding("private files", "failed", f"others can read {names}", f"chmod 600 {names}")
    else:
        yield Finding("private files", "ok", "keys and passwords are this user's alone")


def _open_to_others(path: Path) -> bool:
    return path.exists() and bool(path.stat().st_mode & 0o077)


def _required() -> Iterator[str]:
    for line in importlib.metadata.requires("broker") or []:
        requirement, _, marker = line.partition(";")
        here = not ("extra" in marker or ("win32" in marker and "!=" in marker and sys.platform == "win32"))
        if before := re.search(r"python_version < ['\"](\d+)\.(\d+)", marker):
            here = here and sys.version_info < (int(before[1]), int(before[2]))
        if here and (name := re.match(r"[A-Za-z0-9._-]+", requirement)):
            yield name[0]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
