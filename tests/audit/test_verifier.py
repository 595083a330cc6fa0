"""Exports that are right are found right, and whatever is done to one is found: with the packages and without."""

from __future__ import annotations

import copy
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.events import (
    chain,
    codec,
    exported,
    exported_formats,
    exported_parquet,
    exported_verifier,
    positions,
    types,
    upcasting,
)
from broker.events.exported_verifier import Bad
from broker.events.exported_walk import Filter
from support import histories
from support.audits import Audited, lines, shown, stored, verify, verify_in_parts


def caught(found, given, *keys, **options) -> Bad:
    with pytest.raises(Bad) as error:
        verify(found, given, *keys, **options)
    return error.value


def test_it_knows_what_the_broker_knows() -> None:
    """Its tables of fields, defaults and commitments are those of the events there are."""
    fields = {kind: list(types.ALL[kind].__struct_fields__) for kind in types.ALL}
    assert {name: list(found) for name, found in exported_verifier.FIELDS.items()} == {
        upcasting.tag(kind): found for kind, found in fields.items()
    }
    assert exported_verifier.COMMITTED == chain.COMMITTED
    assert exported_verifier.COLUMNS == exported_formats.COLUMNS == tuple(exported_parquet.SCHEMA.names)
    for kind, struct in types.ALL.items():
        for field in msgspec.structs.fields(struct):
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if default not in (msgspec.NODEFAULT, None):
                assert exported_verifier.DEFAULTS[upcasting.tag(kind), field.name] == default


def test_what_is_withheld_is_committed_to() -> None:
    """Each field that an export withholds goes into the hash as a commitment, under its current tag."""
    wanted: dict[str, list[int]] = {}
    for kind, field in types.WITHHELD:
        wanted.setdefault(upcasting.tag(kind), []).append(types.ALL[kind].__struct_fields__.index(field))
    for tag, places in wanted.items():
        assert sorted(places) == list(chain.COMMITTED[tag])


async def test_an_untouched_export_is_right(audited: Audited) -> None:
    """All events of all streams, up to the newest digest; with the key it says that somebody vouches for them."""
    await audited.lived()
    found, digests = lines(await audited.export()), await audited.digest_lines()
    report = verify(found, digests, audited.key.public)
    # Of `control` also the first digest; the second cannot vouch for itself.
    assert report["streams"] == {"0": 18, "1": 18, "control": 9, "access": 4}
    assert (report["complete"], report["key_trusted"], report["notes"]) == (True, True, [])
    assert "vouch for themselves" in verify(found, digests)["notes"][0]
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    assert caught(found, digests, other).kind == "untrusted"
    assert "made it anew" in verify(found, [])["notes"][0]


async def test_every_kind_of_event_is_read(audited: Audited) -> None:
    """An export of one event of each type there is verifies, and shows nothing that is withheld."""
    for number, path in enumerate(sorted((Path(__file__).parents[1] / "events" / "samples").glob("*.json"))):
        sample = msgspec.json.decode(path.read_bytes())
        event = codec.decode(sample["tag"], bytes.fromhex(sample["data"]))
        message = isinstance(event, types.MESSAGE_EVENTS)
        subject = histories.submitted(0).subject if message else f"x:{number}".encode()
        # One more digest event would not follow on the chain of those that were signed.
        if not isinstance(event, types.DigestSigned):
            await audited.append("0" if message else "control", [histories.Fact(subject, event)])
    await audited.digester.make()
    export = await audited.export()
    report = verify(lines(export), await audited.digest_lines(), audited.key.public)
    assert report["events"] == len(types.ALL) - 1
    assert b"$2b$" not in export
    assert report["notes"] == []


EDITS = st.sampled_from(["edit", "stored", "drop", "swap", "insert", "repeat", "hide", "forge"])


def tampered(found: list, data: st.DataObject) -> list | None:
    """The lines with one thing done to them; None where it would change nothing."""
    after = copy.deepcopy(found)
    at = data.draw(st.integers(0, len(found) - 1))
    match data.draw(EDITS):
        case "edit":
            name = data.draw(st.sampled_from(sorted(after[at])))
            after[at][name] = data.draw(VALUES)
            if name == "data":
                field = data.draw(st.sampled_from(sorted(found[at]["data"])))
                after[at]["data"] = found[at]["data"] | {field: data.draw(VALUES)}
        case "stored":
            parts = after[at]["stored"]["data"]
            parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(
                st.sampled_from(["", "kA==", "00" * 32])
            )
        case "drop":
            del after[at]
        case "swap":
            other = data.draw(st.integers(0, len(found) - 1))
            after[at], after[other] = after[other], after[at]
            # Streams may stand in any order; only within one the order says something.
            if ordered(after) == ordered(found):
                return None
        case "insert":
            after.insert(at, forged(found[at], after[at]["previous_hash"]))
        case "repeat":
            after.insert(data.draw(st.integers(0, len(found))), after[at])
        case "hide":
            entry = msgspec.json.encode(after[at]["data"])
            digest = "01" + __import__("hashlib").sha256(entry).hexdigest()
            after[at]["stored"]["data"], after[at]["data"] = digest, {"withheld": f"sha256:{digest[2:]}"}
        case "forge":
            after[at] = forged(found[at], found[at]["previous_hash"], proof=found[at].get("proof"))
    return None if after == found and msgspec.json.encode(after) == msgspec.json.encode(found) else after


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 2**64 - 1), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=1),
)  # fmt: skip


def ordered(found: list) -> dict[str, list[str]]:
    order: dict[str, list[str]] = {}
    for line in found:
        order.setdefault(repr(line["stream"]), []).append(line["id"])
    return order


def forged(like: dict, previous: str, proof: dict | None = None) -> dict:
    """An event of somebody's own, right by itself, in the place of another."""
    fact = histories.Fact(
        histories.submitted(0).subject if like["stream"].isdigit() else b"user:7",
        types.Failed("demo", 1, 5, "forged"),
    )
    entry = stored(fact, like)
    digest = chain.link(bytes.fromhex(previous), entry)
    line = exported.proved(entry, digest, bytes.fromhex(previous))
    made = msgspec.json.decode(exported.line(line))
    return made if proof is None else made | {"proof": proof}


@pytest.mark.parametrize("wanted", [Filter(), Filter(client_id="demo")], ids=["complete", "filtered"])
async def test_tampering_is_found(audited: Audited, wanted: Filter) -> None:
    """Any event edited, dropped, swapped, inserted, repeated, hidden or forged: found, every time.

    A filtered export does not prove what it lacks; all else holds there too.
    """
    await audited.lived()
    found, digests = lines(await audited.export(wanted)), await audited.digest_lines()
    assert found
    verify(found, digests, audited.key.public)

    @settings(max_examples=200)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        after = tampered(found, data)
        if after is None or (
            not wanted.everything and ordered(after) != ordered(found) and subset(after, found)
        ):
            return
        bad = caught(after, digests, audited.key.public)
        # By several processes: the same finding.
        cuts = data.draw(st.lists(st.integers(0, len(after)), max_size=3))
        with pytest.raises(Bad, match=f"^{re.escape(str(bad))}$"):
            verify_in_parts(after, cuts, digests, audited.key.public)

    holds()


def subset(after: list, found: list) -> bool:
    """Whether lines of a filtered export were only left out."""
    rest = iter(found)
    return all(any(line == other for other in rest) for line in after)


async def test_it_names_the_event(audited: Audited) -> None:
    """What is wrong, and where: the first event that is."""
    await audited.lived()
    found, digests = lines(await audited.export()), await audited.digest_lines()
    own = [line for line in found if line["stream"] == "0"]
    rest = [line for line in found if line["stream"] != "0"]

    def told(lines: list) -> tuple[str, str]:
        bad = caught([*lines, *rest], digests, audited.key.public)
        return bad.where, bad.kind

    edited = copy.deepcopy(own)
    edited[4]["actor"] = "nobody"
    assert told(edited) == (own[4]["id"], "changed")
    assert told([*own[:4], *own[5:]]) == (own[5]["id"], "missing")
    assert told(own[2:]) == (own[2]["id"], "missing")
    assert told(own[:-1]) == (own[-1]["id"], "missing")
    assert told([]) == (own[-1]["id"], "missing")
    assert told([*own[:4], own[5], own[4], *own[6:]]) == (own[5]["id"], "missing")
    assert told([*own[:6], own[4], *own[6:]]) == (own[4]["id"], "out of order")
    between = forged(own[4] | {"id": own[4]["id"] + "0"}, own[4]["hash"])
    assert told([*own[:5], between, *own[5:]]) == (between["id"], "inserted, or missing before it")
    last = forged(own[-1] | {"id": own[-1]["id"] + "0"}, own[-1]["hash"])
    assert told([*own, last]) == (last["id"], "unproved or inserted")
    assert "not signed" in verify([*own, last, *rest], digests, unsigned=True)["notes"][0]


@pytest.mark.parametrize("wanted", [Filter(), Filter(client_id="demo")], ids=["complete", "filtered"])
async def test_parts_say_what_the_whole_says(audited: Audited, wanted: Filter) -> None:
    """However an export is cut, streams one after another or mixed, up to the newest digest or on: one report."""
    await audited.lived(rounds=3)
    found, digests = lines(await audited.export(wanted)), await audited.digest_lines()
    by_time = sorted(found, key=lambda line: [int(part) for part in line["id"].partition(":")[2].split("-")])

    @settings(max_examples=60)
    @given(st.lists(st.integers(0, len(found)), max_size=6), st.integers(0, len(digests)), st.booleans())
    def holds(cuts: list[int], known: int, mixed: bool) -> None:
        order = by_time if mixed else found
        if not wanted.everything and known < len(digests):
            return
        for unsigned in (True, False):
            given = digests[:known], {"unsigned": unsigned}
            try:
                report = verify(order, given[0], **given[1])
            except Bad as bad:
                with pytest.raises(Bad, match=f"^{re.escape(str(bad))}$"):
                    verify_in_parts(order, cuts, given[0], **given[1])
            else:
                assert verify_in_parts(order, cuts, given[0], **given[1]) == report

    holds()


async def test_several_processes(audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is looked at by several; they report the same, and name the same first event."""
    monkeypatch.setattr(exported_verifier, "PART", 2_000)
    await audited.lived(messages=6)
    digests, content = await audited.digest_lines(), await audited.export()
    path = tmp_path / "export"
    path.write_bytes(content)
    alone = exported_verifier.verify(str(path), digests, [audited.key.public])
    seen: list[int] = []
    many = {"processes": 2, "progress": seen.append}
    assert exported_verifier.verify(str(path), digests, [audited.key.public], **many) == alone
    assert seen[-1] == alone["events"]
    assert len(seen) > 10
    path.write_bytes(content.replace(b"LoginSucceeded", b"LoginSucceedet", 2))
    said = []
    for options in (many, {}):
        with pytest.raises(Bad) as error:
            exported_verifier.verify(str(path), digests, [], **options)
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("form", exported_formats.FORMATS)
@pytest.mark.parametrize("wanted", [Filter(), Filter(client_id="demo")], ids=["complete", "filtered"])
async def test_every_form_is_read_in_parts(
    audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, wanted: Filter
) -> None:
    """Each form holds the same lines, read whole, from a place on, or part by part."""
    monkeypatch.setattr(exported_verifier, "PART", 2_000)
    await audited.lived()
    path = tmp_path / "export"
    path.write_bytes(await audited.export(wanted, form))
    file = exported_verifier.opened(str(path))
    parts = list(file.parts())
    every = lines(await audited.export(wanted))
    assert len(parts) > 3 or form == "parquet"
    assert [line for part in parts for line in file.lines(*part)] == every
    rest = list(file.lines(parts[-1][0]))
    assert rest
    assert rest == every[-len(rest) :]


async def test_a_quoted_line_feed_is_no_end_of_a_record(
    audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CSV file cut within a quoted cell, where a part would begin, is read as a spreadsheet reads it."""
    await audited.lived(messages=1)
    monkeypatch.setattr(exported_verifier, "PART", 1)
    text = (await audited.export(form="csv")).decode()
    head, first, rest = text.split("\n", 2)
    path = tmp_path / "export.csv"
    # The whole rest is one cell of the first record; by lines it would be what was exported.
    path.write_text(f'{head}\n{first}"\n{rest}"\n', newline="")
    file = exported_verifier.opened(str(path))
    first_part = next(iter(file.parts()))
    for read in (first_part, (file.begin,)):
        with pytest.raises(Bad):
            list(file.lines(*read))


async def test_a_chain_made_anew_is_found_by_the_digest(audited: Audited) -> None:
    """Whoever rewrites an event and every hash after it is caught where the next digest was signed."""
    await audited.lived()
    found, digests = lines(await audited.export()), await audited.digest_lines()
    own = [line for line in found if line["stream"] == "access"]
    previous, anew = own[0]["previous_hash"], []
    for place, line in enumerate(own):
        event = types.LoginSucceeded("7", "10.0.0.1" if place == 1 else "127.0.0.1")
        entry = stored(histories.Fact(b"user:7", event), line)
        digest = chain.link(bytes.fromhex(previous), entry)
        anew.append(
            msgspec.json.decode(exported.line(exported.proved(entry, digest, bytes.fromhex(previous))))
        )
        previous = digest.hex()
    bad = caught(anew, digests, audited.key.public)
    assert "changed, missing or inserted" in bad.kind
    assert "digest 1" in bad.detail
    verify(anew, [])


async def test_digests_are_checked(audited: Audited) -> None:
    """One that is missing, changed, of another number or signed by another key is named."""
    await audited.lived(messages=1, rounds=3)
    found, digests = lines(await audited.export()), await audited.digest_lines()
    assert caught(found, digests[1:]).where == "digest 1"
    changed = copy.deepcopy(digests)
    changed[1]["body"] = changed[1]["body"].replace('"events":', '"events": ')
    assert (caught(found, changed).where, caught(found, changed).kind) == ("digest 2", "changed")
    twice = [*digests, digests[0] | {"signature": "00" * 64}]
    assert caught(found, twice).kind == "changed"
    for broken in (
        {},
        {"number": 4, "body": 1, "signature": ""},
        {"number": "x", "body": "", "signature": ""},
    ):
        assert caught(found, [*digests, broken]).kind == "unreadable"
    older = verify(found, digests[:2], unsigned=True)
    assert "not signed" in older["notes"][0]


async def test_csv_says_the_same(audited: Audited, tmp_path: Path) -> None:
    """A CSV export verifies like the other, begins no cell like a formula, and one cell edited is found."""
    await audited.lived()
    for wanted in (Filter(), Filter(actor="=cmd|' /C calc'!A0")):
        text = (await audited.export(wanted, "csv")).decode()
        plain = lines(await audited.export(wanted))
        read = list(exported_verifier.csv_lines(io.StringIO(text.partition("\n")[2], newline="")))
        assert read == plain
        import csv

        assert all(cell[:1] not in set("=+-@\t\r") for row in csv.reader(io.StringIO(text)) for cell in row)
    # The apostrophe that keeps a text from being a formula is neither to be removed nor put elsewhere.
    export = await audited.export(form="csv")
    for change in ((b"'=cmd", b"=cmd"), (b",user:7", b",'user:7")):
        edited = export.replace(*change, 1)
        assert edited != export
        (tmp_path / "edited.csv").write_bytes(edited)
        with pytest.raises(Bad, match="sign"):
            exported_verifier.verify(str(tmp_path / "edited.csv"), await audited.digest_lines(), [])
    path = tmp_path / "export.csv"
    path.write_bytes((await audited.export(form="csv")).replace(b"worker:w1", b"worker:w2", 1))
    with pytest.raises(Bad):
        exported_verifier.verify(str(path), await audited.digest_lines(), [])


TEXT = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["=1+1", "'x", "''", '"', ',"', "a\r", "\u2028", "-", "\ufeffé"]
)


@given(TEXT, TEXT, TEXT | st.none(), TEXT | st.none())
def test_any_text_goes_through_csv(
    actor: str, subject: str, correlation: str | None, causation: str | None
) -> None:
    """Quotes, commas, line ends, signs that begin formulas: read again they are what they were."""
    entry = histories.submitted(0).stored(positions.parse("0:1-1"))
    line = msgspec.structs.replace(
        exported.proved(entry, b"h" * 32, b"p" * 32),
        actor=actor, subject=subject, correlation_id=correlation, causation_id=causation,
    )  # fmt: skip
    text = exported_formats.Csv().encode([line, line]).decode()
    plain = msgspec.json.decode(exported.line(line))
    assert list(exported_verifier.csv_lines(io.StringIO(text, newline=""))) == [plain, plain]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
async def test_any_byte_of_the_file(audited: Audited, tmp_path: Path, form: str) -> None:
    """One byte changed, added or lost anywhere in the file: found, unless every reader reads the same in it."""
    await audited.lived(messages=1)
    content, digests = await audited.export(form=form), await audited.digest_lines()
    plain = lines(await audited.export())
    path = tmp_path / "export"

    @settings(max_examples=150)
    @given(st.integers(0, len(content) - 1), st.binary(max_size=1), st.booleans())
    def holds(at: int, byte: bytes, kept: bool) -> None:
        path.write_bytes(content[:at] + byte + content[at + (not kept) :])
        try:
            exported_verifier.verify(str(path), digests, [audited.key.public])
        except Bad:
            return
        file = exported_verifier.opened(str(path))
        assert list(file.lines(file.begin)) == plain

    holds()


HOSTILE = (
    b"",
    b"{",
    b"[]",
    b"1",
    b'{"id": 1}',
    b'{"id":"0:1-0","id":"0:1-0"}',
    b"\xff",
    b"[" * 100_000,
    b"null",
)


@pytest.mark.parametrize("line", HOSTILE)
def test_nonsense_is_named_not_crashed_on(line: bytes, tmp_path: Path) -> None:
    """A file that is no export gives a finding, never a traceback."""
    path = tmp_path / "export"
    path.write_bytes(line + b"\n")
    with pytest.raises(Bad):
        exported_verifier.verify(str(path), [], [])


async def test_a_name_that_stands_twice_is_found(audited: Audited, tmp_path: Path) -> None:
    """A second `actor` in a line, of which one reader takes the first and another the last, is a change."""
    await audited.lived()
    path = tmp_path / "export"
    path.write_bytes((await audited.export()).replace(b'{"id"', b'{"actor":"nobody","id"', 1))
    with pytest.raises(Bad, match="twice"):
        exported_verifier.verify(str(path), await audited.digest_lines(), [])


async def test_the_script_stands_alone(audited: Audited, tmp_path: Path) -> None:
    """The file by itself, without any package and in isolation, says the same of exports right and wrong."""
    await audited.lived()
    script = tmp_path / "verify.py"
    script.write_bytes(Path(exported_verifier.__file__).read_bytes())
    digests = tmp_path / "digests.jsonl"
    digests.write_bytes(b"\n".join(map(msgspec.json.encode, await audited.digest_lines())))
    key = audited.settings.certs_dir / "digests.pub"

    def run(export: bytes) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "export"
        path.write_bytes(export)
        command = [
            sys.executable,
            "-ISB",
            str(script),
            str(path),
            "--digests",
            str(digests),
            "--key",
            str(key),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))

    for wanted, form, told in (
        (Filter(), "jsonl", "complete"),
        (Filter(client_id="demo"), "csv", "filtered"),
    ):
        export = await audited.export(wanted, form)
        done = run(export)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert done.stdout.startswith("right")
        assert told in done.stdout
        done = run(export.replace(b"worker:w1", b"worker:w2", 1))
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.startswith("NOT RIGHT")
    assert run(b"").returncode == 1
    script.write_text(script.read_text().replace("import msgspec", "import json as msgspec, nothing"))
    assert "ModuleNotFoundError" not in run(export).stderr


@settings(max_examples=15)
@given(st.binary(max_size=40), st.integers(0, 63), st.integers(0, 7))
def test_plain_ed25519_agrees(content: bytes, byte: int, bit: int) -> None:
    """The signature check in plain Python accepts what the package signs, and nothing that differs in a bit."""
    key = Ed25519PrivateKey.generate()
    public, signature = key.public_key().public_bytes_raw(), key.sign(content)
    assert exported_verifier.plainly_signed_by(public, signature, content)
    wrong = bytearray(signature)
    wrong[byte] ^= 1 << bit
    assert not exported_verifier.plainly_signed_by(public, bytes(wrong), content)
    assert not exported_verifier.plainly_signed_by(public, signature, content + b"x")
    assert not exported_verifier.plainly_signed_by(b"\xff" * 32, signature, content)


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
    | st.binary(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20,
))  # fmt: skip
def test_plain_msgpack_agrees(value: object) -> None:
    """The reader in plain Python gives what the package gives."""
    packed = msgspec.msgpack.encode(value)
    assert exported_verifier._unpacked(packed, 0) == (msgspec.msgpack.decode(packed), len(packed))


async def test_digest_lines_may_be_events(audited: Audited) -> None:
    """The digests can be handed over as the events they are."""
    await audited.lived()
    found = lines(await audited.export())
    events = [line for line in found if line["type"] == "DigestSigned"]
    last = shown((await audited.signed())[-1])
    assert verify(found, [*events, last], audited.key.public)["digests"] == 2
