"""What a segment's file holds, and what its manifest finds."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.events.archive import segments
from broker.events.archive.segments import ArchiveDamaged, Manifest, Segment
from broker.events.codec import Stored
from broker.events.feed import entry
from broker.events.positions import Position
from support import archives, histories
from support.examples import examples

SMALL_BYTES = st.binary(max_size=60)
EVENTS = st.tuples(st.from_regex(r"[A-Z][a-z]{1,9}(\.[0-9])?", fullmatch=True), *[SMALL_BYTES] * 3)
# Fields in twos, as Redis gives them: perhaps the four of an event, more often not.
ODD = st.lists(SMALL_BYTES, max_size=5).map(lambda found: [part for name in found for part in (name, b"v")])


@st.composite
def entries(draw):
    """Entries of one stream, in order; events and whatever else somebody put there."""
    found, ms = [], 1
    for made in draw(st.lists(EVENTS | ODD, min_size=1, max_size=30)):
        ms += draw(st.integers(0, 3))
        position = Position("0", ms, len(found))
        found.append(Stored(position, *made) if isinstance(made, tuple) else entry(position, made))
    return found


def sealed(found) -> tuple[Manifest, bytes]:
    """A segment of these entries and its manifest."""
    segment = Segment("0")
    segment.add(found[:7])
    segment.add(found[7:])
    content, digest = segment.pack()
    manifest = Manifest(
        log_id="log", stream="0", incarnation="inc", number=1, epoch=1, first=found[0].position.entry_id,
        last=found[-1].position.entry_id, count=len(found), events=len(found), plain_bytes=segment.size,
        bytes=len(content), sha256=digest, previous=segments.GENESIS, sealed_at="2026-01-01T00:00:00.000Z",
    )  # fmt: skip
    return manifest, content


def read(manifest: Manifest, content: bytes):
    return [one for block in segments.unpack(manifest, content) for one in block]


@given(entries())
def test_what_goes_in_comes_out(found):
    """Every byte of every field, whatever it is, and every position."""
    manifest, content = sealed(found)
    assert archives.same(read(manifest, content), found)
    assert segments.decode_manifest(segments.encode_manifest(manifest)) == manifest


@settings(max_examples=examples(25, 60))
@given(entries(), st.data())
def test_any_changed_byte_is_found(found, data):
    """One flipped bit anywhere in the file, a byte more or less: nothing of the segment is given out."""
    manifest, content = sealed(found)
    index = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[index] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(changed), content[:-1], content + b"\0", b""):
        with pytest.raises(ArchiveDamaged, match="SHA-256"):
            read(manifest, bad)


FACTS = [
    fact.stored(Position("0", 5, index)) for index, fact in enumerate(histories.happy(4), start=1)
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"count": 11}, "it holds 12 events up to 0:5-12, its manifest says 11"),
        ({"last": "5-13"}, "up to 0:5-13"),
        ({"first": "5-0"}, "it begins at 0:5-1, its manifest says 0:5-0"),
    ],
)
def test_a_manifest_that_says_something_else_is_found(change, why):
    """First, last and count are compared with what the file really holds."""
    manifest, content = sealed(FACTS)
    with pytest.raises(ArchiveDamaged, match=why):
        read(msgspec.structs.replace(manifest, **change), content)


def test_order_is_part_of_what_is_verified():
    """A file that somebody wrote anew with two events exchanged is refused, though its hash is right."""
    manifest, content = sealed([*FACTS[:3], FACTS[4], FACTS[3], *FACTS[5:]])
    with pytest.raises(ArchiveDamaged, match="0:5-4 comes after 0:5-5"):
        read(manifest, content)


@pytest.mark.parametrize("content", [b"no frame", segments.zstd.compress(b"\0\0\0\x05abc"),
                                     segments.zstd.compress(b"\0\0\0\x07\x91\x93\x01\x02\x91\xc4\0")])  # fmt: skip
def test_files_that_cannot_be_read_are_damaged(content):
    """Whatever lies there under the right hash: no other error comes out."""
    manifest, _ = sealed(FACTS)
    forged = msgspec.structs.replace(manifest, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ArchiveDamaged):
        read(forged, content)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b'{"format":2}', segments.encode_manifest(sealed(FACTS)[0]).replace(b'"5-1"', b'"x"'),
     segments.encode_manifest(sealed(FACTS)[0]).replace(b'"format": 1', b'"format": 2')],
)  # fmt: skip
def test_manifests_that_cannot_be_read_are_damaged(content):
    """Not JSON, not a manifest, ids that are none, a format of the future."""
    with pytest.raises(ArchiveDamaged):
        segments.decode_manifest(content)


def test_what_can_follow():
    """The next segment carries the hash of the one before, goes on counting and begins later."""
    first, _ = sealed(FACTS)
    following = msgspec.structs.replace(
        first, number=2, first="6-0", last="6-1", count=2, events=14, previous=first.sha256
    )
    assert segments.succeeds(first, None) is None
    assert segments.succeeds(following, first) is None
    for change, why in (
        ({"previous": "f" * 64}, "another hash"),
        ({"events": 15}, "count of events"),
        ({"first": "5-12"}, "ends at 0:5-12"),
    ):
        assert why in segments.succeeds(msgspec.structs.replace(following, **change), first)
    assert "another hash" in segments.succeeds(following, None)
