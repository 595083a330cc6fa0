"""Sessions against a real Valkey: one good token, and everything that ends it."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from broker.domain.users import UserEntry
from broker.errors import LogRefused
from broker.events import connection, sessions
from broker.events.access import AccessLog
from broker.events.control import Registry, user_field
from broker.events.keyring import Keyring
from broker.events.sessions import SessionEnded, Sessions
from broker.events.types import LoggedOut, LoginSucceeded
from broker.events.user_commands import UserCommands
from support import log
from support.proxy import proxy_to_unix

PASSWORD = "correct horse"


class Place:
    """A log with one user, and the sessions in it."""

    def __init__(self, redis, keys, identity, keyring) -> None:
        self.redis, self.keys, self.identity, self.keyring = redis, keys, identity, keyring
        self.registry = Registry(redis, keys.control, identity.incarnations["control"])
        self.users = UserCommands(self.registry)
        self.sessions = self.opened(redis)

    def opened(self, redis, **options) -> Sessions:
        incarnation = self.identity.incarnations["control"]
        return Sessions(redis, self.keys.control, incarnation, self.keyring.index_key, **options)

    async def entry(self, user_id: str) -> UserEntry:
        return await self.registry.read(user_field(user_id), UserEntry)


@pytest.fixture
async def place(redis, log_name, tmp_path: Path) -> Place:
    keys, identity = await log.create(redis, log_name)
    return Place(redis, keys, identity, Keyring.create(tmp_path / "keys" / "keyring"))


@pytest.fixture
async def user(place) -> UserEntry:
    # Another admin, so that this one may be disabled.
    await place.users.create_user("root@example.com", PASSWORD, "admin", actor="system")
    return (await place.users.create_user("a@example.com", PASSWORD, "admin", actor="system")).value


async def refused(awaitable) -> None:
    with pytest.raises(SessionEnded):
        await awaitable


async def test_each_token_works_once(place, user):
    """Token after token, and the session stays the same one."""
    first = await place.sessions.start(user)
    second = await place.sessions.rotate(first.refresh_token)
    third = await place.sessions.rotate(second.refresh_token)
    assert len({one.refresh_token for one in (first, second, third)}) == 3
    assert first.session_id == second.session_id == third.session_id
    assert third.user == user == await place.sessions.user(first.session_id)


async def test_an_old_token_ends_the_session(place, user):
    """However old; the thief's and the owner's newest token are both dead, another session is not."""
    other = await place.sessions.start(user)
    one = await place.sessions.start(user)
    two = await place.sessions.rotate(one.refresh_token)
    three = await place.sessions.rotate(two.refresh_token)
    await refused(place.sessions.rotate(one.refresh_token))
    await refused(place.sessions.rotate(three.refresh_token))
    await refused(place.sessions.user(one.session_id))
    assert await place.sessions.user(other.session_id) == user


async def test_of_many_at_once_one_wins(place, user):
    """Twenty exchanges of one token by two servers: one pair comes out, and then the session ends."""
    session = await place.sessions.start(user)
    servers = [place.sessions, place.opened(place.redis)]
    outcomes = await asyncio.gather(
        *(servers[i % 2].rotate(session.refresh_token) for i in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(one, SessionEnded) for one in outcomes) == 1
    await refused(place.sessions.user(session.session_id))


async def test_a_guess_ends_nothing(place, user):
    """Who knows the session's id, which access tokens name, cannot end it with a made-up token."""
    session = await place.sessions.start(user)
    forged = base64.urlsafe_b64encode(bytes.fromhex(session.session_id) + b"x" * 32).decode()
    bad = [
        forged,
        "",
        "x",
        "x" * 64,
        "é" * 64,
        session.refresh_token[:-1],
        session.refresh_token + "A",
        "=" * 64,
    ]
    for token in bad:
        await refused(place.sessions.rotate(token))
    assert (await place.sessions.rotate(session.refresh_token)).user == user


async def test_it_ends_by_sign_out_and_by_time(place, user):
    """Signed out twice is once; the expiry counts from sign-in and is not extended."""
    session = await place.sessions.start(user)
    assert await place.sessions.end(session.session_id, user.user_id)
    assert not await place.sessions.end(session.session_id, user.user_id)
    await refused(place.sessions.rotate(session.refresh_token))
    await refused(place.sessions.user(session.session_id))
    short = await place.opened(place.redis, days=1).start(user)
    key = place.keys.control.session(short.session_id)
    assert 0 < await place.redis.pttl(key) <= sessions.DAY_MS
    await place.redis.pexpire(key, 50_000)
    await place.sessions.rotate(short.refresh_token)
    assert 0 < await place.redis.pttl(key) <= 50_000


@pytest.mark.parametrize("how", ["disabled", "password"])
async def test_all_end_with_the_user(place, user, how):
    """Disabled, or another password (the very same too): every session is over with that command's answer."""
    one, two = await place.sessions.start(user), await place.sessions.start(user)
    if how == "disabled":
        await place.users.disable_user(user.user_id, actor="system")
    else:
        await place.users.change_password(user.user_id, PASSWORD, actor="system")
    for session in (one, two):
        await refused(place.sessions.user(session.session_id))
        await refused(place.sessions.rotate(session.refresh_token))
    # What was checked against the entry of before begins dead.
    late = await place.sessions.start(user)
    await refused(place.sessions.user(late.session_id))


async def test_a_role_applies_at_once(place, user):
    """The session goes on, with the user as they are now."""
    session = await place.sessions.start(user)
    await place.users.change_role(user.user_id, "auditor", actor="system")
    assert (await place.sessions.user(session.session_id)).role == "auditor"
    assert (await place.sessions.rotate(session.refresh_token)).user.role == "auditor"


async def test_nothing_usable_is_stored(place, user):
    """Redis holds hashes under a key that it does not hold: no token, in any spelling."""
    session = await place.sessions.start(user)
    second = await place.sessions.rotate(session.refresh_token)
    stored = await place.redis.hgetall(place.keys.control.session(session.session_id))
    flat = b"\n".join(part for pair in stored.items() for part in pair)
    for token in (session.refresh_token, second.refresh_token):
        raw = base64.urlsafe_b64decode(token)
        for form in (token.encode(), raw, raw[16:], raw[16:].hex().encode()):
            assert form not in flat
    assert session.refresh_token not in repr(session)


async def test_a_session_has_only_so_many_tokens(place, user, monkeypatch):
    """Refreshing for ever fills no memory."""
    monkeypatch.setattr(sessions, "MAX_TOKENS", 3)
    session = await place.sessions.start(user)
    for _ in range(2):
        session = await place.sessions.rotate(session.refresh_token)
    await refused(place.sessions.rotate(session.refresh_token))
    await refused(place.sessions.user(session.session_id))


async def test_a_user_has_only_so_many_sessions(place, user, monkeypatch):
    """The oldest ends when one more begins; those that ended do not count, nor do other users' sessions."""
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    one, two, three = [await place.sessions.start(user) for _ in range(3)]
    await place.sessions.end(two.session_id, user.user_id)
    four = await place.sessions.start(user)
    assert await place.sessions.user(one.session_id) == user
    five = await place.sessions.start(user)
    await refused(place.sessions.user(one.session_id))
    for live in (three, four, five):
        assert (await place.sessions.rotate(live.refresh_token)).user == user
    assert await place.redis.pttl(place.keys.control.sessions_of(user.user_id)) > 0


async def test_another_log_is_refused(place, user):
    """An emptied or older Redis is not believed."""
    session = await place.sessions.start(user)
    await place.redis.hset(place.keys.control.meta, "incarnation", "other")
    for call in (place.sessions.user(session.session_id), place.sessions.start(user)):
        with pytest.raises(LogRefused):
            await call


async def test_a_lost_reply_ends_no_session(place, user, valkey):
    """The exchange happened but its answer was lost: asked again it is not taken for a reuse."""
    # Exchanged once before, so that the server knows the script and the lost reply is the exchange's.
    session = await place.sessions.rotate((await place.sessions.start(user)).refresh_token)
    async with proxy_to_unix(valkey.url.removeprefix("unix://")) as between:
        client = connection.connect(f"redis://127.0.0.1:{between.port}")
        distant = place.opened(client)
        await distant.user(session.session_id)
        between.mode, between.drops = "drop-reply", 1
        after = await distant.rotate(session.refresh_token)
        assert between.dropped == 1
        await client.aclose()
    assert (await place.sessions.rotate(after.refresh_token)).user == user


async def test_access_events_are_written_once(place):
    """In order, together, in their own stream."""
    access = AccessLog(place.redis, place.keys.access, place.identity.incarnations["access"])
    positions = await access.append(
        ("user:u1", LoginSucceeded("u1", "127.0.0.1")), ("user:u1", LoggedOut("u1")), actor="user:u1"
    )
    assert [one.stream for one in positions] == ["access", "access"]
    assert positions == tuple(sorted(positions))
    written = await log.history(place.redis, place.keys.access)
    assert [(tag, fields[b"s"]) for tag, fields in written] == [
        ("LoginSucceeded", b"user:u1"),
        ("LoggedOut", b"user:u1"),
    ]
