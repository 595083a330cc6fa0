"""`mysql://user:password@host:port/database?unix_socket=…&ssl_ca=…` as the drivers want it."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from broker.errors import SettingsError

# What the SQL of this package is written for, whatever the server's configuration says.
SQL_MODE = (
    "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,"
    "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
)
SESSION = f"SET SESSION sql_mode='{SQL_MODE}', time_zone='+00:00', innodb_lock_wait_timeout=5"
_OPTIONS = frozenset({"unix_socket", "ssl_ca", "charset"})


class Address(msgspec.Struct, frozen=True):
    """Where a database is and how to sign in there."""

    user: str
    password: str
    host: str
    port: int
    database: str
    unix_socket: str | None = None
    ssl_ca: str | None = None
    """Path of the CA that must have signed the server's certificate; None: no TLS."""

    def __repr__(self) -> str:
        return f"Address({self.user}@{self.unix_socket or f'{self.host}:{self.port}'}/{self.database})"

    def options(self) -> dict[str, Any]:
        """Keyword arguments that PyMySQL and aiomysql share."""
        found: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "charset": "utf8mb4",
            "init_command": SESSION,
        }
        if self.unix_socket is not None:
            found["unix_socket"] = self.unix_socket
        if self.ssl_ca is not None:
            found["ssl"] = ssl.create_default_context(cafile=self.ssl_ca)
        return found


def parse(url: str) -> Address:
    """The address that `url` names. Raises SettingsError, without the password in its text."""
    try:
        parts = urlsplit(url)
        port = parts.port or 3306
    except ValueError as error:
        raise SettingsError(f"mysql_url: {error}") from None
    options = dict(parse_qsl(parts.query))
    database = parts.path.lstrip("/")
    if parts.scheme.split("+")[0] != "mysql" or not database:
        raise SettingsError("mysql_url must look like mysql://user:password@host:3306/message_system")
    if unknown := sorted(set(options) - _OPTIONS):
        raise SettingsError(f"mysql_url: unknown option {unknown[0]!r}; known: {', '.join(sorted(_OPTIONS))}")
    return Address(
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
        host=parts.hostname or "localhost",
        port=port,
        database=database,
        unix_socket=options.get("unix_socket"),
        ssl_ca=options.get("ssl_ca"),
    )
