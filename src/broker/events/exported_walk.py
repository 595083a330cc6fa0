"""Walking through history for an export: stream after stream, event after event, held against the digests.

An export ends where a digest ends, so that each of its events is vouched for, and one that was interrupted
can be taken up again with the same end. What is read is linked anew: an export of a history that was changed
stops there instead of spreading it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from broker.domain import ids
from broker.errors import BrokerError, UnknownEvent, ValidationError
from broker.events import codec, digests, envelope, exported, merkle, upcasting
from broker.events.codec import Stored
from broker.events.digests import Digest, StreamDigest
from broker.events.exported import Inclusion, ProvedLine
from broker.events.exported_source import Linked, Source, linked
from broker.events.positions import Position, start

SKEW_MS = 24 * 3_600_000
"""By so much the clock that gave an event its time may differ from Redis', which orders the stream."""

TURN = 256
"""Events made into lines at once: others on the same loop have their turn in between."""


class HistoryAltered(BrokerError):
    """The history is not the one that a signed digest vouches for."""

    code = "history_altered"

    def __init__(self, detail: str = "", where: str = "") -> None:
        self.where = where
        """The events among which something is wrong."""
        super().__init__(detail)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events; `since` and `until` are milliseconds of when they occurred, `until` excluded."""

    since: int | None = None
    until: int | None = None
    types: tuple[str, ...] = ()
    subject: str | None = None
    actor: str | None = None
    client_id: str | None = None
    correlation_id: str | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Filter()

    def shown(self) -> dict[str, str]:
        """As the event of the export names it."""
        found = {name: getattr(self, name) for name in self.__struct_fields__}
        found["types"] = ",".join(self.types) or None
        return {name: str(value) for name, value in found.items() if value is not None}


class Matcher:
    """Whether events are asked for."""

    def __init__(self, wanted: Filter) -> None:
        self._wanted = wanted
        self._subject = None if wanted.subject is None else _subject(wanted.subject)

    def __call__(self, entry: Stored) -> bool:
        wanted = self._wanted
        if wanted.types and upcasting.split(entry.tag)[0] not in wanted.types:
            return False
        if self._subject is not None and entry.subject != self._subject:
            return False
        if wanted.client_id is not None and _client(entry) != wanted.client_id:
            return False
        return self._by_envelope(entry)

    def _by_envelope(self, entry: Stored) -> bool:
        wanted = self._wanted
        if (wanted.since, wanted.until, wanted.actor, wanted.correlation_id) == (None,) * 4:
            return True
        try:
            found = envelope.decode(entry.envelope)
        except msgspec.DecodeError:
            # As the export shows it.
            found = envelope.Envelope(entry.position.ms, "unreadable")
        return (
            (wanted.since is None or found.at >= wanted.since)
            and (wanted.until is None or found.at < wanted.until)
            and wanted.actor in {None, found.actor}
            and (wanted.correlation_id is None or wanted.correlation_id == _conversation(entry, found))
        )


class Walk:
    """The events up to the last of `known`, which are all digests from the first on."""

    def __init__(self, source: Source, known: Sequence[Digest], wanted: Filter | None = None) -> None:
        self.wanted = wanted or Filter()
        self.seen = 0
        """Events looked through so far."""
        self._source = source
        self._known = known
        self._matches = Matcher(self.wanted)

    @property
    def events(self) -> int:
        """How many will be looked through, at most."""
        last = self._known[-1].streams if self._known else {}
        return sum(state.events for state in last.values())

    async def lines(self, after: Position | None = None) -> AsyncGenerator[list[ProvedLine]]:
        """The export's lines in blocks, those after `after` in the export's own order.

        Raises HistoryAltered, what the source raises, and as `check_after`.
        """
        streams = self._source.streams
        check_after(self._source, after)
        if after is not None:
            streams = streams[streams.index(after.stream) :]
        for stream in streams:
            own = after if after is not None and after.stream == stream else start(stream)
            async with aclosing(self._stream(stream, own)) as blocks:
                async for block in blocks:
                    yield block

    async def _stream(self, stream: str, after: Position) -> AsyncGenerator[list[ProvedLine]]:
        """The lines of one stream, read in one go from the first digest that concerns it."""
        spans = [span for span in self._spans(stream) if self._concerns(span, after)]
        choose = None if self.wanted.everything else self._matches
        async with aclosing(self._read(spans, choose, after)) as blocks:
            async for lines in blocks:
                if lines:
                    yield lines

    async def check(self, digests: int) -> int:
        """Link the events anew that the last so many digests added; how many. Raises as `lines`."""
        before = self.seen
        for stream in self._source.streams:
            spans = [span for span in self._spans(stream) if span.number > len(self._known) - digests]
            async with aclosing(self._read(spans, lambda _: False, start(stream))) as blocks:
                async for _ in blocks:
                    pass
        return self.seen - before

    async def _read(
        self, spans: list[_Span], choose: Callable[[Stored], bool] | None, after: Position
    ) -> AsyncGenerator[list[ProvedLine]]:
        """One stream's events of digests that follow on each other, read in one go; lines after `after`."""
        if not spans:
            return
        first, waiting = spans[0], deque(_Covered(span, choose, after) for span in spans)
        head = bytes.fromhex(first.before.head)
        blocks = linked(self._source, first.stream, first.first, head, upto=spans[-1].last)
        async with aclosing(blocks):
            async for block in blocks:
                self.seen += len(block)
                for at in range(0, len(block), TURN):
                    rest = block[at : at + TURN]
                    while rest:
                        lines, rest = waiting[0].take(rest)
                        if waiting[0].ended:
                            lines += waiting.popleft().proved()
                        yield lines
        if waiting:
            # It cannot be whole, so this says what it lacks.
            waiting[0].proved()

    def _spans(self, stream: str) -> list[_Span]:
        """What each digest adds to a stream, those that add nothing left out."""
        found, before = [], digests.UNCOVERED
        for digest in self._known:
            state = digests.of(digest.streams, stream)
            if state.covered:
                found.append(_Span(digest.number, stream, before, state))
            before = state
        return found

    def _concerns(self, span: _Span, after: Position) -> bool:
        """Whether something that is asked for can be among the events that a digest adds."""
        wanted = self.wanted
        return (
            span.last > after
            and (wanted.since is None or span.last.ms >= wanted.since - SKEW_MS)
            and (wanted.until is None or span.first.ms < wanted.until + SKEW_MS)
        )

    async def proof(self, position: Position) -> ProvedLine | None:
        """One event with its proof; None when no digest covers it, or it is not there. Raises as `lines`."""
        for span in self._spans(position.stream):
            if not span.first < position <= span.last:
                continue
            covered = _Covered(span, lambda entry: entry.position == position, span.first)
            async with aclosing(
                linked(
                    self._source,
                    position.stream,
                    span.first,
                    bytes.fromhex(span.before.head),
                    upto=span.last,
                )
            ) as blocks:
                async for block in blocks:
                    covered.take(block)
            return next(iter(covered.proved()), None)
        return None


class _Span(NamedTuple):
    number: int
    stream: str
    before: StreamDigest
    state: StreamDigest

    @property
    def first(self) -> Position:
        """The position after which it begins."""
        return self.before.end(self.stream)

    @property
    def last(self) -> Position:
        """Of its last event."""
        return self.state.end(self.stream)


class _Covered:
    """What one digest adds to a stream, gathered while it is read, made into lines after `after`.

    `choose` None: everything, unproved.
    """

    def __init__(self, span: _Span, choose: Callable[[Stored], bool] | None, after: Position) -> None:
        self._span = span
        self._choose = choose
        self._after = after
        self._count, self._head = 0, b""
        self._hashes: list[bytes] = []
        self._found: list[tuple[int, Linked]] = []
        self.ended = False
        """Whether what follows belongs to the next digest."""

    def take(self, block: list[Linked]) -> tuple[list[ProvedLine], list[Linked]]:
        """Take what is the digest's of a block: lines that can be given out at once, and the rest."""
        last = self._span.last
        cut = _until(block, last)
        own, rest = block[:cut], block[cut:]
        self.ended = bool(rest) or (bool(own) and own[-1].stored.position == last)
        if own:
            self._head = own[-1].hash
        lines: list[ProvedLine] = []
        asked = own[_until(own, self._after) :]
        if self._choose is None:
            lines = [exported.proved(one.stored, one.hash, one.previous) for one in asked]
        else:
            choose, at = self._choose, self._count + len(own) - len(asked)
            self._found += [(place, one) for place, one in enumerate(asked, at) if choose(one.stored)]
            self._hashes += [one.hash for one in own]
        self._count += len(own)
        return lines, rest

    def proved(self) -> list[ProvedLine]:
        """Lines that had to wait for the whole. Raises HistoryAltered when it is not what was signed."""
        state = self._span.state
        if self._count != state.covered or self._head.hex() != state.head:
            how = "with other hashes" if self._count == state.covered else f"{self._count} were found"
            raise HistoryAltered(
                f"Digest {self._span.number} vouches for {state.covered} events of stream "
                f"{self._span.stream} up to {state.last}: {how}."
            )
        if not self._found:
            return []
        tree = merkle.Tree(self._hashes)
        return [
            exported.proved(one.stored, one.hash, one.previous, _inclusion(self._span.number, tree, at))
            for at, one in self._found
        ]


def check_after(source: Source, after: Position | None) -> None:
    """Raises ValidationError for a position of a stream that there is not."""
    if after is not None and after.stream not in source.streams:
        raise ValidationError("after", "must be the id of an exported event")


def _until(block: list[Linked], last: Position) -> int:
    """How many of them are not after `last`."""
    return bisect_right(block, last, key=lambda one: one.stored.position)


def _inclusion(number: int, tree: merkle.Tree, index: int) -> Inclusion:
    return Inclusion(number, index, tree.size, [beside.hex() for beside in tree.path(index)])


def _conversation(entry: Stored, found: envelope.Envelope) -> str | None:
    partition = entry.position.stream.isdigit()
    return envelope.conversation(found, entry.subject if partition else None)


def _client(entry: Stored) -> str | None:
    try:
        return getattr(codec.decode(entry.tag, entry.data), "client_id", None)
    except UnknownEvent:
        return None


def _subject(text: str) -> bytes:
    """The stored form of a subject: a message id's 16 bytes, or the text."""
    try:
        return ids.parse(text)
    except ValidationError:
        return text.encode()
