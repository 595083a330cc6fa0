"""The audit API over real sockets: what it streams verifies, what it is asked wrongly it says, who may."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import httpx
import pytest

from broker.events import exported_formats, exported_verifier
from broker.events.exported_verifier import Bad
from support import log
from support.audits import lines, verify
from support.reading import NUMBER, Reading

EXPORT, DIGESTS, PROOF, VERIFY = "/audit/export", "/audit/digests", "/audit/proof", "/audit/verify"


@pytest.fixture
async def people(world):
    """A server without a database, which none of this needs, and messages."""
    async with world.server() as server:
        found = Reading(world, server, None)
        for _ in range(3):
            await found.deliver(await found.register("demo"))
        yield found


async def download(people: Reading, path: str, name: str = "auditor") -> httpx.Response:
    """GET with a body that comes in chunks."""
    if name not in people.tokens:
        await people.person(name)
    async with httpx.AsyncClient(verify=people.anonymous.context, timeout=60) as client:
        return await client.get(
            f"https://localhost:{people.server.port}{path}",
            headers={"authorization": f"Bearer {people.tokens[name]}"},
        )


async def digests(people: Reading) -> tuple[list[dict], bytes]:
    """What the verifier needs besides an export, from the API alone."""
    given = await download(people, f"{DIGESTS}?format=jsonl")
    page = (await people.get("auditor", DIGESTS)).json
    return lines(given.content), exported_verifier.public_key(page["key"])


async def test_what_is_streamed_verifies(people: Reading) -> None:
    """Export, digests and key, all by the API: right; one byte edited: not. On record before the first line."""
    answer = await download(people, EXPORT)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    given, key = await digests(people)
    assert answer.headers["x-export-digest"] == str(given[-1]["number"])
    report = verify(lines(answer.content), given, key)
    assert (report["complete"], report["key_trusted"]) == (True, True)
    assert NUMBER.encode() not in answer.content
    with pytest.raises(Bad):
        verify(lines(answer.content.replace(b"client:demo", b"client:demi", 1)), given, key)
    again = lines((await download(people, f"{EXPORT}?type=HistoryExported")).content)
    assert [line["data"]["filters"] for line in again] == [{}]
    assert again[0]["actor"].startswith("user:")
    assert again[0]["data"]["events"] == report["events"]


async def test_filters_and_forms(people: Reading, tmp_path: Path) -> None:
    """Filtered, each line comes with its proof; CSV and Parquet say the same; a day that was not holds nothing."""
    for query in ("type=Delivered,MessageSubmitted", "client_id=demo", "actor=system"):
        found = lines((await download(people, f"{EXPORT}?{query}")).content)
        assert found, query
        given, key = await digests(people)
        assert not verify(found, given, key)["complete"]
    whole = lines((await download(people, EXPORT)).content)
    talk = next(line["correlation_id"] for line in whole if line["type"] == "MessageSubmitted")
    found = lines((await download(people, f"{EXPORT}?correlation_id={talk}")).content)
    assert [each["id"] for each in found] == [each["id"] for each in whole if each["correlation_id"] == talk]
    text = (await download(people, f"{EXPORT}?format=csv&client_id=demo")).text
    read = list(exported_verifier.csv_lines(text.splitlines(keepends=True)[1:]))
    assert [line["type"] for line in read].count("Delivered") == 3
    assert (await download(people, f"{EXPORT}?to_date=2001-01-01")).content == b""
    answer = await download(people, f"{EXPORT}?format=parquet")
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    (tmp_path / "export").write_bytes(answer.content)
    given, key = await digests(people)
    assert exported_verifier.verify(str(tmp_path / "export"), given, [key])["complete"]


async def test_it_goes_on_where_it_was(people: Reading) -> None:
    """With the digest and the last event that came, the rest comes, whatever happened meanwhile."""
    first = await download(people, EXPORT)
    number = first.headers["x-export-digest"]
    whole = first.content.splitlines(keepends=True)
    await people.register("demo")
    last = json.loads(whole[4])["id"]
    rest = await download(people, f"{EXPORT}?digest={number}&after={last}")
    assert rest.content == b"".join(whole[5:])


async def test_digests_by_page_and_on_demand(people: Reading) -> None:
    """POST signs one now, which covers all; with nothing new it is the same; pages lead on."""
    made = await people.post("auditor", DIGESTS)
    assert made.status == 201
    await people.register("demo")
    second = (await people.post("admin", DIGESTS)).json
    assert second["number"] == made.json["number"] + 1
    page = (await people.get("auditor", f"{DIGESTS}?limit=1")).json
    assert ([one["number"] for one in page["digests"]], page["next"]) == ([1], 1)
    page = (await people.get("auditor", f"{DIGESTS}?after=1")).json
    assert (page["digests"][0]["number"], page["next"]) == (2, None)


async def test_one_event_is_proved(people: Reading) -> None:
    """A proof of one event verifies by itself; an event that is not there, or not covered yet, is a 404."""
    event = lines((await download(people, EXPORT)).content)[3]
    answer = await people.get("auditor", f"{PROOF}?position={event['id']}")
    given, key = await digests(people)
    assert verify([answer.json], given, key)["events"] == 1
    assert answer.json["hash"] == event["hash"]
    for position in ("0:1-0", "9:1-0", f"access:{10**15}-0"):
        assert (await people.get("auditor", f"{PROOF}?position={position}")).status == 404


async def test_verification_finds_an_altered_history(people: Reading) -> None:
    """Right; and after an event was removed from Redis, said which stream is not what was signed."""
    await people.post("auditor", DIGESTS)
    found = (await people.get("auditor", VERIFY)).json
    assert (found["ok"], found["problem"], found["digests"]) == (True, None, 1)
    assert found["events"] >= 9
    keys = people.world.keys.control
    entry = (await people.world.redis.xrange(keys.events))[1][0]
    assert await people.world.redis.xdel(keys.events, entry) == 1
    found = (await people.get("auditor", f"{VERIFY}?digests=24")).json
    assert not found["ok"]
    assert "control" in found["problem"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (f"{EXPORT}?format=xml", "format"), (f"{EXPORT}?format=parquet&digest=1&after=0:1-1", "format"),
        (f"{EXPORT}?from_date=soon", "from_date"), (f"{EXPORT}?x=1", "x"),
        (f"{EXPORT}?type=Nothing", "type"), (f"{EXPORT}?client_id=%C3%A9", "client_id"),
        (f"{EXPORT}?digest=0", "digest"), (f"{EXPORT}?digest=999", "digest"), (f"{EXPORT}?after=x", "after"),
        (f"{EXPORT}?after=nowhere:1-0", "after"), (f"{EXPORT}?digest=1&digest=2", "digest"),
        (f"{EXPORT}?after=0:{'9' * 400}-0", "after"), (f"{EXPORT}?subject=%00", "subject"),
        (f"{DIGESTS}?limit=0", "limit"), (f"{DIGESTS}?after=-1", "after"), (f"{DIGESTS}?format=csv", "format"),
        (PROOF, "position"), (f"{PROOF}?position=x", "position"), (f"{PROOF}?position=0:1", "position"),
        (f"{VERIFY}?digests=25", "digests"), (f"{VERIFY}?digests=x", "digests"),
    ],
)  # fmt: skip
async def test_what_is_asked_wrongly(people: Reading, path: str, field: str) -> None:
    """A 400 that names the field; nothing is recorded as exported."""
    answer = await people.get("auditor", path)
    assert (answer.status, answer.json["details"][0]["field"]) == (400, field), answer.body
    assert "HistoryExported" not in await log.tags(people.world.redis, people.world.keys.access)


async def test_parquet_without_its_package(people: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 400 that says what the server lacks; nothing is recorded as exported."""
    monkeypatch.setitem(sys.modules, "broker.events.exported_parquet", None)
    answer = await people.get("auditor", f"{EXPORT}?format=parquet")
    assert (answer.status, answer.json["details"][0]["field"]) == (400, "format")
    assert "pyarrow" in answer.body.decode()
    assert "HistoryExported" not in await log.tags(people.world.redis, people.world.keys.access)


@pytest.mark.parametrize(("method", "path"), [
    ("GET", EXPORT), ("GET", DIGESTS), ("POST", DIGESTS), ("GET", PROOF), ("GET", VERIFY),
])  # fmt: skip
async def test_who_may(people: Reading, method: str, path: str) -> None:
    """Auditors and admins; a user is refused, a caller without a token too."""
    assert (await people.request("reader", method, path)).status == 403
    assert (await people.anonymous.request(method, path)).status == 401


@pytest.mark.parametrize("form", exported_formats.FORMATS)
async def test_an_export_that_stops_is_not_taken_for_whole(people: Reading, form: str) -> None:
    """A history that turns out altered on the way: the answer breaks off, which no client takes for its end."""
    await people.post("auditor", DIGESTS)
    redis, events = people.world.redis, people.world.keys.access.events
    entries = await redis.xrange(events)
    await redis.delete(events)
    for entry, fields in entries:
        await redis.xadd(events, fields | {b"m": fields[b"m"] + b"\x00"}, id=entry)
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
        await download(people, f"{EXPORT}?format={form}")


async def test_exports_at_once(people: Reading) -> None:
    """Several at a time, with messages coming in: each is whole by its own digest."""
    await people.person("auditor")

    async def one() -> None:
        answer = await download(people, EXPORT)
        given, key = await digests(people)
        number = int(answer.headers["x-export-digest"])
        verify(lines(answer.content), given[:number], key)
        await people.register("demo")

    await asyncio.gather(*[one() for _ in range(6)])


async def test_a_refused_log(people: Reading) -> None:
    """A log that is not the one we know gives no export and no digest: 503."""
    await people.person("auditor")
    control = people.world.keys.control
    await people.world.redis.hset(control.meta, "refused", "restored from an older copy")
    for method, path in (("GET", EXPORT), ("POST", DIGESTS)):
        assert (await people.request("auditor", method, path)).status == 503
