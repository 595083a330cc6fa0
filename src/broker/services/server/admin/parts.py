"""What the endpoints of the admin API are made of."""

from __future__ import annotations

import msgspec

from broker.events.access import AccessLog
from broker.events.connection import Redis
from broker.events.control import Registry
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.projections.queries import Queries
from broker.services.server.bearer import Bearer
from broker.services.server.reading.models import Models
from broker.services.server.visibility import ReadModels
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
    database: ReadModels | None
    """To wait for what a command changed; None where none is configured."""

    @property
    def models(self) -> Models:
        """The read models, for what is read."""
        return Models(self.database if isinstance(self.database, Queries) else None)
