"""Old versions of events, read as new ones.

The tag of version 1 is the type's name; of version n, `Name.n`. When a type changes in a way that appending
fields with defaults cannot express, raise its number in `VERSIONS` and register an upcaster from each old
tag. Stored bytes are never rewritten: the hash chain is over them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from broker.events import types

VERSIONS: Final[dict[str, int]] = {}
"""Current version of each type that is past version 1."""

Upcaster = Callable[[list[Any]], types.Event]
"""Takes the stored array of an old version, gives the current event."""

UPCASTERS: Final[dict[str, Upcaster]] = {}
"""By the old version's tag."""


def tag(name: str) -> str:
    """The tag under which the current version of `name` is stored."""
    return tag_of(name, VERSIONS.get(name, 1))


def tag_of(name: str, version: int) -> str:
    """The stored tag of a type and version."""
    return name if version == 1 else f"{name}.{version}"


def split(stored_tag: str) -> tuple[str, int]:
    """Name and version of a stored tag."""
    name, _, version = stored_tag.partition(".")
    return name, int(version or 1)
