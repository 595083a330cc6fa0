"""Our own side away for some messages: they wait, and nobody else waits with them."""

from __future__ import annotations

import msgspec
import pytest

from broker.domain.message import Accepted, OwnSideAway
from broker.events.delivery_log import DeliveryLog
from broker.events.open_messages import OpenMessage
from broker.services.delivery import gates, loops
from support.log import OUTCOMES_KEPT_MS
from support.rig import QUICK, Recorder
from support.waiting import wait_until


class Named(Recorder):
    """A recorder for another channel."""

    def __init__(self, name: str, answer=None) -> None:
        super().__init__(answer)
        self.name = name


@pytest.fixture
async def rig(rig):
    """`demo` goes to the channel `simulated`, `other` to the channel `inbox`."""
    await rig.clients.register_client("other", actor="system")
    await rig.clients.change_route("other", "inbox", None, None, actor="system")
    await wait_until(lambda: (entry := rig.trust.client("other")) and entry.channel == "inbox")
    return rig


def handed_back(rig):
    """Names of consumers that stand for nobody, with their pending entries, of the first partition."""

    async def look() -> dict[bytes, int]:
        found = await rig.redis.xinfo_consumers(rig.keys.partitions[0].events, "delivery")
        return {one["name"]: one["pending"] for one in found if one["name"].startswith(b"-")}

    return look


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_channel_that_is_away_does_not_stop_another(rig, concurrency):
    """⚠ However many messages wait for one channel's own side, the others' are read and delivered."""
    away = True
    stuck = Named("simulated", lambda _: OwnSideAway("maintenance") if away else Accepted())
    limits = msgspec.structs.replace(QUICK, concurrency=concurrency)
    look = handed_back(rig)
    async with rig.working(channels=[stuck, Named("inbox")], limits=limits) as worker:
        waiting = await rig.submit(100, partition=0)
        passing = await rig.submit(10, partition=0, client="other")
        assert {one.outcome for one in await rig.all_finished(passing)} == {"delivered"}
        await wait_until(lambda: worker.in_hand == 1)
        assert (await look())[b"-channel:simulated"] == 99
        assert all([isinstance(await rig.state(one), OpenMessage) for one in waiting])
        away = False
        done = await rig.all_finished(waiting)
        await wait_until(lambda: worker.waits_for == {})
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}
    for message in waiting:
        assert await rig.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]


async def test_a_client_whose_keys_are_missing_does_not_stop_others(rig):
    """Messages that cannot be decrypted yet wait for their key; those of other clients pass."""
    from broker.errors import KeyUnavailable

    limits = msgspec.structs.replace(QUICK, concurrency=4)
    missing = {"other"}

    class Opener:
        def unseal(self, client_id, message_id, sealed):
            if client_id in missing:
                raise KeyUnavailable("not loaded")
            return rig.sealer.unseal(client_id, message_id, sealed)

    worker = rig.worker(channels=[Named("simulated"), Named("inbox")], limits=limits)
    worker.handler._routes._opener = Opener()
    async with rig.run(worker):
        waiting = await rig.submit(40, partition=0, client="other")
        passing = await rig.submit(10, partition=0)
        await rig.all_finished(passing)
        assert "client:other" in worker.waits_for
        missing.clear()
        done = await rig.all_finished(waiting)
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}


async def test_what_was_shelved_is_found_by_a_worker_that_can_deliver_it(rig):
    """A worker that cannot reach our own side leaves its messages to one that can."""
    cut_off = rig.worker(channels=[Named("simulated", OwnSideAway("no network")), Named("inbox")])
    async with rig.run(cut_off):
        messages = await rig.submit(100, partition=0)
        await wait_until(lambda: "channel:simulated" in cut_off.waits_for)
        async with rig.working(channels=[Named("simulated"), Named("inbox")]):
            await wait_until(lambda: _all_but_one(rig, messages))
    async with rig.working():
        done = await rig.all_finished(messages)
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}


async def _all_but_one(rig, messages) -> bool:
    return len([one for one in messages if isinstance(await rig.state(one), OpenMessage)]) <= 1


async def _dead_with(rig, messages) -> None:
    """A worker that died with all of these in hand."""
    dead = DeliveryLog(
        rig.redis, rig.keys.partitions[0], rig.identity, "dead", outcomes_kept_ms=OUTCOMES_KEPT_MS
    )
    await dead.ensure_group()
    assert len(await dead.read(1000, rig.redis, block_ms=1)) == len(messages)


async def test_a_suspect_that_waits_for_our_own_side_keeps_no_other_waiting(rig):
    """Suspects are handled alone, one after the other: one that cannot be handled now steps aside."""
    waiting = await rig.submit(3, partition=0)
    passing = await rig.submit(20, partition=0, client="other")
    await _dead_with(rig, waiting + passing)
    away = True
    stuck = Named("simulated", lambda _: OwnSideAway("maintenance") if away else Accepted())
    async with rig.working(channels=[stuck, Named("inbox")]):
        await rig.all_finished(passing)
        assert all([(await rig.state(one)).crashes == 1 for one in waiting])
        away = False
        await rig.all_finished(waiting)


async def test_suspects_follow_each_other_at_once(rig, monkeypatch):
    """What a dead worker had in hand is not handed out at one a second: the next one goes when one has ended."""
    messages = await rig.submit(100, partition=0)
    await _dead_with(rig, messages)
    monkeypatch.setattr(loops, "TAKEOVER_EVERY", 3600.0)
    async with rig.working() as worker:
        await wait_until(lambda: all(one._steady() for one in worker._loops))
        worker.lanes[0].claims_wait.set()
        done = await rig.all_finished(messages)
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}


async def test_many_messages_with_troubles_of_their_own_stop_nobody(rig, monkeypatch):
    """Answers that hold single messages only: any number of them wait, and the channel goes on."""
    monkeypatch.setattr(gates, "MANY", 3)
    odd: set[bytes] = set()

    def answer(delivery):
        return OwnSideAway("odd", scope="message") if delivery.message_id in odd else Accepted()

    limits = msgspec.structs.replace(QUICK, concurrency=4)
    drafts = [rig.draft(0) for _ in range(30)]
    odd.update(draft.message_id for draft in drafts)
    await rig.appender.append(drafts)
    async with rig.working(channels=[Named("simulated", answer)], limits=limits) as worker:
        await rig.all_finished(await rig.submit(20, partition=0))
        await wait_until(lambda: "messages:simulated" in worker.handler.gates.shut())
        odd.clear()
        done = await rig.all_finished([draft.message_id for draft in drafts])
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}
