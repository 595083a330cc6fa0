"""The output of child processes: JSON lines in rotated files, and readable lines for a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from broker import directories
from broker.clock import iso, now_ms

LIMIT = 16 * 1024 * 1024
KEEP = 5
LEVELS = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}


class LogFile:
    """One file of JSON lines, `<name>.log`, moved to `.1` … `.5` when it grows past `limit` bytes."""

    def __init__(self, path: Path, limit: int = LIMIT, keep: int = KEEP) -> None:
        self.path = path
        self.limit = limit
        self.keep = keep
        self._file: BinaryIO | None = None
        self._size = 0
        self._lost = 0

    def write(self, line: bytes) -> None:
        """Append a line. On a full disk lines are counted, and the count is written once there is room."""
        try:
            if self._file is None or self._size + len(line) >= self.limit:
                self._open()
            if self._lost:
                self._append(msgspec.json.encode(_event("log_lines_lost", level="warning", count=self._lost)))
                self._lost = 0
            self._append(line)
        except OSError:
            self._lost += 1
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, line: bytes) -> None:
        if self._file is not None:
            self._size += self._file.write(line + b"\n") or 0

    def _open(self) -> None:
        self.close()
        if self.path.exists() and self.path.stat().st_size >= self.limit // 2:
            for number in range(self.keep, 0, -1):
                older = self.path if number == 1 else self._numbered(number - 1)
                if older.exists():
                    older.replace(self._numbered(number))
        self.path.parent.mkdir(mode=directories.mode(), parents=True, exist_ok=True)
        # Unbuffered: a line is in the file when the process that wrote it crashes.
        self._file = self.path.open("ab", buffering=0)
        self._size = self.path.stat().st_size

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


class Logs:
    """All files under one directory, a file for each role; `echo` gets every line as people read it."""

    def __init__(self, directory: Path, echo: Callable[[str], None] | None = None) -> None:
        self.directory = directory
        self.echo = echo
        self._files: dict[str, LogFile] = {}

    def line(self, role: str, process: str, raw: bytes) -> dict[str, Any]:
        """Take one line of a child's output; what is not JSON, as a traceback, becomes the event text."""
        event = parse(raw)
        event.setdefault("role", role)
        event["process"] = process
        self._put(role, event)
        return event

    def event(self, name: str, *, level: str = "info", **values: Any) -> None:
        """Write an event of the supervisor itself."""
        self._put("supervisor", _event(name, level=level, role="supervisor", **values))

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _put(self, role: str, event: dict[str, Any]) -> None:
        if role not in self._files:
            self._files[role] = LogFile(self.directory / f"{role}.log")
        self._files[role].write(msgspec.json.encode(event))
        if self.echo is not None:
            self.echo(coloured(event))


def parse(raw: bytes) -> dict[str, Any]:
    """A log line as an event, whatever it is."""
    try:
        event = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        event = None
    return event if isinstance(event, dict) else _event(raw.decode("utf-8", "replace").rstrip())


def coloured(event: dict[str, Any]) -> str:
    """`readable`, coloured by level."""
    import click

    colour = LEVELS.get(str(event.get("level")))
    return click.style(readable(event), fg=colour) if colour else readable(event)


def readable(event: dict[str, Any]) -> str:
    """`12:00:01 gateway    warning log_unavailable attempt=3`."""
    skip = ("timestamp", "role", "process", "level", "event", "exception")
    values = " ".join(f"{key}={value}" for key, value in event.items() if key not in skip)
    level = str(event.get("level", "info"))
    who = str(event.get("process") or event.get("role") or "")
    text = f"{time.strftime('%H:%M:%S')} {who:<11} {level:<7} {event.get('event', '')} {values}".rstrip()
    if trace := event.get("exception"):
        text += f"\n{trace}"
    return text


def _event(name: str, *, level: str = "info", **values: Any) -> dict[str, Any]:
    return {"event": name, "level": level, "timestamp": iso(now_ms()), **values}
