"""Channel names and how each is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker.services.delivery.channels.base import Channel
from broker.services.delivery.channels.inbox import Inbox
from broker.services.delivery.channels.simulated import Simulated
from broker.services.delivery.channels.webhook import Webhook
from broker.settings import Settings
from broker.web import tls

Make = Callable[[Settings, Path, Path, Path], Channel]


def _inbox(settings: Settings, cert: Path, key: Path, ca: Path) -> Channel:
    return Inbox(settings.inbox_url, tls.client_context(ca, cert, key))


def _webhook(settings: Settings, _cert: Path, _key: Path, _ca: Path) -> Channel:
    return Webhook(
        timeout=settings.webhook_timeout,
        allow_private=settings.webhook_allow_private,
        connections=settings.worker_concurrency,
        context=tls.public_context(settings.webhook_ca_file, "webhook_ca_file"),
    )


def _simulated(_settings: Settings, _cert: Path, _key: Path, _ca: Path) -> Channel:
    return Simulated()


CHANNELS: Final[dict[str, Make]] = {
    Inbox.name: _inbox,
    Webhook.name: _webhook,
    Simulated.name: _simulated,
}


def build(settings: Settings, *, cert: Path, key: Path, ca: Path) -> dict[str, Channel]:
    """One of each, by name. `cert` and `key` are the worker's own, `ca` is ours; PEM files."""
    return {name: make(settings, cert, key, ca) for name, make in CHANNELS.items()}
