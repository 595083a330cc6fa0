"""A portal of a test's own, in its process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from broker import bootstrap
from broker.events.trust import Trust
from broker.preparation import opened
from broker.projections.queries import Queries
from broker.services.ca.signer import Signer
from broker.services.portal.role import PortalRole
from broker.settings import Settings
from support import browsing
from support.browsing import PASSWORD, word
from support.system import System
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


@contextlib.asynccontextmanager
async def beside(system: System, mysql_url: str) -> AsyncIterator[str]:
    """One more portal of a running system, in this process, with its tables at `mysql_url`; its origin."""
    settings = msgspec.structs.replace(system.settings, mysql_url=mysql_url, portal_port=0)
    queries = Queries(mysql_url)
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with opened(settings) as tools, contextlib.AsyncExitStack() as held:
        parts = bootstrap.Parts(settings, tools.redis, tools.keys, tools.identity, tools.keyring, "portal")
        following = bootstrap.connect(settings, pool=2)
        held.push_async_callback(following.aclose)
        control = tools.keys.control
        incarnation = tools.identity.incarnations[control.stream]
        trust = Trust(following, control, incarnation, tools.keyring, max_age=settings.trust_max_age)
        async with bootstrap.followed(parts, trust, stop) as fullness:
            made = bootstrap.portal_role(parts, trust, queries, full=lambda: fullness.reason)
            running = asyncio.create_task(made.run(stop, bound.set_result))
            try:
                yield f"http://localhost:{await asyncio.wait_for(bound, 30)}"
            finally:
                stop.set()
                await running
                await queries.close()
