"""The routes of the read side, out of its parts."""

from __future__ import annotations

from starlette.routing import Route

from broker.events.access import AccessLog
from broker.events.connection import Redis
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.projections.queries import Queries
from broker.services.server.bearer import Bearer
from broker.services.server.reading.audit import Audit
from broker.services.server.reading.messages import Messages
from broker.services.server.reading.models import Models
from broker.services.server.reading.stats import Stats


def routes(
    bearer: Bearer,
    queries: Queries | None,
    access: AccessLog,
    *,
    redis: Redis,
    keys: LogKeys,
    identity: LogIdentity,
    sealer: Sealer,
    trust: Trust,
) -> list[Route]:
    """All of them; each takes an access token. Without a database they answer 503."""
    models = Models(queries)
    messages = Messages(bearer, models, sealer, trust, access, partitions=len(keys.partitions))
    return [
        Route("/portal/messages", messages.of_reader, methods=["GET"]),
        Route("/portal/messages/{message_id}", messages.one, methods=["GET"]),
        Route("/admin/messages", messages.of_all, methods=["GET"]),
        Route("/admin/stats", Stats(bearer, models, redis, keys, identity).read, methods=["GET"]),
        Route("/audit/events", Audit(bearer, models).events, methods=["GET"]),
    ]
