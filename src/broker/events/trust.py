"""Following the control slot: who may do what, in memory, with a proof of how old the knowledge is.

The proof is the start of the last poll that succeeded: what Redis acknowledged before then is known here. A
process without a fresh proof must not let anybody in, because a revocation may have passed it by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import msgspec

from broker import clock, lifecycle, telemetry
from broker.domain.certificates import CertificateEntry
from broker.domain.clients import ClientEntry
from broker.domain.users import UserEntry
from broker.errors import (
    BrokerError,
    KeyErased,
    KeyUnavailable,
    LogRefused,
    LogUnavailable,
    TrustUnproved,
    UnknownEvent,
)
from broker.events import codec, control
from broker.events.connection import Redis, call, text
from broker.events.keyring import Keyring, KeyringError
from broker.events.keys import ControlKeys
from broker.events.positions import CONTROL, at
from broker.events.scripting import Script
from broker.events.sealing import ClientKeys

T = TypeVar("T")

PAGE: Final = 500
_read = Script("control_read", allow_oom=True)

_KINDS: Final[dict[str, msgspec.msgpack.Decoder[Any]]] = {
    "client:": msgspec.msgpack.Decoder(ClientEntry),
    "cert:": msgspec.msgpack.Decoder(CertificateEntry),
    "user:": msgspec.msgpack.Decoder(UserEntry),
}

log = telemetry.get_logger(__name__)


class Trust:
    """The registry in memory. `run` must be running; give it a Redis client of its own.

    `poll`: seconds between polls. `max_age`: seconds that a proof is good for.
    """

    def __init__(
        self,
        redis: Redis,
        keys: ControlKeys,
        incarnation: str,
        keyring: Keyring,
        *,
        poll: float = 0.2,
        max_age: float = 1.0,
        load_timeout: float = 5.0,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation
        self._keyring = keyring
        self._poll = poll
        self._max_age = max_age
        self._load_timeout = load_timeout
        # A connection that hangs is given up while there is still time to prove freshness on another.
        self._timeout = max(max_age - poll, max_age / 2) / 2
        self._entries: dict[str, Any] = {}
        self._wrapped: dict[str, bytes] = {}
        self._client_keys: dict[str, ClientKeys] = {}
        self._last: str | None = None
        self._added = 0
        self._proved = asyncio.Event()
        self.moved = asyncio.Event()
        """Set whenever `revision` changes; whoever waits for it clears it."""
        self.proved_at: float | None = None
        """Monotonic time at which the last successful proof began."""
        self.failure: BrokerError | None = None
        """Why the last poll failed, None when it succeeded; for health."""
        self.unreadable: set[str] = set()
        """Registry entries that this version cannot read; they count as absent."""
        self.keyring_failure: KeyringError | None = None
        """Why a changed keyring could not be read; the keys loaded before still serve."""

    # -- What callers ask ---------------------------------------------------------------------------------

    def age(self) -> float:
        """Seconds since the last proof; infinite before the first."""
        return float("inf") if self.proved_at is None else clock.monotonic() - self.proved_at

    def fresh(self) -> bool:
        """Whether the proof is young enough to let anybody in."""
        return self.age() < self._max_age

    def require_fresh(self) -> None:
        """Raises TrustUnproved unless `fresh`."""
        if not self.fresh():
            detail = "" if self.failure is None else str(self.failure)
            raise TrustUnproved(detail)

    def certificate(self, fingerprint: str) -> CertificateEntry | None:
        """The certificate with this SHA-256 fingerprint (64 lower-case hex digits)."""
        entry: CertificateEntry | None = self._entries.get(f"cert:{fingerprint}")
        return entry

    def certificates(self) -> list[CertificateEntry]:
        """Every certificate."""
        return [entry for field, entry in self._entries.items() if field.startswith("cert:")]

    @property
    def revision(self) -> str | None:
        """Up to which event the registry is known here; while it is the same, nothing changed."""
        return self._last

    def client(self, client_id: str) -> ClientEntry | None:
        """The client, erased ones too."""
        entry: ClientEntry | None = self._entries.get(f"client:{client_id}")
        return entry

    def user(self, user_id: str) -> UserEntry | None:
        """The user, disabled ones too."""
        entry: UserEntry | None = self._entries.get(f"user:{user_id}")
        return entry

    def keys(self, client_id: str) -> ClientKeys:
        """The client's keys. Raises KeyErased, KeyUnavailable, or Undecryptable if they were changed."""
        found = self._client_keys.get(client_id)
        if found is not None:
            return found
        if (entry := self.client(client_id)) is not None and entry.status == "erased":
            raise KeyErased(client_id)
        wrapped = self._wrapped.get(client_id)
        if wrapped is None:
            raise KeyUnavailable(f"{client_id} has no keys here.")
        # Unwrapped when first asked for: most processes serve few of many clients.
        unwrapped = self._client_keys[client_id] = ClientKeys.unwrap(client_id, wrapped, self._keyring)
        return unwrapped

    def clients(self) -> list[ClientEntry]:
        """Every client."""
        return [entry for field, entry in self._entries.items() if field.startswith("client:")]

    async def wait_fresh(self) -> None:
        """Return once the registry is loaded and proved."""
        while not self.fresh():
            self._proved.clear()
            await self._proved.wait()

    # -- Following ----------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop`; failures back off and heal by themselves."""
        waits = lifecycle.backoff(self._poll / 4, max(self._poll, self._max_age / 2))
        while not stop.is_set():
            try:
                await self.poll()
            except BrokerError as error:
                self._failed(error)
                await lifecycle.sleep_or_stop(next(waits), stop)
            else:
                self._succeeded()
                waits = lifecycle.backoff(self._poll / 4, max(self._poll, self._max_age / 2))
                await lifecycle.sleep_or_stop(self._poll, stop)

    async def poll(self) -> None:
        """Catch up once, and prove it. Raises LogUnavailable, LogRefused."""
        self._reload_keyring()
        began = clock.monotonic()
        if self._last is None or not await self._follow(self._last):
            await self._load()
        self.proved_at = began
        self._proved.set()

    async def _follow(self, last: str) -> bool:
        """Apply what came after `last`; False when that is not enough and all must be loaded."""
        fields: set[str] = set()
        seen = 0
        while True:
            newest, added, entries = (await self._call(self._timeout, last, PAGE))[:3]
            for entry_id, flat in entries:
                last = text(entry_id)
                try:
                    fields |= _fields(last, flat)
                except UnknownEvent:
                    # A newer version wrote it; what it touched is not known, so look at everything.
                    return False
            seen += len(entries)
            if last == text(newest):
                break
            if not entries:
                return False
        if added - self._added != seen:
            # Some entries were trimmed before they were read here.
            return False
        if fields:
            await self._refresh(sorted(fields))
        self._reached(last, added)
        return True

    async def _load(self) -> None:
        newest, added, _, registry, wrapped = await self._call(self._load_timeout, "", 0)
        entries = {text(name): value for name, value in _pairs(registry)}
        known = {name: decoded for name, value in entries.items() if (decoded := self._decode(name, value))}
        keys = {text(client): bytes(value) for client, value in _pairs(wrapped)}
        self._entries = known
        for client in self._wrapped.keys() | keys.keys():
            self._take_keys(client, keys.get(client))
        self._reached(text(newest), added)

    def _reached(self, last: str, added: int) -> None:
        if last != self._last:
            self.moved.set()
        self._last, self._added = last, added

    async def _refresh(self, fields: list[str]) -> None:
        """Read these fields again, and the keys of the clients among them."""
        clients = [field.removeprefix("client:") for field in fields if field.startswith("client:")]
        values = await _within(self._timeout, self._redis.hmget(self._keys.registry, fields))
        wrapped: list[Any] = []
        if clients:
            wrapped = await _within(self._timeout, self._redis.hmget(self._keys.client_keys, clients))
        for field, value in zip(fields, values, strict=True):
            decoded = None if value is None else self._decode(field, value)
            if decoded is None:
                self._entries.pop(field, None)
            else:
                self._entries[field] = decoded
        for client, value in zip(clients, wrapped, strict=True):
            self._take_keys(client, value)

    async def _call(self, limit: float, last: str, count: int) -> list[Any]:
        keys = [self._keys.meta, self._keys.events, self._keys.registry, self._keys.client_keys]
        reply: list[Any] = await _within(limit, _read(self._redis, keys, [self._incarnation, last, count]))
        return reply

    def _decode(self, field: str, stored: bytes | str) -> Any:
        """The entry of a followed field, else None."""
        kind, colon, _ = field.partition(":")
        decoder = _KINDS.get(kind + colon)
        if decoder is None:
            return None
        try:
            entry = decoder.decode(control.split(stored)[1] or b"")
        except msgspec.MsgspecError as error:
            # Nobody is let in by an entry that cannot be read; the others must not be kept out by it.
            if field not in self.unreadable:
                log.error("registry_entry_unreadable", field=field, reason=str(error))
            self.unreadable.add(field)
            return None
        self.unreadable.discard(field)
        return entry

    # -- Keys ---------------------------------------------------------------------------------------------

    def _take_keys(self, client_id: str, wrapped: bytes | None) -> None:
        if wrapped is not None and wrapped == self._wrapped.get(client_id):
            return
        self._client_keys.pop(client_id, None)
        if wrapped is None:
            self._wrapped.pop(client_id, None)
        else:
            self._wrapped[client_id] = wrapped

    def _reload_keyring(self) -> None:
        try:
            self._keyring.reload_if_changed()
        except KeyringError as error:
            if self.keyring_failure is None:
                log.error("keyring_unreadable", reason=str(error))
            self.keyring_failure = error
        else:
            self.keyring_failure = None

    # -- Saying so ----------------------------------------------------------------------------------------

    def _failed(self, error: BrokerError) -> None:
        if self.failure is None or self.failure.code != error.code:
            log.warning("trust_lost", code=error.code, reason=str(error))
        self.failure = error
        if isinstance(error, LogRefused):
            # What was learnt came from a log that is gone; do not wait for the proof to age.
            self.proved_at = None

    def _succeeded(self) -> None:
        if self.failure is not None:
            log.info("trust_regained", entries=len(self._entries))
        self.failure = None


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


async def _within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Await a call to Redis. Raises LogUnavailable when it fails or takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await call(awaitable)
    except TimeoutError:
        raise LogUnavailable(f"The control slot did not answer within {seconds:.1f} s.") from None


def _fields(entry_id: str, flat: list[bytes]) -> set[str]:
    stored = codec.stored(at(CONTROL, entry_id), dict(_pairs(flat)))
    return control.touched(codec.decode(stored.tag, stored.data))
