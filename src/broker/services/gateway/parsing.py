"""Request bodies as submissions. Every fault names its field and what that takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from broker.domain import submission
from broker.domain.submission import Submission
from broker.errors import ValidationError
from broker.web import body
from broker.web.problems import Detail, Problem

MAX_MESSAGE_BYTES = 64 * 1024
MAX_BATCH = 1000
# A thousand messages of a thousand characters with full metadata, in UTF-8.
MAX_BATCH_BYTES = 8 * 1024 * 1024


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/v1/messages."""

    sender_number: str
    message_body: str
    metadata: dict[str, Any] | None = None


class Item(Message, forbid_unknown_fields=True):
    """One message of a batch."""

    idempotency_key: str | None = None


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/v1/messages/batch; items are judged one by one."""

    messages: list[Any]


class TypedBatch(msgspec.Struct):
    """The same for the documentation."""

    messages: Annotated[list[Item], Meta(min_length=1, max_length=MAX_BATCH)]


_message = body.Reader(Message)
_item = body.Reader(Item)
_batch = body.Reader(Batch)


def message(raw: bytes, key: str | None) -> Submission:
    """A single message; `key` is its Idempotency-Key. Raises Problem 400."""
    return _valid(_message.decode(raw), key, "Idempotency-Key")


def batch(raw: bytes, *, lines: bool) -> list[Submission | Problem]:
    """The messages of a batch in order, a Problem where one is not valid; `lines` for NDJSON.

    Raises Problem 400 where the whole is not a batch.
    """
    if lines:
        documents = body.split_ndjson(raw, MAX_BATCH)
        found = [_line(document) for document in documents]
    else:
        messages = _batch.convert(body.parse(raw)).messages
        if len(messages) > MAX_BATCH:
            raise body.invalid([Detail("messages", f"takes 1 to {MAX_BATCH} messages, has {len(messages)}")])
        found = [_entry(value) for value in messages]
    if not found:
        raise body.invalid([Detail("messages", f"takes 1 to {MAX_BATCH} messages, has none")])
    return found


def _line(document: bytes) -> Submission | Problem:
    try:
        item = _item.decode(document)
        return _valid(item, item.idempotency_key, "idempotency_key")
    except Problem as problem:
        return problem


def _entry(value: Any) -> Submission | Problem:
    try:
        item = _item.convert(value)
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
