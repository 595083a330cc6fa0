"""Messages that cannot be read, for a while or for ever."""

from __future__ import annotations

import pytest

from broker.domain import ids
from broker.errors import KeyUnavailable
from broker.events import types
from broker.events.open_messages import OpenMessage
from broker.events.reopening import Asked
from support.rig import Recorder
from support.waiting import wait_until


async def parked(rig, message) -> bool:
    state = await rig.state(message)
    return isinstance(state, OpenMessage) and state.phase == "parked"


@pytest.mark.parametrize("sealed", [b"", b"\x01\x00\x01" + b"x" * 60], ids=["empty", "changed"])
async def test_a_damaged_message_is_parked_and_holds_nobody_up(rig, sealed):
    """A ciphertext that cannot be opened is set aside with its reason, no attempt made; the rest is delivered."""
    async with rig.working():
        [damaged] = await rig.submit(1, partition=0, sealed=sealed)
        healthy = await rig.submit(10)
        await rig.all_finished(healthy)
        await wait_until(lambda: parked(rig, damaged))
    events = [one.event for one in await rig.events(damaged)]
    assert [type(one) for one in events] == [types.MessageSubmitted, types.MessageParked]
    assert events[1].attempt == 0
    assert events[1].reason


async def test_another_messages_ciphertext_is_not_delivered(rig):
    """⚠ A ciphertext is bound to its message: one copied from another message is parked, not delivered."""
    channel = Recorder()
    stolen = rig.sealer.seal("demo", ids.new(0), "+4915200000000", "secret", None)
    async with rig.working(channels=[channel]):
        [message] = await rig.submit(1, sealed=stolen)
        await wait_until(lambda: parked(rig, message))
    assert channel.seen == []


async def test_a_key_not_loaded_yet_is_waited_for(rig, monkeypatch):
    """⚠ A key that this worker has not loaded yet is our own side's absence: no attempt, other clients go on."""
    await rig.clients.register_client("other", actor="system")
    await wait_until(lambda: rig.trust.client("other"))
    real, loaded = rig.sealer.unseal, False

    def unseal(client_id, message_id, sealed):
        if client_id == "other" and not loaded:
            raise KeyUnavailable("other has no key number 2.")
        return real(client_id, message_id, sealed)

    monkeypatch.setattr(rig.sealer, "unseal", unseal)
    async with rig.working() as worker:
        waiting = await rig.submit(5, client="other")
        await wait_until(lambda: "client:other" in worker.waits_for)
        await rig.all_finished(await rig.submit(10))
        assert {(await rig.state(message)).attempts for message in waiting} == {0}
        loaded = True
        done = await rig.all_finished(waiting)
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}


async def test_an_erased_clients_messages_are_discarded(rig):
    """With the client's keys gone on purpose the cycle ends as discarded, no attempt counted."""
    await rig.clients.register_client("other", actor="system")
    await wait_until(lambda: rig.trust.client("other"))
    messages = await rig.submit(3, client="other")
    await rig.clients.erase_client("other", reason="asked to", actor="system")
    await wait_until(lambda: rig.trust.client("other").status == "erased")
    async with rig.working():
        done = await rig.all_finished(messages)
    assert {(one.outcome, one.attempts) for one in done} == {("discarded", 0)}
    assert await rig.tags(messages[0]) == ["MessageSubmitted", "MessageDiscarded"]


async def test_a_ciphertext_that_is_gone_is_parked(rig):
    """A retry whose body is nowhere any more is set aside with that reason."""
    [message] = await rig.submit(1, sealed=b"")
    async with rig.working():
        await wait_until(lambda: parked(rig, message))
    await rig.redis.hdel(rig.keys.partitions[0].bodies, message)
    await rig.redis.xtrim(rig.keys.partitions[0].events, maxlen=0, approximate=False)
    await rig.reopening.unpark(message, "demo", 1, Asked("user:x", 1))
    async with rig.working():
        await wait_until(lambda: parked(rig, message))
    assert (await rig.events(message))[-1].event.reason == "its ciphertext is gone"


async def test_an_unparked_message_goes_on_in_its_cycle(rig):
    """A person gives a parked message back, repaired: it is delivered in the same cycle."""
    [message] = await rig.submit(1, sealed=b"")
    async with rig.working():
        await wait_until(lambda: parked(rig, message))
        sealed = rig.sealer.seal("demo", message, "+4915200000000", "hello", None)
        event = types.MessageSubmitted("demo", sealed, b"h" * 32)
        from broker.events import codec

        await rig.redis.hset(
            rig.keys.partitions[0].bodies, message, b"MessageSubmitted|" + codec.encode(event)
        )
        await rig.reopening.unpark(message, "demo", 1, Asked("user:x", 1))
        [done] = await rig.all_finished([message])
    assert (done.outcome, done.cycle, done.attempts) == ("delivered", 1, 1)


async def test_a_resend_is_a_cycle_of_its_own(rig):
    """After an outcome a resend opens the next cycle, with attempts counted anew."""
    channel = Recorder()
    async with rig.working(channels=[channel]):
        [message] = await rig.submit(1)
        await rig.all_finished([message])
        sealed = rig.sealer.seal("demo", message, "+4915200000000", "again", None)
        await rig.reopening.resend(message, types.ResendRequested("demo", 2, sealed), Asked("user:x", 1))
        await wait_until(lambda: len(channel.seen) == 2)
        [done] = await rig.all_finished([message])
    assert (done.outcome, done.cycle, done.attempts) == ("delivered", 2, 1)
    assert channel.deliveries[1].plain.message_body == "again"
