"""The worker's metrics, named once. Labels are closed sets: channels, outcomes, kinds."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from broker.web import metrics as web


@cache
def attempts(channel: str, outcome: str) -> Counter:
    """Attempts by what came of them: delivered, retry, failed."""
    return web.counter(
        "broker_delivery_attempts_total", "Delivery attempts recorded.", ("channel", "outcome")
    ).labels(channel, outcome)


@cache
def attempt_seconds(channel: str) -> Histogram:
    """From handing a message to its channel to the answer."""
    return web.histogram(
        "broker_delivery_attempt_seconds", "Time from attempt to answer.", ("channel",)
    ).labels(channel)


@cache
def breaker_open(channel: str) -> Gauge:
    """1 while a channel's own side is away."""
    return web.gauge(
        "broker_delivery_breaker_open", "1 while our own side of a channel is away.", ("channel",)
    ).labels(channel)


def in_hand() -> Gauge:
    """Messages claimed and not yet settled."""
    return web.gauge("broker_delivery_in_hand", "Messages in hand.")


def held() -> Gauge:
    """Messages in hand that wait for our own side."""
    return web.gauge("broker_delivery_held", "Messages in hand that wait for our own side to come back.")


def shelved() -> Counter:
    """Claims handed back until our own side is back."""
    return web.counter("broker_delivery_shelved_total", "Claims handed back until our own side is back.")


@cache
def retries_due(partition: str) -> Gauge:
    """Retries scheduled."""
    return web.gauge(
        "broker_delivery_retries_due", "Retries scheduled, whoever scheduled them.", ("partition",)
    ).labels(partition)


def lost_claims() -> Counter:
    """Claims found lost; nothing was written for them."""
    return web.counter("broker_delivery_lost_claims_total", "Claims lost to another worker or outcome.")


def taken_over() -> Counter:
    """Claims taken over."""
    return web.counter("broker_delivery_taken_over_total", "Claims taken over from other workers.")


def crashes() -> Counter:
    """Messages that were in hand when a worker died."""
    return web.counter("broker_delivery_crashes_total", "Messages taken over that a dead worker had in hand.")


def parked() -> Counter:
    """Messages set aside."""
    return web.counter("broker_delivery_parked_total", "Messages set aside for a person.")


def discarded() -> Counter:
    """Cycles ended because the client was erased."""
    return web.counter("broker_delivery_discarded_total", "Messages discarded with their client's keys.")


def groups_recreated() -> Counter:
    """Consumer groups that somebody destroyed."""
    return web.counter("broker_delivery_groups_recreated_total", "Consumer groups made anew.")


def unreachable() -> Counter:
    """Open messages that no consumer would have come upon."""
    return web.counter(
        "broker_delivery_unreachable_total", "Open messages that were out of reach and were handed out again."
    )


@cache
def entries_gone(partition: str) -> Gauge:
    """Open messages without their entry."""
    return web.gauge(
        "broker_delivery_entries_gone", "Open messages whose entry the stream has no more.", ("partition",)
    ).labels(partition)


def log_away() -> Gauge:
    """1 while the log does not answer."""
    return web.gauge("broker_delivery_log_away", "1 while the log does not answer this worker.")


def declare(channels: Iterable[str], partitions: Iterable[str]) -> None:
    """Make every metric exist, so that what did not happen yet reads 0 and not nothing."""
    for channel in channels:
        for outcome in ("delivered", "retry", "failed"):
            attempts(channel, outcome)
        attempt_seconds(channel)
        breaker_open(channel)
    for partition in partitions:
        retries_due(partition)
        entries_gone(partition)
    for one in (
        in_hand,
        held,
        shelved,
        lost_claims,
        taken_over,
        crashes,
        parked,
        discarded,
        groups_recreated,
        unreachable,
        log_away,
    ):
        one()
    log_away()
