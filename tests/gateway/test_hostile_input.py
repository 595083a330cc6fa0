"""Whatever is sent, the answer is the contract's: a 202 for what is valid, a 4xx for the rest, never a 500."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.calling import MESSAGE, Caller
from support.examples import examples
from support.serving import connection
from support.waiting import wait_until

COMMON = settings(
    max_examples=examples(40, 150), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
numbers = st.from_regex(r"\+[1-9][0-9]{6,14}", fullmatch=True) | st.text(max_size=20)
messages = st.fixed_dictionaries(
    {"sender_number": numbers | values, "message_body": st.text(max_size=1100) | values},
    optional={"metadata": st.dictionaries(st.text(max_size=8), values, max_size=4) | values, "idempotency_key": values,
              "extra": values},
)  # fmt: skip


def encoded(value) -> bytes:
    """JSON as careless programs write it: NaN, lone surrogates as escapes."""
    return json.dumps(value).encode("utf-8")


raws = st.binary(max_size=200) | messages.map(encoded) | values.map(encoded)


async def check(world, port: int, requests: list[tuple[str, bytes, str]]) -> None:
    caller = Caller(port, world.contexts["demo"])
    async with connection(port, world.contexts["demo"]) as raw:
        for path, body, kind in requests:
            answer = await caller.post(path, body, headers={"content-type": kind}, raw=raw)
            assert answer.status in {202, 207, 400, 413, 415}, (answer.status, answer.body, body)
            if answer.status >= 400:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json["error"]


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
async def test_bodies(world, gateway, kind):
    """Single messages and batches out of anything."""
    # Hypothesis calls plain functions, and the gateway runs on this loop: examples first, requests after.
    seen: list[list[bytes]] = []

    @settings(COMMON)
    @given(st.lists(raws, min_size=1, max_size=4))
    def collect(bodies: list[bytes]) -> None:
        seen.append(bodies)

    collect()
    requests = []
    for bodies in seen:
        if kind == "application/json":
            requests += [("/api/v1/messages", body, kind) for body in bodies]
            requests.append(("/api/v1/messages/batch", b'{"messages":[' + b",".join(bodies) + b"]}", kind))
        else:
            requests.append(("/api/v1/messages/batch", b"\n".join(bodies), kind))
    await wait_until(gateway.trust.fresh)  # nothing else ran meanwhile
    await check(world, gateway.port, requests)


@pytest.mark.parametrize(
    "body",
    [
        MESSAGE | {"metadata": {"n": 10**400}},
        MESSAGE | {"metadata": {"n": 10**30}},
        MESSAGE | {"metadata": {"\x00": "\x00"}},
        MESSAGE | {"metadata": {"n": 1.7976931348623157e308}},
        MESSAGE | {"metadata": {"é": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}},
        MESSAGE | {"metadata": {}},
        MESSAGE | {"message_body": "\u202e\ufeff\U0010ffff"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", [None, "k"])
async def test_odd_but_possible_values(demo, body, key):
    """Huge numbers, deep metadata, odd characters, with and without a key: taken or refused, never a 500."""
    headers = {} if key is None else {"idempotency-key": key}
    answer = await demo.submit(json.dumps(body).encode(), headers=headers)
    assert answer.status in {202, 400}, answer.body
    if answer.status == 202 and key is not None:
        again = await demo.submit(json.dumps(body).encode(), headers=headers)
        assert again.json == answer.json


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-long", "x" * 100_000),
        ("content-length", "-1"),
        ("content-length", "x"),
        ("transfer-encoding", "nonsense"),
    ],
)
async def test_odd_headers(world, gateway, name, value):
    """100 KB of headers, lengths that are none: a problem document and the end of the connection."""
    async with connection(gateway.port, world.contexts["demo"]) as raw:
        await raw.send(f"POST /api/v1/messages HTTP/1.1\r\nhost: x\r\n{name}: {value}\r\n\r\n".encode())
        answer = await raw.answer()
    assert answer.status in {400, 431}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_hostile_correlation_id_is_replaced(demo):
    """What is no id is not echoed."""
    for given_id in ("x" * 65, "a b", "<script>", ""):
        answer = await demo.submit(headers={"x-correlation-id": given_id})
        assert answer.status == 202
        assert answer.headers["x-correlation-id"] != given_id
    encoded_body = msgspec.json.encode(MESSAGE)
    assert (await demo.submit(encoded_body, headers={"x-correlation-id": "A-1._z"})).headers[
        "x-correlation-id"
    ] == "A-1._z"
