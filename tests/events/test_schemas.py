"""Schemas equal the types, exports fit the schemas, and every version ever written can still be read."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from broker.events import codec, exported, schemas, types, upcasting

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))


@pytest.fixture(params=SAMPLES, ids=lambda path: path.stem)
def sample(request) -> dict:
    return json.loads(request.param.read_text("utf-8"))


def test_the_schemas_in_the_repository_are_those_of_the_types():
    """Otherwise: python -m broker.events.schemas."""
    assert schemas.differences(ROOT / "schemas") == []


def test_the_command_writes_and_compares(tmp_path, monkeypatch, capsys):
    """Missing, changed and stray files fail the check with their names; writing repairs what it owns."""
    monkeypatch.chdir(tmp_path)
    assert schemas.main(["--check"]) == 1
    assert schemas.main([]) == 0
    assert schemas.main(["--check"]) == 0
    changed = tmp_path / "schemas" / "Delivered.1.json"
    changed.write_bytes(changed.read_bytes() + b" ")
    (tmp_path / "schemas" / "Stray.1.json").write_text("{}")
    (tmp_path / "schemas" / "Failed.1.json").unlink()
    capsys.readouterr()
    assert schemas.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert all(
        text in said
        for text in ("Delivered.1.json differs", "Stray.1.json is of no event", "Failed.1.json is")
    )
    assert schemas.main(["--wrong"]) == 2


def test_each_event_has_one_schema_file():
    """By type and version, plus the exported line, with and without its proof."""
    names = {f"{name}.{upcasting.VERSIONS.get(name, 1)}.json" for name in types.ALL}
    assert set(schemas.documents()) == {*names, "exported-line.json", "proved-line.json"}


def test_schemas_are_self_contained_2020_12():
    """Every reference leads inside the document; fields are named, none is optional, none is unknown."""
    for name, content in schemas.documents().items():
        document = json.loads(content)
        assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        defined = {f"#/$defs/{inner}" for inner in document.get("$defs", {})}
        text = content.decode()
        used = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
        assert used <= defined
        if name not in {"exported-line.json", "proved-line.json"}:
            assert document["additionalProperties"] is False
            assert sorted(document["required"]) == sorted(document["properties"])


def test_every_current_version_has_a_sample():
    """A new type or version: put `{"tag", "data": stored bytes in hex, "exported"}` into tests/events/samples/."""
    assert {codec.upcasting.tag(name) for name in types.ALL} <= {path.stem for path in SAMPLES}


def test_every_tag_that_is_read_has_a_sample():
    """Old versions stay readable only while something of theirs is tried."""
    readable = {upcasting.tag(name) for name in types.ALL} | set(upcasting.UPCASTERS)
    assert readable == {path.stem for path in SAMPLES}


def test_samples_of_every_version_ever_written_can_be_read(sample):
    """Bytes written once are read by this version, with what they said then."""
    event = codec.decode(sample["tag"], bytes.fromhex(sample["data"]))
    data = exported.named(event)
    for name, value in sample["exported"].items():
        assert data[name] == value


def test_samples_set_every_field_of_their_time(sample):
    """A sample of defaults would show nothing: each field differs from its default."""
    event = codec.decode(sample["tag"], bytes.fromhex(sample["data"]))
    unset = {
        field.name
        for field in structs.fields(event)
        if field.name in sample["exported"]
        and field.default is not msgspec.NODEFAULT
        and getattr(event, field.name) == field.default
    }
    assert unset == set()


def test_exports_fit_their_schema(sample):
    """Field by field, patterns too, with every optional field absent as well."""
    event = codec.decode(sample["tag"], bytes.fromhex(sample["data"]))
    shown = schemas.exported_type(type(event))
    bare = type(event)(**{f.name: getattr(event, f.name) for f in structs.fields(event) if f.required})
    for one in (event, bare):
        msgspec.convert(exported.named(one), shown, strict=True)
        assert list(exported.named(one)) == [field.name for field in structs.fields(shown)]


def test_exports_hold_no_withheld_value(sample):
    """Neither as bytes nor as hex nor as text; only the commitment, which the original proves."""
    event = codec.decode(sample["tag"], bytes.fromhex(sample["data"]))
    data = json.dumps(exported.named(event))
    for kind, name in types.WITHHELD:
        if kind == type(event).__name__:
            value = getattr(event, name)
            assert (value.hex() if isinstance(value, bytes) else value) not in data


def test_withheld_fields_exist():
    """A renamed field must not slip out of the list."""
    for kind, name in types.WITHHELD:
        assert name in {field.name for field in structs.fields(types.ALL[kind])}
