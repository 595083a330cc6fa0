"""Whose the directories of an installation are, and how places are told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o700


def mode() -> int:
    """With which one is made: its owner's alone; on Windows it has the rights of the one that it lies in.

    There 0700 takes a directory out of those (since Python 3.11.10 and 3.12.4), so that no service could read
    what an administrator prepares. The rights of the installation's own directory keep others out.
    """
    return 0o777 if sys.platform == "win32" else PRIVATE


def near(path: str | Path) -> str:
    """A place as whoever called can use it: relative to where they are if it lies there, else in full.

    The launcher says where that is, since it changes the directory. Without it, as in a container, somebody
    else reads what is told.
    """
    absolute, caller = Path(path).absolute(), Path(os.environ.get("BROKER_CALLER_DIR", "/"))
    inside = caller != caller.parent and absolute.is_relative_to(caller)
    return str(absolute.relative_to(caller) if inside else absolute)
