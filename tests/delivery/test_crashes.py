"""Worker processes that are killed, and messages that kill them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from broker.events import types
from broker.events.open_messages import OpenMessage
from support.rig import QUICK, Recorder
from support.waiting import wait_until

SCRIPT = Path(__file__).parent / "worker_process.py"


class Fleet:
    """Worker processes on the rig's log; the journal says what reached a recipient."""

    def __init__(self, rig, tmp_path: Path) -> None:
        self.rig = rig
        self.journal = tmp_path / "journal"
        self.journal.touch()
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self, **limits) -> asyncio.subprocess.Process:
        options = {
            "url": self.rig.url,
            "log_name": self.rig.log_name,
            "partitions": self.rig.partitions,
            "incarnations": self.rig.identity.incarnations,
            "keyring": str(self.rig.keyring_path),
            "journal": str(self.journal),
            "limits": msgspec.to_builtins(msgspec.structs.replace(QUICK, **limits)),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), json.dumps(options),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        self.processes.append(process)
        assert (await process.stdout.readline()).strip() == b"ready"
        return process

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    def delivered(self) -> list[str]:
        return [line.split()[0] for line in self.journal.read_text().splitlines()]

    async def stop(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                await self.kill(process)


@pytest.fixture
async def fleet(rig, tmp_path):
    made = Fleet(rig, tmp_path)
    yield made
    await made.stop()


async def test_a_killed_worker_is_taken_over(rig, fleet):
    """Kill -9 with messages in hand: another worker finishes them, one outcome and one attempt each."""
    victim = await fleet.start()
    messages = await rig.submit(6, body="hang")
    await wait_until(lambda: len(fleet.delivered()) == 6)
    await fleet.kill(victim)
    other = Recorder()
    async with rig.working(channels=[other]):
        done = await rig.all_finished(messages)
    assert {one.outcome for one in done} == {"delivered"}
    for message in messages:
        assert await rig.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]


@pytest.mark.case("TC-W-005", "TC-W-006")
async def test_workers_killed_at_random_points_leave_one_outcome_each(rig, fleet):
    """Workers are killed and replaced while 3,000 messages pass: each ends once, its attempts numbered from 1."""
    for _ in range(2):
        await fleet.start()
    messages = []
    for round_ in range(6):
        messages += await rig.submit(500)
        target = len(messages) - 250
        await wait_until(lambda target=target: len(fleet.delivered()) >= target)
        victim = fleet.processes[round_]
        if round_ % 3 == 2:
            victim.send_signal(signal.SIGTERM)
            assert await victim.wait() == 0
        else:
            await fleet.kill(victim)
        await fleet.start()
    done = await rig.all_finished(messages)
    assert {(one.outcome, one.cycle) for one in done} == {("delivered", 1)}
    outcomes, attempts = Counter(), Counter()
    for partition in rig.keys.partitions:
        for _, fields in await rig.redis.xrange(partition.events):
            outcomes[fields[b"s"]] += fields[b"t"] == b"Delivered"
            attempts[fields[b"s"]] += fields[b"t"] == b"DeliveryAttempted"
        assert await rig.redis.hlen(partition.open) == 0
    assert set(outcomes.values()) == set(attempts.values()) == {1}
    assert set(fleet.delivered()) == {message.hex() for message in messages}


async def test_a_message_that_kills_workers_is_parked_and_the_others_are_delivered(rig, fleet):
    """Three workers die of one message; the fourth parks it with its reason, and nobody else suffers."""
    healthy = await rig.submit(10, partition=0)
    [poison] = await rig.submit(1, partition=0, body="poison")
    healthy += await rig.submit(10, partition=0)
    for _ in range(3):
        process = await fleet.start()
        assert await process.wait() == -signal.SIGKILL
    await fleet.start()

    async def parked():
        state = await rig.state(poison)
        return isinstance(state, OpenMessage) and state.phase == "parked"

    await wait_until(parked, within=60)
    done = await rig.all_finished(healthy)
    assert {one.outcome for one in done} == {"delivered"}
    events = await rig.events(poison)
    assert [type(one.event) for one in events] == [types.MessageSubmitted, types.MessageParked]
    assert events[-1].event.reason == "crashed 3 workers"
    assert fleet.delivered().count(poison.hex()) == 3


async def test_a_worker_paused_past_its_heartbeat_records_nothing_of_what_it_had(rig, fleet):
    """SIGSTOP: others take over; on SIGCONT its late answers write nothing, and it goes on with new messages."""
    paused = await fleet.start()
    messages = await rig.submit(6, body="wait")
    await wait_until(lambda: len(fleet.delivered()) == 6)
    paused.send_signal(signal.SIGSTOP)
    other = Recorder()
    async with rig.working(channels=[other]):
        await rig.all_finished(messages)
        assert sorted(other.seen) == sorted(messages)
    Path(f"{fleet.journal}.go").touch()
    paused.send_signal(signal.SIGCONT)
    later = await rig.submit(20)
    done = await rig.all_finished(later)
    assert {(one.outcome, one.attempts) for one in done} == {("delivered", 1)}
    paused.send_signal(signal.SIGTERM)
    assert await paused.wait() == 0
    for message in messages + later:
        assert await rig.tags(message) == ["MessageSubmitted", "DeliveryAttempted", "Delivered"]
    assert set(fleet.delivered()) == {message.hex() for message in messages + later}


async def test_two_workers_with_the_same_poison_park_it_alone(rig, fleet):
    """Workers side by side die of one message in turn; it is parked, and every other message is delivered."""
    [poison] = await rig.submit(1, partition=0, body="poison")
    healthy = await rig.submit(40)
    running = [await fleet.start() for _ in range(2)]

    async def parked():
        for place, process in enumerate(running):
            if process.returncode is not None:
                running[place] = await fleet.start()
        state = await rig.state(poison)
        return isinstance(state, OpenMessage) and state.phase == "parked"

    await wait_until(parked, within=60)
    done = await rig.all_finished(healthy)
    assert {one.outcome for one in done} == {"delivered"}
    assert fleet.delivered().count(poison.hex()) == 3


async def test_orderly_stops_and_restarts_count_as_no_crash(rig, fleet):
    """A message that is handed back again and again by workers that stop in order is never suspected."""
    [message] = await rig.submit(1, body="hang")
    for attempt in range(1, 6):
        process = await fleet.start(grace=0.3)
        await wait_until(lambda attempt=attempt: len(fleet.delivered()) == attempt)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert (await rig.state(message)).crashes == 0
    assert await rig.tags(message) == ["MessageSubmitted"]
