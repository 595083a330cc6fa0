"""The runner against a real Redis and MySQL."""

from __future__ import annotations

import pytest

from broker.errors import LeaseLost, LogRefused
from broker.events import chain, types
from broker.events.feed import Feed
from broker.events.keys import PROJECTION_GROUP
from broker.projections import audit_log, checkpoints
from broker.projections.audit_log import AuditLog
from broker.projections.messages import Messages
from broker.projections.runner import BUSY_RATE, Rate
from broker.projections.status import State
from support import histories, log, readmodels
from support.readmodels import count, reached, runner, running, tables
from support.waiting import wait_until


async def test_events_become_rows(redis, log_name, store):
    """Messages submitted, tried and delivered are delivered rows, and every event is in the audit log."""
    keys, identity = await log.create(redis, log_name)
    facts = histories.happy(500)
    positions = await histories.append(redis, keys.partitions[0], facts)
    async with running(runner(redis, keys.partitions[0], identity, store)):
        await wait_until(lambda: reached(store, positions[-1]))
    rows = await store.select("SELECT status, COUNT(*) n, MIN(attempt_count) a FROM messages GROUP BY status")
    assert rows == [{"status": "delivered", "n": 500, "a": 1}]
    assert await count(store, "audit_log") == len(facts)
    assert await count(store, "attempts") == 500
    counters = await store.select(
        "SELECT SUM(submitted) s, SUM(delivered) d, SUM(attempts) a FROM statistics"
    )
    assert counters == [{"s": 500, "d": 500, "a": 500}]


async def test_audit_log_proves_itself(redis, log_name, store):
    """The table alone gives back the stored events, and their chain of hashes holds over batches."""
    keys, identity = await log.create(redis, log_name)
    facts = histories.happy(60)
    positions = await histories.append(redis, keys.partitions[0], facts)
    async with running(runner(redis, keys.partitions[0], identity, store, batch=7)):
        await wait_until(lambda: reached(store, positions[-1]))
    rows = await store.select("SELECT * FROM audit_log ORDER BY stream,ms,seq")
    head = chain.GENESIS
    for row, fact, position in zip(rows, facts, positions, strict=True):
        stored = audit_log.stored(row)
        assert stored == fact.stored(position)
        assert row["previous_hash"] == head
        head = chain.link(head, stored)
        assert row["hash"] == head
    state = await store.select("SELECT state FROM checkpoints WHERE projection='audit_log'")
    assert state[0]["state"] == head


async def test_second_time_changes_nothing(redis, log_name, store):
    """A runner that starts again over the same history leaves every row as it was."""
    keys, identity = await log.create(redis, log_name)
    positions = await histories.append(redis, keys.partitions[0], histories.happy(50))
    async with running(runner(redis, keys.partitions[0], identity, store)):
        await wait_until(lambda: reached(store, positions[-1]))
    before = await tables(store)
    await redis.xgroup_setid(keys.partitions[0].events, PROJECTION_GROUP, "0")
    again = runner(redis, keys.partitions[0], identity, store, owner="p2")
    async with running(again):
        await wait_until(lambda: again.status.state is State.OWNER)
        more = await histories.append(redis, keys.partitions[0], histories.happy(1))
        await wait_until(lambda: reached(store, more[-1]))
    after = await tables(store)
    kept = {row["message_id"] for row in before["messages"]}
    assert [row for row in after["messages"] if row["message_id"] in kept] == before["messages"]
    assert after["audit_log"][: len(before["audit_log"])] == before["audit_log"]
    assert len(after["audit_log"]) == len(before["audit_log"]) + 3


async def test_two_projectors_share_one_history(redis, log_name, store):
    """Two projectors on one stream: one owns it, every event is applied once."""
    keys, identity = await log.create(redis, log_name)
    one = runner(redis, keys.partitions[0], identity, store, owner="p1", batch=20)
    two = runner(redis, keys.partitions[0], identity, store, owner="p2", batch=20)
    async with running(one, two):
        for _ in range(10):
            positions = await histories.append(redis, keys.partitions[0], histories.happy(20))
        await wait_until(lambda: reached(store, positions[-1]))
    assert await count(store, "messages") == 200
    assert await count(store, "audit_log") == 600
    assert 0 in (one.status.batches, two.status.batches)


async def test_new_owner_takes_over_without_gap(redis, log_name, store):
    """⚠ An owner that dies after reading and before committing loses nothing: the next one reads it again."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    positions = await histories.append(redis, stream, histories.happy(30))
    dead = Feed(redis, stream, identity.incarnations["0"], "dead", ttl=0.2)
    assert await dead.acquire() == 0
    start = positions[0]._replace(ms=0, seq=0)
    page = await dead.read(start, 0, start, 50)
    assert len(page.entries) == 50
    assert (await redis.xpending(stream.events, PROJECTION_GROUP))["pending"] == 0
    async with running(runner(redis, stream, identity, store)):
        await wait_until(lambda: reached(store, positions[-1]))
    assert await count(store, "audit_log") == 90
    with pytest.raises(LeaseLost):
        await dead.read(page.entries[-1].position, 50, start, 50)


async def test_stale_owner_commits_nothing(redis, log_name, store):
    """⚠ An owner that stalled past its lease holds a batch; its transaction names a position that is gone."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    positions = await histories.append(redis, stream, histories.happy(10))
    stale = runner(redis, stream, identity, store, owner="stale", ttl=0.1)
    assert await stale.feed.acquire() == 0
    await stale._load()
    page = await stale.feed.read(
        positions[0]._replace(ms=0, seq=0), 0, positions[0]._replace(ms=0, seq=0), 100
    )
    async with running(runner(redis, stream, identity, store, owner="fresh")):
        await wait_until(lambda: reached(store, positions[-1]))
    before = await tables(store)
    with pytest.raises(LeaseLost):
        await stale._committer.commit(
            [readmodels.base.decode(entry) for entry in page.entries], positions[0]._replace(ms=0, seq=0)
        )
    assert await tables(store) == before


async def test_destroyed_group_is_made_again(redis, log_name, store):
    """Somebody destroys the consumer group while events flow: nothing is lost or doubled."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    async with running(runner(redis, stream, identity, store, batch=10)):
        for _ in range(10):
            positions = await histories.append(redis, stream, histories.happy(10))
            await redis.xgroup_destroy(stream.events, PROJECTION_GROUP)
        await wait_until(lambda: reached(store, positions[-1]))
        await redis.xgroup_destroy(stream.events, PROJECTION_GROUP)
        positions = await histories.append(redis, stream, histories.happy(1))
        await wait_until(lambda: reached(store, positions[-1]))
    assert await count(store, "audit_log") == 303
    group = (await redis.xinfo_groups(stream.events))[0]
    assert (group["lag"], group["pending"]) == (0, 0)


async def test_unknown_event_halts_what_needs_it(redis, log_name, store):
    """A type of a newer version stops the projections that must read it; the audit log records it and goes on."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    before = await histories.append(redis, stream, histories.happy(5))
    fact = histories.submitted()
    await redis.xadd(stream.events, fact.fields() | {b"t": b"MessageTeleported"})
    after = await histories.append(redis, stream, histories.happy(5))
    one = runner(redis, stream, identity, store)
    async with running(one):
        await wait_until(lambda: reached(store, after[-1], ["audit_log"]))
    rows = {row.projection: row for row in await checkpoints.everything(store)}
    assert rows["messages"].position == before[-1]
    assert "MessageTeleported" in rows["messages"].halted
    assert rows["audit_log"].halted is None
    assert await count(store, "messages") == 5
    assert await count(store, "audit_log") == 31


class Picky(Messages):
    """`messages`, refusing what a set names."""

    def __init__(self, refused: set[bytes]) -> None:
        self.refused = refused

    def begin(self, stream, state):
        inner, refused = super().begin(stream, state), self.refused

        class Fold:
            def apply(self, item):
                inner.apply(item)
                if item.subject in refused:
                    raise ValueError("not this one")

            finish = inner.finish

        return Fold()


async def test_halted_projection_resumes(redis, log_name, store):
    """A projection stops before the event it cannot fold, alone; resumed, it catches up without the others."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    bad = histories.submitted()
    positions = await histories.append(redis, stream, [*histories.happy(5), bad, *histories.happy(5)])
    picky = Picky({bad.subject})
    one = runner(redis, stream, identity, store, projections=[picky, AuditLog()])
    async with running(one):
        await wait_until(lambda: reached(store, positions[-1], ["audit_log"]))
        await wait_until(lambda: one.status.projection("messages").halted)
        assert await count(store, "messages") == 5
        picky.refused.clear()
        assert await checkpoints.resume(store, "messages") == 1
        more = await histories.append(redis, stream, histories.happy(1))
        await wait_until(lambda: reached(store, more[-1], ["messages", "audit_log"]))
        await wait_until(lambda: one.status.projection("messages").halted is None)
    assert await count(store, "messages") == 12
    assert await count(store, "audit_log") == 34


async def test_restart_tries_a_halted_projection_again(redis, log_name, store):
    """A new process, perhaps a newer version, takes a halted projection up by itself."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    bad = histories.submitted()
    positions = await histories.append(redis, stream, [bad, *histories.happy(2)])
    old = runner(redis, stream, identity, store, projections=[Picky({bad.subject})])
    async with running(old):
        await wait_until(lambda: old.status.projection("messages").halted)
    async with running(runner(redis, stream, identity, store, projections=[Messages()])):
        await wait_until(lambda: reached(store, positions[-1], ["messages"]))
    assert await count(store, "messages") == 3


@pytest.mark.parametrize("place", [0, 3, 17])
async def test_rows_that_the_database_refuses(redis, log_name, store, place):
    """A row that does not fit halts its projection right before its event; everything before and beside it is in."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    # No event of ours has a client name of this length, so no column takes it.
    bad = histories.submitted(client="x" * 65)
    facts = histories.happy(10)
    facts.insert(place, bad)
    positions = await histories.append(redis, stream, facts)
    one = runner(redis, stream, identity, store)
    async with running(one):
        await wait_until(lambda: one.status.projection("messages").halted)
        await wait_until(lambda: reached(store, positions[-1], ["attempts"]))
    rows = {row.projection: row for row in await checkpoints.everything(store)}
    assert str(positions[place]) in rows["messages"].halted
    assert rows["messages"].events == place
    assert rows["attempts"].halted is None


async def test_change_of_a_missing_row_halts(redis, log_name, store):
    """A delivery of a message that was never submitted is not turned into a row."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    good, ghost = histories.submitted(), histories.submitted()
    await histories.append(redis, stream, [good, histories.delivered(ghost)])
    one = runner(redis, stream, identity, store)
    async with running(one):
        await wait_until(lambda: one.status.projection("messages").halted)
    assert "do not exist" in one.status.projection("messages").halted
    assert await count(store, "messages") == 1


async def test_entry_that_is_no_event_halts_all(redis, log_name, store):
    """Something else in the stream is not passed over by anybody."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    await histories.append(redis, stream, histories.happy(1))
    await redis.xadd(stream.events, {"hello": "world"})
    one = runner(redis, stream, identity, store)
    async with running(one):
        await wait_until(
            lambda: all(one.status.projection(name).halted for name in ("messages", "audit_log"))
        )
    assert await count(store, "audit_log") == 3


async def test_other_incarnation_is_refused(redis, log_name, store):
    """Checkpoints that follow another incarnation of the log are a loud state, until repair adopts the new one."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    positions = await histories.append(redis, stream, histories.happy(2))
    async with running(runner(redis, stream, identity, store)):
        await wait_until(lambda: reached(store, positions[-1]))
    await redis.hset(stream.meta, "incarnation", "2.next")
    identity.incarnations["0"] = "2.next"
    one = runner(redis, stream, identity, store, owner="p2")
    async with running(one):
        await wait_until(lambda: one.status.state is State.REFUSED)
        more = await histories.append(redis, stream, histories.happy(1))
        assert "Restore both from backups" in one.status.detail
        assert not await reached(store, more[-1])
        await checkpoints.adopt(store, "0", "2.next")
        await wait_until(lambda: reached(store, more[-1]))


async def test_log_that_went_back_is_refused(redis, log_name, store):
    """⚠ Ids below a checkpoint would be skipped for ever: the log is refused, for appends too."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    positions = await histories.append(redis, stream, histories.happy(2))
    async with running(runner(redis, stream, identity, store)):
        await wait_until(lambda: reached(store, positions[-1]))
    await redis.delete(stream.events)
    await redis.xadd(stream.events, histories.submitted().fields(), id="5-0")
    one = runner(redis, stream, identity, store, owner="p2")
    async with running(one):
        await wait_until(lambda: one.status.state is State.REFUSED)
    assert b"lost data" in await redis.hget(stream.meta, "refused")
    assert await count(store, "messages") == 2


async def test_trimmed_history_is_not_skipped(redis, log_name, store):
    """Events that were trimmed before a projection had them halt it; one that had them goes on."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    positions = await histories.append(redis, stream, histories.happy(10))
    async with running(runner(redis, stream, identity, store, projections=[AuditLog()])):
        await wait_until(lambda: reached(store, positions[-1], ["audit_log"]))
    await redis.xtrim(stream.events, maxlen=5, approximate=False)
    more = await histories.append(redis, stream, histories.happy(2))
    one = runner(redis, stream, identity, store, projections=[Messages(), AuditLog()])
    async with running(one):
        await wait_until(lambda: reached(store, more[-1], ["audit_log"]))
        await wait_until(lambda: one.status.projection("messages").halted)
    assert "lost its first" in one.status.projection("messages").halted
    assert await count(store, "messages") == 0


async def test_projection_added_later_catches_up(redis, log_name, store):
    """A projection that is new reads the history from its beginning; the others do not apply it again."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    positions = await histories.append(redis, stream, histories.happy(40))
    async with running(runner(redis, stream, identity, store, projections=[AuditLog()])):
        await wait_until(lambda: reached(store, positions[-1], ["audit_log"]))
    async with running(runner(redis, stream, identity, store, owner="p2", batch=7)):
        await wait_until(lambda: reached(store, positions[-1]))
    assert (await count(store, "messages"), await count(store, "audit_log")) == (40, 120)


async def test_commit_is_awaited_not_doubled(redis, log_name, store):
    """A transaction that loses against another one's lock is repeated as a whole."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    fact = histories.submitted()
    first = await histories.append(redis, stream, [fact])
    one = runner(redis, stream, identity, store)
    async with running(one):
        await wait_until(lambda: reached(store, first[-1]))
        async with store.transaction() as blocker:
            await blocker.rows("SELECT * FROM messages FOR UPDATE")
            more = await histories.append(
                redis, stream, [histories.attempted(fact), histories.delivered(fact)]
            )
            await wait_until(lambda: one.status.retries > 0)
        await wait_until(lambda: reached(store, more[-1]))
    assert await count(store, "attempts") == 1


async def test_idle_runner_is_woken_by_the_doorbell(redis, log_name, store):
    """An idle owner sees an event without polling, and keeps its lease while idle."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    one = runner(redis, stream, identity, store, ttl=0.6)
    two = runner(redis, stream, identity, store, owner="p2", ttl=0.6)
    async with running(one):
        await wait_until(lambda: one.status.state is State.OWNER)
        async with running(two):
            await wait_until(lambda: two.status.state is State.STANDBY)
            lease = await redis.hget(stream.lease, "expires")
            # Two renewals later it is still the same owner and epoch.
            for _ in range(2):
                await wait_until(lambda before=lease: _differs(redis, stream.lease, before))
                lease = await redis.hget(stream.lease, "expires")
            assert (one.status.state, one.feed.epoch) == (State.OWNER, 1)
        positions = await histories.append(redis, stream, histories.happy(1))
        await wait_until(lambda: reached(store, positions[-1]))


async def _differs(redis, key, before):
    return await redis.hget(key, "expires") != before


async def test_released_lease_is_taken_at_once(redis, log_name, store):
    """A projector that stops hands its streams over instead of letting the lease expire."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    one = runner(redis, stream, identity, store, ttl=60)
    async with running(one):
        await wait_until(lambda: one.status.state is State.OWNER)
    two = Feed(redis, stream, identity.incarnations["0"], "p2", ttl=60)
    assert await two.acquire() == 0
    assert two.epoch == 2
    with pytest.raises(LogRefused):
        await Feed(redis, stream, "other", "p3", ttl=60).acquire()


async def test_control_events_become_clients_certificates_and_users(redis, log_name, store):
    """Registration, route, certificates and users, changed in the same batch and in later ones."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.control
    old, new = "a" * 64, "b" * 64

    def fact(subject: str, event: types.Event):
        return histories.Fact(subject.encode(), event, actor="user:1")

    batches = [
        [
            fact("client:acme", types.ClientRegistered("acme", "acme.example")),
            fact(f"cert:{old}", types.CertIssued(old, "1f", "acme", "producer", 1000, 2000)),
            fact("user:1", types.UserCreated("1", "a@example.com", "admin", "$2b$12$x", ["acme"])),
            fact("user:2", types.UserCreated("2", "ü'\\@example.com", "user", "$2b$12$y")),
        ],
        [
            fact("client:acme", types.ClientRouteChanged("acme", "webhook", "https://x.example/'", b"s")),
            fact(f"cert:{new}", types.CertRenewed(new, "20", "acme", "producer", 1, 2, old, 3000)),
            fact("user:2", types.UserRoleChanged("2", "auditor")),
            fact("user:2", types.UserClientsChanged("2", ["acme", "other"])),
        ],
        [
            fact(f"cert:{old}", types.CertRevoked(old, "1f", "acme", "superseded")),
            fact("user:1", types.PasswordChanged("1", "$2b$12$z")),
            fact("user:2", types.UserDisabled("2")),
            fact("client:acme", types.ClientErased("acme", "asked for")),
        ],
    ]
    one = runner(redis, stream, identity, store)
    async with running(one):
        for batch in batches:
            positions = await histories.append(redis, stream, batch)
            await wait_until(lambda at=positions[-1]: reached(store, at))
    rows = await tables(store)
    client = rows["clients"][0]
    assert (client["status"], client["channel"], client["target"], client["erased_reason"]) == (
        "erased", "webhook", "https://x.example/'", "asked for",
    )  # fmt: skip
    certificates = {row["fingerprint"]: row for row in rows["certificates"]}
    assert certificates[old]["status"] == "revoked"
    assert certificates[old]["replaced_by"] == new
    assert (certificates[new]["status"], certificates[new]["replaces"]) == ("active", old)
    users = {row["user_id"]: row for row in rows["users"]}
    assert (users["1"]["password_hash"], users["1"]["client_ids"]) == ("$2b$12$z", '["acme"]')
    assert (users["2"]["role"], users["2"]["disabled"], users["2"]["email"]) == (
        "auditor", 1, "ü'\\@example.com",
    )  # fmt: skip
    assert rows["audit_log"][0]["subject"] == "client:acme"
    assert rows["audit_log"][0]["client_id"] == "acme"


def test_few_events_close_together_are_no_rate():
    """Ten events within a millisecond, as after a pause, do not make a stream busy."""
    rate = Rate()
    rate.count(0, 100.0)
    for event in range(10):
        rate.count(1, 101.0 + event / 10_000)
    assert rate.value < BUSY_RATE


def test_steady_stream_has_its_rate():
    """A stream that brings events steadily is seen at its rate; one that pauses is no longer busy."""
    rate = Rate()
    for step in range(200):
        rate.count(20, 100 + step / 100)
    assert rate.value == pytest.approx(2000, rel=0.05)
    rate.count(0, 102.2)
    assert rate.value == 0


async def test_fast_stream_is_gathered(redis, log_name, store):
    """Events that come fast are gathered, without one lost; those after a pause are seen as well."""
    keys, identity = await log.create(redis, log_name)
    stream = keys.partitions[0]
    one = runner(redis, stream, identity, store, batch=5000)
    async with running(one):
        await wait_until(lambda: one.status.state is State.OWNER)
        for _ in range(20):
            positions = await histories.append(redis, stream, histories.happy(100))
        await wait_until(lambda: reached(store, positions[-1]))
        positions = await histories.append(redis, stream, histories.happy(1))
        await wait_until(lambda: reached(store, positions[-1]))
    assert await count(store, "audit_log") == 3 * (20 * 100 + 1)
