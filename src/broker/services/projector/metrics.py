"""The projector's metrics, named once. Labels are closed sets: projections, streams, states."""

from __future__ import annotations

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
