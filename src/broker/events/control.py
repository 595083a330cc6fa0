"""The control slot: a registry of clients, certificates and users, changed together with its events.

A change is an optimistic transaction. `decide` is pure: it looks at entries through a `View` and answers with
`Changes` or raises; the write happens only if every entry it looked at is still the same, else it decides
anew.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from broker import clock
from broker.errors import LogRefused, LogUnavailable
from broker.events import codec, envelope, types
from broker.events.connection import Redis, call, text
from broker.events.keys import ControlKeys
from broker.events.positions import CONTROL, Position, at
from broker.events.scripting import Arg, Script

T = TypeVar("T")

BATCH_TTL_MS: Final = 60_000
"""A retry of a lost reply comes within this time or not at all."""
MAX_DECISIONS: Final = 100
ABSENT: Final = "0"

# Revoking and disabling must work on a Redis that is at its maxmemory; these writes are few and small.
_append = Script("control_append", allow_oom=True)


def client_field(client_id: str) -> str:
    """The registry field of a ClientEntry."""
    return f"client:{client_id}"


def certificate_field(fingerprint: str) -> str:
    """The registry field of a CertificateEntry."""
    return f"cert:{fingerprint}"


def user_field(user_id: str) -> str:
    """The registry field of a UserEntry."""
    return f"user:{user_id}"


_KEYS_OF: Final = "client-keys:"
FOLLOWED: Final = ("client:", "cert:", "user:")
"""Fields that followers hold in memory; each write of one needs an event that names it (`touched`)."""


def touched(event: types.Event) -> set[str]:
    """The followed fields that may have changed with `event`."""
    match event:
        case types.CertRenewed():
            certificates = {certificate_field(event.fingerprint), certificate_field(event.replaces)}
            return certificates | {client_field(event.client_id)}
        case types.CertIssued() | types.CertRevoked():
            return {certificate_field(event.fingerprint), client_field(event.client_id)}
        case types.ClientRegistered() | types.ClientRouteChanged() | types.ClientErased():
            return {client_field(event.client_id)}
        case types.KeyRotated(client_id=str(client_id)):
            return {client_field(client_id)}
        case (
            types.UserCreated()
            | types.UserRoleChanged()
            | types.UserClientsChanged()
            | types.UserDisabled()
            | types.PasswordChanged()
        ):
            return {user_field(event.user_id)}
    return set()


class _Wanted(Exception):
    """A decision asked for a field that is not loaded yet."""


class View:
    """The registry as one decision sees it; what it looks at is checked when its changes are written."""

    def __init__(self, entries: Mapping[str, tuple[str, bytes | None]]) -> None:
        self._entries = entries
        self.read: dict[str, str] = {}
        """Versions of the fields that were looked at."""

    def raw(self, field: str) -> bytes | None:
        """The payload of an entry, None if there is none."""
        entry = self._entries.get(field)
        if entry is None:
            raise _Wanted(field)
        self.read[field] = entry[0]
        return entry[1]

    def get(self, field: str, kind: type[T]) -> T | None:
        """The decoded entry, None if there is none."""
        payload = self.raw(field)
        return None if payload is None else msgspec.msgpack.decode(payload, type=kind)

    def client_keys(self, client_id: str) -> bytes | None:
        """A client's wrapped keys; they are as old as its entry, because whoever writes them writes both."""
        self.raw(client_field(client_id))
        entry = self._entries.get(_KEYS_OF + client_id)
        if entry is None:
            raise _Wanted(_KEYS_OF + client_id)
        return entry[1]


class Changes(msgspec.Struct, Generic[T]):
    """What a decision wants written. `writes` are encoded as msgpack; None deletes the entry.

    `client_keys` are stored as they are (wrapped); whoever writes them also writes the client's entry.
    `events` are pairs of subject (`client:demo`) and event, in order. `value` is handed to the caller.
    """

    value: T
    events: list[tuple[str, types.Event]] = []
    writes: dict[str, Any] = {}
    client_keys: dict[str, bytes | None] = {}


class Committed(msgspec.Struct, Generic[T], frozen=True):
    """A transaction that is durable; `positions` of its events in order (none: nothing had to change)."""

    value: T
    positions: tuple[Position, ...]


class Registry:
    """Transactions on the control slot of one log."""

    def __init__(self, redis: Redis, keys: ControlKeys, incarnation: str, *, retry_for: float = 5.0) -> None:
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation
        self._retry_for = retry_for

    async def transact(
        self,
        decide: Callable[[View], Changes[T]],
        *,
        actor: str,
        correlation_id: str | None = None,
        causation: str | None = None,
    ) -> Committed[T]:
        """Decide and write, again while somebody else's write comes between. Raises what `decide` raises.

        Raises LogUnavailable when the outcome is unknown or the entries never held still, and LogRefused.
        """
        loaded: dict[str, tuple[str, bytes | None]] = {}
        for _ in range(MAX_DECISIONS):
            changes, view = await self._decide(decide, loaded)
            if not (changes.events or changes.writes or changes.client_keys):
                return Committed(changes.value, ())
            _check(changes, view)
            stored = envelope.encode(clock.now_ms(), actor, correlation_id, causation)
            reply = await self._write(_arguments(changes, view, stored))
            if reply[0] == b"ok":
                return Committed(changes.value, tuple(at(CONTROL, entry) for entry in reply[2:]))
            loaded.clear()
            await asyncio.sleep(random.uniform(0, 0.01))
        raise LogUnavailable(f"{MAX_DECISIONS} decisions in a row were overtaken; nothing was written.")

    async def read(self, field: str, kind: type[T]) -> T | None:
        """One entry as it is now."""
        return View(await self._load([field])).get(field, kind)

    async def client_keys(self, client_id: str) -> bytes | None:
        """A client's wrapped keys as they are now."""
        found = await self._patiently(lambda: call(self._redis.hget(self._keys.client_keys, client_id)))
        return None if found is None else bytes(found)  # type: ignore[arg-type]

    async def _decide(
        self, decide: Callable[[View], Changes[T]], loaded: dict[str, tuple[str, bytes | None]]
    ) -> tuple[Changes[T], View]:
        while True:
            view = View(loaded)
            try:
                return decide(view), view
            except _Wanted as wanted:
                # Entries read at different times are fine: the script compares all their versions at once.
                field = wanted.args[0]
                if field.startswith(_KEYS_OF):
                    loaded[field] = ABSENT, await self.client_keys(field.removeprefix(_KEYS_OF))
                else:
                    loaded |= await self._load([field])

    async def _load(self, fields: list[str]) -> dict[str, tuple[str, bytes | None]]:
        values = await self._patiently(lambda: call(self._redis.hmget(self._keys.registry, fields)))
        return {name: split(value) for name, value in zip(fields, values, strict=True)}

    async def _write(self, args: list[Arg]) -> list[bytes]:
        """One call, repeated under the same batch id while its answer is unknown."""
        batch = self._keys.batch(secrets.token_hex(12))
        keys = [self._keys.meta, self._keys.events, self._keys.registry, self._keys.client_keys, batch]
        reply: list[bytes] = await self._patiently(
            lambda: _append(self._redis, keys, [self._incarnation, *args])
        )
        return reply

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat what may be repeated while Redis is away, for `retry_for` seconds."""
        give_up = clock.monotonic() + self._retry_for
        wait = 0.02
        while True:
            try:
                return await attempt()
            except LogRefused:
                raise
            except LogUnavailable:
                if clock.monotonic() + wait > give_up:
                    raise
                await asyncio.sleep(wait)
                wait = min(wait * 2, 0.5)


def split(stored: bytes | str | None) -> tuple[str, bytes | None]:
    """Version and payload of a stored entry."""
    if stored is None:
        return ABSENT, None
    raw = stored.encode() if isinstance(stored, str) else stored
    version, _, payload = raw.partition(b"|")
    return text(version), payload


def _check(changes: Changes[Any], view: View) -> None:
    """What would break followers or lose somebody's write is a mistake in the decision."""
    unread = changes.writes.keys() - view.read.keys()
    if unread:
        raise ValueError(f"written without having been read: {sorted(unread)}")
    unguarded = {client_field(client) for client in changes.client_keys} - changes.writes.keys()
    if unguarded:
        raise ValueError(f"keys written without their client's entry: {sorted(unguarded)}")
    named = {field for _, event in changes.events for field in touched(event)}
    silent = {field for field in changes.writes if field.startswith(FOLLOWED)} - named
    if silent:
        raise ValueError(f"no event tells followers of {sorted(silent)}")


def _arguments(changes: Changes[Any], view: View, stored_envelope: bytes) -> list[Arg]:
    """What `control_append.lua` takes after the incarnation."""
    written = {name: value for name, value in changes.writes.items() if value is not None}
    keys = {name: value for name, value in changes.client_keys.items() if value is not None}
    gone = [name for name in changes.writes if name not in written]
    keys_gone = [name for name in changes.client_keys if name not in keys]
    counts = (view.read, written, gone, keys, keys_gone, changes.events)
    args: list[Arg] = [BATCH_TTL_MS, *(len(part) for part in counts)]
    for name, version in view.read.items():
        args += (name, version)
    for name, value in written.items():
        args += (name, msgspec.msgpack.encode(value))
    args += gone
    for name, wrapped in keys.items():
        args += (name, wrapped)
    args += keys_gone
    for subject, event in changes.events:
        args += (codec.tag_of(event), subject, stored_envelope, codec.encode(event))
    return args
