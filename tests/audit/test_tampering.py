"""Whatever is done to an archive is found, also by who makes every manifest anew; what is right is never blamed."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import secrets
import shutil
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.cli.verify import check_kept, trusted_digests
from broker.errors import BrokerError
from broker.events import digests, exported_check, feed, types
from broker.events.archive import segments, verification
from broker.events.archive.segments import Manifest, Segment
from broker.events.archive.storage import BucketStorage, LocalStorage
from broker.events.archive.store import StreamArchive
from broker.events.codec import Stored
from broker.events.digests import Digest, DigestInvalid
from broker.events.exported_source import Archive
from broker.events.exported_walk import HistoryAltered
from broker.events.positions import Position, at, start
from support import histories
from support.audits import Audited
from support.system import System

SIZE = 4
"""Events a segment."""
Events = dict[str, list[Stored]]


class Archived:
    """An archive in memory, sealed of these events; whoever seals it anew makes every manifest fit."""

    def __init__(
        self, events: Events, log_id: str, size: int = SIZE, storage: LocalStorage | None = None
    ) -> None:
        self.storage = storage or BucketStorage(f"memory://{secrets.token_hex(6)}")
        self.log_id = log_id
        self.source = Archive(self.storage, log_id)
        self.source.streams = tuple(events)
        for stream, every in events.items():
            self.seal(stream, every, size)

    def seal(self, stream: str, every: list[Stored], size: int = SIZE) -> None:
        """The whole archive of a stream."""
        archive, before = self.archive(stream), None
        for number, first in enumerate(range(0, len(every), size), 1):
            part = every[first : first + size]
            segment = Segment(stream)
            segment.add(part)
            content, sha256 = segment.pack()
            before = Manifest(
                log_id=self.log_id, stream=stream, incarnation="inc", number=number, epoch=1,
                first=part[0].position.entry_id, last=part[-1].position.entry_id, count=len(part),
                events=first + len(part), plain_bytes=segment.size, bytes=len(content), sha256=sha256,
                previous=segments.GENESIS if before is None else before.sha256, sealed_at="2026-01-01T00:00:00.000Z",
            )  # fmt: skip
            archive.put_segment(before, content)
            archive.put_manifest(before)

    def archive(self, stream: str) -> StreamArchive:
        return StreamArchive(self.storage, self.log_id, stream)


class History:
    """What was signed, and how to ask of a property, which runs in a thread of its own."""

    def __init__(self, events: Events, known: list[Digest], log_id: str) -> None:
        self.events, self.known, self.log_id = events, known, log_id
        self._loop = asyncio.get_running_loop()

    def covered(self, stream: str) -> int:
        return self.known[-1].streams[stream].events

    def run(self, awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result()


@pytest.fixture
async def history(audited: Audited) -> History:
    await audited.lived(rounds=3)
    every: Events = {}
    for stream in audited.source.streams:
        every[stream] = [one async for block in audited.source.blocks(stream, start(stream)) for one in block]
    return History(every, digests.chained(await audited.signed()), audited.identity.log_id)


async def each(property_: Callable[[], None]) -> None:
    """A property that asks this loop."""
    await asyncio.to_thread(property_)


STRANGERS = (
    histories.Fact(histories.submitted(0).subject, types.Failed("demo", 1, 5, "forged")),
    histories.Fact(b"user:9", types.LoginSucceeded("9", "10.0.0.1")),
)


def gap(every: list[Stored], place: int) -> tuple[int, Position]:
    """A free position before the event at a place, else before the first; and the place that it has then."""
    before = every[place - 1].position if place else start(every[0].position.stream)
    free = before._replace(seq=before.seq + 1)
    return (place, free) if free < every[place].position else (0, Position(before.stream, 1, 0))


def harmed(every: list[Stored], covered: int, data: st.DataObject) -> tuple[list[Stored], Position] | None:
    """The events with one thing done to them, and the first position that is concerned; None: nothing was."""
    after, place = list(every), data.draw(st.integers(0, covered - 1))
    one, where = after[place], after[place].position
    match data.draw(st.sampled_from(["edit", "drop", "swap", "insert", "repeat", "move"])):
        case "edit":
            name = data.draw(st.sampled_from(["tag", "subject", "envelope", "data"]))
            other = every[data.draw(st.integers(0, len(every) - 1))]
            strange = "Nothing" if name == "tag" else b"\xc0"
            value: Any = data.draw(st.sampled_from([getattr(other, name), strange]))
            after[place] = msgspec.structs.replace(one, **{name: value})
        case "drop":
            # An archive that ends early is only behind.
            if place == covered - 1 == len(every) - 1:
                return None
            del after[place]
        case "swap":
            other_place = data.draw(st.integers(0, covered - 1))
            other, where = after[other_place], min(where, after[other_place].position)
            after[place] = msgspec.structs.replace(other, position=one.position)
            after[other_place] = msgspec.structs.replace(one, position=other.position)
        case "insert":
            place, where = gap(every, place)
            after.insert(place, data.draw(st.sampled_from(STRANGERS)).stored(where))
        case "repeat":
            place, where = gap(every, place)
            after.insert(place, msgspec.structs.replace(one, position=where))
        case "move":
            place, where = gap(every, place)
            after.remove(one)
            after.insert(place, msgspec.structs.replace(one, position=where))
            where = min(where, one.position)
    return None if after == every else (after, where)


async def test_an_archive_sealed_anew_is_found(history: History) -> None:
    """Any event edited, dropped, swapped, inserted, repeated or moved, every manifest after it made to fit: found.

    The archive's own check has nothing to say; the digests say between which two of them it was.
    """

    @settings(max_examples=80)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(sorted(history.events)))
        done = harmed(history.events[stream], history.covered(stream), data)
        if done is None:
            return
        after, where = done
        archived = Archived(history.events | {stream: after}, history.log_id)
        assert verification.verify(archived.archive(stream)).damage is None
        with pytest.raises(HistoryAltered) as found:
            history.run(exported_check.vouched(archived.source, history.known, stream))
        named = re.fullmatch(rf"stream {stream} after (\S+), up to (\S+)", found.value.where)
        assert at(stream, named[1]) < where <= at(stream, named[2])
        for other in history.events.keys() - {stream}:
            held = history.run(exported_check.vouched(archived.source, history.known, other))
            assert held == history.covered(other)

    await each(holds)


async def test_the_last_event_under_another_id(history: History) -> None:
    """As many events as were signed for, but the last of them elsewhere: it is not where the digest ends."""
    for stream, every in history.events.items():
        # The newest digest by itself: no later one tells of the chain.
        known = history.known[:1]
        covered = every[: known[0].streams[stream].events]
        moved = msgspec.structs.replace(covered[-1], position=Position(stream, 1, 0))
        source = Archived({stream: [moved, *covered[:-1]]}, history.log_id).source
        said = f"the last that was found is {covered[-2].position.entry_id}"
        with pytest.raises(HistoryAltered, match=said):
            async for _ in exported_check.checked(source, known, stream):
                pass


async def test_files_that_do_not_fit_are_found(history: History) -> None:
    """One file of an archive changed by a bit, cut, removed or exchanged: its segment is named."""
    good = Archived(history.events, history.log_id)

    @settings(max_examples=60)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        archived = copy.copy(good)
        archived.storage = BucketStorage(f"memory://{secrets.token_hex(6)}")
        stream = data.draw(st.sampled_from(["0", "1"]))
        manifests = list(good.archive(stream).manifests(start(stream)))
        names = [f"{good.log_id}/{stream}/{one.file}" for one in manifests]
        names += [f"{good.log_id}/{stream}/{one.name}" for one in manifests]
        content = {name: good.storage.get(name) for name in names}
        place = data.draw(st.integers(0, len(names) - 1))
        name, number = names[place], place % len(manifests)
        touched = {number + 1}
        match data.draw(st.sampled_from(["bit", "cut", "gone", "exchanged"])):
            case "bit":
                changed = bytearray(content[name])
                changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
                content[name] = bytes(changed)
            case "cut":
                content[name] = content[name][: data.draw(st.integers(0, len(content[name]) - 1))]
            case "gone":
                # A newest segment that is missing is only behind.
                if number == len(manifests) - 1 and place >= len(manifests):
                    return
                del content[name]
            case "exchanged":
                # Of the same kind: contents, or manifests.
                other = data.draw(st.integers(0, len(manifests) - 1)) + place - number
                if content[names[other]] == content[name]:
                    return
                content[name], content[names[other]] = content[names[other]], content[name]
                touched.add(other % len(manifests) + 1)
        for each_name, each_content in content.items():
            archived.storage.put(each_name, each_content)
        told = verification.verify(archived.archive(stream))
        if told.damage is None:
            # The bit was of what says nothing of the events: when it was sealed, how many bytes.
            changed = list(archived.archive(stream).manifests(start(stream)))
            names = ("sha256", "previous", "first", "last", "count", "events", "stream", "number")
            assert [[getattr(one, name) for name in names] for one in changed] == [
                [getattr(one, name) for name in names] for one in manifests
            ]
            return
        named = int(re.match(r"Segment (\d+) ", told.damage)[1])
        # Of a manifest with another hash in it, the one that follows is the first that does not fit.
        assert named in touched or (named - 1 in touched and "follow" in told.damage), told.damage

    await each(holds)


async def test_digests_in_the_archive_are_checked(history: History) -> None:
    """Who changes a digest itself, or signs one with a key of their own, is found by the chain or the key."""
    every = history.events["control"]
    places = [place for place, one in enumerate(every) if one.tag == "DigestSigned"]
    right = Archived(history.events, history.log_id).source
    key = bytes.fromhex(history.known[0].key)
    assert await trusted_digests(right, [key]) == history.known
    with pytest.raises(DigestInvalid, match="another key"):
        await trusted_digests(right, [b"k" * 32])
    # Against digests that were kept, not even who has the key can sign others.
    check_kept(history.known, history.known[:2])
    for known in (history.known[:1], [msgspec.structs.replace(one, at="now") for one in history.known]):
        with pytest.raises(DigestInvalid, match="kept"):
            check_kept(known, history.known[:2])
    changed = list(every)
    changed[places[1]] = msgspec.structs.replace(
        every[places[1]], data=every[places[1]].data.replace(b'"events":', b'"events": ', 1)
    )
    for after in (changed, every[: places[0]] + every[places[0] + 1 :]):
        source = Archived(history.events | {"control": after}, history.log_id).source
        with pytest.raises(BrokerError) as error:
            await trusted_digests(source, [key])
        assert error.value.code in {"digest_invalid", "unknown_event"}


async def test_what_is_no_event(history: History) -> None:
    """Put among signed events it is found; after them, where somebody wrote into the log, it is no digest's matter."""
    for stream, every in history.events.items():
        covered = history.covered(stream)
        place, where = gap(every, 2)
        for at_place, position, right in (
            (place, where, False),
            (len(every), Position(stream, 2**50, 0), True),
        ):
            strange = feed.entry(position, [b"name", b"value"])
            mixed: Any = [*every[:at_place], strange, *every[at_place:]]
            archived = Archived({stream: mixed}, history.log_id, size=len(mixed))
            assert verification.verify(archived.archive(stream)).damage is None
            if right:
                assert await exported_check.vouched(archived.source, history.known, stream) == covered
            else:
                with pytest.raises(HistoryAltered, match="no event"):
                    await exported_check.vouched(archived.source, history.known, stream)


async def test_by_the_command(history: History, audited: Audited, valkey) -> None:
    """`archive verify` alone, with no server: how far it is signed for; a segment that was forged; kept digests."""
    system = System(audited.directory, log_name=audited.log_name, redis_url="redis://127.0.0.1:1")
    where = LocalStorage(audited.directory / "archive")
    archived = Archived(history.events, history.log_id, storage=where)

    def verified(*options: str, code: int = 0) -> dict[str, dict[str, Any]]:
        done = system.run("archive", "verify", "--json", *options)
        assert done.returncode == code, done.stdout + done.stderr
        return {one["stream"]: one for one in json.loads(done.stdout)}

    found = verified()
    assert {stream: found[stream]["vouched"] for stream in found} == {
        stream: history.covered(stream) for stream in history.events
    }
    kept = audited.directory / "kept.jsonl"
    kept.write_bytes(b"\n".join(map(msgspec.json.encode, await audited.digest_lines())))
    forged = list(history.events["0"])
    forged[4] = msgspec.structs.replace(forged[4], envelope=forged[4].envelope + b"\x00")
    archived.seal("0", forged)
    told = verified("--stream", "0", code=1)["0"]["damage"]
    assert re.search(r"Digest 1 vouches for 9 events of stream 0 .* another hash was found", told)
    assert "damaged" in system.run("archive", "verify").stdout
    # Whoever removes the digests, too, is found by who kept them.
    every = [one for one in history.events["control"] if one.tag != "DigestSigned"]
    shutil.rmtree(audited.directory / "archive" / archived.log_id / "control")
    archived.seal("control", every)
    assert verified()["0"]["vouched"] == 0
    assert "8 were found" in verified("--digests", str(kept), code=1)["control"]["damage"]
    kept.write_text("{}")
    assert "no signed digest" in verified("--digests", str(kept), code=1)["0"]["damage"]


async def test_what_is_right_is_not_blamed(history: History, audited: Audited) -> None:
    """Other borders, an archive that is behind, events after the newest digest, an erased client: all right."""

    @settings(max_examples=40)
    @given(st.integers(1, 40), st.sampled_from(sorted(history.events)), st.data())
    def holds(size: int, stream: str, data: st.DataObject) -> None:
        upto = data.draw(st.integers(1, len(history.events[stream])))
        source = Archived({stream: history.events[stream][:upto]}, history.log_id, size).source
        ends = [digest.streams[stream].events for digest in history.known]
        held = history.run(exported_check.vouched(source, history.known, stream))
        assert held == max([end for end in ends if end <= upto], default=0)

    await each(holds)
    await audited.append("0", histories.happy(2))
    await audited.append("control", [histories.Fact(b"client:demo", types.ClientErased("demo", "asked for"))])
    for stream in audited.source.streams:
        later = [one async for block in audited.source.blocks(stream, start(stream)) for one in block]
        source = Archived({stream: later}, history.log_id).source
        assert await exported_check.vouched(source, history.known, stream) == history.covered(stream)
