"""A stream's archive on its own: positions, order, holes, replaced segments, leftovers."""

from __future__ import annotations

import pytest

from broker.events.archive import reader, segments, verification
from broker.events.archive.segments import GENESIS, ArchiveDamaged, Manifest, Segment
from broker.events.positions import Position, start
from support import archives, histories

ORIGIN = start("0")


def stretch(first: int, count: int = 10):
    """Events `first`-0 … of stream 0, one a millisecond."""
    facts = histories.happy(count // 3 + 1)[:count]
    return [fact.stored(Position("0", first + index, 0)) for index, fact in enumerate(facts)]


def seal(archive, found, before: Manifest | None, *, epoch: int = 1, manifest: bool = True) -> Manifest:
    """Store one more segment."""
    segment = Segment("0")
    segment.add(found)
    content, digest = segment.pack()
    made = Manifest(
        log_id=archives.LOG_ID, stream="0", incarnation="inc-0", number=before.number + 1 if before else 1,
        epoch=epoch, first=found[0].position.entry_id, last=found[-1].position.entry_id, count=len(found),
        events=(before.events if before else 0) + len(found), plain_bytes=segment.size, bytes=len(content),
        sha256=digest, previous=before.sha256 if before else GENESIS, sealed_at="2026-01-01T00:00:00.000Z",
    )  # fmt: skip
    archive.put_segment(made, content)
    if manifest:
        archive.put_manifest(made)
    return made


@pytest.fixture
def five(tmp_path):
    """An archive of five segments of ten events: 1-0 … 50-0."""
    archive = archives.stream_archive(tmp_path)
    made: list[Manifest] = []
    for number in range(5):
        made.append(seal(archive, stretch(1 + 10 * number), made[-1] if made else None))
    return archive, made


def file_of(tmp_path, manifest: Manifest, suffix: str):
    name = manifest.file if suffix == "zst" else manifest.name
    return tmp_path / archives.LOG_ID / "0" / name


async def test_reading_from_any_position(five):
    """Exactly the events after it, wherever in a segment it lies, or between or beyond them."""
    archive, _ = five
    everything = await archives.entries(archive)
    assert [one.position.ms for one in everything] == list(range(1, 51))
    for ms in range(52):
        for seq in (0, 1):
            after = Position("0", ms, seq)
            assert await archives.entries(archive, after) == [e for e in everything if e.position > after]


async def test_an_empty_archive(tmp_path):
    """Nothing, and no error."""
    archive = archives.stream_archive(tmp_path)
    assert archive.last() is None
    assert await archives.entries(archive) == []
    assert verification.verify(archive).segments == 0


async def test_content_without_manifest_is_no_segment(five, tmp_path):
    """⚠ Whoever was killed between the two left nothing that counts, and the next writer is not hindered."""
    archive, made = five
    orphan = seal(archive, stretch(51, 7), made[-1], epoch=3, manifest=False)
    assert archive.last() == made[-1]
    assert len(await archives.entries(archive)) == 50
    assert archive.tidy(made[-1].number) == 0
    after = seal(archive, stretch(51, 9), made[-1], epoch=4)
    assert len(await archives.entries(archive)) == 59
    assert archive.tidy(after.number) == 1
    assert not file_of(tmp_path, orphan, "zst").exists()
    assert len(await archives.entries(archive)) == 59


async def test_the_higher_epoch_counts(five):
    """⚠ Of two segments with one number the one of the later owner is history, the other is rubbish."""
    archive, made = five
    seal(archive, stretch(51, 4), made[-1], epoch=2)
    good = seal(archive, stretch(51, 8), made[-1], epoch=3)
    last = seal(archive, stretch(59, 8), good, epoch=3)
    assert [one.epoch for one in archives.manifests(archive)] == [1, 1, 1, 1, 1, 3, 3]
    assert [one.position.ms for one in await archives.entries(archive)] == list(range(1, 67))
    assert archive.holds(good)
    assert archive.tidy(last.number) == 2


async def test_a_segment_replaced_under_a_reader(five):
    """A reader that had the replaced one goes on in the newer without a gap or an overlap."""
    archive, made = five
    stale = seal(archive, stretch(51, 4), made[-1], epoch=2)
    read: list[int] = []
    async for segment in reader.archived(archive, ORIGIN):
        read += [one.position.ms for block in segment.blocks for one in block]
        if segment.manifest == stale:
            seal(archive, stretch(59, 8), seal(archive, stretch(51, 8), made[-1], epoch=3), epoch=3)
    assert read == list(range(1, 67))


def damage(tmp_path, made: list[Manifest], what: str) -> None:
    """Tamper with the third segment."""
    third = made[2]
    if what == "lost content":
        file_of(tmp_path, third, "zst").unlink()
    elif what == "lost manifest":
        file_of(tmp_path, third, "json").unlink()
    elif what == "lost both":
        file_of(tmp_path, third, "zst").unlink()
        file_of(tmp_path, third, "json").unlink()
    elif what == "changed content":
        path = file_of(tmp_path, third, "zst")
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    elif what == "changed manifest":
        path = file_of(tmp_path, third, "json")
        path.write_bytes(path.read_bytes().replace(b'"count": 10', b'"count": 9'))
    elif what == "exchanged":
        fourth = made[3]
        for suffix in ("zst", "json"):
            one, other = file_of(tmp_path, third, suffix), file_of(tmp_path, fourth, suffix)
            content = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(content)
    elif what == "rewritten":
        # Consistent in itself, but history goes on from another hash.
        archive = archives.stream_archive(tmp_path)
        seal(archive, stretch(21), made[1], epoch=1)
        assert file_of(tmp_path, third, "json").exists()


@pytest.mark.parametrize(
    ("what", "number"),
    [("lost content", 3), ("lost manifest", 3), ("lost both", 3), ("changed content", 3), ("changed manifest", 3),
     ("exchanged", 3), ("rewritten", 4)],
)  # fmt: skip
async def test_the_first_bad_segment_is_named(five, tmp_path, what, number):
    """Whatever was done to it: what comes before it is given, nothing of it or after it."""
    archive, made = five
    damage(tmp_path, made, what)
    seen: list[int] = []

    async def read() -> None:
        async for segment in reader.archived(archive, ORIGIN):
            seen.append(segment.manifest.number)  # noqa: PERF401  what came before the error counts

    with pytest.raises(ArchiveDamaged, match=f"Segment {number} of stream 0"):
        await read()
    assert seen == list(range(1, number))
    found = verification.verify(archive)
    assert found.segments == number - 1
    assert f"Segment {number} of stream 0" in found.damage
    # Also when reading begins right behind it, except where only its content is bad.
    if what not in {"lost content", "changed content", "changed manifest"}:
        with pytest.raises(ArchiveDamaged):
            await archives.entries(archive, Position("0", 35, 0))


def test_verifying_counts(five):
    """How much was found right, and where it ends."""
    archive, made = five
    found = verification.verify(archive)
    assert (found.segments, found.events, found.last, found.damage) == (5, 50, "0:50-0", None)
    assert found.sha256 == made[-1].sha256
    assert found.bytes == sum(one.bytes for one in made)


async def test_many_segments(tmp_path, monkeypatch):
    """Only so many lie in one folder: the last one, and any position, are found across folders."""
    monkeypatch.setattr(segments, "PER_FOLDER", 3)
    archive = archives.stream_archive(tmp_path)
    before = None
    for number in range(1, 12):
        before = seal(archive, stretch(number, 1), before)
        assert archive.last() == before
        assert archive.holds(before)
    for ms in range(12):
        found = await archives.entries(archive, Position("0", ms, 0))
        assert [one.position.ms for one in found] == list(range(ms + 1, 12))
    assert verification.verify(archive).events == 11
