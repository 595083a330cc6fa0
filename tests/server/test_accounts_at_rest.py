"""Accounts in the real table, and what is nowhere to be found."""

from __future__ import annotations

import pytest

from broker.embedded.mariadb import MariaDB
from broker.events.user_commands import UserCommands
from broker.projections import schema
from broker.projections.queries import Queries
from support import databases, readmodels
from support.calling import Caller

FIRST, SECOND = "first-marked-password", "second-marked-password"


@pytest.fixture
def url(mariadb: MariaDB):
    made = databases.create(mariadb)
    schema.migrate(made)
    yield made
    databases.drop(made)


async def everything(redis, base: str) -> bytes:
    """All keys of a log with their whole content, as Redis would write them to disk."""
    parts = []
    async for name in redis.scan_iter(f"{base}*"):
        parts += [name, await redis.dump(name)]
        kind = await redis.type(name)
        if kind == b"hash":
            parts += [part for pair in (await redis.hgetall(name)).items() for part in pair]
        elif kind == b"stream":
            parts += [value for _, fields in await redis.xrange(name) for value in fields.values()]
    return b"\n".join(parts)


@pytest.mark.case("TC-S-012")
@pytest.mark.usefixtures("full_cost")
async def test_passwords_are_bcrypt_in_the_table_and_plain_nowhere(world, url):
    """`$2b$12$` for both, another one after the change, seen with its answer; neither password nor token anywhere."""
    user = (
        await UserCommands(world.registry).create_user("a@example.com", FIRST, "user", actor="system")
    ).value
    queries = Queries(url)
    streams = (world.keys.control, world.keys.access)
    runners = [readmodels.runner(world.redis, keys, world.identity, queries.store) for keys in streams]
    async with readmodels.running(*runners), world.server(database=queries) as server:
        caller = Caller(server.port, world.pki.client_context())
        pair = (await caller.post("/portal/auth/login", {"email": user.email, "password": FIRST})).json
        answer = await caller.post(
            "/portal/profile/password",
            {"current_password": FIRST, "new_password": SECOND},
            headers={"authorization": f"Bearer {pair['access_token']}"},
        )
        assert answer.status == 200, answer.body
        assert "visible" not in answer.json
        (row,) = await queries.store.select("SELECT * FROM users")
        assert row["password_hash"].startswith("$2b$12$")
        assert row["password_hash"] != user.password_hash
        assert user.password_hash.startswith("$2b$12$")
        again = await caller.post("/portal/auth/login", {"email": user.email, "password": SECOND})
        assert again.status == 200
        tables = repr(await readmodels.tables(queries.store)).encode()
    await queries.close()
    log = await everything(world.redis, f"b1:{{{world.log_name}")
    assert b"PasswordChanged" in log
    assert b"password_hash" in tables
    tokens = [made[name] for made in (pair, answer.json) for name in ("access_token", "refresh_token")]
    for secret in (FIRST, SECOND, *tokens):
        assert secret.encode() not in log
        assert secret.encode() not in tables
