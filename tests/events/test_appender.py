"""Appending: durable, once, in groups, and never silently lost."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest

from broker.domain import ids
from broker.embedded.valkey import Valkey
from broker.errors import LogFull, LogRefused, LogUnavailable
from broker.events import connection
from broker.events.appender import Appended, Appender, KeyReused
from support import log as logs
from support.proxy import proxy_to_unix
from support.waiting import wait_until


@pytest.fixture
async def appender(redis, log_name):
    keys, identity = await logs.create(redis, log_name)
    return Appender(redis, keys, identity)


async def test_a_message_is_in_the_stream_and_open_when_append_returns(redis, log_name, appender):
    """The answer comes after the event, its open record and its age index are written, in one step."""
    one = logs.draft()
    [result] = await appender.append([one])
    keys = appender._keys.partitions[0]
    assert isinstance(result, Appended)
    assert [entry for entry, _ in await redis.xrange(keys.events)] == [result.position.entry_id.encode()]
    assert (await redis.hget(keys.open, one.message_id)).startswith(
        result.position.entry_id.encode() + b"|1|0|r|"
    )
    assert await redis.zscore(keys.age, one.message_id) == result.position.ms


async def test_the_age_of_a_message_is_by_the_log_s_clock(redis, log_name, appender):
    """⚠ The gateway's clock would let trimming cut a live body: what counts is the stream's own milliseconds."""
    wrong = msgspec.structs.replace(logs.draft(), queued_at=1)
    [result] = await appender.append([wrong])
    keys = appender._keys.partitions[0]
    assert await redis.zscore(keys.age, wrong.message_id) == result.position.ms
    seconds, _ = await redis.time()
    assert abs(result.position.ms / 1000 - seconds) < 60


async def test_messages_that_arrive_during_a_write_share_the_next_one(redis, log_name, appender):
    """Group commit: a hundred concurrent appends to one partition need a handful of calls."""
    before = (await redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0)
    results = await asyncio.gather(*(appender.append([logs.draft()]) for _ in range(100)))
    after = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert len({r.position for [r] in results}) == 100
    assert after - before < 10


async def test_positions_are_those_of_the_stream(redis, log_name, appender):
    """Each result names the entry that really holds its message, keyed and unkeyed mixed."""
    drafts = [
        logs.draft(key=b"k%015d" % (i // 2), request=b"same") if i % 3 == 0 else logs.draft()
        for i in range(60)
    ]
    results = await appender.append(drafts)
    entries = dict(await redis.xrange(appender._keys.partitions[0].events))
    for result in results:
        assert entries[result.position.entry_id.encode()][b"s"] == result.message_id


async def test_a_lost_reply_followed_by_a_retry_appends_once(valkey, redis, log_name):
    """⚠ redis-py retries lost replies and would append twice: the batch record answers instead."""
    keys, identity = await logs.create(redis, log_name)
    async with proxy_to_unix(str(valkey.socket)) as proxy:
        client = connection.connect(f"redis://127.0.0.1:{proxy.port}")
        appender = Appender(client, keys, identity)
        await appender.append([logs.draft()])
        proxy.mode, proxy.drops = "drop-reply", 3
        one = logs.draft()
        [result] = await appender.append([one])
        await client.aclose()
    assert proxy.dropped == 3
    assert isinstance(result, Appended)
    assert not result.replayed
    subjects = [fields[b"s"] for _, fields in await redis.xrange(keys.partitions[0].events)]
    assert subjects.count(one.message_id) == 1


async def test_an_unreachable_log_is_unknown_not_accepted(redis, log_name):
    """When no reply comes the caller is told that the outcome is unknown."""
    keys, identity = await logs.create(redis, log_name)
    nowhere = connection.connect("redis://127.0.0.1:1")
    with pytest.raises(LogUnavailable):
        await Appender(nowhere, keys, identity, retry_for=0.1).append([logs.draft()])
    await nowhere.aclose()


async def test_the_same_key_and_request_gives_the_first_answer_again(redis, log_name, appender):
    """An idempotency key is answered from its record; nothing is appended a second time."""
    first, second = (logs.draft(key=b"k" * 16, request=b"r" * 16) for _ in range(2))
    [original] = await appender.append([first])
    [again] = await appender.append([second])
    assert again == Appended(first.message_id, original.position, first.queued_at, replayed=True)
    assert await redis.xlen(appender._keys.partitions[0].events) == 1


async def test_the_same_key_twice_in_one_group(redis, log_name, appender):
    """Duplicates that arrive together are told apart inside the script."""
    drafts = [logs.draft(key=b"k" * 16, request=r) for r in (b"r" * 16, b"r" * 16, b"x" * 16)]
    original, again, other = await appender.append(drafts)
    assert again.replayed
    assert again.message_id == original.message_id
    assert other == KeyReused()


async def test_another_incarnation_refuses(redis, log_name, appender):
    """⚠ A Redis that was emptied or replaced is recognised before anything is written."""
    keys = appender._keys.partitions[0]
    await redis.hset(keys.meta, "incarnation", "another")
    with pytest.raises(LogRefused, match="another"):
        await appender.append([logs.draft()])
    await redis.delete(keys.meta)
    with pytest.raises(LogRefused, match="missing"):
        await appender.append([logs.draft()])
    assert await redis.xlen(keys.events) == 0


async def test_a_log_that_went_back_refuses_and_says_so(redis, log_name, appender):
    """⚠ Ids that go backwards would be skipped by projectors for ever: an older copy is refused."""
    keys = appender._keys.partitions[0]
    await appender.append([logs.draft()])
    await redis.delete(keys.events)
    with pytest.raises(LogRefused, match="went back"):
        await appender.append([logs.draft()])
    assert b"went back" in await redis.hget(keys.meta, "refused")
    other = Appender(redis, appender._keys, appender._identity)
    with pytest.raises(LogRefused):
        await other.append([logs.draft()])


async def test_a_trimmed_stream_has_not_gone_back(redis, log_name, appender):
    """A stream that archiving has cut to nothing still knows its last id."""
    await appender.append([logs.draft()])
    await redis.xtrim(appender._keys.partitions[0].events, maxlen=0, approximate=False)
    [result] = await appender.append([logs.draft()])
    assert isinstance(result, Appended)


async def test_a_full_redis_refuses_appends(own_valkey, log_name):
    """At maxmemory an append is refused as a whole; nothing of the group is written."""
    redis = connection.connect(own_valkey.url)
    keys, identity = await logs.create(redis, log_name)
    appender = Appender(redis, keys, identity)
    await appender.append([logs.draft()])
    await redis.config_set("maxmemory", "1mb")
    with pytest.raises(LogFull):
        await appender.append([logs.draft() for _ in range(3)])
    assert await redis.xlen(keys.partitions[0].events) == 1
    await redis.config_set("maxmemory", "0")
    await appender.append([logs.draft()])
    await redis.aclose()


async def test_what_was_acknowledged_survives_kill_9(own_valkey, log_name):
    """An answer means that the append is on disk: the server is killed with appends under way."""
    redis = connection.connect(own_valkey.url)
    keys, identity = await logs.create(redis, log_name)
    appender = Appender(redis, keys, identity, retry_for=0.2)
    acknowledged: list[bytes] = []

    async def submit() -> None:
        while True:
            one = logs.draft(appender.partition_for())
            await appender.append([one])
            acknowledged.append(one.message_id)

    tasks = [asyncio.ensure_future(submit()) for _ in range(20)]
    await wait_until(lambda: len(acknowledged) > 500)
    await own_valkey.kill()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, LogUnavailable) for error in errors)
    await own_valkey.start()
    kept = {
        fields[b"s"] for partition in keys.partitions for _, fields in await redis.xrange(partition.events)
    }
    assert set(acknowledged) <= kept
    await redis.aclose()


async def test_message_ids_name_their_partition(redis, log_name, appender):
    """Unkeyed messages go round the partitions, and each id tells where its message is."""
    seen = set()
    for _ in range(10):
        one = logs.draft(appender.partition_for())
        [result] = await appender.append([one])
        assert result.position.stream == str(ids.partition(one.message_id))
        seen.add(result.position.stream)
    assert seen == {"0", "1"}


async def test_append_waits_for_replicas_where_told_to(redis, log_name):
    """On a replicated Redis the answer waits for the replicas; their time-out means unknown."""
    from broker.events.appender import Durability

    keys, identity = await logs.create(redis, log_name)
    appender = Appender(
        redis, keys, identity, durability=Durability(replicas=1, timeout_ms=20), retry_for=0.1
    )
    with pytest.raises(LogUnavailable, match="0 of 1"):
        await appender.append([logs.draft()])


async def test_a_replica_that_lags_is_waited_for_on_every_connection(own_valkey, tmp_path, log_name):
    """⚠ WAIT counts from its connection's own last write: a retry on another one must not confirm an append early."""
    from broker.events.appender import Durability

    replica = Valkey(tmp_path / "replica", port=0, extra={"replicaof": f"127.0.0.1 {own_valkey.port}"})
    await replica.start()
    clients = [connection.connect(own_valkey.url) for _ in range(2)]
    try:
        keys, identity = await logs.create(clients[0], log_name)
        wanted = Durability(replicas=1, timeout_ms=100)
        one, other = (Appender(client, keys, identity, durability=wanted) for client in clients)
        await wait_until(lambda: _replicated(one))
        os.kill(replica.pid, signal.SIGSTOP)
        call = one._call(keys.partitions[0], [logs.draft()], "batch", None)
        for appender in (one, other):
            with pytest.raises(LogUnavailable, match="0 of 1"):
                await appender._send(*call)
        os.kill(replica.pid, signal.SIGCONT)
        await wait_until(lambda: _confirmed(other, call))
        assert await clients[0].xlen(keys.partitions[0].events) == 1
    finally:
        os.kill(replica.pid, signal.SIGCONT)
        for client in clients:
            await client.aclose()
        await replica.stop()


async def _replicated(appender) -> bool:
    return (await appender._redis.info("replication")).get("slave0", {}).get("state") == "online"


async def _confirmed(appender, call) -> bool:
    try:
        await appender._send(*call)
    except LogUnavailable:
        return False
    return True


@pytest.mark.parametrize("outcome", [False, True])
async def test_a_repeated_call_that_arrives_late_adds_nothing(redis, log_name, appender, outcome):
    """⚠ A call may lie in a network or a frozen process until its batch record has expired: it is refused then."""
    keys = appender._keys.partitions[0]
    drafts = [logs.draft(key=b"k" * 16, request=b"same"), logs.draft()]
    call = appender._call(keys, drafts, "batch", None)
    await appender._send(*call)
    await redis.delete(keys.batch("batch"))
    if outcome:
        # It has ended meanwhile: what it would open again is a cycle that has its outcome.
        await redis.delete(keys.open)
        await redis.hset(
            keys.done(ids.created_ms(drafts[1].message_id)), drafts[1].message_id, "D|1|1|1|demo"
        )
    with pytest.raises(LogUnavailable, match="before"):
        await appender._send(*call)
    assert await redis.xlen(keys.events) == 2


async def test_a_late_call_with_keys_only_is_answered_from_their_records(redis, appender):
    """Messages with keys need no batch record: their own records know them."""
    keys = appender._keys.partitions[0]
    drafts = [logs.draft(key=b"%016d" % number, request=b"same") for number in range(3)]
    call = appender._call(keys, drafts, "batch", None)
    first = await appender._send(*call)
    await redis.delete(keys.batch("batch"))
    again = await appender._send(*call)
    assert first.endswith(b"|3")
    assert [line.split(b"|")[2] for line in again.split(b"\n")[1:]] == [
        draft.message_id.hex().encode() for draft in drafts
    ]
    assert await redis.xlen(keys.events) == 3
