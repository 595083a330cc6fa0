"""Merkle trees over event hashes, as RFC 9162 (section 2.1) builds them: leaves and nodes hashed apart.

A path proves that a leaf is at its place under a root, without showing any other leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

LEAF: Final = b"\x00"
NODE: Final = b"\x01"
EMPTY: Final = hashlib.sha256(b"").digest()
"""The root over no leaves."""

_sha256 = hashlib.sha256


class Tree:
    """The tree over `leaves`, 32 bytes each; holds two hashes a leaf."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.size = len(leaves)
        level = [_sha256(LEAF + leaf).digest() for leaf in leaves]
        self._levels = [level]
        while len(level) > 1:
            pairs = len(level) // 2 * 2
            above = [_sha256(NODE + level[at] + level[at + 1]).digest() for at in range(0, pairs, 2)]
            # One that is left over goes up as it is.
            level = above + level[pairs:]
            self._levels.append(level)

    @property
    def root(self) -> bytes:
        """32 bytes that stand for all leaves in their order."""
        return self._levels[-1][0] if self.size else EMPTY

    def path(self, index: int) -> list[bytes]:
        """The hashes beside the way from leaf `index` to the root, from below."""
        found = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                found.append(level[index ^ 1])
            index >>= 1
        return found
