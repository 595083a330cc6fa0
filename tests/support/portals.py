"""A portal of a test's own, in its process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from broker.projections.queries import Queries
from broker.services.ca.signer import Signer
from broker.services.portal.role import PortalRole
from broker.settings import Settings
from support import browsing
from support.browsing import PASSWORD, word
from support.world import World


class Visitor(httpx.AsyncClient):
    """A client of the portal `app`."""

    app: Any

    async def sign_in(self, email: str = "a@example.com") -> None:
        """Sign in by the login page."""
        csrf = word((await self.get("/login")).text)
        given = {"email": email, "password": PASSWORD, "csrf": csrf, "next": "/"}
        assert (await self.post("/login", data=given)).status_code == 303


@contextlib.asynccontextmanager
async def portal(
    world: World, mysql_url: str, url: str | None = None, *, role: str = "user", **settings: Any
) -> AsyncIterator[Visitor]:
    """A portal of its own, and a client of it; a@example.com has an account of this role."""
    await browsing.account(world.registry, "a@example.com", role, ["demo"] if role == "user" else [])
    own = Settings(**{"data_dir": world.directory, "log_name": world.log_name, "portal_port": 0} | settings)
    queries = Queries(mysql_url)
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with world.parts(url) as parts:
        del parts["appender"]
        cert, key = world.pki.server
        signer = Signer(world.pki.directory, world.pki.directory / "ca.key")
        made = PortalRole(
            own,
            **parts,
            keyring=world.keyring,
            queries=queries,
            authority=signer,
            cert=cert,
            key=key,
            ca=world.pki.ca,
        )
        running = asyncio.create_task(made.run(stop, bound.set_result))
        scheme = "http" if own.portal_plain else "https"
        context = world.pki.client_context() if scheme == "https" else True
        try:
            port = await asyncio.wait_for(bound, 10)
            async with Visitor(base_url=f"{scheme}://localhost:{port}", verify=context, timeout=30) as client:
                client.app = made.app
                yield client
        finally:
            stop.set()
            await running
            await queries.close()
