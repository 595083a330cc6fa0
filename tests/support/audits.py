"""Histories with digests, and exports of them, to be verified and tampered with."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from broker import clock
from broker.events import codec, digests, digests_making, exported_formats, exported_verifier, types
from broker.events.archive.storage import LocalStorage
from broker.events.control import Registry
from broker.events.digests_key import DigestKey
from broker.events.digests_making import Digester
from broker.events.exported_source import History
from broker.events.exported_walk import Filter, Walk
from broker.events.keyring import Keyring
from broker.settings import Settings
from support import histories, log
from support.histories import Fact

LOG_ID = "log"
PEOPLE = [
    Fact(b"user:7", types.UserCreated("7", "a@example.com", "user", "$2b$12$hash", ["demo"]), actor="system"),
    Fact(b"client:demo", types.ClientRouteChanged("demo", "webhook", "https://x", b"sealed"), actor="user:7"),
    Fact(b"client:demo", types.ClientRouteChanged("demo", "inbox"), actor="user:7"),
    Fact(b"user:7", types.PasswordChanged("7", "$2b$12$other"), actor="user:7"),
]
VISITS = [
    Fact(b"user:7", types.LoginSucceeded("7", "127.0.0.1"), actor="user:7", correlation_id=None),
    Fact(b"user:7", types.HistoryExported("csv", {"actor": "=1+1"}, 3), actor="=cmd|' /C calc'!A0"),
]


class Audited:
    """A log of one's own on the shared Valkey, its archive in a directory, and what makes digests of it."""

    def __init__(self, redis: Any, log_name: str, directory: Path) -> None:
        self.redis = redis
        self.log_name = log_name
        self.directory = directory
        self.settings = Settings(data_dir=directory, certs_dir=directory / "certs", log_name=log_name)

    async def create(self) -> Audited:
        self.keys, self.identity = await log.create(self.redis, self.log_name)
        self.keyring = Keyring.create(self.directory / "keys" / "keyring")
        self.key = DigestKey.open(self.settings, self.keyring)
        self.registry = Registry(self.redis, self.keys.control, self.identity.incarnations["control"])
        self.source = History(self.redis, self.keys, self.identity, LocalStorage(self.directory / "archive"))
        self.digester = Digester(self.registry, self.source, self.key, self.identity.log_id)
        return self

    async def append(self, stream: str, facts: list[Fact]) -> None:
        keys = next(each for each in self.keys.streams if each.stream == stream)
        # Times as of now: they choose together with the stream's own.
        shift = clock.now_ms() - histories.START_MS
        facts = [msgspec.structs.replace(fact, at=fact.at + shift) for fact in facts]
        await histories.append(self.redis, keys, facts)

    async def lived(self, messages: int = 3, rounds: int = 2) -> None:
        """Messages, people and visits, with a digest after each round."""
        for _ in range(rounds):
            for partition in range(2):
                await self.append(str(partition), histories.happy(messages, partition))
            await self.append("control", PEOPLE)
            await self.append("access", VISITS)
            await self.digester.make()

    async def signed(self) -> list[digests.Signed]:
        return await digests_making.recorded(self.source)

    async def walk(self, wanted: Filter | None = None) -> Walk:
        return Walk(self.source, digests.chained(await self.signed()), wanted)

    async def export(self, wanted: Filter | None = None, form: str = "jsonl", after: Any = None) -> bytes:
        """The bytes of an export."""
        made = exported_formats.named(form)
        out = io.BytesIO()
        out.write(made.head())
        async for block in (await self.walk(wanted)).lines(after):
            out.write(made.encode(block))
        out.write(made.end())
        return out.getvalue()

    async def digest_lines(self) -> list[dict[str, Any]]:
        """As the verifier takes them."""
        return [shown(one) for one in await self.signed()]


def shown(signed: digests.Signed) -> dict[str, Any]:
    return {"number": signed.number, "body": signed.body, "signature": signed.signature.hex()}


def lines(export: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in export.splitlines()]


def verify(
    found: list[dict[str, Any]], given: list[dict[str, Any]], *keys: bytes, **options: Any
) -> dict[str, Any]:
    """Verify lines. Raises Bad."""
    verifier = exported_verifier.Verifier(exported_verifier.Digests(given, list(keys)), **options)
    for line in found:
        verifier.take(line)
    verifier.finish()
    return verifier.report()


def verify_in_parts(
    found: list[dict[str, Any]], cuts: list[int], given: list[dict[str, Any]], *keys: bytes, **options: Any
) -> dict[str, Any]:
    """The same with the lines cut at these places, each part looked at by itself, as several processes do."""
    verifier = exported_verifier.Verifier(exported_verifier.Digests(given, list(keys)), **options)
    done = 0
    for start, end in pairwise([0, *sorted(cuts), len(found)]):
        own = exported_verifier.Parted(verifier.digests, verifier.filtered)
        try:
            for line in found[start:end]:
                own.take(line)
        except exported_verifier.Bad:
            break
        if not verifier.join(own.part()):
            break
        done = end
    for line in found[done:]:
        verifier.take(line)
    verifier.finish()
    return verifier.report()


def stored(fact: Fact, like: dict[str, Any]) -> codec.Stored:
    """A forged event at the place of an exported line."""
    from broker.events.positions import parse

    return fact.stored(parse(like["id"]))
