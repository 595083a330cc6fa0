"""Copies of the clients' wrapped keys outside Redis, so that an emptied Redis loses no bodies.

A copy is a file of its own, `<log>/<client>@<ms>-<seq>.<digest>`: what Redis held when the control stream
ended there. The highest position counts, so that an older Redis put back never replaces newer keys, and a
crash leaves the old copy or the new one. Of an erased client one mark stays, `<client>@erased`: it outweighs
every copy, whoever puts one back. Nothing of this lies among the archive's segments, which nobody erases.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from broker.domain.clients import ClientEntry
from broker.errors import UnknownEvent
from broker.events import codec, types
from broker.events.archive import storage
from broker.events.archive.segments import Entry
from broker.events.archive.storage import Storage
from broker.events.codec import Stored
from broker.events.connection import Redis, text
from broker.events.control import split
from broker.events.keys import ControlKeys
from broker.events.positions import CONTROL, Position, at
from broker.events.scripting import Script
from broker.settings import Settings

ERASED: Final = "erased"
AT_ONCE: Final = 500
_NAME: Final = re.compile(r"([a-z0-9][a-z0-9._-]*)@(?:(\d+-\d+)\.([0-9a-f]{16})|erased)\Z")
_TAGS: Final = frozenset({"ClientRegistered", "KeyRotated", "ClientErased"})
_read: Final = Script("client_keys_read", allow_oom=True)


class Copy(msgspec.Struct, frozen=True, order=True):
    """One client's keys as they were when the control stream ended at `position`."""

    position: Position
    digest: str


class Held(NamedTuple):
    """Each client's copies, the newest last; and the clients that were erased, whatever copies they have."""

    copies: dict[str, list[Copy]]
    erased: set[str]


class KeyCopies:
    """The copies of one log's client keys. Raises ArchiveUnavailable."""

    def __init__(self, where: Storage, log_id: str) -> None:
        self.shown = f"{where.shown}/{log_id}"
        self._where = where
        self._log_id = log_id

    # Everything here blocks, so call it in a thread.

    def held(self) -> Held:
        """What there is, by one look."""
        copies: dict[str, list[Copy]] = {}
        erased: set[str] = set()
        for name in self._where.names(self._log_id):
            if (found := _NAME.match(name)) is None:
                continue
            if found[2] is None:
                erased.add(found[1])
            else:
                copies.setdefault(found[1], []).append(Copy(at(CONTROL, found[2]), found[3]))
        return Held({client: sorted(found) for client, found in copies.items()}, erased)

    def load(self) -> dict[str, bytes]:
        """The newest whole copy of each client that was not erased."""
        held = self.held()
        found: dict[str, bytes] = {}
        for client, copies in held.copies.items():
            for copy in reversed([] if client in held.erased else copies):
                content = self._where.get(self._name(client, copy))
                if content is not None and digest(content) == copy.digest:
                    found[client] = content
                    break
        return found

    def put(self, client_id: str, position: Position, wrapped: bytes, held: Held | None = None) -> None:
        """Keep a client's keys, durably on return; older copies go. Nothing is kept of an erased client.

        `held`: a look at what there is, where one was just taken.
        """
        held = held or self.held()
        new = Copy(position, digest(wrapped))
        known = held.copies.get(client_id, [])
        if client_id in held.erased or (known and known[-1].position > position):
            return
        if not known or known[-1].digest != new.digest:
            self._where.put(self._name(client_id, new), wrapped)
            known = [*known, new]
        for old in known[:-1]:
            self._where.remove(self._name(client_id, old))

    def erase(self, client_id: str, held: Held | None = None) -> None:
        """Remove every copy of a client's keys, for good."""
        held = held or self.held()
        if client_id not in held.erased:
            # First, so that no crash leaves room for a copy to come back.
            self._where.put(f"{self._log_id}/{client_id}@{ERASED}", b"erased\n")
        for copy in held.copies.get(client_id, []):
            self._where.remove(self._name(client_id, copy))

    def _name(self, client_id: str, copy: Copy) -> str:
        return f"{self._log_id}/{client_id}@{copy.position.entry_id}.{copy.digest}"


class KeyKeeper:
    """Keeps the copies in step with the control slot, on behalf of whoever archives the control stream."""

    def __init__(self, redis: Redis, keys: ControlKeys, incarnation: str, copies: KeyCopies) -> None:
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation
        self.copies = copies

    async def follow(self, entries: Sequence[Entry]) -> None:
        """Take in what these events have changed; before it is done, they must not count as archived.

        Raises LogUnavailable, LogRefused, ArchiveUnavailable.
        """
        try:
            named = _named(entries)
        except UnknownEvent:
            # A newer version wrote it; whose keys it touched is not known, so look at all.
            await self.catch_up()
            return
        for first in range(0, len(named), AT_ONCE):
            await self._keep(named[first : first + AT_ONCE])

    async def catch_up(self) -> None:
        """Copy what no copy holds, as after an upgrade; remove what is left of erased clients.

        Raises as `follow`.
        """
        await self._keep([])
        # Erased, they have no keys that would name them; somebody may have put an old copy back.
        held = await asyncio.to_thread(self.copies.held)
        known = sorted(client for client, copies in held.copies.items() if copies)
        for first in range(0, len(known), AT_ONCE):
            await self._keep(known[first : first + AT_ONCE])

    async def _keep(self, clients: Sequence[str]) -> None:
        last, *rows = await self._ask(clients)
        found = list(zip(rows[::3], rows[1::3], rows[2::3], strict=True))
        if found:
            await asyncio.to_thread(self._copy, at(CONTROL, text(last)), found)

    async def _ask(self, clients: Sequence[str]) -> list[Any]:
        keys = [self._keys.meta, self._keys.events, self._keys.registry, self._keys.client_keys]
        reply: list[Any] = await _read(self._redis, keys, [self._incarnation, *clients])
        return reply

    def _copy(self, position: Position, found: Sequence[tuple[bytes, bytes | None, bytes | None]]) -> None:
        held = self.copies.held()
        for client, wrapped, entry in found:
            if _erased(entry):
                self.copies.erase(text(client), held)
            elif wrapped is not None:
                self.copies.put(text(client), position, wrapped, held)


def _erased(entry: bytes | None) -> bool:
    payload = split(entry)[1]
    return payload is not None and msgspec.msgpack.decode(payload, type=ClientEntry).status == ERASED


def digest(wrapped: bytes) -> str:
    """The part of a copy's name that tells whether it is whole."""
    return hashlib.sha256(wrapped).hexdigest()[:16]


def opened(settings: Settings, log_id: str) -> KeyCopies:
    """Where `client_keys_url` says, else by its default; nothing is looked at yet. Raises SettingsError."""
    return KeyCopies(storage.beside(settings), log_id)


def erasable(settings: Settings, log_id: str, *, inspection: bool) -> KeyCopies | None:
    """As `opened`, to be changed; where a copy runs for inspection only those in its own data directory.

    Copies elsewhere are those of the system that was copied, which may need them yet.
    """
    if inspection and (settings.client_keys_url or settings.archive_url):
        return None
    return opened(settings, log_id)


def _named(entries: Iterable[Entry]) -> list[str]:
    """The clients whose keys these events have changed. Raises UnknownEvent."""
    found: set[str] = set()
    for entry in entries:
        if isinstance(entry, Stored) and entry.tag.partition(".")[0] in _TAGS:
            event = codec.decode(entry.tag, entry.data)
            assert isinstance(event, types.ClientRegistered | types.ClientErased | types.KeyRotated)  # noqa: S101
            if event.client_id is not None:
                found.add(event.client_id)
    return sorted(found)
