"""Events for people: a line each, with local times and colours, or everything that may be shown."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from broker import clock
from broker.events import exported

if TYPE_CHECKING:
    from broker.events.exported import ExportedLine
    from broker.projections.chained import Chained

_COLOURS: Final = {
    "Delivered": "green",
    "DeliveryAttempted": "blue",
    "Failed": "red",
    "MessageParked": "red",
    "MessageDiscarded": "red",
    "LoginFailed": "red",
    "CertRevoked": "red",
    "RetryScheduled": "yellow",
    "MessageSubmitted": "cyan",
    "ResendRequested": "cyan",
}
# What the line says elsewhere, or nobody can read.
_LEFT_OUT: Final = frozenset({"certificate", "idempotency", "request_hash", "fingerprint", "user_id"})
MAX_VALUE: Final = 60


def line(one: Chained) -> None:
    """Time, position, type, subject, what happened, who did it."""
    event = exported.export(one.stored)
    values = " ".join(
        _pair(name, value)
        for name, value in event.data.items()
        if value is not None and name not in _LEFT_OUT and not isinstance(value, dict)
    )
    parts = (
        click.style(_local(event), dim=True),
        click.style(f"{event.id:<22}", dim=True),
        click.style(f"{_type(event):<17}", fg=_COLOURS.get(event.type, "magenta")),
        event.subject,
        values,
        click.style(event.actor, dim=True),
    )
    click.echo("  ".join(parts))


def details(one: Chained) -> None:
    """Every field on a line of its own."""
    event = exported.export(one.stored, one.hash, one.previous)
    click.echo(click.style(f"{_type(event)}  {event.id}", fg=_COLOURS.get(event.type, "magenta"), bold=True))
    rows: list[tuple[str, Any]] = [
        ("at", event.at),
        ("subject", event.subject),
        ("actor", event.actor),
        ("correlation id", event.correlation_id),
        ("caused by", event.causation_id),
        *event.data.items(),
        ("hash", event.hash),
        ("previous hash", event.previous_hash),
    ]
    for name, value in rows:
        if value is not None:
            click.echo(f"  {click.style(f'{name:<15}', dim=True)} {_plain(value)}")


def _type(event: ExportedLine) -> str:
    return event.type if event.version == 1 else f"{event.type} v{event.version}"


def _local(event: ExportedLine) -> str:
    moment = datetime.fromtimestamp(clock.parse_iso(event.at) / 1000).astimezone()
    return moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def _pair(name: str, value: Any) -> str:
    # Of the times in events, these are moments; all others (latency, delay) are durations.
    if name.endswith(("before_ms", "after_ms", "until_ms")):
        return f"{name.removesuffix('_ms')}={clock.iso(value)}"
    text = _plain(value)
    return f"{name}={text if len(text) <= MAX_VALUE else f'{text[: MAX_VALUE - 1]}…'}"


def _plain(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"withheld"}:
        return f"withheld ({value['withheld']})"
    # Texts of others reach a terminal: nothing in them may steer it.
    return "".join(char if char.isprintable() else "�" for char in str(value))
