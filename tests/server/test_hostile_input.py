"""Whatever is sent to the server, the answer is a 2xx or a 4xx, never a 500."""

from __future__ import annotations

import json
import re
import urllib.parse

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.services.server import api
from support.calling import NUMBER, Caller
from support.examples import examples
from support.serving import connection
from support.waiting import wait_until

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
ids = st.uuids(version=4).map(str) | st.uuids().map(lambda u: str(u)[:14] + "7" + str(u)[15:]) | values
register = st.fixed_dictionaries(
    {
        "client_id": st.just("demo") | values,
        "sender_number": st.just(NUMBER) | values,
        "message_body": st.text(),
    },
    optional={
        "message_id": ids,
        "queued_at": st.datetimes().map(str) | values,
        "domain": values,
        "x": values,
    },
)
delivery = st.fixed_dictionaries(
    {"message_id": ids, "worker_id": st.just("w1") | values},
    optional={"claim": values, "cycle": values, "attempt": values},
)
status = st.fixed_dictionaries(
    {"message_id": ids, "status": st.sampled_from(["queued", "delivered", "failed"]) | values},
    optional={"attempt_count": values, "error_message": values},
)
PATHS = {
    "/internal/messages/register": register | values,
    "/internal/messages/deliver": delivery
    | st.fixed_dictionaries({"deliveries": st.lists(delivery)})
    | values,
    "/internal/messages/status": status | values,
}


@pytest.mark.parametrize("path", PATHS)
async def test_bodies(world, server, path):
    """Out of anything, as careless programs write JSON."""
    # Hypothesis calls plain functions, and the server runs on this loop: examples first, requests after.
    bodies: list[bytes] = []

    @settings(max_examples=examples(40, 150), deadline=None, suppress_health_check=list(HealthCheck))
    @given(PATHS[path].map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50))
    def collect(body: bytes) -> None:
        bodies.append(body)

    collect()
    await wait_until(server.trust.fresh)  # nothing else ran meanwhile
    caller = Caller(server.port, world.contexts["internal"])
    async with connection(server.port, world.contexts["internal"]) as raw:
        for body in bodies:
            answer = await caller.post(path, body, raw=raw)
            assert answer.status in {200, 400, 404, 409}, (answer.status, answer.body, body)


ODD = [
    "\u008c", "é", "😀", "%", "_", "\\", "'", "\u202e", "-1", "1e9", "null", "[]", "\ud7ff", " ", "a" * 512,
]  # fmt: skip


async def test_parameters_of_any_text(reading):
    """Each parameter of all that people read, in the query or the path: an answer or a 4xx, whatever it says."""
    for operation in (each for each in api.OPERATIONS if each.bearer and each.method == "get"):
        for parameter in operation.parameters:
            for odd in ODD:
                text = urllib.parse.quote(odd, safe="")
                path = re.sub(r"\{[^}]+\}", text, operation.path)
                if parameter["in"] == "query":
                    path = f"{path}?{parameter['name']}={text}"
                answer = await reading.get("admin", path)
                assert answer.status in {200, 400, 404}, (path, answer.body)


@pytest.mark.parametrize("message", ["x", "%00", "..%2f..", "01890000-0000-7000-8000-0000000000ff"])
async def test_paths(internal, message):
    """A path that names no message."""
    answer = await internal.request("PUT", f"/internal/messages/{message}/status", {"status": "failed"})
    assert answer.status in {400, 404}


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("register", "domain", "\x1b]0;title\x07"),
        ("register", "domain", "a\n"),
        ("deliver", "worker_id", "w1\n"),
        ("status", "error_message", "\x00"),
        ("status", "error_message", "\x1b[31mred"),
        ("status", "error_message", "two\nlines"),
    ],
)
async def test_what_is_shown_as_it_is_holds_no_control_characters(internal, path, field, value):
    """It goes into the history in plain text, and from there onto terminals."""
    bodies = {
        "register": {"client_id": "demo", "sender_number": NUMBER, "message_body": "x"},
        "deliver": {"message_id": "01890000-0000-7000-8000-000000000000", "worker_id": "w1"},
        "status": {"message_id": "01890000-0000-7000-8000-000000000000", "status": "failed"},
    }
    answer = await internal.post(f"/internal/messages/{path}", bodies[path] | {field: value})
    assert (answer.status, answer.json["details"][0]["field"]) == (400, field)
