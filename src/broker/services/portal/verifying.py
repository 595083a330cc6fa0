"""Verifications: history and the table that pages show, checked beside other work, followed as they go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker import clock, telemetry
from broker.errors import BrokerError
from broker.events import digests, digests_making, exported_check, exported_verifier
from broker.events.digests import Digest, DigestInvalid
from broker.events.digests_key import PUBLIC_FILES
from broker.events.exported_source import Linked, Source
from broker.events.positions import start
from broker.projections import audit_check, checkpoints
from broker.projections.audit_check import TableAltered, TableCheck
from broker.projections.store import Store
from broker.services.portal import forms, jobs, pages
from broker.services.portal.jobs import Jobs
from broker.services.portal.live import Live, Look, Shown
from broker.services.portal.parts import Parts
from broker.services.portal.visitors import Visitor
from broker.settings import Settings
from broker.web.parameters import Query
from broker.web.problems import Problem

PATH: Final = "/audit/verifications"
BACK: Final[dict[str, tuple[str, int | None]]] = {
    "day": ("the last day", 1),
    "week": ("the last 7 days", 7),
    "month": ("the last 30 days", 30),
    "all": ("everything", None),
}
"""How far back one can ask for: what it is called, days."""
MOST_AT_ONCE: Final = 3
"""Verifications under way in one process: pages are served beside them."""
TURN: Final = 500
"""Events compared at once: others' requests are served in between."""
EVERY_SECONDS: Final = 1.0
_DAY_MS: Final = 24 * 3_600_000
_READERS: Final = ("auditor", "admin")
_FINDINGS: Final = exported_check.FINDINGS | {TableAltered.code}

log = telemetry.get_logger(__name__)


class Verifying:
    """One verification, of the user `owner`; `back` is one of BACK. What is counted was found right."""

    def __init__(self, owner: str, back: str) -> None:
        self.id = jobs.new_id()
        self.owner = owner
        self.back = back
        self.begun_at = clock.monotonic()
        self.state: Literal["running", "right", "wrong", "cancelled", "failed"] = "running"
        self.problem = ""
        """What is wrong, or why it could not go on."""
        self.digests = 0
        """All there are; the signature of each was checked."""
        self.since: Digest | None = None
        """The digest that the events begin after; None: with the first event."""
        self.until: Digest | None = None
        """The newest one."""
        self.events = 0
        self.expected = 0
        """Events that the digests name after `since`."""
        self.rows = 0
        """Rows of the event search that say what their events say."""

    @property
    def open(self) -> bool:
        """Whether it is under way."""
        return self.state == "running"

    @property
    def waiting(self) -> bool:
        """Nobody has to come for it."""
        return False

    @property
    def linked(self) -> int:
        """How many digests the events were held against."""
        return self.digests - (self.since.number if self.since else 0)

    @property
    def unsigned(self) -> int:
        """Events after the newest digest."""
        return max(0, self.events - self.expected)

    def cancel(self) -> None:
        """End it at its next step."""
        if self.open:
            self.state = "cancelled"

    async def run(self, source: Source, store: Store, keys: Sequence[bytes], stopping: asyncio.Event) -> None:
        """Check until it has ended; `keys` are those that may have signed."""
        try:
            await self._check(source, store, keys, stopping)
            if self.state == "running":
                self.state = "right"
        except BrokerError as error:
            self.problem = str(error)
            self.state = "wrong" if error.code in _FINDINGS else "failed"
        except Exception:
            log.exception("verification_failed", verification=self.id)
            self.problem = "Something went wrong here. It has been written to the log."
            self.state = "failed"

    async def _check(
        self, source: Source, store: Store, keys: Sequence[bytes], stopping: asyncio.Event
    ) -> None:
        known = digests.chained(await digests_making.recorded(source))
        for digest in known:
            if bytes.fromhex(digest.key) not in keys:
                raise DigestInvalid(f"Digest {digest.number} is signed with another key.")
        self.digests = len(known)
        begin = _begin(known, BACK[self.back][1])
        self.since = known[begin - 1] if begin else None
        self.until = known[-1] if known else None
        self.expected = _events(self.until) - _events(self.since)
        await audit_check.check_streams(store, source.streams)
        reached = {
            one.position.stream: one.position
            for one in await checkpoints.everything(store)
            if one.projection == "audit_log"
        }
        for stream in source.streams:
            after = digests.of(self.since.streams if self.since else {}, stream).end(stream)
            table = TableCheck(store, stream, reached.get(stream, start(stream)), after)
            blocks = exported_check.checked(source, known, stream, since=begin)
            async with aclosing(blocks):
                async for block in blocks:
                    if stopping.is_set():
                        self.cancel()
                    if not self.open:
                        return
                    await self._compare(table, block)
            await table.finish(source)

    async def _compare(self, table: TableCheck, block: list[Linked]) -> None:
        before = table.rows
        for at in range(0, len(block), TURN):
            await table.compare(block[at : at + TURN])
            await asyncio.sleep(0)
        self.events += len(block)
        self.rows += table.rows - before


class Verifications:
    """The endpoints. `source` is opened when it is first asked for."""

    def __init__(self, parts: Parts, source: Callable[[], Source]) -> None:
        self._parts = parts
        self._source = source
        self._known: Jobs[Verifying] = Jobs("verification")
        self._tasks: set[asyncio.Task[None]] = set()
        self._live = Live(parts, *_READERS, seconds=EVERY_SECONDS)

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"{PATH}/{{verification_id}}"
        return [
            Route("/audit/verify", self.begin, methods=["POST"]),
            Route(one, self.one, methods=["GET"]),
            Route(f"{one}/live", self.following, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
        ]

    async def begin(self, request: Request) -> Response:
        """Begin to check as far back as asked for, and show how far it is."""
        visitor = await self._parts.gate(request, *_READERS)
        form = await forms.read(request, visitor.ticket, ("back",))
        back = Query({"back": form.optional("back")}, ("back",)).choice("back", tuple(BACK), "day")
        if self._known.open >= MOST_AT_ONCE:
            raise Problem("overloaded", "Too many verifications are under way at once.")
        self._known.make_room()
        source, keys = self._source(), public_keys(self._parts.settings)
        found = Verifying(visitor.user.user_id, back)
        self._known.add(found)
        task = asyncio.create_task(found.run(source, self._parts.queries.store, keys, self._parts.stopping))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return pages.see(f"{PATH}/{found.id}")

    async def one(self, request: Request) -> Response:
        """One's own verification: how far it is, or what was checked and found."""
        now = await self._own(request)
        return pages.render(request, "verification.html", now=now, back=BACK, live=False)

    async def following(self, request: Request) -> Response:
        """The same as server-sent events, until it has ended."""
        return await self._live(request, request.url.path.removesuffix("/live"), self._looking)

    def _looking(self, request: Request, visitor: Visitor) -> Look:
        found = self._known.of(visitor.user.user_id, request.path_params["verification_id"])

        async def look() -> Shown:
            text = pages.fragment("verifying.html", now=found, live=True)
            return Shown(text, last=not found.open)

        return look

    async def cancel(self, request: Request) -> Response:
        """End it."""
        visitor = await self._parts.gate(request, *_READERS)
        await forms.read(request, visitor.ticket, ())
        found = await self._own(request)
        found.cancel()
        return pages.see(f"{PATH}/{found.id}")

    async def _own(self, request: Request) -> Verifying:
        visitor = await self._parts.gate(request, *_READERS)
        return self._known.of(visitor.user.user_id, request.path_params["verification_id"])


def public_keys(settings: Settings) -> list[bytes]:
    """The public keys that sign digests here: the present one, and those of keys that were lost."""
    paths = sorted(settings.certs_dir.glob(PUBLIC_FILES))
    return [exported_verifier.public_key(path.read_text("ascii")) for path in paths]


def _begin(known: Sequence[Digest], days: int | None) -> int:
    """The number of the digest to begin after: the last that is older, so that one is checked in any case."""
    if days is None or not known:
        return 0
    edge = clock.now_ms() - days * _DAY_MS
    older = sum(clock.parse_iso(digest.at) < edge for digest in known)
    return min(older, len(known) - 1)


def _events(digest: Digest | None) -> int:
    return sum(state.events for state in digest.streams.values()) if digest else 0
