"""Messages that fail: retried, given up, refused, seen through every API and table."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from broker.events.positions import at
from broker.settings import Settings
from support.system import System, eventually
from support.waiting import wait_until

MESSAGE = {"sender_number": "+4915200000000", "message_body": "hello"}


async def routed(system: System, client: str, target: str) -> None:
    """A client of its own whose recipients behave as `target` says, from the next message on."""
    for command in (
        ("client", "register", client),
        ("client", "route", client, "simulated", target),
        ("cert", "issue", client),
    ):
        done = system.run(*command)
        assert done.returncode == 0, done.stderr

    async def followed() -> bool:
        message_id = await submitted(system, client)
        await finished(system, message_id)
        channels = system.query("SELECT DISTINCT channel FROM attempts WHERE message_id=%s", message_id)
        return channels == [{"channel": "simulated"}]

    # Workers follow the registry, each at its own time.
    await wait_until(followed, within=60)


async def submitted(system: System, client: str) -> str:
    async with system.client(f"clients/{client}/client") as caller:

        async def known() -> Any:
            # The gateways follow the registry; a certificate is good a fifth of a second after it was issued.
            answer = await caller.post("/api/v1/messages", json=MESSAGE)
            return answer if answer.status_code == 202 else None

        return (await wait_until(known)).json()["message_id"]


async def finished(system: System, message_id: str) -> tuple[dict, list[dict]]:
    """Row and history of a message once its cycle has ended."""
    [row] = await eventually(
        lambda: system.query("SELECT * FROM messages WHERE message_id=%s AND status<>'queued'", message_id)
    )
    history = await eventually(
        lambda: (
            (rows := history_of(system, message_id)) and rows[-1]["type"] in {"Delivered", "Failed"} and rows
        )
    )
    return row, history


async def queued(system: System, client: str) -> str:
    """A message that the table was seen to show as queued."""
    while True:
        message_id = await submitted(system, client)
        query = "SELECT status FROM messages WHERE message_id=%s"
        [row] = await eventually(lambda query=query, message_id=message_id: system.query(query, message_id))
        # On a busy machine all may be over before the first look.
        if row["status"] == "queued":
            return message_id


def history_of(system: System, message_id: str) -> list[dict]:
    return system.query("SELECT * FROM audit_log WHERE subject=%s ORDER BY ms, seq", message_id)


def types(history: list[dict]) -> list[str]:
    return [one["type"] for one in history]


ROUND = ["DeliveryAttempted", "RetryScheduled", "DeliveryDue"]


@pytest.mark.case("TC-I-002", "TC-W-002", "TC-I-004", "TC-I-005")
async def test_a_failed_attempt_is_retried_after_the_interval(shared_system: System) -> None:
    """Two attempts fail, each is followed by a wait of the interval, the third succeeds: from queued to delivered."""
    await routed(shared_system, "flaky", "failures=2")
    message_id = await queued(shared_system, "flaky")
    row, history = await finished(shared_system, message_id)
    assert types(history) == ["MessageSubmitted", *ROUND, *ROUND, "DeliveryAttempted", "Delivered"]
    assert (row["status"], row["attempt_count"]) == ("delivered", 3)
    waits = [
        following["ms"] - one["ms"]
        for one, following in itertools.pairwise(history)
        if one["type"] == "RetryScheduled"
    ]
    assert len(waits) == 2
    assert min(waits) >= 1000, "this system retries every second, by the log's clock"
    assert (Settings().retry_interval, Settings().max_attempts) == (30.0, 5)


@pytest.mark.case("TC-W-004", "TC-W-009", "TC-I-002", "TC-I-004", "TC-I-005")
async def test_attempts_run_out(shared_system: System) -> None:
    """Five attempts, no sixth: the message was queued, has failed, and says why."""
    await routed(shared_system, "dead", "success=0")
    message_id = await queued(shared_system, "dead")
    row, history = await finished(shared_system, message_id)
    assert types(history) == ["MessageSubmitted", *ROUND * 4, "DeliveryAttempted", "Failed"]
    assert (row["status"], row["attempt_count"], row["delivered_at"]) == ("failed", 5, None)
    async with shared_system.client("clients/dead/client") as caller:
        shown = (await caller.get(f"/api/v1/messages/{message_id}")).json()
    assert shown["status"] == "failed"
    assert [one["attempt"] for one in shown["attempts"]] == [1, 2, 3, 4, 5]
    assert shown["reason"]


async def test_a_refusal_for_good_is_not_retried(shared_system: System) -> None:
    """The recipient said never: one attempt, failed."""
    await routed(shared_system, "refusing", "success=0,permanent=1")
    message_id = await submitted(shared_system, "refusing")
    row, history = await finished(shared_system, message_id)
    assert types(history) == ["MessageSubmitted", "DeliveryAttempted", "Failed"]
    assert (row["status"], row["attempt_count"]) == ("failed", 1)


async def test_every_event_names_its_conversation_and_its_cause(shared_system: System) -> None:
    """All events of a message carry one correlation id; each but the first names what led to it."""
    message_id = await submitted(shared_system, "demo")
    _, history = await finished(shared_system, message_id)
    assert {one["correlation_id"] for one in history} == {message_id.replace("-", "")}
    positions = {str(at(one["stream"], f"{one['ms']}-{one['seq']}")) for one in history}
    assert history[0]["causation_id"] is None
    assert {one["causation_id"] for one in history[1:]} <= positions
