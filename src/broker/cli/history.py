"""`events`: the history, as it grows and event by event."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from broker.cli import verify
from broker.cli.common import json_option, with_settings
from broker.errors import LogUnavailable, NotFound
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.codec import Stored
    from broker.events.connection import Redis
    from broker.events.keys import LogKeys, StreamKeys
    from broker.events.positions import Position
    from broker.projections.chained import Chained
    from broker.projections.store import Store

SKEW_MS = 3_600_000
"""By so much a gateway's clock, which made the message id, may be ahead of Redis'."""
_POSITION = re.compile(r"([0-9]+|control|access):[0-9]+-[0-9]+\Z")

Show = Callable[["Chained"], None]
Ends = Sequence[tuple["StreamKeys", "Position"]]


@click.group()
def events() -> None:
    """The history: every fact there is, in the order in which it was recorded."""


verify.add_to(events)


@events.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what is appended; Ctrl-C ends.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Such as Delivered; may be repeated.")
@click.option("--subject", metavar="ID", help="A message id, or client:NAME, cert:FINGERPRINT, user:ID.")
@click.option("--client", metavar="NAME", help="What concerns this client.")
@click.option(
    "--stream", "streams", multiple=True, metavar="NAME", help="A partition's number, control or access."
)
@click.option(
    "--count", "-n", type=click.IntRange(0, 100_000), default=20, show_default=True, help="The last so many."
)
@json_option
@with_settings
def tail(settings: Settings, *, follow: bool, as_json: bool, count: int, **filters: Any) -> None:
    """The last events, from the log itself; nothing is marked as read.

    \b
      broker events tail --follow
      broker events tail --type Failed --type MessageParked --count 100
      broker events tail --subject 019a6c1e-… --json

    With --json each line is an event in the exported form: bodies, numbers and secrets are withheld and
    replaced by their SHA-256; `hash` and `previous_hash` are those of the audit log (null without
    the database). Events of several streams are shown in the order of Redis' clock.
    """  # noqa: D301 - click's mark
    _check_types(filters["types"])
    asyncio.run(_tail(settings, follow=follow, as_json=as_json, count=count, **filters))


@events.command()
@click.argument("what", metavar="POSITION|MESSAGE_ID")
@json_option
@with_settings
def show(settings: Settings, what: str, *, as_json: bool) -> None:
    """One event by its position (0:1795311781303-0), or all events of a message.

    Events that are no longer in the log are read from the audit log.
    """
    found = asyncio.run(_show(settings, what))
    for one in found:
        _printer(as_json=as_json, details=True)(one)


def _check_types(names: Sequence[str]) -> None:
    from broker.events import types

    for name in names:
        if name not in types.ALL:
            raise click.BadParameter(f"{name} is none of {', '.join(types.ALL)}.", param_hint="--type")


class _Reader:
    """The log, and the audit log where the database answers."""

    def __init__(self, redis: Redis, keys: LogKeys, store: Store | None) -> None:
        self.redis = redis
        self.keys = keys
        self.store = store

    async def placed(self, stream: StreamKeys, entries: Sequence[Stored]) -> list[Chained]:
        """The entries with their hashes, as far as they can be known."""
        from broker.projections import chained

        if self.store is None or not entries:
            return [chained.Chained(entry) for entry in entries]
        return await chained.place(self.store, self.redis, stream, entries)


@asynccontextmanager
async def _reader(settings: Settings, *, hashes: bool) -> AsyncIterator[_Reader]:
    from broker.cli import opening

    async with AsyncExitStack() as stack:
        redis, keys = await stack.enter_async_context(opening.log(settings))
        store = None
        if hashes:
            try:
                store = await stack.enter_async_context(opening.store(settings))
            except opening.NotRunning as error:
                click.echo(f"Without the audit log: {error}", err=True)
        yield _Reader(redis, keys, store)


async def _tail(
    settings: Settings,
    *,
    follow: bool,
    as_json: bool,
    count: int,
    types: Sequence[str],
    subject: str | None,
    client: str | None,
    streams: Sequence[str],
) -> None:
    from broker.events import browsing

    display = _printer(as_json=as_json)
    async with _reader(settings, hashes=as_json) as reader:
        wanted = _Wanted(types, subject, client)
        chosen = _streams(reader.keys, streams, subject)
        ends = [(stream, await browsing.last_position(reader.redis, stream)) for stream in chosen]
        if count:
            for one in await _backlog(reader, ends, count, wanted):
                display(one)
        if follow:
            await _follow(reader, ends, wanted, display)


async def _backlog(reader: _Reader, ends: Ends, count: int, wanted: _Wanted) -> list[Chained]:
    """The last `count` events up to where the streams end."""
    from broker.events import browsing

    found: list[tuple[StreamKeys, Stored]] = []
    for stream, end in ends:
        # What comes after `end` belongs to what is followed.
        def match(entry: Stored, end: Position = end) -> bool:
            return entry.position <= end and wanted(entry)

        entries = await browsing.latest(reader.redis, stream, count, match, not_before_ms=wanted.since_ms)
        found += [(stream, entry) for entry in entries]
    found.sort(key=lambda pair: (pair[1].position.ms, pair[1].position.seq, pair[1].position.stream))
    last = found[-count:]
    placed: dict[Position, Chained] = {}
    for stream, _ in ends:
        own = [entry for of, entry in last if of is stream]
        placed |= {one.stored.position: one for one in await reader.placed(stream, own)}
    return [placed[entry.position] for _, entry in last]


async def _follow(reader: _Reader, ends: Ends, wanted: _Wanted, display: Show) -> None:
    from broker.events import browsing, chain
    from broker.projections import chained

    heads: dict[str, bytes | None] = {}
    for stream, end in ends:
        head = None
        if reader.store is not None:
            head = await chained.hash_at(reader.store, reader.redis, stream, end)
        heads[stream.stream] = head
    async for entry in browsing.follow(reader.redis, ends, _away):
        previous = heads[entry.position.stream]
        digest = None if previous is None else chain.link(previous, entry)
        heads[entry.position.stream] = digest
        if wanted(entry):
            display(chained.Chained(entry, digest, previous))


def _away(error: LogUnavailable) -> None:
    click.echo(f"Redis is away ({error.detail}); reading goes on when it is back.", err=True)


class _Wanted:
    """Which events are asked for; `since_ms` is the Redis time before which none of them can be."""

    def __init__(self, types: Sequence[str], subject: str | None, client: str | None) -> None:
        self._types = frozenset(types)
        self._client = client
        self._subject, self.since_ms = _subject(subject)

    def __call__(self, entry: Stored) -> bool:
        """Whether the event is one of them."""
        from broker.errors import UnknownEvent
        from broker.events import codec

        if self._types and entry.tag.partition(".")[0] not in self._types:
            return False
        if self._subject is not None and entry.subject != self._subject:
            return False
        if self._client is None:
            return True
        try:
            return getattr(codec.decode(entry.tag, entry.data), "client_id", None) == self._client
        except UnknownEvent:
            return False


def _subject(text: str | None) -> tuple[bytes | None, int]:
    """The stored form of a subject, and the Redis time in ms before which it cannot be."""
    from broker.domain import ids
    from broker.errors import ValidationError

    if text is None:
        return None, 0
    try:
        message_id = ids.parse(text)
    except ValidationError:
        return text.encode(), 0
    return message_id, max(0, ids.created_ms(message_id) - SKEW_MS)


def _streams(keys: LogKeys, names: Sequence[str], subject: str | None) -> list[StreamKeys]:
    from broker.domain import ids
    from broker.errors import ValidationError
    from broker.events import browsing

    for name in names:
        if name not in {stream.stream for stream in keys.streams}:
            known = ", ".join(stream.stream for stream in keys.streams)
            raise click.BadParameter(f"{name} is none of {known}.", param_hint="--stream")
    if subject is not None and not names:
        try:
            # The id names its partition.
            names = [str(ids.partition(ids.parse(subject, len(keys.partitions))))]
        except ValidationError:
            names = []
    return browsing.streams_named(keys, names)


async def _show(settings: Settings, what: str) -> list[Chained]:
    from broker.domain import ids

    async with _reader(settings, hashes=True) as reader:
        if _POSITION.match(what):
            found = await _one(reader, what)
        else:
            found = await _of_message(
                reader, ids.parse(what, len(reader.keys.partitions), "POSITION|MESSAGE_ID")
            )
    if not found:
        where = "the log and the audit log" if reader.store else "the log"
        raise NotFound(f"There is no event of {what} in {where}.")
    return found


async def _one(reader: _Reader, text: str) -> list[Chained]:
    from broker.events import browsing, positions
    from broker.projections import chained

    position = positions.parse(text)
    for stream in browsing.streams_named(reader.keys, [position.stream]):
        entry = await browsing.event(reader.redis, stream, position)
        if entry is not None:
            return await reader.placed(stream, [entry])
    found = await chained.event(reader.store, position) if reader.store is not None else None
    return [] if found is None else [found]


async def _of_message(reader: _Reader, message_id: bytes) -> list[Chained]:
    """From the audit log, and from the log what that does not have yet."""
    from broker.domain import ids
    from broker.events import browsing, positions
    from broker.projections import chained

    stream = reader.keys.partitions[ids.partition(message_id)]
    after = positions.Position(stream.stream, max(0, ids.created_ms(message_id) - SKEW_MS), 0)
    known: list[Chained] = []
    if reader.store is not None:
        # Its end first: an event that comes between the two reads is then in one of them, or in both.
        end, _ = await chained.end(reader.store, stream.stream)
        known = await chained.of_subject(reader.store, ids.text(message_id))
        after = max(after, end)
    seen = {one.stored.position for one in known}
    entries = await browsing.everything(
        reader.redis, stream, after, lambda entry: entry.subject == message_id and entry.position not in seen
    )
    return known + await reader.placed(stream, entries)


def _printer(*, as_json: bool, details: bool = False) -> Show:
    """What prints an event: the exported line, or a line for people (`details`: several)."""
    from broker.events import exported

    if as_json:

        def print_line(one: Chained) -> None:
            click.echo(exported.line(exported.export(one.stored, one.hash, one.previous)).decode())

        return print_line
    from broker.cli import narration

    return narration.details if details else narration.line
