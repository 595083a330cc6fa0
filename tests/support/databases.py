"""Databases of one's own on a MariaDB."""

from __future__ import annotations

import secrets
from typing import Any

import pymysql

from broker.embedded.mariadb import MariaDB
from broker.projections import address


def connected(url: str) -> Any:
    """A plain connection to the database at `url`."""
    place = address.parse(url)
    return pymysql.connect(**place.options(), database=place.database, autocommit=True)


def create(server: MariaDB) -> str:
    """The URL of a fresh, empty database on `server`."""
    name = f"message_system_{secrets.token_hex(6)}"
    with connected(server.url) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    return server.url.replace("/message_system", f"/{name}", 1)


def drop(url: str) -> None:
    """Remove the database at `url`."""
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {address.parse(url).database}")


def clear(url: str) -> None:
    """Remove every row of its tables."""
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema=DATABASE()")
        for (table,) in cursor.fetchall():
            if table != "alembic_version":
                cursor.execute(f"DELETE FROM {table}")
