"""The projector's metrics, named once. Labels are closed sets: projections, streams, states."""

from __future__ import annotations

from broker.events.archive.archiver import ArchiveStatus
from broker.events.archive.archiver import State as ArchiveState
from broker.events.archive.trimming import TrimStatus
from broker.projections.status import State, StreamStatus
from broker.web import metrics as web

_LABELS = ("projection", "stream")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def observe_batch(stream: str, _events: int, seconds: float) -> None:
    """A batch of `stream` was committed."""
    web.histogram(
        "broker_projection_batch_seconds", "From read to commit of a batch.", ("stream",), _SECONDS
    ).labels(stream).observe(seconds)


class Exporter:
    """Carries the runners' statuses into the metrics; called every second."""

    def __init__(self) -> None:
        self._applied: dict[tuple[str, str], int] = {}
        self._retried: dict[str, int] = {}
        self._owning = web.gauge(
            "broker_projection_lease", "1 while this process owns the stream.", ("stream",)
        )
        self._state = web.gauge(
            "broker_projection_state", "1 for the state the stream is in.", ("stream", "state")
        )
        self._halted = web.gauge("broker_projection_halted", "1 while the projection stands still.", _LABELS)
        self._lag_events = web.gauge("broker_projection_lag_events", "Events not applied yet.", _LABELS)
        self._lag_seconds = web.gauge(
            "broker_projection_lag_seconds", "Age of the oldest event not applied yet.", _LABELS
        )
        self._events = web.counter("broker_projection_events_total", "Events applied and committed.", _LABELS)
        self._retries = web.counter("broker_projection_retries_total", "Transactions repeated.", ("stream",))

    def export(self, status: StreamStatus) -> None:
        """Export one stream. A stream that another process owns shows no lag here: its owner does."""
        owning = status.state is State.OWNER
        self._owning.labels(status.stream).set(owning)
        for state in State:
            self._state.labels(status.stream, str(state)).set(status.state is state)
        retries = status.retries - self._retried.get(status.stream, 0)
        self._retried[status.stream] = status.retries
        self._retries.labels(status.stream).inc(retries)
        for name, projection in tuple(status.projections.items()):
            key = (name, status.stream)
            self._events.labels(*key).inc(projection.events - self._applied.get(key, 0))
            self._applied[key] = projection.events
            self._halted.labels(*key).set(owning and projection.halted is not None)
            self._lag_events.labels(*key).set(projection.lag_events or 0 if owning else 0)
            self._lag_seconds.labels(*key).set(projection.lag_seconds or 0 if owning else 0)


class ArchiveExporter:
    """Carries the archivers' and the trimmer's statuses into the metrics; called every second."""

    def __init__(self) -> None:
        stream = ("stream",)
        self._counted: dict[tuple[str, str], int] = {}
        self._holders: dict[str, str] = {}
        self._state = web.gauge(
            "broker_archive_state", "1 for the state the stream's archiver is in.", ("stream", "state")
        )
        self._position = web.gauge(
            "broker_archive_position_ms", "Time of the last event that is archived durably, in ms.", stream
        )
        # Not called lag: events wait for their segment in good order, and in Redis.
        self._lag_events = web.gauge(
            "broker_archive_unsealed_events", "Events not archived durably yet.", stream
        )
        self._lag_seconds = web.gauge(
            "broker_archive_unsealed_seconds", "Age of the oldest event not archived durably yet.", stream
        )
        self._bound = web.gauge("broker_trim_bound_ms", "Below this time, in ms, the stream is cut.", stream)
        self._overdue = web.gauge(
            "broker_trim_overdue_seconds", "By how much the oldest event held is older than wanted.", stream
        )
        self._holder = web.gauge(
            "broker_trim_held", "1 for what keeps overdue history from being cut.", ("stream", "holder")
        )
        self._counters = {
            name: web.counter(f"broker_{name}_total", text, stream)
            for name, text in (
                ("archive_segments", "Segments sealed."),
                ("archive_events", "Events archived."),
                ("archive_plain_bytes", "Bytes of segments before compression."),
                ("archive_packed_bytes", "Bytes of segments as stored."),
                ("trim_removed", "Events cut from the stream."),
                ("trim_moved", "Bodies of long-open messages moved out of the stream."),
            )
        }

    def export(self, archive: ArchiveStatus, trim: TrimStatus, *, owning: bool) -> None:
        """Export one stream. What another process archives shows nothing here: its owner does."""
        stream = archive.stream
        for state in ArchiveState:
            self._state.labels(stream, str(state)).set(archive.state is state)
        sealed = archive.sealed.end.ms if archive.sealed is not None else 0
        self._position.labels(stream).set(sealed if owning else 0)
        self._lag_events.labels(stream).set(archive.lag_events if owning else 0)
        # Also between two tries of who cannot archive and lets go meanwhile: it has to be seen to grow.
        self._lag_seconds.labels(stream).set(archive.lag_seconds)
        self._bound.labels(stream).set(trim.bound.ms if owning and trim.bound is not None else 0)
        # Also of a stream that nobody can archive: this is the one to alert on.
        self._overdue.labels(stream).set(trim.overdue_seconds)
        holder = trim.holder
        if before := self._holders.get(stream):
            self._holder.labels(stream, before).set(0)
        if holder:
            self._holder.labels(stream, holder).set(1)
        self._holders[stream] = holder
        counts = (
            archive.segments,
            archive.events,
            archive.plain_bytes,
            archive.packed_bytes,
            trim.removed,
            trim.moved,
        )
        for (name, counter), count in zip(self._counters.items(), counts, strict=True):
            counter.labels(stream).inc(count - self._counted.get((name, stream), 0))
            self._counted[name, stream] = count
