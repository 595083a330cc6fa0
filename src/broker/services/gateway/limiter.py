"""Rate limiting: a token bucket per certificate.

Each gateway process counts for itself: with several gateways on a port a client may reach the limit in each.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from broker import clock
from broker.web.problems import Problem

# As many certificates as are remembered; a forgotten one starts with a full bucket.
_REMEMBERED = 10_000


class Limiter:
    """`rate` messages a second, up to one second's worth at once. 0 means no limit."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.burst = max(1.0, rate)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, who: str) -> None:
        """Take one token. Raises Problem 429 when there is none."""
        if not self.rate:
            return
        tokens = self._tokens(who)
        if tokens < 1:
            wait = (1 - tokens) / self.rate
            raise Problem(
                "rate_limit_exceeded",
                f"At most {self.rate:g} messages a second.",
                retry_after=wait,
                headers=self._headers(tokens, wait),
            )
        self._keep(who, tokens - 1)

    def charge(self, who: str, tokens: int) -> None:
        """Take tokens that may not be there: a large batch goes through and is paid off after."""
        if self.rate and tokens > 0:
            self._keep(who, self._tokens(who) - tokens)

    def headers(self, who: str) -> dict[str, str]:
        """`RateLimit-*` for an answer; none without a limit."""
        if not self.rate:
            return {}
        tokens = self._tokens(who)
        return self._headers(tokens, max(0.0, (self.burst - tokens) / self.rate))

    def _headers(self, tokens: float, reset: float) -> dict[str, str]:
        return {
            "ratelimit-limit": str(int(self.burst)),
            "ratelimit-remaining": str(max(0, int(tokens))),
            "ratelimit-reset": str(math.ceil(reset)),
        }

    def _tokens(self, who: str) -> float:
        tokens, at = self._buckets.get(who, (self.burst, 0.0))
        return min(self.burst, tokens + (clock.monotonic() - at) * self.rate) if at else tokens

    def _keep(self, who: str, tokens: float) -> None:
        self._buckets[who] = (tokens, clock.monotonic())
        self._buckets.move_to_end(who)
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
