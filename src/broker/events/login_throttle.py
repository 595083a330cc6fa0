"""How often somebody may try to sign in: counted by account and address together, in Redis, for all servers.

Nothing counts an account by itself, so that nobody can lock out others from elsewhere; an address that tries
many accounts is held up too, except for accounts that have signed in from there before.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Final

from broker.errors import BrokerError
from broker.events.connection import Redis
from broker.events.keys import StreamKeys
from broker.events.scripting import Script

KNOWN_MS: Final = 30 * 86_400_000
"""How long an address stays known as one that an account signed in from."""
ADDRESS_FACTOR: Final = 20
"""An address may try this many times as often as one account from there."""
IPV6_NETWORK: Final = 64
"""One household has this much of IPv6, and with it more addresses than can be counted."""

# Somebody must be able to sign in and mend a Redis that is full.
_attempt = Script("login_attempt", allow_oom=True)
_passed = Script("login_passed", allow_oom=True)


class Throttled(BrokerError):
    """Too many attempts to sign in."""

    code = "rate_limit_exceeded"

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__("Try again later.")


class LoginThrottle:
    """Counts in the access slot of one log. `attempts` in `window` seconds. All raise LogUnavailable."""

    def __init__(
        self,
        redis: Redis,
        keys: StreamKeys,
        incarnation: str,
        index_key: bytes,
        *,
        attempts: int = 5,
        window: float = 900.0,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation
        self._index_key = index_key
        self._attempts = attempts
        self._window_ms = round(window * 1000)

    def account(self, email: str) -> bytes:
        """16 bytes that stand for an e-mail address, whether somebody has it or not."""
        content = email.strip().lower().encode("utf-8", "surrogatepass")
        return self._digest(content)

    async def attempt(self, account: bytes, address: str) -> None:
        """Count one attempt, before it is made. Raises Throttled."""
        limits = [self._attempts, self._attempts * ADDRESS_FACTOR, self._window_ms]
        wait = int(await _attempt(self._redis, self._names(account, address), [self._incarnation, *limits]))
        if wait:
            raise Throttled(wait / 1000)

    async def passed(self, account: bytes, address: str) -> None:
        """The attempt was good: it and those before it do not count."""
        await _passed(self._redis, self._names(account, address), [self._incarnation, KNOWN_MS])

    def _names(self, account: bytes, address: str) -> list[str]:
        # Hashed, so that Redis tells nobody who tried from where.
        place = network(address).encode()
        pair, whole = self._digest(account + place).hex(), self._digest(place).hex()
        login = self._keys.login
        return [self._keys.meta, login("pair", pair), login("address", whole), login("known", pair)]

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=16, key=self._index_key, person=b"login").digest()


def network(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_NETWORK), strict=False))
    return str(parsed)
