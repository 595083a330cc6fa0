"""POST /api/v1/messages over real TLS, into a real log."""

from __future__ import annotations

import pytest

from broker.domain import ids
from broker.events import codec
from support import log
from support.calling import MESSAGE


@pytest.mark.case("TC-P-001")
async def test_a_valid_message_is_durable_when_the_202_arrives(world, demo):
    """202 with id, client, status, time and position; the log holds the sealed event at that position."""
    answer = await demo.submit(MESSAGE | {"metadata": {"order": 7}})
    assert answer.status == 202, answer.body
    given = answer.json
    assert given.keys() == {"message_id", "client_id", "status", "queued_at", "position"}
    assert given["client_id"] == "demo"
    assert given["status"] == "queued"
    raw = ids.parse(given["message_id"], 2)
    stream = world.keys.partitions[ids.partition(raw)]
    ((tag, fields),) = await log.history(world.redis, stream)
    assert tag == "MessageSubmitted"
    event = codec.decode(tag, fields[b"d"])
    assert event.client_id == "demo"


async def test_health(gateway, world, demo):
    answer = await demo.get("/api/v1/health")
    assert answer.status == 200, answer.body
    assert answer.json["status"] == "healthy"
