"""Following the control slot: complete, soon, proved, and never trusting a silent connection."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager

import msgspec
import pytest

from broker import clock
from broker.domain.certificates import CertificateEntry
from broker.errors import KeyErased, KeyUnavailable, LogRefused, TrustUnproved
from broker.events import connection
from broker.events import trust as trust_module
from broker.events.certificate_commands import CertificateCommands
from broker.events.client_commands import ClientCommands
from broker.events.control import Registry, client_field
from broker.events.key_commands import KeyCommands
from broker.events.keyring import Keyring
from broker.events.keys import ControlKeys
from broker.events.trust import Trust
from broker.events.user_commands import UserCommands
from support import log as logs
from support.proxy import proxy_to_unix
from support.waiting import wait_until


class World:
    """A control slot, commands on it and followers of it."""

    def __init__(self, redis, keys: ControlKeys, incarnation: str, keyring: Keyring) -> None:
        self.redis, self.keys, self.incarnation, self.keyring = redis, keys, incarnation, keyring
        registry = Registry(redis, keys, incarnation)
        self.registry = registry
        self.clients = ClientCommands(registry, keyring)
        self.certificates = CertificateCommands(registry)
        self.users = UserCommands(registry)

    def trust(self, redis=None, **options) -> Trust:
        return Trust(redis or self.redis, self.keys, self.incarnation, self.keyring, **options)

    @asynccontextmanager
    async def following(self, redis=None, **options):
        trust, stop = self.trust(redis, **options), asyncio.Event()
        task = asyncio.create_task(trust.run(stop))
        try:
            yield trust
        finally:
            stop.set()
            await task

    async def client(self, client_id: str = "demo") -> CertificateEntry:
        """A registered client's certificate."""
        await self.clients.register_client(client_id, actor="system")
        now = clock.now_ms()
        made = CertificateEntry(
            fingerprint=secrets.token_hex(32),
            serial=secrets.token_hex(8),
            client_id=client_id,
            role="producer",
            not_before_ms=now - 1000,
            not_after_ms=now + 10**9,
            issued_at_ms=now,
        )
        return (await self.certificates.record_certificate(made, actor="system")).value


async def new_world(redis, log_name, tmp_path) -> World:
    keys, identity = await logs.create(redis, log_name)
    keyring = Keyring.create(tmp_path / "keys" / "keyring")
    return World(redis, keys.control, identity.incarnations["control"], keyring)


@pytest.fixture
async def world(redis, log_name, tmp_path) -> World:
    return await new_world(redis, log_name, tmp_path)


async def test_nothing_is_trusted_before_the_first_proof(world):
    """No lookup answers and callers are refused until the registry is loaded."""
    made = await world.client()
    trust = world.trust()
    assert not trust.fresh()
    assert trust.certificate(made.fingerprint) is None
    with pytest.raises(TrustUnproved):
        trust.require_fresh()
    await trust.poll()
    trust.require_fresh()
    assert trust.certificate(made.fingerprint) == made
    assert trust.client("demo").active_certificate == made.fingerprint
    assert trust.keys("demo").active.number == 1
    assert [entry.client_id for entry in trust.clients()] == ["demo"]


async def test_an_empty_registry_is_proved_too(world):
    """A log without any control event is no failure; the first event is followed from there."""
    trust = world.trust()
    await trust.poll()
    assert trust.fresh()
    made = await world.client()
    await trust.poll()
    assert trust.certificate(made.fingerprint) == made


async def test_a_revocation_is_seen_within_a_second(world):
    """While following with the default settings the revoked entry is there within max_age of its answer."""
    made = await world.client()
    async with world.following() as trust:
        await trust.wait_fresh()
        assert trust.certificate(made.fingerprint).status == "active"
        await world.certificates.revoke_certificate(reason="keyCompromise", actor="x", client_id="demo")
        answered = clock.monotonic()
        await wait_until(lambda: trust.certificate(made.fingerprint).status == "revoked")
        # The promise itself, not a duration of the test: any proof begun after the answer shows it.
        assert trust.proved_at < answered + trust._max_age


async def test_a_proof_begun_after_a_commit_shows_it(world):
    """For each of fifty commits: the first poll that begins after the answer knows it."""
    trust = world.trust()
    await trust.poll()
    for number in range(50):
        name = f"client-{number}"
        await world.clients.register_client(name, actor="system")
        answered = clock.monotonic()
        await trust.poll()
        assert trust.proved_at >= answered
        assert trust.client(name) is not None


async def test_a_proof_counts_from_its_start(world):
    """What is committed while a poll is under way, after it read, is younger than the proof."""
    trust = world.trust()
    await trust.poll()
    real, committed = trust._call, []

    async def overtaken(*args):
        reply = await real(*args)
        if not committed:
            await world.clients.register_client("late", actor="system")
            committed.append(clock.monotonic())
        return reply

    trust._call = overtaken
    await trust.poll()
    assert trust.client("late") is None
    assert trust.proved_at < committed[0]


async def test_every_command_is_followed(world, monkeypatch):
    """After each kind of change the follower's entries equal those of a fresh load."""
    monkeypatch.setattr("broker.events.user_commands.BCRYPT_COST", 4)
    trust = world.trust()
    await trust.poll()

    async def same() -> None:
        await trust.poll()
        fresh = world.trust()
        await fresh.poll()
        assert trust._entries == fresh._entries
        assert trust._wrapped == fresh._wrapped
        assert (trust._last, trust._added) == (fresh._last, fresh._added)

    first = await world.client()
    await same()
    await world.clients.change_route("demo", "simulated", actor="system")
    await same()
    second = msgspec.structs.replace(first, fingerprint=secrets.token_hex(32), serial="0a")
    await world.certificates.renew_certificate(second, actor="system")
    await same()
    rotating = KeyCommands(world.registry, world.keyring)
    await rotating.add("demo", actor="system")
    await same()
    assert trust.keys("demo").active.number == 1
    await rotating.activate("demo", 2, actor="system")
    await same()
    assert trust.keys("demo").active.number == 2
    user = (await world.users.create_user("a@b", "long enough", "user", ["demo"], actor="system")).value
    await same()
    for change in (
        world.users.change_role(user.user_id, "auditor", actor="system"),
        world.users.change_password(user.user_id, "another one", actor="system"),
        world.users.change_clients(user.user_id, [], actor="system"),
        world.users.disable_user(user.user_id, actor="system"),
    ):
        await change
        await same()
    assert trust.user(user.user_id).disabled
    await world.certificates.revoke_certificate(reason="keyCompromise", actor="x", client_id="demo")
    await same()
    await world.clients.erase_client("demo", "request", actor="system")
    await same()
    with pytest.raises(KeyErased):
        trust.keys("demo")
    with pytest.raises(KeyUnavailable):
        trust.keys("nobody")


async def test_more_than_a_page_is_read_to_its_end(world, monkeypatch):
    """A backlog longer than one read is applied before anything is proved."""
    monkeypatch.setattr(trust_module, "PAGE", 3)
    trust = world.trust()
    await trust.poll()
    for number in range(10):
        await world.clients.register_client(f"client-{number}", actor="system")
    await trust.poll()
    assert len(trust.clients()) == 10
    assert trust._added == 10


@pytest.mark.parametrize("how", ["trimmed", "deleted"])
async def test_entries_that_went_before_they_were_read_do_not_go_unnoticed(world, how):
    """A gap leads to a full load: a revocation in it still counts."""
    made = await world.client()
    trust = world.trust()
    await trust.poll()
    await world.certificates.revoke_certificate(reason="keyCompromise", actor="x", client_id="demo")
    [(entry_id, _)] = await world.redis.xrevrange(world.keys.events, count=1)
    await world.clients.register_client("other", actor="system")
    if how == "deleted":
        await world.redis.xdel(world.keys.events, entry_id)
    else:
        await world.redis.xtrim(world.keys.events, maxlen=1, approximate=False)
    await trust.poll()
    assert trust.certificate(made.fingerprint).status == "revoked"
    assert trust.client("other") is not None


async def test_a_control_stream_trimmed_to_nothing_is_still_followed(world):
    """The last id outlives the entries."""
    made = await world.client()
    trust = world.trust()
    await trust.poll()
    await world.certificates.revoke_certificate(reason="keyCompromise", actor="x", client_id="demo")
    await world.redis.xtrim(world.keys.events, maxlen=0, approximate=False)
    await trust.poll()
    assert trust.certificate(made.fingerprint).status == "revoked"


async def test_an_event_of_a_newer_version_leads_to_a_full_load(world):
    """What it touched cannot be known, so everything is looked at."""
    trust = world.trust()
    await world.client()
    await trust.poll()
    payload = msgspec.msgpack.encode(msgspec.structs.replace(trust.client("demo"), channel="simulated"))
    await world.redis.hset(world.keys.registry, client_field("demo"), b"999|" + payload)
    await world.redis.xadd(world.keys.events, {"t": "Unheard.9", "s": "client:demo", "m": b"", "d": b""})
    await trust.poll()
    assert trust.client("demo").channel == "simulated"


async def test_an_entry_that_cannot_be_read_keeps_nobody_else_out(world):
    """It counts as absent, which lets nobody in, and is listed; the others are served."""
    made = await world.client()
    await world.client("other")
    await world.redis.hset(world.keys.registry, f"cert:{made.fingerprint}", b"9|garbage")
    trust = world.trust()
    await trust.poll()
    assert trust.certificate(made.fingerprint) is None
    assert trust.unreadable == {f"cert:{made.fingerprint}"}
    assert trust.client("other") is not None


@pytest.mark.parametrize("mode", ["silent", "cut"])
async def test_a_half_dead_connection_keeps_no_trust(world, valkey, mode):
    """⚠ Bytes swallowed without an error, or cut: trust ends at max_age, a revocation meanwhile is known after."""
    made = await world.client()
    async with proxy_to_unix(str(valkey.socket)) as proxy:
        redis = connection.connect(f"redis://127.0.0.1:{proxy.port}", timeout=30)
        async with world.following(redis, poll=0.05, max_age=0.4) as trust:
            await trust.wait_fresh()
            proxy.mode = mode
            if mode == "cut":
                proxy.cut()
            await world.certificates.revoke_certificate(reason="keyCompromise", actor="x", client_id="demo")
            revoked = clock.monotonic()
            await wait_until(lambda: not trust.fresh())
            # No proof can have begun after the revocation, so trust ended within max_age of it.
            assert trust.proved_at <= revoked
            assert trust.certificate(made.fingerprint).status == "active"
            with pytest.raises(TrustUnproved):
                trust.require_fresh()
            await wait_until(lambda: trust.failure is not None)
            proxy.mode = "pass"
            await wait_until(trust.fresh)
            assert trust.certificate(made.fingerprint).status == "revoked"
            assert trust.failure is None
        await redis.aclose()


async def test_a_silent_connection_is_replaced_by_a_new_one(world, valkey):
    """Only the old connection hangs: the follower gives it up in time and stays fresh or is so again."""
    await world.client()
    async with proxy_to_unix(str(valkey.socket)) as proxy:
        redis = connection.connect(f"redis://127.0.0.1:{proxy.port}", timeout=30)
        async with world.following(redis, poll=0.05, max_age=1.0) as trust:
            await trust.wait_fresh()
            proxy.mode = "silent"
            await wait_until(lambda: trust.failure is not None)
            proxy.mode = "pass"
            before = clock.monotonic()
            await wait_until(lambda: trust.proved_at is not None and trust.proved_at > before)
        await redis.aclose()


async def test_a_restart_of_redis_heals_by_itself(own_valkey, log_name, tmp_path):
    """Killed: not fresh; started: fresh again with everything, by the same follower."""
    redis, own = connection.connect(own_valkey.url), connection.connect(own_valkey.url)
    world = await new_world(redis, log_name, tmp_path)
    made = await world.client()
    async with world.following(own, poll=0.05, max_age=0.4) as trust:
        await trust.wait_fresh()
        await own_valkey.kill()
        await wait_until(lambda: not trust.fresh())
        await own_valkey.start()
        await wait_until(trust.fresh)
        assert trust.certificate(made.fingerprint) == made
        await world.certificates.revoke_certificate(reason="keyCompromise", actor="x", client_id="demo")
        await wait_until(lambda: trust.certificate(made.fingerprint).status == "revoked")
    for one in (redis, own):
        await one.aclose()


async def test_an_emptied_redis_ends_trust_at_once(world):
    """The incarnation is gone: refused, not served from memory for the rest of max_age."""
    await world.client()
    async with world.following(poll=0.05, max_age=60) as trust:
        await trust.wait_fresh()
        await world.redis.delete(*[key async for key in world.redis.scan_iter(match=f"{world.keys.base}:*")])
        await wait_until(lambda: not trust.fresh())
        assert isinstance(trust.failure, LogRefused)


async def test_a_control_stream_that_went_back_is_refused(world):
    """Restored from an older copy: ids before the last one seen are not followed."""
    await world.client()
    trust = world.trust()
    await trust.poll()
    await world.redis.delete(world.keys.events)
    await world.redis.xadd(world.keys.events, {"t": "x", "s": "x", "m": "x", "d": "x"}, id="1-1")
    with pytest.raises(LogRefused, match="went back"):
        await trust.poll()


async def test_polling_works_on_a_redis_at_its_maxmemory(own_valkey, log_name, tmp_path):
    """A full log answers log_full, not trust_unproved: readers and workers go on."""
    redis = connection.connect(own_valkey.url)
    world = await new_world(redis, log_name, tmp_path)
    made = await world.client()
    trust = world.trust()
    await trust.poll()
    await redis.config_set("maxmemory", 1)
    await trust.poll()
    fresh = world.trust()
    await fresh.poll()
    assert fresh.certificate(made.fingerprint) == made
    await redis.aclose()


async def test_polling_while_idle_writes_nothing_to_disk(own_valkey, log_name, tmp_path):
    """Five polls a second for ever must not grow the append-only file."""
    redis = connection.connect(own_valkey.url)
    world = await new_world(redis, log_name, tmp_path)
    await world.client()
    trust = world.trust()
    await trust.poll()
    before = (await redis.info("persistence"))["aof_current_size"]
    for _ in range(50):
        await trust.poll()
    assert (await redis.info("persistence"))["aof_current_size"] == before
    await redis.aclose()


async def test_a_key_wrapped_by_a_master_key_not_loaded_yet_is_unavailable_until_it_is(world):
    """Rotation: another process added and used a master key; the follower reads the keyring again by itself."""
    elsewhere = Keyring.load(world.keyring.path)
    follower_ring = Keyring.load(world.keyring.path)
    trust = Trust(world.redis, world.keys, world.incarnation, follower_ring)
    elsewhere.activate(elsewhere.add())
    await ClientCommands(world.registry, elsewhere).register_client("late", actor="system")
    content = world.keyring.path.read_bytes()
    world.keyring.path.write_bytes(b"damaged")
    await trust.poll()
    assert trust.fresh()
    assert trust.keyring_failure is not None
    with pytest.raises(KeyUnavailable):
        trust.keys("late")
    world.keyring.path.write_bytes(content)
    await trust.poll()
    assert trust.keyring_failure is None
    assert trust.keys("late").active.number == 1


async def test_it_stops_soon_even_while_redis_is_silent(world, valkey):
    """`run` returns after `stop` though nothing answers."""
    async with proxy_to_unix(str(valkey.socket)) as proxy:
        redis = connection.connect(f"redis://127.0.0.1:{proxy.port}", timeout=30)
        trust, stop = world.trust(redis, poll=0.05, max_age=0.4, load_timeout=0.2), asyncio.Event()
        proxy.mode = "silent"
        task = asyncio.create_task(trust.run(stop))
        await wait_until(lambda: trust.failure is not None)
        stop.set()
        await task
        await redis.aclose()


async def test_followers_agree_after_a_storm_of_changes(world):
    """Changes by many at once while a follower polls: in the end it equals a fresh load."""
    rotating = KeyCommands(world.registry, world.keyring)
    async with world.following(poll=0.001) as trust:

        async def churn(number: int) -> None:
            name = f"client-{number}"
            made = await world.client(name)
            await rotating.activate(name, (await rotating.add(name, actor="system")).value, actor="system")
            if number % 2:
                await world.certificates.revoke_certificate(
                    reason="keyCompromise", actor="x", fingerprint=made.fingerprint
                )
            if number % 5 == 0:
                await world.clients.erase_client(name, "request", actor="system")

        await asyncio.gather(*(churn(number) for number in range(30)))
        fresh = world.trust()
        await fresh.poll()
        await wait_until(lambda: trust._last == fresh._last)
        assert trust._entries == fresh._entries
        assert trust._wrapped == fresh._wrapped
