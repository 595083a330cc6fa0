"""Whose the directories of an installation are."""

from __future__ import annotations

import sys
from typing import Final

PRIVATE: Final = 0o700


def mode() -> int:
    """With which one is made: its owner's alone; on Windows it has the rights of the one that it lies in.

    There 0700 takes a directory out of those (since Python 3.11.10 and 3.12.4), so that no service could read
    what an administrator prepares. The rights of the installation's own directory keep others out.
    """
    return 0o777 if sys.platform == "win32" else PRIVATE
