"""What Redis knows of a message: its open record until it has an outcome, that outcome for a while after."""

from __future__ import annotations

from typing import Literal

import msgspec

from broker.domain import ids
from broker.events.connection import Redis, call
from broker.events.keys import LogKeys
from broker.events.positions import Position, at

Phase = Literal["ready", "due", "parked"]
_PHASES: dict[bytes, Phase] = {b"r": "ready", b"d": "due", b"p": "parked"}

Outcome = Literal["delivered", "failed", "discarded"]
_OUTCOMES: dict[bytes, Outcome] = {b"D": "delivered", b"F": "failed", b"X": "discarded"}
_LETTERS = {name: letter.decode() for letter, name in _OUTCOMES.items()}


class OpenMessage(msgspec.Struct, frozen=True):
    """A message whose cycle has no outcome yet."""

    message_id: bytes
    position: Position
    """Of the event that holds the ciphertext."""
    cycle: int
    attempts: int
    """Made in this cycle."""
    phase: Phase
    due_ms: int | None
    """When the next attempt is due, by Redis' clock."""
    crashes: int
    client_id: str
    correlation: bytes
    """One msgpack value, as in an envelope."""


class FinishedMessage(msgspec.Struct, frozen=True):
    """A message whose last cycle ended."""

    message_id: bytes
    outcome: Outcome
    cycle: int
    attempts: int
    at_ms: int
    client_id: str


def parse_open(stream: str, message_id: bytes, record: bytes) -> OpenMessage:
    """An `open` record, as `_prelude.lua` writes it."""
    position, cycle, attempt, phase, due, crashes, _cause, client, correlation = record.split(b"|", 8)
    return OpenMessage(
        message_id,
        at(stream, position),
        int(cycle),
        int(attempt),
        _PHASES[phase],
        int(due) or None,
        int(crashes),
        client.decode(),
        correlation,
    )


def outcome_record(outcome: Outcome, cycle: int, attempts: int, at_ms: int, client_id: str) -> str:
    """The record that stays when the cycle has ended."""
    return f"{_LETTERS[outcome]}|{cycle}|{attempts}|{at_ms}|{client_id}"


def parse_outcome(message_id: bytes, record: bytes) -> FinishedMessage:
    """The inverse of `outcome_record`."""
    letter, cycle, attempts, at_ms, client = record.split(b"|", 4)
    return FinishedMessage(
        message_id, _OUTCOMES[letter], int(cycle), int(attempts), int(at_ms), client.decode()
    )


async def look_up(
    redis: Redis, keys: LogKeys, message_ids: list[bytes]
) -> list[OpenMessage | FinishedMessage | None]:
    """What Redis knows of each message, None where nothing (any more).

    `open` is read before the outcome: a message that ends between the two reads is found by the second.
    """
    # One command for all messages of a hash: what a call costs is its commands.
    opens: dict[str, list[bytes]] = {}
    dones: dict[str, list[bytes]] = {}
    for message_id in message_ids:
        partition = keys.partitions[ids.partition(message_id)]
        opens.setdefault(partition.open, []).append(message_id)
        dones.setdefault(partition.done(ids.created_ms(message_id)), []).append(message_id)
    pipeline = redis.pipeline(transaction=False)
    for key, members in (*opens.items(), *dones.items()):
        pipeline.hmget(key, members)
    replies = await call(pipeline.execute())
    open_records = _by_id(opens, replies[: len(opens)])
    outcomes = _by_id(dones, replies[len(opens) :])
    found: list[OpenMessage | FinishedMessage | None] = []
    for message_id in message_ids:
        if (record := open_records[message_id]) is not None:
            found.append(parse_open(str(ids.partition(message_id)), message_id, record))
        else:
            done = outcomes[message_id]
            found.append(parse_outcome(message_id, done) if done is not None else None)
    return found


def _by_id(asked: dict[str, list[bytes]], replies: list[list[bytes | None]]) -> dict[bytes, bytes | None]:
    pairs = zip(asked.values(), replies, strict=True)
    return {member: value for members, values in pairs for member, value in zip(members, values, strict=True)}
