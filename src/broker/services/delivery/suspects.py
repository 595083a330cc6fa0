"""Messages that were in hand when a worker died: handled one at a time in a process.

Whoever dies with one of them in hand died of it, or the next death tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from broker.services.delivery.hand import Item


class Suspects:
    """At most one under way; `start` begins handling it."""

    def __init__(self, start: Callable[[Item], None]) -> None:
        self._start = start
        self._waiting: deque[Item] = deque()
        self._current: Item | None = None
        self._expected = 0

    def reserve(self) -> bool:
        """Whether a takeover may bring a suspect; until `unreserve` no other may."""
        if self._current is not None or self._waiting or self._expected:
            return False
        self._expected = 1
        return True

    def unreserve(self) -> None:
        """The takeover is over."""
        self._expected = 0

    def add(self, item: Item) -> None:
        """Handle it when its turn comes."""
        item.suspect = True
        self._waiting.append(item)
        self._next()

    def left(self, item: Item) -> None:
        """It is no longer in hand."""
        if item is self._current:
            self._current = None
            self._next()

    def _next(self) -> None:
        while self._current is None and self._waiting:
            item = self._waiting.popleft()
            if not item.gone:
                self._current = item
                self._start(item)
