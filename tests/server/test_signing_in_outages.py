"""Signing in while Redis is away, and the keys of tokens in the way."""

from __future__ import annotations

import pytest

from broker.events import connection
from broker.events.user_commands import UserCommands
from support.calling import Caller
from support.proxy import proxy_to_port
from support.waiting import wait_until
from support.world import World

LOGIN, REFRESH, PROFILE = "/portal/auth/login", "/portal/auth/refresh", "/portal/profile"
WHO = {"email": "a@example.com", "password": "a good password"}


@pytest.fixture
async def own(own_valkey, pki, tmp_path):
    client = connection.connect(own_valkey.url)
    made = await World(own_valkey.url, client, pki, tmp_path / "own", "own").create()
    await UserCommands(made.registry).create_user(WHO["email"], WHO["password"], "user", actor="system")
    yield made
    await client.aclose()


async def test_without_redis_nobody_is_let_in_or_thrown_out(own, own_valkey):
    """503 with Retry-After, never a 401 that would make a client forget its tokens; then all goes on."""
    async with own.server() as server:
        caller = Caller(server.port, own.pki.client_context())
        pair = (await caller.post(LOGIN, WHO)).json
        bearer = {"authorization": f"Bearer {pair['access_token']}"}
        await own_valkey.stop()
        for answer in (
            await caller.post(LOGIN, WHO),
            await caller.get(PROFILE, headers=bearer),
            await caller.post(REFRESH, {"refresh_token": pair["refresh_token"]}),
        ):
            assert (answer.status, answer.json["error"]) == (503, "log_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        await own_valkey.start()

        async def back():
            return (await caller.get(PROFILE, headers=bearer)).status == 200

        await wait_until(back)
        assert (await caller.post(REFRESH, {"refresh_token": pair["refresh_token"]})).status == 200


async def test_a_lost_reply_signs_nobody_out(own, own_valkey):
    """The exchange's answer is lost between Redis and the server: the client still gets its next pair."""
    async with (
        proxy_to_port(own_valkey.port) as proxy,
        own.server(url=f"redis://127.0.0.1:{proxy.port}/0") as server,
    ):
        caller = Caller(server.port, own.pki.client_context())
        pair = (await caller.post(LOGIN, WHO)).json
        pair = (await caller.post(REFRESH, {"refresh_token": pair["refresh_token"]})).json
        proxy.mode, proxy.drops = "drop-reply", 1
        answer = await caller.post(REFRESH, {"refresh_token": pair["refresh_token"]})
        assert answer.status == 200, answer.body
        assert (await caller.post(REFRESH, {"refresh_token": answer.json["refresh_token"]})).status == 200


async def test_without_its_keys_the_server_says_so(own):
    """The file is gone or open to others: 503, because no token can be judged; whole again, all goes on."""
    async with own.server() as server:
        caller = Caller(server.port, own.pki.client_context())
        pair = (await caller.post(LOGIN, WHO)).json
        bearer = {"authorization": f"Bearer {pair['access_token']}"}
        path = own.directory / "keys" / "token-keys"
        aside = path.rename(path.with_name("aside"))
        answer = await caller.get(PROFILE, headers=bearer)
        assert (answer.status, answer.json["error"]) == (503, "key_unavailable")
        assert str(path).encode() not in answer.body
        aside.rename(path)
        assert (await caller.get(PROFILE, headers=bearer)).status == 200
