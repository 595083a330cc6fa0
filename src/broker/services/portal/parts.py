"""What pages are made of."""

from __future__ import annotations

import asyncio

import msgspec

from broker.domain.authority import Authority
from broker.events.accounts import Accounts
from broker.events.connection import Redis
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.reopening import Reopening
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.projections.queries import Queries
from broker.projections.showing import Showing
from broker.services.portal.visitors import Gate
from broker.settings import Settings


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """The log, its keys, the accounts, the read models, and who is let in."""

    settings: Settings
    gate: Gate
    accounts: Accounts
    redis: Redis
    keys: LogKeys
    identity: LogIdentity
    keyring: Keyring
    sealer: Sealer
    trust: Trust
    queries: Queries
    authority: Authority
    stopping: asyncio.Event
    """Set when the process is to end: what streams must end then, too."""

    @property
    def reopening(self) -> Reopening:
        """What is done by hand to messages."""
        kept = self.settings.outcomes_kept_ms
        return Reopening(self.redis, self.keys, self.identity, outcomes_kept_ms=kept)

    @property
    def showing(self) -> Showing:
        """Messages as they are listed."""
        return Showing(self.sealer, self.trust)
