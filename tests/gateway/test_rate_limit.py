"""Rate limits per certificate and address: 429, headers, one limit over several gateways, Redis away."""

from __future__ import annotations

import asyncio
import itertools
import secrets

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from broker import clock
from broker.domain import ids
from broker.embedded.valkey import free_port
from broker.errors import LogUnavailable
from broker.events import rate_leases
from broker.events.rate_buckets import Grant, Rate, RateBuckets, Want
from broker.events.rate_leases import RateExceeded, RateLeases
from broker.settings import Settings
from support import gateways
from support.calling import MESSAGE, Caller
from support.gateways import demo as demo_of
from support.gateways import in_log
from support.serving import Answered, connection
from support.waiting import wait_until

HEADERS = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")


def limited(settings: Settings, **limits: float) -> Settings:
    return msgspec.structs.replace(
        settings, **{f"rate_limit_per_{name}": value for name, value in limits.items()}
    )


def shown(answer: Answered) -> tuple[int, ...] | None:
    """The three headers of an answer, None where there is none of them."""
    found = [answer.headers.get(name) for name in HEADERS]
    assert len({each is None for each in found}) == 1
    return None if found[0] is None else tuple(map(int, found))


async def flood(callers: list[Caller], seconds: float) -> tuple[list[Answered], float]:
    """Messages over several connections to each for so long; the answers, and how long it took."""
    began = clock.monotonic()

    async def sender(caller: Caller) -> list[Answered]:
        answers = []
        async with connection(caller.port, caller.context) as raw:
            while clock.monotonic() < began + seconds:
                answers.append(await caller.submit(raw=raw))
        return answers

    found = await asyncio.gather(*(sender(caller) for caller in callers for _ in range(4)))
    return list(itertools.chain(*found)), clock.monotonic() - began


def taken(answers: list[Answered]) -> int:
    assert {answer.status for answer in answers} <= {202, 429}
    return sum(answer.status == 202 for answer in answers)


async def refused(call) -> Answered:
    """Repeat a request until the limit refuses it: on a slow machine tokens come back meanwhile."""

    async def once() -> Answered | None:
        answer = await call()
        return answer if answer.status == 429 else None

    return await wait_until(once)


def refusals(kind: str) -> float:
    """How often this process has refused a request for the limit of this kind."""
    return REGISTRY.get_sample_value("broker_rate_limited_total", {"limit": kind}) or 0.0


async def test_two_gateway_processes_keep_one_limit(own_valkey, tmp_path):
    """Whatever a client sends to two processes: together they take no more than one may, and nearly all of that."""
    rate = 40.0
    settings = await gateways.install(own_valkey, tmp_path, rate_limit_per_second=rate)
    other = msgspec.structs.replace(settings, gateway_port=free_port())
    async with gateways.process(settings), gateways.process(other):
        callers = [demo_of(settings), demo_of(other)]
        for caller in callers:
            await gateways.ready(caller)
        answers, seconds = await flood(callers, 3.0)
        count = taken(answers)
        # A full bucket, and what came back meanwhile; what a process had taken and not spent may be missing.
        assert count <= rate + rate * seconds
        assert count >= 0.8 * (rate + rate * 3.0)
        assert taken(answers) == len(await in_log(settings))
        late = [answer for answer in answers if answer.status == 429]
        assert late
        for answer in late:
            assert answer.json["error"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
            limit, remaining, reset = shown(answer)
            assert (limit, remaining) == (40, 0)
            assert reset >= 1


async def test_what_one_gateway_took_the_other_misses(world):
    """A batch at one gateway is paid off at the other, too."""
    settings = limited(world.settings, second=2.0)
    async with world.gateway(settings=settings) as first, world.gateway(settings=settings) as second:
        one, two = (Caller(each.port, world.contexts["demo"]) for each in (first, second))
        batch = await one.post("/api/v1/messages/batch", {"messages": [MESSAGE] * 100})
        assert batch.status == 202
        assert shown(batch)[:2] == (2, 0)
        assert shown(batch)[2] > 40

        # The charge is on its way when the batch is answered.
        answer = await refused(two.submit)
        assert int(answer.headers["retry-after"]) > 30


async def test_headers_tell_what_is_left(world):
    """On every answer to a submission, whatever it says, and only where a limit applies."""
    async with world.gateway(settings=limited(world.settings, second=5.0)) as gateway:
        demo = Caller(gateway.port, world.contexts["demo"])
        assert shown(await demo.submit()) == (5, 4, 1)
        wrong = await demo.submit({"sender_number": "1", "message_body": "x"})
        assert (wrong.status, shown(wrong)[0]) == (400, 5)
        assert shown(wrong)[1] in {3, 4}
        assert shown(await demo.post("/api/v1/messages/batch", {"messages": [MESSAGE]}))[0] == 5
        assert shown(await demo.get(f"/api/v1/messages/{ids.text(ids.new(0))}")) is None
        assert shown(await Caller(gateway.port, world.pki.client_context()).submit()) is None
    async with world.gateway() as gateway:
        assert shown(await Caller(gateway.port, world.contexts["demo"]).submit()) is None


async def test_each_certificate_by_itself(world):
    """One client's flood leaves another's messages alone."""
    await world.producer("other")
    async with world.gateway(settings=limited(world.settings, second=3.0)) as gateway:
        demo, other = (Caller(gateway.port, world.contexts[name]) for name in ("demo", "other"))
        answers, _ = await flood([demo], 0.5)
        assert 429 in {answer.status for answer in answers}
        assert shown(await other.submit()) == (3, 2, 1)

        async def again() -> bool:
            return (await demo.submit()).status == 202

        await wait_until(again)


async def test_of_an_address(world):
    """Every request of an address counts, with or without a certificate; health is always answered."""
    async with world.gateway(settings=limited(world.settings, address=5.0)) as gateway:
        nobody = Caller(gateway.port, world.pki.client_context())
        demo = Caller(gateway.port, world.contexts["demo"])
        first, before = await demo.submit(), refusals("address")
        assert (first.status, shown(first)) == (202, (5, 4, 1))
        unknown = await nobody.get("/api/v1/messages/x")
        assert (unknown.status, shown(unknown)[0]) == (401, 5)
        for call in (
            lambda: nobody.get("/api/v1/messages/x"),
            demo.submit,
            lambda: demo.get("/metrics"),
            lambda: nobody.get("/openapi.json"),
        ):
            answer = await refused(call)
            assert answer.json["error"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
            assert shown(answer)[:2] == (5, 0)
            assert "address" in answer.json["detail"]
            assert refusals("address") > before
            assert answer.json["correlation_id"] == answer.headers["x-correlation-id"]
        for _ in range(10):
            health = await nobody.get("/api/v1/health")
            assert (health.status, shown(health)) == (200, None)


async def test_the_narrower_limit_is_told(world):
    """Of two limits the headers are those of the one that has less left."""
    async with world.gateway(settings=limited(world.settings, second=9.0, address=5.0)) as gateway:
        assert shown(await Caller(gateway.port, world.contexts["demo"]).submit())[0] == 5
    async with world.gateway(settings=limited(world.settings, second=3.0, address=50.0)) as gateway:
        assert shown(await Caller(gateway.port, world.contexts["demo"]).submit())[0] == 3


async def test_servers_count_addresses_too(world):
    """People's requests count by address; our own services' and health do not."""
    settings = limited(world.settings, address=5.0)
    async with world.server(settings=settings) as server, world.server(settings=settings) as other:
        nobody = Caller(server.port, world.pki.client_context())
        assert (await nobody.get("/portal/profile")).status == 401
        strangers = Caller(other.port, world.pki.client_context())
        for call in (lambda: nobody.get("/portal/profile"), lambda: strangers.get("/openapi.json")):
            assert shown(await refused(call))[:2] == (5, 0)
        assert (await nobody.get("/health")).status == 200
        internal = Caller(server.port, world.contexts["worker"])
        for _ in range(8):
            answer = await internal.post("/internal/messages/deliver", b"{")
            assert (answer.status, shown(answer)) == (400, None)
        # A certificate of ours opens no other door.
        await refused(lambda: internal.get("/portal/profile"))
        await refused(lambda: nobody.post("/internal/messages/deliver", b"{"))


async def test_nothing_plain_is_kept_of_addresses(world):
    """Redis holds a keyed hash of who came, and forgets it."""
    async with world.gateway(settings=limited(world.settings, address=5.0, second=5.0)) as gateway:
        await Caller(gateway.port, world.contexts["demo"]).submit()
        names = [key.decode() async for key in world.redis.scan_iter(f"*{world.log_name}*:rate:*")]
        assert len(names) == 2
        assert not [name for name in names if "127.0.0.1" in name]
        for name in names:
            assert 0 <= await world.redis.pttl(name) <= 1100


# -- Redis ------------------------------------------------------------------------------------------------


@pytest.fixture
def buckets(world) -> RateBuckets:
    return RateBuckets(
        world.redis, world.keys.access, world.identity.incarnations["access"], lambda _, who: who.encode()
    )


async def test_a_bucket(world, buckets):
    """It gives its burst at once and no more, takes what is owed, and is full again when it says."""
    rate, name = Rate(0.001, 3), buckets.bucket("test", secrets.token_hex(4))

    async def take(wanted: int, owed: int = 0) -> Grant:
        return (await buckets.take([Want(name, rate, wanted, owed)]))[0]

    assert await take(0) == Grant(0, 0)
    assert not await world.redis.exists(name)
    first = await take(2)
    assert (first.given, round(first.full_in)) == (2, 2000)
    second = await take(2)
    assert (second.given, round(second.full_in)) == (1, 3000)
    assert (await take(1)).given == 0
    owing = await take(0, 5)
    assert (owing.given, round(owing.full_in)) == (0, 8000)
    one, two = await buckets.take(
        [Want(buckets.bucket("test", "a"), rate, 9), Want(buckets.bucket("test", "b"), rate, 1)]
    )
    assert (one.given, two.given) == (3, 1)


async def test_a_refused_log_gives_no_tokens(world, buckets):
    """As every script, it works on the log that it knows and on no other."""
    await world.redis.hset(world.keys.access.meta, "refused", "it went back")
    with pytest.raises(LogUnavailable):
        await buckets.take([Want("x", Rate(1, 1), 1)])


async def test_many_requests_make_few_calls(world, buckets):
    """At a high rate tokens are taken many at a time: far fewer calls to Redis than requests, and never too many."""
    calls: list[list[Want]] = []

    class Counting:
        bucket = staticmethod(buckets.bucket)

        async def take(self, wants):
            calls.append(list(wants))
            return await buckets.take(wants)

    leases = RateLeases(Counting(), "certificate", 20_000.0)
    for _ in range(40):
        await asyncio.gather(*(leases.admit("demo") for _ in range(100)))
    assert len(calls) < 200
    assert max(want.wanted for each in calls for want in each) <= 1000
    await leases.aclose()


async def test_slow_senders_take_no_more_than_they_spend(world, buckets):
    """Whoever sends now and then takes one token each time: many gateways must not use up what one would allow."""
    leases = [RateLeases(buckets, "certificate", 1000.0) for _ in range(20)]
    who = secrets.token_hex(4)
    for each in leases:
        # As many may take at a time as at a high rate, but none come back while this runs.
        each.rate = Rate(0.001, 20)
        await each.admit(who)
    with pytest.raises(RateExceeded) as error:
        await leases[0].admit(who)
    assert error.value.retry_after > 900
    assert leases[0].left(who)[0] == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=12))
def test_never_more_than_the_rate(steps):
    """Whatever three processes are asked for, and in whatever bunches, together they let in what one bucket gives."""
    now = [1000.0]

    class Bucket:
        """The script's arithmetic on a clock that the test moves."""

        def __init__(self) -> None:
            self.full = 0.0

        def bucket(self, kind: str, who: str) -> str:
            return who

        async def take(self, wants):
            await asyncio.sleep(0)
            (want,) = wants
            full = max(self.full, now[0]) + want.owed / want.rate.per_second
            room = int((now[0] - full) * want.rate.per_second + want.rate.burst + 0.001)
            given = max(0, min(want.wanted, room))
            self.full = full + given / want.rate.per_second
            return [Grant(given, self.full - now[0])]

    async def run() -> tuple[int, int]:
        bucket = Bucket()
        processes = [RateLeases(bucket, "certificate", 100.0) for _ in range(3)]
        began, let_in, refused = now[0], 0, 0
        for which, count in steps:
            results = await asyncio.gather(
                *(processes[which].admit("demo") for _ in range(count)), return_exceptions=True
            )
            assert all(each is None or isinstance(each, RateExceeded) for each in results)
            let_in += sum(each is None for each in results)
            refused += sum(each is not None for each in results)
            assert let_in <= 100 + (now[0] - began) * 100 + 1e-6
            now[0] += 0.02
        for each in processes:
            await each.aclose()
        return let_in, refused

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate_leases.clock, "monotonic", lambda: now[0])
        let_in, refused = asyncio.run(run())
    assert let_in + refused == sum(count for _, count in steps)
    if sum(count for _, count in steps) <= 80:
        assert refused == 0, "nobody is refused what the bucket has"


async def test_with_redis_away_each_gateway_counts_for_itself(world):
    """The limit stays, and nobody waits for Redis; with Redis back it is one limit again, by itself."""
    down = [True]
    inner = RateBuckets(
        world.redis, world.keys.access, world.identity.incarnations["access"], lambda _, who: who.encode()
    )

    class Failing:
        bucket = staticmethod(inner.bucket)

        async def take(self, wants):
            if down[0]:
                raise LogUnavailable
            return await inner.take(wants)

    leases = RateLeases(Failing(), "certificate", 2.0)
    who = secrets.token_hex(4)
    await leases.admit(who)
    await leases.admit(who)
    with pytest.raises(RateExceeded):
        await leases.admit(who)
    assert leases.alone_until > clock.monotonic()
    down[0] = False

    async def shared() -> bool:
        try:
            await leases.admit(who)
        except RateExceeded:
            return False
        return not leases.alone_until

    await wait_until(shared)
    assert await world.redis.exists(inner.bucket("certificate", who))


async def test_a_redis_that_hangs_holds_nobody_up(world):
    """A call that gets no answer is given up soon, and the request goes on."""

    class Hanging:
        def bucket(self, kind: str, who: str) -> str:
            return who

        async def take(self, wants):
            await asyncio.Event().wait()

    leases = RateLeases(Hanging(), "certificate", 5.0)
    await asyncio.gather(*(leases.admit("demo") for _ in range(5)))
    with pytest.raises(RateExceeded):
        await leases.admit("demo")


async def test_a_stopped_log_is_no_429(world):
    """While Redis refuses everything, submissions are answered with what is wrong, not with a limit."""
    async with world.gateway(settings=limited(world.settings, second=50.0)) as gateway:
        demo = Caller(gateway.port, world.contexts["demo"])
        assert (await demo.submit()).status == 202
        for stream in world.keys.streams:
            if stream.stream != "control":
                await world.redis.hset(stream.meta, "refused", "a test")
        answer = await demo.submit()
        assert (answer.status, answer.json["error"]) == (503, "log_unavailable")
