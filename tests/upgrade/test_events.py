"""Events: what one release wrote the other reads; what was released never changes its shape."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from broker.events import codec, types
from support import releases, shapes
from support.releases import Release

SAMPLES = releases.ROOT / "tests" / "events" / "samples"

# Prints, for each sample of a directory, what the release on Python's path reads; null where it cannot.
READ = """
import json, sys
from pathlib import Path
from broker.errors import UnknownEvent
from broker.events import codec, exported
found = {}
for path in Path(sys.argv[1]).glob("*.json"):
    sample = json.loads(path.read_text("utf-8"))
    try:
        found[sample["tag"]] = exported.named(codec.decode(sample["tag"], bytes.fromhex(sample["data"])))
    except UnknownEvent:
        found[sample["tag"]] = None
print(json.dumps(found))
"""


def said(directory: Path) -> dict[str, dict]:
    """What the samples of a directory say, by tag."""
    samples = [json.loads(path.read_text("utf-8")) for path in directory.glob("*.json")]
    assert samples
    return {sample["tag"]: sample["exported"] for sample in samples}


def test_this_release_reads_what_the_one_before_wrote(before: Release) -> None:
    """Every sample of that release, with every field that it had."""
    directory = before.root / "tests" / "events" / "samples"
    read = json.loads(releases.OURS.python(READ, str(directory)))
    for tag, fields in said(directory).items():
        assert read[tag] is not None, f"{tag} cannot be read any more"
        assert {name: read[tag][name] for name in fields} == fields, tag


def writes(tag: str) -> bool:
    """Whether our code makes such events."""
    name = tag.partition(".")[0]
    made = re.compile(rf"\btypes\.{name}\(|[\"']{name}[\"']")
    package = releases.ROOT / "src" / "broker"
    files = [*(package / "services").rglob("*.py"), *package.glob("*.py"), *(package / "events").rglob("*")]
    passed_over = {"types.py", "upcasting.py"}
    sources = (path for path in files if path.suffix in {".py", ".lua"} and path.name not in passed_over)
    return any(made.search(path.read_text("utf-8")) for path in sources)


def test_the_release_before_reads_what_this_one_writes(before: Release) -> None:
    """A type or version that it does not know may be read by ours, but not written yet: a projector would stop."""
    read = json.loads(before.python(READ, str(SAMPLES)))
    for tag, fields in said(SAMPLES).items():
        if read[tag] is None:
            assert not writes(tag), f"{tag}: the release before cannot read it; write it one release later"
            continue
        known = {name: value for name, value in read[tag].items() if name in fields}
        assert known == {name: fields[name] for name in known}, tag


def test_what_is_written_is_recognised() -> None:
    """The rule above sees who makes events, in Python and in scripts."""
    assert writes("MessageSubmitted")
    assert writes("DeliveryDue")
    assert not writes("NoSuchEvent.2")


def test_released_shapes_are_kept() -> None:
    """Names, order, types and defaults of every field that a release wrote; otherwise it is a new version."""
    assert shapes.differences(shapes.read(), shapes.current()) == []


def test_every_version_has_its_shape_on_record() -> None:
    """For a new type or version, or a field that was appended: `.venv/bin/python tests/support/shapes.py`."""
    assert shapes.read() == shapes.current()


class Kept(types.Event, frozen=True, array_like=True):
    a: str
    b: int | None = None


class Appended(types.Event, frozen=True, array_like=True):
    a: str
    b: int | None = None
    c: str = "default"


class Demanding(types.Event, frozen=True, array_like=True):
    a: str
    b: int


class Swapped(types.Event, frozen=True, array_like=True):
    b: str
    a: int | None = None


class Shortened(types.Event, frozen=True, array_like=True):
    a: str


class Retyped(types.Event, frozen=True, array_like=True):
    a: bytes
    b: int | None = None


class Undefaulted(types.Event, frozen=True, array_like=True):
    a: str
    b: int | None


def test_shapes_may_only_grow_at_their_end() -> None:
    """By fields with defaults; whatever else happens to one is named."""
    released = {"Kept": shapes.shape(Kept)}

    def against(kind: type[msgspec.Struct] | None) -> list[str]:
        return shapes.differences(released, {} if kind is None else {"Kept": shapes.shape(kind)})

    assert against(Kept) == against(Appended) == []
    assert against(None) == ["Kept is not read any more"]
    assert against(Shortened) == ["Kept: b is gone"]
    assert against(Swapped) == ["Kept: a is b now", "Kept: b is a now"]
    assert against(Retyped) == ["Kept: a takes bytes instead of str"]
    assert against(Demanding) == [
        "Kept: b takes int instead of int | None",
        "Kept: b has no default any more",
    ]
    assert against(Undefaulted) == ["Kept: b has no default any more"]
    newer = {"Kept": shapes.shape(Kept)} | {"Fresh": shapes.shape(Shortened)}
    assert shapes.differences(released, newer) == []
    grown = {"Kept": [*shapes.shape(Kept), {"name": "c", "takes": "str", "required": True}]}
    assert shapes.differences(released, grown) == ["Kept: c was appended without a default"]


@pytest.mark.parametrize("tag", sorted(shapes.read()))
def test_a_recorded_shape_is_that_of_its_sample(tag: str) -> None:
    """The stored bytes of the sample have the fields on record."""
    sample = json.loads((SAMPLES / f"{tag}.json").read_text("utf-8"))
    codec.decode(tag, bytes.fromhex(sample["data"]))
    names = {one["name"] for one in shapes.read()[tag]}
    assert set(sample["exported"]) <= names
