"""The routes of the audit API, out of their parts."""

from __future__ import annotations

from functools import partial

from starlette.routing import Route

from broker.events.connection import Redis
from broker.events.digests_key import PUBLIC_FILE
from broker.events.exported_session import Exports
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.services.server.audit.audit import Audit
from broker.services.server.bearer import Bearer
from broker.settings import Settings


def routes(
    bearer: Bearer,
    settings: Settings,
    *,
    redis: Redis,
    keys: LogKeys,
    identity: LogIdentity,
    keyring: Keyring,
) -> list[Route]:
    """All of them; each takes an auditor's or an admin's access token."""
    make = partial(Exports.of, settings, redis, keys, identity, keyring)
    return Audit(bearer, make, lambda: (settings.certs_dir / PUBLIC_FILE).read_text("ascii")).routes()
