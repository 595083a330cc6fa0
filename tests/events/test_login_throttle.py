"""The throttle of sign-ins against a real Valkey."""

from __future__ import annotations

import pytest

from broker.events import login_throttle
from broker.events.login_throttle import ADDRESS_FACTOR, KNOWN_MS, LoginThrottle, Throttled
from support import log
from support.waiting import wait_until

ATTEMPTS = 3


@pytest.fixture
async def throttle(redis, log_name) -> LoginThrottle:
    keys, identity = await log.create(redis, log_name)
    incarnation = identity.incarnations["access"]
    return LoginThrottle(redis, keys.access, incarnation, b"k" * 32, attempts=ATTEMPTS, window=900)


async def held(throttle, account: bytes, address: str) -> float | None:
    """Seconds to wait, None when the attempt counted."""
    try:
        await throttle.attempt(account, address)
    except Throttled as error:
        return error.retry_after
    return None


async def test_account_and_address_count_together(throttle):
    """Neither the account elsewhere nor another account there is touched."""
    one, two = throttle.account("a@example.com"), throttle.account("b@example.com")
    assert [await held(throttle, one, "192.0.2.1") for _ in range(ATTEMPTS)] == [None] * ATTEMPTS
    assert 0 < await held(throttle, one, "192.0.2.1") <= 900
    assert await held(throttle, one, "192.0.2.2") is None
    assert await held(throttle, two, "192.0.2.1") is None


async def test_an_address_that_tries_many_accounts_waits(throttle):
    """Spraying ends, for the accounts that never signed in from there; others there go on, and elsewhere all."""
    colleague, stranger = throttle.account("colleague@example.com"), throttle.account("new@example.com")
    await throttle.attempt(colleague, "192.0.2.1")
    await throttle.passed(colleague, "192.0.2.1")
    for number in range(ATTEMPTS * ADDRESS_FACTOR):
        assert await held(throttle, throttle.account(f"{number}@example.com"), "192.0.2.1") is None
    assert await held(throttle, stranger, "192.0.2.1") > 0
    assert await held(throttle, stranger, "192.0.2.2") is None
    assert await held(throttle, colleague, "192.0.2.1") is None


async def test_what_waits_does_not_count(throttle, redis):
    """Trying on does not make the wait longer, and makes no new keys."""
    account = throttle.account("a@example.com")
    for _ in range(ATTEMPTS):
        await throttle.attempt(account, "192.0.2.1")
    names = throttle._names(account, "192.0.2.1")
    before = [await redis.get(name) for name in names[1:]]
    first = await held(throttle, account, "192.0.2.1")
    assert await held(throttle, account, "192.0.2.1") <= first
    assert [await redis.get(name) for name in names[1:]] == before


async def test_the_wait_ends(redis, log_name):
    """After the window the counting begins anew."""
    keys, identity = await log.create(redis, log_name)
    short = LoginThrottle(
        redis, keys.access, identity.incarnations["access"], b"k" * 32, attempts=1, window=0.2
    )
    account = short.account("a@example.com")
    await short.attempt(account, "192.0.2.1")

    async def free():
        return await held(short, account, "192.0.2.1") is None

    assert await wait_until(free)


async def test_a_good_attempt_is_no_attempt(throttle, redis):
    """Signing in a thousand times from one address holds nobody up; everything it leaves expires."""
    for number in range(ATTEMPTS * ADDRESS_FACTOR * 2):
        account = throttle.account(f"{number % 70}@example.com")
        await throttle.attempt(account, "192.0.2.1")
        await throttle.passed(account, "192.0.2.1")
    assert await held(throttle, throttle.account("new@example.com"), "192.0.2.1") is None
    async for name in redis.scan_iter(f"{throttle._keys.base}:login:*"):
        assert 0 < await redis.pttl(name) <= KNOWN_MS


async def test_redis_knows_neither_accounts_nor_addresses(throttle, redis):
    """Names of keys are keyed hashes; letters' case and space around an e-mail address make no difference."""
    account = throttle.account(" A@Example.com ")
    assert account == throttle.account("a@example.com")
    await throttle.attempt(account, "192.0.2.1")
    names = [name async for name in redis.scan_iter(f"{throttle._keys.base}:login:*")]
    assert names
    assert not any(b"192.0" in name or b"example" in name for name in names)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::2", "2001:db8::/64"), ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"), ("unknown", "unknown"), ("", ""),
    ],
)  # fmt: skip
def test_what_counts_as_one_address(address, counted):
    """A whole IPv6 network is one, because one household has it."""
    assert login_throttle.network(address) == counted
