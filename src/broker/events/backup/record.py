"""What an installation remembers of its backups: when the last was made, when one was last found whole.

A small file in the data directory, which outlives processes and Redis. Whoever makes or verifies a backup
writes it, the projector beside it shows it, so that an alert can tell of a backup that did not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from broker.events import private_files
from broker.settings import Settings

LATE_HOURS: Final = 36
"""A backup a day is expected, and half a day of patience."""


class Remembered(msgspec.Struct, frozen=True):
    """A backup, the directory it lies in, and a time in milliseconds since the epoch."""

    name: str
    target: str
    at_ms: int


class Record(msgspec.Struct, frozen=True):
    """`made.at_ms`: when the last one that was finished began, which has every event before that.

    `verified.at_ms`: when a directory's newest backup was last found whole, with all others there.
    """

    made: Remembered | None = None
    verified: Remembered | None = None


def file_path(settings: Settings) -> Path:
    """Where it lies."""
    return settings.data_dir / "run" / "backups.json"


def read(settings: Settings) -> Record:
    """What is remembered; nothing without a file. Raises OSError, and ValueError where it is damaged."""
    try:
        content = private_files.read(file_path(settings))
    except FileNotFoundError:
        return Record()
    try:
        return msgspec.json.decode(content, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"{file_path(settings)} cannot be read ({error})") from None


def remember(
    settings: Settings, *, made: Remembered | None = None, verified: Remembered | None = None
) -> None:
    """Write what is new, durably; the rest stays. Raises OSError."""
    path = file_path(settings)
    with private_files.exclusive(path):
        try:
            before = read(settings)
        except ValueError:
            # Nothing else is in it, and the next backup and verification fill it again.
            before = Record()
        record = Record(made or before.made, verified or before.verified)
        private_files.write(path, msgspec.json.encode(record))
