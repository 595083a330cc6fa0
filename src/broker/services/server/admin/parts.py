"""What the endpoints of the admin API are made of."""

from __future__ import annotations

from typing import Any

import msgspec

from broker import telemetry
from broker.domain.authority import Authority
from broker.events.access import AccessLog
from broker.events.connection import Redis
from broker.events.control import Registry
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.reopening import Reopening
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.projections.queries import Queries
from broker.projections.visibility import ReadModels
from broker.services.server.bearer import Bearer, Caller
from broker.services.server.reading.models import Models
from broker.settings import Settings


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """The log, its keys, the registry, the read models, and who is let in: admins."""

    settings: Settings
    admins: Bearer
    redis: Redis
    keys: LogKeys
    identity: LogIdentity
    keyring: Keyring
    sealer: Sealer
    trust: Trust
    registry: Registry
    access: AccessLog
    authority: Authority
    database: ReadModels | None
    """To wait for what a command changed; None where none is configured."""

    @property
    def reopening(self) -> Reopening:
        """What is done by hand to messages."""
        kept = self.settings.outcomes_kept_ms
        return Reopening(self.redis, self.keys, self.identity, outcomes_kept_ms=kept)

    @property
    def models(self) -> Models:
        """The read models, for what is read."""
        return Models(self.database if isinstance(self.database, Queries) else None)


def by(caller: Caller) -> dict[str, Any]:
    """Who does it, and in which conversation, as commands take it."""
    return {"actor": caller.actor, "correlation_id": telemetry.correlation.get()}
