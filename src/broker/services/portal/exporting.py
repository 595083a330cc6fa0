"""Exports under way in this process: recorded, then fetched once, followed and ended by who began them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Literal, cast

from starlette.responses import StreamingResponse
from starlette.types import Send

from broker import clock, telemetry
from broker.errors import BrokerError, Conflict
from broker.events import exported_formats, exported_serving
from broker.events.exported_session import Export
from broker.services.portal import jobs

State = Literal["waiting", "sending", "done", "cancelled", "broken", "failed"]

log = telemetry.get_logger(__name__)


class Exporting:
    """One export, of the user `owner`; `wanted` are its filters as they were given."""

    def __init__(self, owner: str, form: str, begun: Export, wanted: dict[str, str]) -> None:
        self.id = jobs.new_id()
        self.owner = owner
        self.form = form
        self.wanted = wanted
        self.digest = begun.digest
        self.state: State = "waiting"
        self.bytes = 0
        self.problem = ""
        """What ended one that failed."""
        self.begun_at = clock.monotonic()
        self._begun = begun

    @property
    def looked_through(self) -> int:
        """Events looked through so far; what was asked for is among them."""
        return self._begun.walk.seen

    @property
    def events(self) -> int:
        """Events to look through, at most."""
        return self._begun.walk.events

    @property
    def open(self) -> bool:
        """Whether it can be ended still."""
        return self.state in {"waiting", "sending"}

    @property
    def waiting(self) -> bool:
        """Whether nobody has come for it yet."""
        return self.state == "waiting"

    def cancel(self) -> None:
        """End it. A file that is being sent breaks off, so that no browser takes it for whole."""
        if self.open:
            self.state = "cancelled"

    def fetch(self) -> StreamingResponse:
        """Its file, once. Raises Conflict, and ValidationError for a form whose package is not installed."""
        form = exported_formats.named(self.form)
        if self.state != "waiting":
            raise Conflict("This export was fetched already, or ended. Begin another.")
        self.state = "sending"
        name = f"history-{self.digest}.{self.form}"
        headers = {"cache-control": "no-store", "content-disposition": f'attachment; filename="{name}"'}
        return _File(self, self._sent(form), media_type=form.media_type, headers=headers)

    async def _sent(self, form: exported_formats.Format) -> AsyncIterator[bytes]:
        ended: State = "broken"
        try:
            lines = cast("AsyncGenerator[bytes]", exported_serving.lines(self._begun, form))
            async with aclosing(lines) as pieces:
                async for piece in pieces:
                    if self.state != "sending":
                        return
                    self.bytes += len(piece)
                    yield piece
            ended = "done"
        except BrokerError as error:
            self.problem, ended = str(error), "failed"
            log.error("export_failed", code=error.code, reason=str(error))
        finally:
            if self.state == "sending":
                self.state = ended


class _File(StreamingResponse):
    """Ends in order only where the export is whole; else the connection does."""

    def __init__(self, export: Exporting, content: AsyncIterator[bytes], **options: object) -> None:
        super().__init__(content, **options)  # type: ignore[arg-type]
        self._export = export

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self.body_iterator:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self._export.state == "done":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
