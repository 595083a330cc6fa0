"""Where the log and the read models are: at the set addresses, else in the data directory."""

from __future__ import annotations

import sys

import msgspec

from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from broker.errors import SettingsError
from broker.settings import Settings


def valkey(settings: Settings) -> Valkey:
    """The embedded Valkey of the data directory."""
    return Valkey(settings.data_dir / "valkey", maxmemory_mb=settings.embedded_maxmemory_mb)


def mariadb(settings: Settings) -> MariaDB:
    """The embedded MariaDB of the data directory."""
    return MariaDB(settings.data_dir / "mariadb")


def resolve(settings: Settings) -> Settings:
    """`settings` with both addresses set. Whether a server answers there is for the caller to see.

    Raises SettingsError where there are no embedded servers and no address is set.
    """
    if sys.platform == "win32" and (settings.redis_url is None or settings.mysql_url is None):
        raise SettingsError("On Windows set redis_url and mysql_url (BROKER_REDIS_URL, BROKER_MYSQL_URL).")
    return msgspec.structs.replace(
        settings,
        redis_url=settings.redis_url or valkey(settings).url,
        mysql_url=settings.mysql_url or mariadb(settings).url,
    )
