"""Logs as JSON lines (or for a terminal) and the correlation id that ties them to a request."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any

import structlog

correlation: ContextVar[str | None] = ContextVar("correlation", default=None)


def configure(role: str, level: str = "info", form: str = "json") -> None:
    """Send structlog and the standard library's loggers to stderr, one line an event.

    Event names are static; values are identifiers, never bodies, numbers, passwords or keys.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_correlation,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.getLevelName(level.upper()), logging.INFO))
    # httpx logs every URL at INFO; a webhook's URL may carry its owner's secrets.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(role=role)


def _add_correlation(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    current = correlation.get()
    if current is not None:
        event.setdefault("correlation_id", current)
    return event


def get_logger(name: str) -> Any:
    """A structlog logger; `name` is the module's."""
    return structlog.get_logger(module=name)
