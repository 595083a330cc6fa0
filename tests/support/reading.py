"""People who are signed in to a server on read models, and producers' messages for them to see."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from broker.events.positions import Position
from broker.events.user_commands import UserCommands
from broker.projections.queries import Queries
from broker.projections.store import Store
from support.calling import Caller
from support.readmodels import reached, runner, running
from support.serving import Answered
from support.waiting import wait_until

PASSWORD = "correct horse battery"
NUMBER = "+4915212345678"
BODY = "the body that nobody may see"
READERS = {
    "reader": ("user", ["demo"]),
    "other": ("user", ["acme"]),
    "both": ("user", ["acme", "demo"]),
    "nobody": ("user", []),
    "admin": ("admin", []),
    "auditor": ("auditor", []),
}


class Reading:
    """A server on read models, people signed in, and producers' messages."""

    def __init__(self, world, server, store: Store) -> None:
        self.world = world
        self.server = server
        self.store = store
        self.anonymous = Caller(server.port, world.pki.client_context())
        self.internal = Caller(server.port, world.contexts["internal"])
        self.tokens: dict[str, str] = {}

    async def person(self, name: str) -> None:
        """Somebody with an account, signed in."""
        role, clients = READERS[name]
        commands = UserCommands(self.world.registry)
        await commands.create_user(f"{name}@example.com", PASSWORD, role, clients, actor="system")
        given = {"email": f"{name}@example.com", "password": PASSWORD}
        answer = await self.anonymous.post("/portal/auth/login", given)
        assert answer.status == 200, answer.body
        self.tokens[name] = answer.json["access_token"]

    async def get(self, name: str, path: str) -> Answered:
        """GET as that person, who signs in first."""
        return await self.request(name, "GET", path)

    async def post(self, name: str, path: str, body=None, **options) -> Answered:
        """POST as that person, who signs in first."""
        return await self.request(name, "POST", path, body, **options)

    async def request(self, name: str, method: str, path: str, body=None, headers=None) -> Answered:
        """Any request as that person, who signs in first."""
        if name not in self.tokens:
            await self.person(name)
        token = {"authorization": f"Bearer {self.tokens[name]}"}
        return await self.anonymous.request(method, path, body, headers=token | (headers or {}))

    async def register(self, client: str, number: str = NUMBER, body: str = BODY) -> str:
        """A message queued; its id."""
        given = {"client_id": client, "sender_number": number, "message_body": body}
        answer = await self.internal.post("/internal/messages/register", given)
        assert answer.status == 200, answer.body
        return answer.json["message_id"]

    async def deliver(self, message_id: str) -> None:
        given = {"message_id": message_id, "worker_id": "w1"}
        assert (await self.internal.post("/internal/messages/deliver", given)).status == 200

    async def caught_up(self) -> None:
        """Return once the read models show everything."""
        for stream in self.world.keys.streams:
            newest = await self.world.redis.xrevrange(stream.events, count=1)
            if newest:
                ms, _, seq = newest[0][0].decode().partition("-")
                last = Position(stream.stream, int(ms), int(seq))
                await wait_until(lambda last=last: reached(self.store, last))


@contextlib.asynccontextmanager
async def opened(world, url: str, **options) -> AsyncIterator[Reading]:
    """A server and a projector at work on the database at `url`; producers `demo` and `acme`."""
    await world.producer("acme")
    queries, store = Queries(url), Store(url)
    runners = [runner(world.redis, stream, world.identity, store) for stream in world.keys.streams]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(queries.close)
        stack.push_async_callback(store.close)
        projecting = await stack.enter_async_context(contextlib.AsyncExitStack())
        await projecting.enter_async_context(running(*runners))
        server = await stack.enter_async_context(world.server(database=queries, **options))
        found = Reading(world, server, store)
        found.stop_projecting = projecting.aclose
        yield found
