"""A Redis that lost what it knew: everything in it comes back from archive and tables, and nothing happens twice."""

from __future__ import annotations

import asyncio
import shutil

import msgspec
import pytest

from broker import clock
from broker.domain import ids
from broker.domain.message import Accepted, Refused
from broker.domain.retry import RetryPolicy
from broker.errors import Conflict, LogRefused
from broker.events import codec, envelope, key_copies, log_identity, standing
from broker.events.appender import Appender
from broker.events.archive.segments import ArchiveDamaged
from broker.events.open_messages import FinishedMessage
from broker.events.positions import at
from broker.events.repair.plan import RepairRefused
from broker.projections import catalog
from broker.projections.rebuild.sources import ArchiveSource
from broker.projections.status import State
from support import databases, histories, readmodels
from support.repairs import certificate
from support.rig import QUICK, Recorder
from support.waiting import wait_until

SLOW = msgspec.structs.replace(QUICK, retry=RetryPolicy(interval=3600.0))
ENDS = {b"Delivered", b"RetryScheduled"}


def stored(draft) -> dict[bytes, bytes]:
    """The stream entry of a draft, as a script would have written it."""
    return {
        b"t": b"MessageSubmitted",
        b"s": draft.message_id,
        b"m": envelope.encode(draft.queued_at, draft.actor, draft.correlation_id),
        b"d": codec.encode(draft.event),
    }


async def outcomes(world, message_id: bytes) -> int:
    """How many outcomes the whole history has of a message, were all of it in the tables."""
    await world.project()
    rows = await world.store.select(
        "SELECT COUNT(*) AS n FROM audit_log WHERE subject=%s AND type IN ('Delivered','Failed','MessageDiscarded')",
        (ids.text(message_id),),
    )
    return rows[0]["n"]


async def test_an_emptied_redis_comes_back_whole(world):
    """Delivered, waiting, fresh and parked messages, keys, registry: as they were; each open one is delivered once."""
    await world.clients.register_client("acme", actor="system")
    await wait_until(lambda: world.trust.client("acme"))
    done = await world.submit(6)
    first = Recorder()
    async with world.working(channels=[first], limits=SLOW):
        await world.all_finished(done)
        first.answer = Refused("not now", 503)
        waiting = await world.submit(4, client="acme")
        await wait_until(lambda: len(first.seen) == 10)
        for one in waiting:
            await wait_until(lambda one=one: _phase(world, one, "due"))
    fresh = await world.submit(4)
    await world.archive()
    await world.project()
    before = await world.derived()
    await world.empty()
    with pytest.raises(LogRefused, match="streams repair"):
        await log_identity.load(world.redis, world.settings)

    shown = await world.repair().examine()
    assert not shown.done
    assert (shown.lost, shown.keys_lost) == (0, [])
    assert await world.names() == []
    report = await world.repaired()
    assert sum(one.open for one in report.streams if one.open is not None) == 8
    assert await world.derived() == before
    present = world.identity.incarnations
    read = ArchiveSource(world.storage, world.identity.log_id, present)
    assert read.incarnations == {name: present[name] for name in read.streams}
    second = Recorder()
    async with world.working(channels=[second], limits=SLOW):
        await world.all_finished(fresh)
        more = await world.submit(2)
        await world.all_finished(more)
    assert sorted(second.seen) == sorted([*fresh, *more])
    await world.archive()
    await world.project()
    rows = await world.store.select(
        "SELECT status,COUNT(*) AS n FROM messages GROUP BY status ORDER BY status"
    )
    assert [(row["status"], row["n"]) for row in rows] == [("delivered", 12), ("queued", 4)]


async def _phase(world, message_id: bytes, phase: str) -> bool:
    found = await world.state(message_id)
    return getattr(found, "phase", None) == phase


async def test_a_rolled_back_redis_gets_back_what_followed(world):
    """Delivered, retried, erased, revoked, registered after the copy was made: none of it is undone by the copy."""
    await world.clients.register_client("acme", actor="system")
    await world.clients.register_client("gone", actor="system")
    await world.certificates.record_certificate(certificate("acme"), actor="system")
    await wait_until(lambda: world.trust.client("gone"))
    early = await world.submit(4)
    secret = await world.submit(1, client="gone")
    old = await world.snapshot()

    first = Recorder(
        lambda delivery: Refused("no", 503) if delivery.message_id in early[:2] else Accepted(200)
    )
    async with world.working(channels=[first], limits=SLOW):
        await world.all_finished([*early[2:], *secret])
        for one in early[:2]:
            await wait_until(lambda one=one: _phase(world, one, "due"))
    await world.archive()
    await world.project()
    await world.clients.erase_client("gone", "asked to", actor="system")
    await world.certificates.revoke_certificate(client_id="acme", reason="keyCompromise", actor="system")
    await world.clients.register_client("late", actor="system")
    await wait_until(lambda: world.trust.client("late"))
    late = await world.submit(2, client="late")
    await world.archive()
    # Only the tables know these.
    more = await world.submit(2, client="late")
    await world.project()
    before = await world.derived()

    await world.roll_back(old)
    report = await world.repaired()
    assert (report.lost, report.keys_lost, report.rebuild) == (0, [], [])
    assert sum(one.missing for one in report.streams) > 0
    assert sum(one.recorded for one in report.streams) == 2
    assert await world.derived() == before
    assert world.trust.client("gone").status == "erased"
    assert b"gone" not in await world.redis.hgetall(world.keys.control.client_keys)
    assert world.trust.certificate(certificate("acme").fingerprint).status == "revoked"

    second = Recorder()
    quick = msgspec.structs.replace(QUICK, retry=RetryPolicy(interval=0.05))
    async with world.working(channels=[second], limits=quick):
        await world.all_finished([*late, *more])
        for one in early[:2]:
            found = await world.state(one)
            assert (found.phase, found.attempts) == ("due", 1)
            await world.redis.zadd(world.keys.partitions[one[15]].due, {one: 1})
        ended = await world.all_finished(early[:2])
    assert [one.attempts for one in ended] == [2, 2]
    assert sorted(second.seen) == sorted([*late, *more, *early[:2]])
    assert {await outcomes(world, one) for one in [*early, *secret, *late, *more]} == {1}


async def test_what_an_older_redis_did_does_not_count_twice(world):
    """⚠ Roles that went on with a rolled-back Redis: what contradicts the history is left out, the rest follows it."""
    sent = await world.submit(3, partition=0)
    old = await world.snapshot()
    first = Recorder()
    async with world.working(channels=[first]):
        await world.all_finished(sent)
    await world.archive()
    await world.roll_back(old)
    async with world.working(channels=[first]):
        await world.all_finished(sent)
        fresh = await world.submit(2, partition=0)
        await world.all_finished(fresh)
    new = await world.submit(1, partition=0)
    report = await world.repaired()
    assert (report.streams[0].void, report.streams[0].moved, report.streams[0].missing) == (6, 0, 6)
    assert {await outcomes(world, one) for one in [*sent, *fresh]} == {1}
    second = Recorder()
    async with world.working(channels=[second]):
        await world.all_finished(new)
    assert second.seen == new
    await world.archive()
    await world.project()
    rows = await world.store.select("SELECT status,COUNT(*) AS n FROM messages GROUP BY status")
    assert [(row["status"], row["n"]) for row in rows] == [("delivered", 6)]


async def test_an_older_redis_that_was_used_before_anybody_looked_is_noticed(world):
    """⚠ All roles restarted on it, and new messages came first: who reads on misses the place where it had been."""
    await world.submit(2, partition=0)
    old = await world.snapshot()
    lost = await world.submit(2, partition=0)
    await world.project()
    await world.roll_back(old)
    world.appender = Appender(world.redis, world.keys, world.identity)
    fresh = await world.submit(5, partition=0)
    runner = readmodels.runner(world.redis, world.keys.partitions[0], world.identity, world.store)
    async with readmodels.running(runner):
        await wait_until(lambda: runner.status.state is State.REFUSED)
    with pytest.raises(LogRefused, match="Redis lost data"):
        await world.submit(1, partition=0)
    await world.repaired()
    seen = Recorder()
    async with world.working(channels=[seen]):
        await world.all_finished([*lost, *fresh])
    assert len(seen.seen) == 9


async def test_an_older_redis_without_entries_that_was_used_is_noticed(world):
    """⚠ Put back to right after a repair, all of it archived: its first entry is new, fewer events came before it."""
    keys = world.keys.partitions[0]
    first = Recorder(Refused("not now", 503))
    async with world.working(channels=[first], limits=SLOW):
        (sent,) = await world.submit(1, partition=0)
        await wait_until(lambda: _phase(world, sent, "due"))
    await world.archive()
    await world.project()
    await world.empty()
    await world.repaired()
    assert await world.redis.xlen(keys.events) == 0
    await world.redis.zadd(keys.due, {sent: 1})
    old = await world.snapshot()

    async with world.working(channels=[Recorder()]):
        await world.all_finished([sent])
    await world.project()
    await world.roll_back(old)
    async with world.working(channels=[Recorder()]):
        await world.all_finished([sent])
    runner = readmodels.runner(world.redis, keys, world.identity, world.store)
    async with readmodels.running(runner):
        await wait_until(lambda: runner.status.state is State.REFUSED)
    report = await world.repaired()
    assert (report.streams[0].missing, report.streams[0].void) == (3, 3)
    # A projector cannot reach what was left out.
    await world.submit(1, partition=0)
    assert await outcomes(world, sent) == 1


async def test_what_came_in_while_the_clock_was_behind_is_not_skipped(world):
    """⚠ Taken in by an older Redis at ids that the archive had passed: it gets a place at the end, and is delivered."""
    keys = world.keys.partitions[0]
    (sent,) = await world.submit(1, partition=0)
    old = await world.snapshot()
    later = await world.submit(1, partition=0)
    await world.archive()
    await world.roll_back(old)
    draft = world.draft(0)
    ((entry, _),) = await world.redis.xrange(keys.events)
    ms, _, seq = entry.decode().partition("-")
    await world.redis.xadd(keys.events, stored(draft), id=f"{ms}-{int(seq) + 1}")
    report = await world.repaired()
    assert report.streams[0].moved == 1
    seen = Recorder()
    async with world.working(channels=[seen]):
        await world.all_finished([sent, *later, draft.message_id])
    assert sorted(seen.seen) == sorted([sent, *later, draft.message_id])


async def test_a_torn_end_is_completed(world):
    """An attempt whose consequence was lost: a success stays one, a failure is tried again at once."""
    sent = await world.submit(2, partition=0)
    keys = world.keys.partitions[0]
    first = Recorder(lambda delivery: Accepted(200) if delivery.message_id == sent[0] else Refused("no", 503))
    async with world.working(channels=[first], limits=SLOW):
        await world.all_finished(sent[:1])
        await wait_until(lambda: _phase(world, sent[1], "due"))
    entries = await world.redis.xrange(keys.events)
    await world.redis.delete(keys.events, keys.open, keys.due, keys.age, keys.meta)
    for entry, fields in entries:
        if fields[b"t"] not in ENDS:
            await world.redis.xadd(keys.events, fields, id=entry)
    report = await world.repaired(tables=False)
    assert report.streams[0].completed == 2
    second = Recorder()
    async with world.working(channels=[second]):
        await world.all_finished(sent)
    assert second.seen == sent[1:]


async def test_idempotency_keys_and_answers_survive(world):
    """A producer that repeats a request after the repair gets the answer of before; its outcome is still known."""
    draft = world.draft(0, idempotency=b"k" * 16, request_hash=b"r" * 32)
    (before,) = await world.appender.append([draft])
    async with world.working(channels=[Recorder()]):
        await world.all_finished([draft.message_id])
    await world.archive()
    await world.empty()
    await world.repaired()
    again = world.draft(0, idempotency=b"k" * 16, request_hash=b"r" * 32)
    (after,) = await world.appender.append([again])
    assert after.replayed
    assert (after.message_id, after.position) == (before.message_id, before.position)
    assert isinstance(await world.state(draft.message_id), FinishedMessage)


async def test_a_healthy_log_in_use_is_left_alone(world):
    """Refused while somebody is at work on it; another repair is refused, too."""
    await world.submit(2)
    async with world.working(channels=[Recorder()]):
        await wait_until(lambda: standing.workers(world.redis, world.keys))
        shown = await world.repair().examine()
        assert (shown.refused, shown.streams) == ([], [])
        assert shown.at_work
        with pytest.raises(Conflict, match="in use"):
            await world.repair().run()
    before = await world.derived()
    await world.redis.set(f"{world.keys.control.base}:repair-lease", "other")
    with pytest.raises(Conflict, match="Another repair"):
        await world.repair().run()
    await world.redis.delete(f"{world.keys.control.base}:repair-lease")
    await world.repaired()
    assert await world.derived() == before


async def test_tables_that_follow_another_life_of_the_log_are_brought_along(world):
    """A database restored from before a repair: projectors refuse it; another repair mends it, in use or not."""
    await world.submit(2)
    await world.project()
    await world.store.execute("UPDATE checkpoints SET incarnation='0.before'")
    async with world.working(channels=[Recorder()]):
        await wait_until(lambda: standing.workers(world.redis, world.keys))
        report = await world.repair().run()
    assert any("follows 0.before" in one for one in report.refused)
    await world.renew()
    await world.project()


async def test_the_next_life_is_above_all_that_the_archive_knows(world):
    """Repaired on another machine before; Redis and tables lost, and this one remembers the life before that."""
    remembered = world.identity
    await world.submit(1)
    await world.repaired()
    await world.archive()
    later = world.identity
    await world.empty()
    log_identity.remember(world.settings, remembered)
    await world.repaired(tables=False)
    now, before = (log_identity.generation(one.incarnations["0"]) for one in (world.identity, later))
    assert now > before


async def test_an_unreadable_archive_changes_nothing(world):
    """A repair that cannot know the history ends before it has changed anything; the log is as it was."""
    await world.submit(5)
    await world.archive()
    before = await world.derived()
    for path in (world.directory / "archive").rglob("*.zst"):
        path.write_bytes(b"changed")
    with pytest.raises(ArchiveDamaged):
        await world.repair().run()
    assert await world.derived() == before
    assert (await log_identity.load(world.redis, world.settings)) == world.identity
    await world.submit(1)


async def test_what_is_lost_for_good_is_told(world):
    """A halted audit log, no copies: which messages and keys are gone; what the tables know to have ended, ended."""
    await world.clients.register_client("acme", actor="system")
    await wait_until(lambda: world.trust.client("acme"))
    early = await world.submit(2, partition=0, client="acme")
    await world.archive()
    await world.project()
    await world.store.execute("UPDATE checkpoints SET halted='asked to' WHERE projection='audit_log'")
    async with world.working(channels=[Recorder()]):
        await world.all_finished(early)
    late = await world.submit(2, partition=0, client="acme")
    others = [each for each in catalog.projections() if each.name != "audit_log"]
    (end,) = {at("0", await world.last(world.keys.partitions[0]))}
    runner = readmodels.runner(
        world.redis, world.keys.partitions[0], world.identity, world.store, projections=others
    )
    async with readmodels.running(runner):
        await wait_until(lambda: readmodels.reached(world.store, end, [each.name for each in others[:1]]))
    for path in (world.directory / "client-keys").rglob("acme@*"):
        path.unlink()

    await world.empty()
    report = await world.repaired()
    assert report.streams[0].lost == 6
    assert sorted(report.messages_lost) == sorted(map(ids.text, late))
    assert report.keys_lost == ["acme"]
    assert set(report.rebuild) == {"messages", "attempts", "statistics"}
    assert {(await world.state(one)).outcome for one in early} == {"delivered"}
    seen = Recorder()
    async with world.working(channels=[seen]):
        fresh = await world.submit(2, partition=0)
        await world.all_finished(fresh)
    assert sorted(seen.seen) == sorted(fresh)
    await world.archive()


async def test_an_erasure_that_only_the_copies_know_is_done_again(world):
    """⚠ Erased, and Redis put back before anybody had read the event: the client stays erased, its certificate out."""
    await world.clients.register_client("gone", actor="system")
    await world.certificates.record_certificate(certificate("gone"), actor="system")
    await world.archive()
    old = await world.snapshot()
    await world.clients.erase_client("gone", "asked to", actor="system")
    key_copies.opened(world.settings, world.identity.log_id).erase("gone")
    await world.roll_back(old)
    report = await world.repaired()
    assert report.streams[2].completed == 2
    assert world.trust.client("gone").status == "erased"
    assert world.trust.certificate(certificate("gone").fingerprint).status == "revoked"
    assert b"gone" not in await world.redis.hgetall(world.keys.control.client_keys)
    await world.archive()
    await world.project()
    (row,) = await world.store.select("SELECT status FROM clients WHERE client_id='gone'")
    assert row["status"] == "erased"


async def test_history_that_is_nowhere_is_not_made_up(world):
    """Redis goes on after events that were cut, and the archive that had them is gone: refused, nothing changed."""
    sent = await world.submit(3, partition=0)
    async with world.working(channels=[Recorder()]):
        await world.all_finished(sent)
    await world.project()
    await world.archive(trim=True)
    await world.submit(1, partition=0)
    shutil.rmtree(world.directory / "archive")
    await asyncio.to_thread(databases.clear, world.store._url)
    before = await world.derived()
    with pytest.raises(RepairRefused, match="bring the archive's files back"):
        await world.repair().run()
    assert await world.derived() == before
    await world.submit(1, partition=0)


async def test_outcomes_come_back_for_as_long_as_they_are_kept(world):
    """⚠ By their own age: one of five days ago is known for five more where ten are set, not at all where two are."""
    keys, day = world.keys.partitions[0], 86_400_000
    now = clock.now_ms()
    fact = histories.submitted()
    for ms, each in ((now - 6 * day, fact), (now - 5 * day, histories.delivered(fact))):
        await world.redis.xadd(keys.events, each.fields(), id=f"{ms}-0")
    place = keys.done(ids.created_ms(fact.subject))
    await world.archive()
    for kept, left in ((10 * day, 5 * day), (2 * day, 0)):
        world.settings = msgspec.structs.replace(world.settings, outcomes_kept=kept / 1000)
        await world.empty()
        report = await world.repaired()
        state = await world.state(fact.subject)
        assert (report.streams[0].outcomes, state is not None) == ((1, True) if left else (0, False))
        assert left - 600_000 < await world.redis.pttl(place) <= left


async def test_what_had_ended_before_redis_forgot_it_does_not_begin_again(world):
    """⚠ Outcomes are kept for a minute; a message is registered again on an older Redis, repaired two hours later."""
    world.settings = msgspec.structs.replace(world.settings, outcomes_kept=60.0)
    keys, now = world.keys.partitions[0], clock.now_ms()
    old = await world.snapshot()
    fact = histories.submitted()
    for ms, each in ((now - 9_000_000, fact), (now - 8_000_000, histories.delivered(fact))):
        await world.redis.xadd(keys.events, each.fields(), id=f"{ms}-0")
    await world.archive()
    await world.roll_back(old)
    await world.redis.xadd(keys.events, fact.fields(), id=f"{now - 7_200_000}-0")
    report = await world.repaired()
    found = report.streams[0]
    assert (found.void, found.open, found.outcomes) == (1, 0, 0)
    second = Recorder()
    async with world.working(channels=[second]):
        fresh = await world.submit(1, partition=0)
        await world.all_finished(fresh)
    assert second.seen == fresh


async def test_a_repair_cuts_no_life_of_outcomes(world):
    """What a role with a longer setting promised outlives a repair with a shorter one; nothing stays for ever."""
    kept = 10 * 86_400_000
    async with world.working(limits=msgspec.structs.replace(QUICK, outcomes_kept_ms=kept)):
        [message] = await world.submit(1, partition=0)
        await world.all_finished([message])
    place = world.keys.partitions[0].done(ids.created_ms(message))
    for _ in range(2):
        await world.repaired()
        assert kept - 600_000 < await world.redis.pttl(place) <= kept
    await world.redis.persist(place)
    await world.repaired()
    assert 0 < await world.redis.pttl(place) <= world.settings.outcomes_kept_ms
