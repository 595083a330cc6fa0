"""What a system that runs is made of: where each component answers, its version, who is known to it.

Asked of the servers themselves: of the installation that the report asks, of what the suites ran on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from broker.errors import BrokerError
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.embedded.probe import Target

ROLES: Final = {
    "gateway": "Gateway",
    "server": "Server",
    "worker": "Worker",
    "projector": "Projector",
    "portal": "Portal",
}
REDIS, MYSQL = "Redis", "MySQL"
NAMES: Final = (*ROLES.values(), REDIS, MYSQL)
ANSWER_SECONDS = 10


class Seen(msgspec.Struct, frozen=True):
    """By the names of NAMES; what did not answer has no version."""

    addresses: dict[str, str] = {}
    versions: dict[str, str] = {}


class Measured(msgspec.Struct, frozen=True):
    """A system that a suite ran on, at its end."""

    suite: str
    source: str
    at: float
    seen: Seen
    users: dict[str, str] = {}
    """Each one's role by the address."""
    clients: list[str] = []
    messages: int = 0
    """As the tables have them."""


def directory(root: Path) -> Path:
    """Where the suites leave what they ran on, a file each."""
    return root / "var" / "results" / "measured"


def read(root: Path, source: str) -> list[Measured]:
    """What ran on this source, by suite."""
    found = [msgspec.json.decode(path.read_bytes(), type=Measured) for path in directory(root).glob("*.json")]
    return sorted((one for one in found if one.source == source), key=lambda one: (one.suite, one.at))


async def look(settings: Settings) -> Seen:
    """Ask every component; one that is away is left out."""
    from broker.cli import services

    settings = _resolved(settings)
    addresses: dict[str, list[str]] = {}
    versions: dict[str, list[str]] = {}
    for name, target in services.targets(settings).items():
        component = ROLES[name.partition("-")[0]]
        addresses.setdefault(component, []).append(target.url)
        if version := await _role(target):
            versions.setdefault(component, []).append(version)
    for component, url, ask in ((REDIS, settings.redis_url, _redis), (MYSQL, settings.mysql_url, _mysql)):
        if url is None:
            continue
        addresses[component] = [_plain(url)]
        if version := await ask(settings):
            versions[component] = [version]
    return Seen(_once(addresses), _once(versions))


def _resolved(settings: Settings) -> Settings:
    """With the addresses of the embedded servers, where these run."""
    from broker.embedded.state import running
    from broker.embedded.urls import resolve

    return resolve(settings) if running(settings.data_dir) is not None else settings


def _once(found: dict[str, list[str]]) -> dict[str, str]:
    """What several processes of a kind say alike is said once."""
    return {name: ", ".join(dict.fromkeys(each)) for name, each in found.items()}


async def measured(settings: Settings, suite: str, source: str, at: float) -> Measured:
    """As `look`, with who is known there; nobody where the database is away."""
    from broker.projections.store import Store

    seen = await look(settings)
    settings = _resolved(settings)
    if settings.mysql_url is None:
        return Measured(suite, source, at, seen)
    store = Store(settings.mysql_url)
    try:
        users = await store.select("SELECT email, role FROM users")
        clients = await store.select("SELECT client_id FROM clients")
        [messages] = await store.select("SELECT COUNT(*) AS n FROM messages")
    except BrokerError:
        return Measured(suite, source, at, seen)
    finally:
        await store.close()
    people = {str(one["email"]): str(one["role"]) for one in users}
    names = sorted(str(one["client_id"]) for one in clients)
    return Measured(suite, source, at, seen, people, names, int(messages["n"]))


async def _role(target: Target) -> str:
    from broker.embedded import probe

    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, body = await probe.get(target, target.path)
        return str(msgspec.json.decode(body)["version"])
    except (OSError, ValueError, KeyError, TypeError):  # TimeoutError is an OSError
        return ""


async def _redis(settings: Settings) -> str:
    from broker.events import connection, durability

    client = connection.connect(str(settings.redis_url), timeout=settings.redis_timeout)
    try:
        await durability.check(client, settings)
        said = await client.info("server")
    except BrokerError:
        return ""
    finally:
        await client.aclose()
    valkey = said.get("valkey_version")
    return f"Valkey {valkey}" if valkey else f"Redis {said.get('redis_version', '')}"


async def _mysql(settings: Settings) -> str:
    from broker.projections.store import Store

    store = Store(str(settings.mysql_url))
    try:
        [row] = await store.select("SELECT VERSION() AS version")
    except BrokerError:
        return ""
    finally:
        await store.close()
    version = str(row["version"])
    return f"MariaDB {version.replace('-MariaDB', '')}" if "MariaDB" in version else f"MySQL {version}"


def _plain(url: str) -> str:
    """Where it is, without names, passwords and parameters; a socket by its kind."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or "unix_socket=" in parts.query:
        return "a socket in the data directory"
    return parts.hostname + (f":{parts.port}" if parts.port else "") if parts.hostname else "not known"
