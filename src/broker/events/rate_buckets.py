"""Token buckets in Redis, one for all processes: what `rate_leases` takes its tokens from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from broker.events.connection import Redis
from broker.events.keys import StreamKeys
from broker.events.scripting import Arg, Script

# A limit must work on a Redis at its maxmemory, too; buckets expire by themselves.
_take = Script("rate_take", allow_oom=True)


class Rate(msgspec.Struct, frozen=True):
    """So many tokens a second; `burst` of them are in a full bucket."""

    per_second: float
    burst: int


class Want(msgspec.Struct, frozen=True):
    """What is asked of one bucket. `owed` is taken even where there is less."""

    bucket: str
    rate: Rate
    wanted: int
    owed: int = 0


class Grant(msgspec.Struct, frozen=True):
    """Tokens given, and seconds until the bucket is full: more than `burst` takes where it is in debt."""

    given: int
    full_in: float


class RateBuckets:
    """Buckets in the access slot of one log; each expires when it is full."""

    def __init__(
        self, redis: Redis, keys: StreamKeys, incarnation: str, hashed: Callable[[str, str], bytes]
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation
        self._hashed = hashed

    def bucket(self, kind: str, who: str) -> str:
        """The key of a bucket. `who` is hashed, so that Redis tells nobody who came from where."""
        return self._keys.rate(kind, self._hashed(kind, who).hex())

    async def take(self, wants: Sequence[Want]) -> list[Grant]:
        """What each bucket gives, in order. Raises LogUnavailable, LogRefused."""
        args: list[Arg] = [self._incarnation]
        for want in wants:
            args += (f"{1_000_000 / want.rate.per_second:.6f}", want.rate.burst, want.wanted, want.owed)
        keys = [self._keys.meta, *(want.bucket for want in wants)]
        replies = await _take(self._redis, keys, args)
        return [Grant(int(given), int(full) / 1_000_000) for given, full in replies]
