"""`send`: submit messages as a producer does, over mTLS, and follow them to their outcome."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from broker.cli.common import json_option, print_json, with_settings
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.cli.submitting import Report

BATCH = 500


@click.command()
@click.option(
    "--from",
    "number",
    required=True,
    metavar="+49…",
    help="The sender's number: E.164, + and 7 to 15 digits.",
)
@click.option("--body", required=True, metavar="TEXT", help="The text: 1 to 1000 characters.")
@click.option(
    "--client", default="demo", show_default=True, help="Whose certificate, in certs/clients/NAME/."
)
@click.option("--metadata", metavar="JSON", help="A JSON object that travels with the message, at most 4 KB.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Submit under this key: again with the same key and text is the same message, not another. "
    "With --count, KEY-1, KEY-2, … Default: a random one.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1_000_000),
    default=1,
    show_default=True,
    help="Send the text so many times, in batches.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Requests under way at once.",
)
@click.option(
    "--wait", is_flag=True, help="Follow to the outcome; exit 1 unless every message was delivered."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long --wait waits: a failing message has 5 attempts, 30 s apart, by default.",
)
@click.option("--url", help="The gateway. Default: the one that `up` runs, else by the settings.")
@json_option
@with_settings
def send(settings: Settings, *, as_json: bool, metadata: str | None, **options: Any) -> None:
    """Submit messages over mTLS and, with --wait, follow them to their outcome.

    \b
      broker send --from +4915200000000 --body "Hello" --wait
      broker send --from +4915200000000 --body "Load" --count 10000

    The answer comes once the message is on disk. When it does not come (a time-out, a 503), nobody knows
    whether the message was taken; `send` then repeats it under the same idempotency key, as every producer
    should. Exit codes: 0 taken (with --wait: delivered), 1 refused, failed or unknown, 2 wrong use.
    """  # noqa: D301 - click's mark
    extra = _object(metadata)
    report = asyncio.run(_send(settings, extra, quiet=as_json, **options))
    if as_json:
        print_json(report.as_json())
    else:
        _say(report)
    sys.exit(0 if report.succeeded else 1)


def _object(text: str | None) -> dict[str, Any] | None:
    import json

    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint="--metadata") from None
    if not isinstance(found, dict):
        raise click.BadParameter("takes a JSON object, such as '{\"order\": 7}'.", param_hint="--metadata")
    return found


async def _send(
    settings: Settings,
    metadata: dict[str, Any] | None,
    *,
    number: str,
    body: str,
    client: str,
    idempotency_key: str | None,
    count: int,
    concurrency: int,
    wait: bool,
    timeout: float,
    url: str | None,
    quiet: bool,
) -> Report:
    from broker import client as clients
    from broker.cli import opening, submitting

    def message(index: int) -> clients.Message:
        key = idempotency_key if idempotency_key is None or count == 1 else f"{idempotency_key}-{index + 1}"
        return clients.Message(number, body, metadata, key)

    with submitting.Progress(shown=not quiet) as progress:
        address = url or opening.gateway_url(settings)
        connected = clients.connect(
            address, settings.certs_dir, client, connections=concurrency, waiting=progress.waiting
        )
        async with connected:
            report = await submitting.submit(connected, message, count, concurrency, progress)
            if wait:
                await submitting.follow(connected, report, concurrency, timeout, progress)
    return report


def _say(report: Report) -> None:
    from broker.cli import submitting

    for line in submitting.lines(report):
        click.echo(line)
