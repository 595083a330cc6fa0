"""Beginning an export: a digest to end at, and the event that says who exports what, before any line."""

from __future__ import annotations

import msgspec

from broker.errors import ValidationError
from broker.events import digests, digests_making, exported_walk
from broker.events.access import AccessLog
from broker.events.archive import storage
from broker.events.connection import Redis
from broker.events.control import Registry
from broker.events.digests import Signed
from broker.events.digests_key import DigestKey
from broker.events.digests_making import Digester
from broker.events.exported_source import History, Source
from broker.events.exported_walk import Filter, Walk
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.positions import Position
from broker.events.types import HistoryExported
from broker.settings import Settings


class Export(msgspec.Struct, frozen=True):
    """An export that was recorded and may begin; `signed` are the digests that it is verified with."""

    walk: Walk
    signed: list[Signed]

    @property
    def digest(self) -> int:
        """The number of the digest where it ends."""
        return self.signed[-1].number if self.signed else 0


class Exports:
    """Begins exports of one log."""

    def __init__(self, source: Source, digester: Digester, access: AccessLog) -> None:
        self.source = source
        self.digester = digester
        self._access = access

    @classmethod
    def of(
        cls, settings: Settings, redis: Redis, keys: LogKeys, identity: LogIdentity, keyring: Keyring
    ) -> Exports:
        """Out of a log and its keyring. Raises DigestKeyError, KeyUnavailable, SettingsError."""
        source = History(redis, keys, identity, storage.opened(settings))
        registry = Registry(redis, keys.control, identity.incarnations[keys.control.stream])
        key = DigestKey.open(settings, keyring)
        digester = Digester(registry, source, key, identity.log_id)
        access = AccessLog(redis, keys.access, identity.incarnations[keys.access.stream])
        return cls(source, digester, access)

    async def begin(
        self,
        wanted: Filter,
        form: str,
        *,
        actor: str,
        correlation_id: str | None = None,
        digest: int | None = None,
        after: Position | None = None,
    ) -> Export:
        """Make a digest to end at, unless one is named, and record the export, which begins after `after`.

        Raises ValidationError for a digest or a stream that there is not, LogUnavailable, LogRefused,
        DigestInvalid, ArchiveDamaged, ArchiveUnavailable, HistoryGap, UnknownEvent.
        """
        exported_walk.check_after(self.source, after)
        if digest is None:
            made = await self.digester.make(actor=actor, correlation_id=correlation_id)
            digest = made.number
        signed = await digests_making.recorded(self.source, upto=digest)
        if len(signed) != digest:
            raise ValidationError("digest", f"must be the number of a digest, at most {len(signed)}")
        walk = Walk(self.source, digests.chained(signed), wanted)
        event = HistoryExported(form, wanted.shown(), walk.events)
        await self._access.append((actor, event), actor=actor, correlation_id=correlation_id)
        return Export(walk, signed)
