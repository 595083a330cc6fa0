"""Exports as Parquet: typed columns that verify, tampering found, and what is said where pyarrow is missing."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from broker.errors import ValidationError
from broker.events import exported_formats, exported_parquet, exported_verifier
from broker.events.exported_verifier import Bad, Unreadable
from broker.events.exported_walk import Filter
from support.audits import Audited, lines

OPTIONS = {"compression": "zstd", "write_statistics": False}


def rewritten(path: Path, table: pa.Table, **options: object) -> str:
    """Somebody's own file of these rows."""
    parquet.write_table(table, path, **(OPTIONS | options))
    return str(path)


async def test_typed_columns_that_verify(audited: Audited, tmp_path: Path) -> None:
    """What it shows is what JSON lines show, times as times; complete or filtered, it verifies."""
    await audited.lived()
    digests = await audited.digest_lines()
    for wanted in (Filter(), Filter(client_id="demo")):
        path = tmp_path / "export.parquet"
        path.write_bytes(await audited.export(wanted, "parquet"))
        report = exported_verifier.verify(str(path), digests, [audited.key.public])
        assert (report["complete"], report["key_trusted"]) == (wanted.everything, True)
        table = parquet.read_table(path)
        plain = lines(await audited.export(wanted))
        assert report["events"] == table.num_rows == len(plain)
        assert table.column("hash").to_pylist() == [line["hash"] for line in plain]
        assert table.schema.field("at").type == pa.timestamp("ms", "UTC")
        assert f"{table.column('at')[0].as_py():%Y-%m-%dT%H:%M:%S}" == plain[0]["at"][:19]
        assert parquet.read_schema(path).equals(exported_parquet.SCHEMA)
    # Of nothing it is a file, too.
    path.write_bytes(await audited.export(Filter(client_id="nobody"), "parquet"))
    assert exported_verifier.verify(str(path), digests, [], filtered=True)["events"] == 0


async def test_row_groups_keep_memory_flat(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows leave as soon as a group is full, and the groups hold every row."""
    await audited.lived(messages=20)
    monkeypatch.setattr(exported_parquet, "ROWS", 30)
    made = exported_formats.named("parquet")
    sent = [made.head()]
    async for block in (await audited.walk()).lines():
        for at in range(0, len(block), 10):
            sent.append(made.encode(block[at : at + 10]))
            assert made._rows < 30
    sent.append(made.end())
    file = parquet.ParquetFile(io.BytesIO(b"".join(sent)))
    assert file.num_row_groups > 5
    assert file.metadata.num_rows == len(lines(await audited.export()))
    assert sum(map(bool, sent)) > 5


async def test_tampering_is_found(audited: Audited, tmp_path: Path) -> None:
    """Any cell edited, any row dropped, repeated or moved: found."""
    await audited.lived(messages=1)
    path = tmp_path / "export.parquet"
    path.write_bytes(await audited.export(form="parquet"))
    table, digests = parquet.read_table(path), await audited.digest_lines()
    rows = table.to_pylist()
    # The same rows, written by somebody else, are right.
    exported_verifier.verify(rewritten(path, table), digests, [])
    # No proof is null, and nothing else.
    proofs = table.set_column(table.column_names.index("proof"), "proof", pa.array([""] * len(rows)))
    with pytest.raises(Bad):
        exported_verifier.verify(rewritten(path, proofs), digests, [])

    @settings(max_examples=60)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        changed = [dict(row) for row in rows]
        at, other = (data.draw(st.integers(0, len(rows) - 1)) for _ in range(2))
        match data.draw(st.sampled_from(["edit", "drop", "repeat", "swap"])):
            case "edit":
                name = data.draw(st.sampled_from(table.column_names))
                value = data.draw(st.sampled_from([rows[other][name], None, "", "x", "{}", 7]))
                column = table.schema.field(name).type
                try:
                    changed[at][name] = pa.scalar(value, column).as_py()
                except (pa.ArrowInvalid, pa.ArrowTypeError):
                    return
            case "drop":
                del changed[at]
            case "repeat":
                changed.insert(other, changed[at])
            case "swap":
                if rows[at]["stream"] != rows[other]["stream"]:
                    return
                changed[at], changed[other] = changed[other], changed[at]
        if changed == rows:
            return
        with pytest.raises(Bad):
            exported_verifier.verify(
                rewritten(path, pa.Table.from_pylist(changed, schema=table.schema)), digests, []
            )

    holds()


async def test_it_names_the_event(audited: Audited, tmp_path: Path) -> None:
    """The first row that was changed is named by its id."""
    await audited.lived()
    path = tmp_path / "export.parquet"
    path.write_bytes(await audited.export(form="parquet"))
    table = parquet.read_table(path)
    rows = table.to_pylist()
    rows[4]["actor"] = rows[7]["actor"] = "nobody"
    changed, digests = pa.Table.from_pylist(rows, schema=table.schema), await audited.digest_lines()
    with pytest.raises(Bad) as error:
        exported_verifier.verify(rewritten(path, changed), digests, [])
    assert (error.value.where, error.value.kind) == (rows[4]["id"], "changed")


async def test_what_no_export_has(audited: Audited, tmp_path: Path) -> None:
    """Columns of one's own, other types, statistics by which rows are skipped, half a file: not right."""
    await audited.lived()
    path = tmp_path / "export.parquet"
    content = await audited.export(form="parquet")
    path.write_bytes(content)
    table, digests = parquet.read_table(path), await audited.digest_lines()
    for other, options in (
        (table.append_column("note", pa.array(["x"] * len(table))), {}),
        (table.drop_columns(["causation_id"]), {}),
        (table.select(table.column_names[::-1]), {}),
        (table.cast(table.schema.set(4, pa.field("at", pa.timestamp("us", "UTC")))), {}),
        (table, {"write_statistics": True}),
        (table, {"write_statistics": ["actor"]}),
        (table, {"write_page_index": True}),
        (table, {"bloom_filter_options": {"actor": {"ndv": 10, "fpp": 0.1}}}),
        (table, {"sorting_columns": [parquet.SortingColumn(0)]}),
    ):
        with pytest.raises(Bad):
            exported_verifier.verify(rewritten(path, other, **options), digests, [])
    for broken in (content[:-1], content[: len(content) // 2], b"PAR1", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(broken)
        for processes in (1, 0):
            with pytest.raises(Bad, match="cannot be read"):
                exported_verifier.verify(str(path), digests, [], processes=processes)


async def test_without_pyarrow(audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is written nor read, and what is to be installed is said."""
    await audited.lived(messages=1)
    path = tmp_path / "export.parquet"
    path.write_bytes(await audited.export(form="parquet"))
    monkeypatch.setitem(sys.modules, "broker.events.exported_parquet", None)
    with pytest.raises(ValidationError, match=r"broker\[parquet\]"):
        exported_formats.named("parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for processes in (1, 0):
        with pytest.raises(Unreadable, match="pyarrow"):
            exported_verifier.verify(str(path), [], [], processes=processes)
    assert exported_verifier.main([str(path)]) == 2
