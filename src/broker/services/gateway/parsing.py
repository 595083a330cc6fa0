"""Request bodies as submissions. Every fault names its field and what that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.domain import submission
from broker.domain.submission import Submission
from broker.errors import ValidationError
from broker.web import body, shapes
from broker.web.problems import Detail, Problem

MAX_MESSAGE_BYTES = 64 * 1024
MAX_BATCH = 1000
# A thousand messages of a thousand characters with full metadata, in UTF-8.
MAX_BATCH_BYTES = 8 * 1024 * 1024
TURN_SECONDS = 0.01


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/v1/messages."""

    sender_number: shapes.SenderNumber
    message_body: shapes.MessageBody
    metadata: shapes.Metadata | None = None


class Item(Message, forbid_unknown_fields=True):
    """One message of a batch."""

    idempotency_key: shapes.IdempotencyKey | None = None


class Batch(msgspec.Struct):
    """The body of POST /api/v1/messages/batch, for its documentation; items are judged one by one."""

    messages: Annotated[list[Item], Meta(min_length=1, max_length=MAX_BATCH)]


_message = body.Reader(Message)
_item = body.Reader(Item)


def message(raw: bytes, key: str | None) -> Submission:
    """A single message; `key` is its Idempotency-Key. Raises Problem 400."""
    return _valid(_message.decode(raw), key, "Idempotency-Key")


async def batch(raw: bytes, *, lines: bool) -> list[Submission | Problem]:
    """The messages of a batch in order, a Problem where one is not valid; `lines` for NDJSON.

    Others get their turn while it is read: eight megabytes of brackets take seconds. Raises Problem 400
    where the whole is not a batch; a JSON document is malformed as a whole, NDJSON by the line.
    """
    documents = body.split_ndjson(raw, MAX_BATCH) if lines else body.elements(raw, "messages")
    if not 0 < len(documents) <= MAX_BATCH:
        raise body.invalid([Detail("messages", f"takes 1 to {MAX_BATCH} messages, has {len(documents)}")])
    found = []
    turn = perf_counter()
    for document in documents:
        item = _entry(bytes(document))
        if not lines and isinstance(item, Problem) and item.code == "malformed_json":
            raise item
        found.append(item)
        if perf_counter() - turn > TURN_SECONDS:
            await asyncio.sleep(0)
            turn = perf_counter()
    return found


def _entry(document: bytes) -> Submission | Problem:
    try:
        if len(document) > MAX_MESSAGE_BYTES:
            return Problem("body_too_large", f"A message may have at most {MAX_MESSAGE_BYTES} bytes.")
        item = _item.decode(document)
        return _valid(item, item.idempotency_key, "idempotency_key")
    except Problem as problem:
        return problem


def _valid(given: Message, key: str | None, key_field: str) -> Submission:
    try:
        return submission.validate(
            given.sender_number, given.message_body, given.metadata, key, key_field=key_field
        )
    except ValidationError:
        raise body.invalid(_faults(given, key, key_field)) from None


def _faults(given: Message, key: str | None, key_field: str) -> list[Detail]:
    """`validate` stops at the first fault; the producer is told all of them."""
    rules: list[Callable[[], object]] = [
        lambda: submission.sender_number(given.sender_number),
        lambda: submission.message_body(given.message_body),
        lambda: submission.metadata(given.metadata),
        lambda: submission.idempotency_key(key, key_field),
    ]
    details = []
    for rule in rules:
        try:
            rule()
        except ValidationError as error:
            details.append(Detail(error.field, error.reason))
    return details
