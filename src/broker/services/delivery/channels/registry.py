"""Channel names and how each is made."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker.errors import SettingsError
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
        context=webhook_context(settings.webhook_ca_file),
    )


def _simulated(_settings: Settings, _cert: Path, _key: Path, _ca: Path) -> Channel:
    return Simulated()


CHANNELS: Final[dict[str, Make]] = {
    Inbox.name: _inbox,
    Webhook.name: _webhook,
    Simulated.name: _simulated,
}


def webhook_context(extra: Path | None) -> ssl.SSLContext:
    """Trusts what the system trusts, and the CA certificates of `extra` (PEM). Raises SettingsError."""
    context = ssl.create_default_context()
    if extra is not None:
        try:
            context.load_verify_locations(extra)
        except OSError as error:
            why = "holds no CA certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise SettingsError(f"webhook_ca_file (BROKER_WEBHOOK_CA_FILE): {extra}: {why}.") from None
    return context


def build(settings: Settings, *, cert: Path, key: Path, ca: Path) -> dict[str, Channel]:
    """One of each, by name. `cert` and `key` are the worker's own, `ca` is ours; PEM files."""
    return {name: make(settings, cert, key, ca) for name, make in CHANNELS.items()}
