"""The routes of the admin API, out of its parts."""

from __future__ import annotations

from starlette.routing import Route

from broker.services.server.admin.certificates import Certificates
from broker.services.server.admin.clients import Clients
from broker.services.server.admin.crl import RevocationList
from broker.services.server.admin.keys import RotateKeys
from broker.services.server.admin.parked import Parked
from broker.services.server.admin.parts import Parts
from broker.services.server.admin.projections import ReadProjections
from broker.services.server.admin.projections_rebuild import RebuildProjection
from broker.services.server.admin.resend import Resend
from broker.services.server.admin.users import Users


def routes(parts: Parts) -> list[Route]:
    """All of them. Each takes an admin's access token, but for the revocation list, which is public."""
    crl = RevocationList(parts.trust, parts.authority, hours=parts.settings.crl_hours)
    return [
        *Users(parts).routes(),
        *Clients(parts).routes(),
        *Certificates(parts).routes(),
        *crl.routes(),
        *RotateKeys(parts).routes(),
        *Resend(parts).routes(),
        *Parked(parts).routes(),
        *ReadProjections(parts).routes(),
        *RebuildProjection(parts).routes(),
    ]
