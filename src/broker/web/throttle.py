"""Log lines whose rate a stranger sets."""

from __future__ import annotations

from broker import clock


class Throttle:
    """Lets `burst` events of each second through and counts the others."""

    def __init__(self, burst: int = 10) -> None:
        self._burst = burst
        self._second = 0
        self._passed = 0
        self._held = 0

    def admit(self) -> int | None:
        """How many were held back since the last one that passed; None to hold this one back too."""
        second = int(clock.monotonic())
        if second != self._second:
            self._second, self._passed = second, 0
        if self._passed >= self._burst:
            self._held += 1
            return None
        self._passed += 1
        held, self._held = self._held, 0
        return held
