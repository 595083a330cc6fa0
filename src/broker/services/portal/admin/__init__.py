"""Pages of admins."""

from __future__ import annotations

from starlette.routing import Route

from broker.services.portal.admin.certificates import Certificates
from broker.services.portal.admin.clients import Clients
from broker.services.portal.admin.decrypting import OneMessage
from broker.services.portal.admin.overview import Overview
from broker.services.portal.admin.parked import Parked
from broker.services.portal.admin.projections import Projections
from broker.services.portal.admin.streams import Streams
from broker.services.portal.admin.users import Users
from broker.services.portal.parts import Parts


def routes(parts: Parts) -> list[Route]:
    """All of them."""
    return [
        *Overview(parts).routes(),
        *OneMessage(parts).routes(),
        *Parked(parts).routes(),
        *Users(parts).routes(),
        *Clients(parts).routes(),
        *Certificates(parts).routes(),
        *Projections(parts).routes(),
        *Streams(parts).routes(),
    ]
