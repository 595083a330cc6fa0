"""The routes of the admin API, out of its parts."""

from __future__ import annotations

from starlette.routing import Route

from broker.services.server.admin.parts import Parts


def routes(parts: Parts) -> list[Route]:  # noqa: ARG001 - each endpoint takes what it needs of them
    """All of them; each takes an admin's access token."""
    return []
