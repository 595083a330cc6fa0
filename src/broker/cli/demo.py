"""`demo`: real messages through a running broker: one delivered, one retried, one refused."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from broker.cli.common import json_option, print_json, with_settings
from broker.errors import BrokerError, Conflict
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.cli.showing import Shown
    from broker.client import Client
    from broker.preparation import Tools

NUMBER: Final = "+4915200000000"
BODY: Final = "Hello from the demo"
WITHIN: Final = 30.0
"""Seconds in which everything but a retry must have happened."""


class Actor(NamedTuple):
    """A producer of the demo; `target` is its route where the channel is `simulated`."""

    client: str
    channel: str
    target: str | None
    story: str


ACTORS: Final = (
    Actor("demo", "inbox", None, "the server's inbox takes it"),
    Actor("demo-retry", "simulated", "failures=1", "a recipient that is away at first"),
    Actor("demo-refused", "simulated", "success=0,permanent=1", "a recipient that refuses for good"),
)


class DemoFailed(BrokerError):
    """Not everything went as it should; `broker status` and the logs say more."""

    code = "demo_failed"


@click.command()
@click.option(
    "--full", is_flag=True, help="Wait for the retry, too (30 s by default), until all have an outcome."
)
@json_option
@with_settings
def demo(settings: Settings, *, full: bool, as_json: bool) -> None:
    """A short guided run on a running `broker up`, which it starts where there is no installation yet.

    Sends a message from each of three clients over mTLS: one is delivered to the inbox, one fails at first
    and is retried, one is refused for good. Shows what happens to them, and where to look for yourself. The
    clients demo-retry and demo-refused, with simulated recipients, are made at first use.
    """
    _start_first(settings)
    found = asyncio.run(_demo(settings, full=full, quiet=as_json))
    if as_json:
        print_json([one.status for one in found])
    sys.exit(0)


def _start_first(settings: Settings) -> None:
    """`up --detach` where nothing was ever made and no servers are named; what was stopped stays stopped."""
    from broker.embedded import detached
    from broker.embedded.state import running
    from broker.events import log_identity

    named = settings.redis_url is not None or settings.mysql_url is not None
    made = log_identity.file_path(settings).exists() or running(settings.data_dir) is not None
    if named or made or settings.inspection:
        return

    def say(text: str) -> None:
        click.echo(text, err=True)

    say(f"Nothing is installed in {settings.data_dir} yet: making it, as `broker up --detach` does.")
    detached.start(settings, say)
    say("It goes on running until `broker down`.")


async def _demo(settings: Settings, *, full: bool, quiet: bool) -> list[Shown]:
    from broker.cli import following, opening, showing

    url = opening.gateway_url(settings)
    await _reach(settings, url)
    async with following.changing(settings) as tools:
        await _make(tools)
        routes = await _routes(tools)
    messages = [
        showing.Shown(actor.client, routes[actor.client], actor.story, await _submit(settings, url, actor))
        for actor in ACTORS
    ]
    with showing.display(messages, quiet=quiet) as refresh:
        await _follow(settings, url, messages, refresh, full=full)
    if not quiet:
        showing.conclude(opening.resolved(settings), url, messages)
    return messages


async def _reach(settings: Settings, url: str) -> None:
    """Raises Unreachable before anything is made when no gateway runs."""
    async with _client(settings, url, ACTORS[0].client) as client:
        await client.health()


async def _make(tools: Tools) -> None:
    """Clients, routes and certificates, where they are missing."""
    from broker import clock
    from broker.cli import issuing
    from broker.cli.opening import ACTOR
    from broker.domain import certificates
    from broker.domain.certificates import CertificateEntry
    from broker.domain.clients import ClientEntry
    from broker.events.control import certificate_field, client_field
    from broker.services.ca.authority import read_certificate

    for actor in ACTORS[1:]:
        known = await tools.registry.read(client_field(actor.client), ClientEntry)
        if known is None:
            await tools.clients.register_client(actor.client, actor=ACTOR)
        if known is None or (known.channel, known.target) != (actor.channel, actor.target):
            await tools.clients.change_route(actor.client, actor.channel, actor.target, actor=ACTOR)
        request = issuing.Request(name=actor.client)
        certificate, key = issuing.places(tools.settings, request)
        if certificate.exists() and key.exists():
            found = read_certificate(certificate).fingerprint
            entry = await tools.registry.read(certificate_field(found), CertificateEntry)
            if entry is not None and certificates.works(entry, clock.now_ms()):
                continue
        try:
            await issuing.issue(tools, request)
        except Conflict:
            # The registry has one whose files were lost.
            await issuing.issue(tools, request, renew=True)


async def _routes(tools: Tools) -> dict[str, str]:
    """Where the messages of each client go, as the registry says."""
    from broker.domain.clients import ClientEntry
    from broker.events.control import client_field

    found = {}
    for actor in ACTORS:
        entry = await tools.registry.read(client_field(actor.client), ClientEntry)
        channel = (entry.channel if entry else None) or tools.settings.default_channel
        target = entry.target if entry else None
        found[actor.client] = f"{channel} {target}" if target else channel
    return found


def _client(settings: Settings, url: str, name: str) -> Client:
    from broker import client

    return client.connect(url, settings.certs_dir, name, retry_for=WITHIN)


async def _submit(settings: Settings, url: str, actor: Actor) -> str:
    from broker.client import Message

    async with _client(settings, url, actor.client) as client:
        return (await client.submit(Message(NUMBER, BODY, {"demo": True}))).message_id


async def _follow(settings: Settings, url: str, messages: list[Shown], refresh: Any, *, full: bool) -> None:
    """Ask until all are where the demo ends. Raises DemoFailed when they do not get there in time."""
    from contextlib import AsyncExitStack

    from broker import clock
    from broker.cli import showing

    deadline = clock.monotonic() + WITHIN
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(_client(settings, url, message.client)) for message in messages
        ]
        while True:
            for message, client in zip(messages, clients, strict=True):
                message.status = await client.status(message.message_id)
            refresh()
            if all(showing.settled(message, full=full) for message in messages):
                return
            # Waiting for a scheduled retry is no delay; everything else must move.
            if full and all(showing.settled(message, full=False) for message in messages):
                deadline = clock.monotonic() + WITHIN
            if clock.monotonic() > deadline:
                raise DemoFailed
            await asyncio.sleep(0.2)
