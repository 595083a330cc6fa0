"""An export into a file: written beside under another name, taken up again where it was interrupted.

Until it is whole it is `FILE.part`, with what it is an export of in `FILE.part.json` where its form can be
gone on with; then `FILE`, and the digests that it is verified with in `FILE.digests.jsonl`. Everything here
blocks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO, Final

import msgspec

from broker.errors import BrokerError
from broker.events import positions, private_files
from broker.events.digests import DigestInvalid, Signed
from broker.events.exported_walk import Filter
from broker.events.positions import Position

_WINDOW: Final = 1 << 20
_ID: Final = re.compile(rb'(?:\{"id":"|)([0-9]+|control|access):([0-9]+-[0-9]+)[",]')


class ExportFile(BrokerError):
    """The export cannot be written there."""

    code = "export_file"


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an interrupted export is of."""

    form: str
    wanted: Filter
    digest: int


class _Shown(msgspec.Struct, frozen=True):
    number: int
    body: str
    signature: str


class Target:
    """The files of one export. Raises OSError where a file cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.state = path.with_name(f"{path.name}.part.json")
        self.digests = path.with_name(f"{path.name}.digests.jsonl")

    def check_new(self) -> None:
        """Raises ExportFile where a file would be written over."""
        if self.path.exists():
            raise ExportFile(f"{self.path} exists.")
        if self.state.exists():
            raise ExportFile(
                f"{self.part} is an export that was interrupted: go on with --resume, or remove {self.state}."
            )

    def begin(self, plan: Plan | None, head: bytes) -> IO[bytes]:
        """The file to write to, with its head; without a plan it is never gone on with."""
        self.part.unlink(missing_ok=True)
        if plan is not None:
            private_files.write(self.state, msgspec.json.encode(plan))
        file = _opened(self.part, os.O_CREAT | os.O_EXCL)
        file.write(head)
        return file

    def plan(self) -> Plan:
        """What was interrupted. Raises ExportFile."""
        try:
            return msgspec.json.decode(self.state.read_bytes(), type=Plan)
        except FileNotFoundError:
            why = " in a form that can go on: begin it anew" if self.part.exists() else ""
            raise ExportFile(f"There is no interrupted export of {self.path}{why}.") from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise ExportFile(f"{self.state} is damaged; remove it and begin anew.") from None

    def resume(self, head: bytes) -> tuple[IO[bytes], Position | None]:
        """The file, cut after its last whole line, and the id of the event there; None before the first."""
        file = _opened(self.part, os.O_CREAT)
        end, position = _last(file)
        if position is None:
            end = 0
        file.seek(end)
        file.truncate()
        if position is None:
            file.write(head)
        return file, position

    def refused(self, error: OSError, *, resumable: bool) -> ExportFile:
        """The error of a file that could not be written, with what to do."""
        then = "then go on with --resume" if resumable else "then export it anew"
        return ExportFile(f"{self.part}: {error.strerror}. Nothing is at {self.path}. Make room, {then}.")

    def finish(self, file: IO[bytes], signed: list[Signed]) -> None:
        """Make the export whole: durable under its name, its digests beside it."""
        lines = [digest_line(one) + b"\n" for one in signed]
        private_files.write(self.digests, b"".join(lines))
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self.part.replace(self.path)
        self.state.unlink(missing_ok=True)


def digest_line(signed: Signed) -> bytes:
    """A digest as JSON, as the verifier takes it."""
    shown = {"number": signed.number, "body": signed.body, "signature": signed.signature.hex()}
    return msgspec.json.encode(shown)


def read_digests(path: Path) -> list[Signed]:
    """The digests in a file of such lines, in order. Raises DigestInvalid, OSError."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            shown = msgspec.json.decode(line, type=_Shown)
            found.append(Signed(shown.number, shown.body, bytes.fromhex(shown.signature)))
        except (msgspec.MsgspecError, ValueError):
            raise DigestInvalid(f"Line {number} of {path} is no signed digest.") from None
    return sorted(found, key=lambda one: one.number)


def _opened(path: Path, flags: int) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | flags, private_files.PRIVATE_FILE), "r+b")


def _last(file: IO[bytes]) -> tuple[int, Position | None]:
    """Where the last whole line ends, and the event that it shows; texts in it hold no line feed."""
    size = file.seek(0, os.SEEK_END)
    end, tail = size, b""
    while end:
        start = max(0, end - _WINDOW)
        file.seek(start)
        tail = file.read(end - start) + tail
        end = start
        whole = tail.rfind(b"\n") + 1
        before = tail.rfind(b"\n", 0, max(0, whole - 1)) + 1
        if whole and (before or not start):
            found = _ID.match(tail[before:whole])
            if found is None:
                return start + whole, None
            return start + whole, positions.at(found[1].decode(), found[2])
    return 0, None
