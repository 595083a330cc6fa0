"""Settings: `broker.toml` and `BROKER_*` environment variables, environment first.

A TOML table is a prefix: `[gateway] port = 8001` is `gateway_port = 8001` is `BROKER_GATEWAY_PORT=8001`.
An unknown or invalid setting stops the start with its name and what it takes.
"""

from __future__ import annotations

from broker.settings.fields import PREFIX, Settings, networks, variable
from broker.settings.reading import RESERVED, load, to_environ
from broker.settings.telling import safe_url, shown, takes

__all__ = [
    "PREFIX",
    "RESERVED",
    "Settings",
    "load",
    "networks",
    "safe_url",
    "shown",
    "takes",
    "to_environ",
    "variable",
]
