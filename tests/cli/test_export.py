"""`export`, `events verify`, `digests`, `proof`, `verifier` and `client erase` on a running system."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.system import System, eventually, running

NUMBER = "+4915299999999"
BODY = "a body that nobody may read"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One of its own: other tests take events out of the log of theirs, which no digest forgives."""
    with running(tmp_path_factory.mktemp("audited")) as found:
        yield found


@pytest.fixture
def message_id(system: System) -> str:
    """A delivered message."""
    done = system.run("send", "--from", NUMBER, "--body", BODY, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["message_id"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def verified(system: System, *args: str, code: int = 0) -> dict:
    done = system.run("events", "verify", *args, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_an_export_verifies(system: System, message_id: str, tmp_path: Path) -> None:
    """Everything up to a digest made for it, nothing in plain, on record; right, and wrong after one change."""
    path = tmp_path / "history.jsonl"
    done = system.run("export", "-o", str(path))
    assert done.returncode == 0, done.stderr
    found = lines(path)
    assert message_id in {line["subject"] for line in found}
    text = path.read_text()
    for secret in (BODY, NUMBER, "$2b$"):
        assert secret not in text
    report = verified(system, str(path))
    assert (report["ok"], report["complete"], report["key_trusted"]) == (True, True, True)
    assert report["events"] == len(found)
    again = tmp_path / "again.jsonl"
    assert system.run("export", "-o", str(again)).returncode == 0
    recorded = [line for line in lines(again) if line["type"] == "HistoryExported"]
    assert recorded[-1]["data"]["format"] == "jsonl"
    assert recorded[-1]["data"]["events"] == len(found)
    path.write_text(text.replace('"actor":"client:demo"', '"actor":"client:demi"', 1))
    wrong = verified(system, str(path), code=1)
    assert wrong["what"] == "changed"
    assert wrong["where"].startswith(("0:", "1:", "2:", "3:"))


def test_another_machine_believes_it(system: System, message_id: str, tmp_path: Path) -> None:
    """The script that `events verifier` prints, the files and the public key are all that an auditor takes along."""
    for name, options in (
        ("all.csv", ("--format", "csv")), ("some.jsonl", ("--subject", message_id)),
        ("all.parquet", ("--format", "parquet")),
    ):  # fmt: skip
        assert system.run("export", *options, "-o", str(tmp_path / name)).returncode == 0
    script = tmp_path / "verify.py"
    command = [sys.executable, "-m", "broker", "events", "verifier"]
    script.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    key = tmp_path / "key"
    key.write_bytes((system.certs / "digests.pub").read_bytes())
    for name, told in (("all.csv", "complete"), ("some.jsonl", "3 events, filtered")):
        command = [
            sys.executable,
            "-ISB",
            str(script),
            name,
            "--digests",
            f"{name}.digests.jsonl",
            "--key",
            "key",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert told in done.stdout
    assert verified(system, str(tmp_path / "all.parquet"))["complete"]
    (tmp_path / "cut.parquet.part").write_bytes((tmp_path / "all.parquet").read_bytes()[:5000])
    done = system.run("export", "-o", str(tmp_path / "cut.parquet"), "--resume")
    assert (done.returncode, "begin it anew" in done.stderr) == (1, True)
    assert system.run("export", "--format", "parquet", "-o", str(tmp_path / "cut.parquet")).returncode == 0
    assert verified(system, str(tmp_path / "cut.parquet"))["complete"]
    assert not (tmp_path / "cut.parquet.part").exists()


def test_to_stdout(system: System, message_id: str, tmp_path: Path) -> None:
    """Without a file the lines go to stdout alone; digests come by a command of their own."""
    done = system.run("export", "--subject", message_id)
    assert [json.loads(line)["subject"] for line in done.stdout.splitlines()] == [message_id] * 3
    talk = json.loads(done.stdout.splitlines()[0])["correlation_id"]
    assert system.run("export", "--correlation", talk).stdout == done.stdout
    (tmp_path / "some").write_text(done.stdout)
    (tmp_path / "digests").write_text(system.run("events", "digests").stdout)
    report = verified(system, str(tmp_path / "some"), "--digests", str(tmp_path / "digests"))
    assert (report["events"], report["complete"]) == (3, False)
    shown = system.run("events", "proof", json.loads(done.stdout.splitlines()[0])["id"])
    assert json.loads(shown.stdout)["proof"]["path"] is not None


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_interrupted_export_goes_on(system: System, message_id: str, tmp_path: Path, form: str) -> None:
    """Killed at any byte it leaves no file of the name; `--resume` makes the file that it would have made."""
    whole, path = tmp_path / f"whole.{form}", tmp_path / f"cut.{form}"
    part, state = tmp_path / f"cut.{form}.part", tmp_path / f"cut.{form}.part.json"
    assert system.run("export", "--format", form, "-o", str(whole)).returncode == 0
    digest = lines(tmp_path / f"whole.{form}.digests.jsonl")[-1]["number"]
    content = whole.read_bytes()
    state.write_text("{}")
    assert "--resume" in system.run("export", "-o", str(path)).stderr
    for cut in (0, 1, 30, len(content) // 2, len(content) - 1, len(content)):
        part.write_bytes(content[:cut])
        state.write_text(json.dumps({"form": form, "wanted": {}, "digest": digest}))
        done = system.run("export", "-o", str(path), "--resume")
        assert done.returncode == 0, done.stderr
        assert path.read_bytes() == content, cut
        assert not part.exists()
        assert not state.exists()
        path.unlink()
    path.write_text("somebody's")
    assert "exists" in system.run("export", "-o", str(path)).stderr
    assert path.read_text() == "somebody's"


DEADLY = """
import os, signal, sys
from broker.events import exported_file

opened, size = exported_file._opened, int(sys.argv.pop(1))


class Deadly:
    def __init__(self, file):
        self._file = file

    def write(self, data):
        room = size - self._file.tell()
        self._file.write(data[:room])
        if len(data) >= room:
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name):
        return getattr(self._file, name)


exported_file._opened = lambda *given: Deadly(opened(*given))
import broker.cli

broker.cli.main()
"""


def killed(system: System, path: Path, size: int, *more: str) -> None:
    """Export until the file has so many bytes, and not one step further."""
    command = [sys.executable, "-c", DEADLY, str(size), "export", "-o", str(path), *more]
    done = subprocess.run([*command, "--data", str(system.data)], env=system.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.with_name(f"{path.name}.part").stat().st_size == size
    assert not path.exists()


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_killed_export_goes_on(system: System, message_id: str, tmp_path: Path, form: str) -> None:
    """⚠ SIGKILL in the middle, in a line, again and again: taken up each time, it is byte for byte the whole one."""
    whole, path = tmp_path / f"whole.{form}", tmp_path / f"killed.{form}"
    assert system.run("export", "--format", form, "-o", str(whole)).returncode == 0
    content = whole.read_bytes()
    digest = lines(tmp_path / f"whole.{form}.digests.jsonl")[-1]["number"]
    # Up to the digest of the other, so that both are of the same history.
    state = tmp_path / f"killed.{form}.part.json"
    state.write_text(json.dumps({"form": form, "wanted": {}, "digest": digest}))
    ends = [at for at, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) > 10
    for size in (20, ends[3] + 1, ends[len(ends) // 2] + 30, len(content) - 1):
        killed(system, path, size, "--resume")
    assert system.run("export", "-o", str(path), "--resume").returncode == 0
    assert path.read_bytes() == content
    report = verified(system, str(path))
    assert (report["complete"], report["events"]) == (True, len(ends) - (form == "csv"))


def test_a_killed_export_that_begins_anew(system: System, message_id: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of Parquet: there is no file, it is said that it cannot go on, and anew it is whole."""
    path = tmp_path / "killed.parquet"
    killed(system, path, 3000, "--format", "parquet")
    done = system.run("export", "-o", str(path), "--resume")
    assert (done.returncode, "begin it anew" in done.stderr) == (1, True)
    assert system.run("export", "--format", "parquet", "-o", str(path)).returncode == 0
    assert verified(system, str(path))["complete"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_disk_that_is_full(system: System, message_id: str, tmp_path: Path, form: str) -> None:
    """Said with the file and what to do; there is no file of the name, and what is there is gone on with."""
    path = tmp_path / f"full.{form}"
    # No file of this process may grow past it, as if the disk ended there.
    program = "import resource, broker.cli; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); broker.cli.main()"
    command = [
        sys.executable, "-c", program, "export", "--format", form, "-o", str(path), "--data", str(system.data),
    ]  # fmt: skip
    done = subprocess.run(command, env=system.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{path}.part: File too large. Nothing is at {path}." in done.stderr
    assert not path.exists()
    assert (tmp_path / f"full.{form}.part").stat().st_size <= 4096
    again = ("--resume",) if form == "jsonl" else ("--format", form)
    assert ("--resume" in done.stderr) == (form == "jsonl")
    assert system.run("export", "-o", str(path), *again).returncode == 0
    assert verified(system, str(path))["complete"]


def test_wrong_use(system: System, tmp_path: Path) -> None:
    """What is asked for and cannot be is told with the option's name; nothing is exported."""
    path = str(tmp_path / "none.jsonl")
    for wrong in (
        ("--from", "yesterday"), ("--type", "Nothing"), ("--client", "É"), ("--correlation", "a b"),
        ("--format", "xml"), ("--resume",), ("--resume", "-o", path, "--type", "Failed"),
    ):  # fmt: skip
        done = system.run("export", *wrong)
        assert done.returncode == 2, wrong
        assert "Traceback" not in done.stderr
    assert system.run("export", "--resume", "-o", path).returncode == 1
    assert system.run("events", "verify").returncode == 2
    assert system.run("events", "verify", path).returncode == 2
    assert system.run("events", "proof", "0:1-0").returncode == 1
    assert not list(tmp_path.iterdir())


async def test_live(system: System, message_id: str, tmp_path: Path) -> None:
    """Log, archive and table agree; a row that was changed, removed or invented is named."""
    rows = await eventually(
        lambda: (found := system.query("SELECT * FROM audit_log WHERE subject=%s ORDER BY ms,seq", message_id))
        and len(found) == 3 and found,
        what="audit rows",
    )  # fmt: skip
    system.run("events", "digests", "--make")
    report = verified(system, "--live")
    assert report["ok"]
    assert report["digests"] >= 1
    kept = tmp_path / "kept.jsonl"
    kept.write_text(system.run("events", "digests").stdout)
    assert verified(system, "--live", "--digests", str(kept))["ok"]
    other = [json.loads(line) for line in kept.read_text().splitlines()]
    other[0]["signature"] = "00" * 64
    kept.write_text("".join(json.dumps(line) + "\n" for line in other))
    assert verified(system, "--live", "--digests", str(kept), code=1)["what"] == "digest_invalid"
    where = f"{rows[1]['stream']}:{rows[1]['ms']}-{rows[1]['seq']}"
    key = (rows[1]["stream"], rows[1]["ms"], rows[1]["seq"])
    one = "WHERE stream=%s AND ms=%s AND seq=%s"
    columns = ",".join(rows[1])
    marks = ",".join(["%s"] * len(rows[1]))

    def restore() -> None:
        system.query(f"REPLACE INTO audit_log ({columns}) VALUES ({marks})", *rows[1].values())

    for change in (
        "actor='nobody'",
        "at=at + INTERVAL 1 DAY",
        "data=x'90'",
        "hash=previous_hash",
        "client_id='x'",
    ):
        system.query(f"UPDATE audit_log SET {change} {one}", *key)
        wrong = verified(system, "--live", code=1)
        assert (wrong["what"], where in wrong["detail"]) == ("table_altered", True), wrong
        restore()
    system.query(f"DELETE FROM audit_log {one}", *key)
    assert f"{where} is missing" in verified(system, "--live", code=1)["detail"]
    restore()
    for invented in (rows[1] | {"seq": 999}, rows[1] | {"ms": 2**61}, rows[1] | {"stream": "77"}):
        system.query(f"INSERT INTO audit_log ({columns}) VALUES ({marks})", *invented.values())
        assert "inserted" in verified(system, "--live", code=1)["detail"]
        system.query(f"DELETE FROM audit_log {one}", invented["stream"], invented["ms"], invented["seq"])
    assert verified(system, "--live")["ok"]
