"""Bringing the database's schema up to date (Alembic, in `migrations/`)."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.errors import StoreUnavailable
from broker.projections import address

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_SECONDS = 120


def folder() -> Path:
    """Where the migrations lie: inside an installed wheel, or at the root of a checkout.

    Raises StoreUnavailable where there are none.
    """
    package = Path(__file__).resolve().parents[1]
    for place in (package / "_migrations", package.parents[1] / "migrations"):
        if (place / "env.py").is_file():
            return place
    raise StoreUnavailable("The migrations are missing from this installation.")


def migrate(url: str) -> None:
    """Upgrade the database at `url` to the newest revision; safe when two do so at once.

    Raises StoreUnavailable.
    """
    from alembic import command
    from alembic.util import CommandError

    with _connected(url) as connection:
        try:
            command.upgrade(_config(connection), "head")
        except CommandError as error:
            raise StoreUnavailable(
                f"Its schema is of another version of the broker ({error}); use that version or a newer one."
            ) from error


def revisions(url: str) -> tuple[str | None, str]:
    """The database's revision (None: no schema yet) and the newest one. Raises StoreUnavailable."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    head = ScriptDirectory(str(folder())).get_current_head()
    with _connected(url, lock=False) as connection:
        return MigrationContext.configure(connection).get_current_revision(), str(head)


def _config(connection: Any) -> Any:
    from alembic.config import Config

    config = Config()
    # `%` is the configuration parser's.
    config.set_main_option("script_location", str(folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _connected(url: str, *, lock: bool = True) -> Iterator[Any]:
    """A SQLAlchemy connection, holding the migration lock when asked to."""
    import pymysql
    import sqlalchemy as sa
    from sqlalchemy.pool import NullPool

    place = address.parse(url)
    engine = sa.create_engine(
        "mysql+pymysql://",
        creator=lambda: pymysql.connect(**place.options(), database=place.database),
        poolclass=NullPool,
    )
    name = f"broker-migrate-{place.database}"[:64]
    try:
        with engine.connect() as connection:
            if lock and connection.scalar(sa.text(f"SELECT GET_LOCK('{name}', {LOCK_SECONDS})")) != 1:
                raise StoreUnavailable("Another process has been migrating for long; try again.")
            connection.commit()
            # Closing the connection releases the lock.
            yield connection
    except sa.exc.DBAPIError as error:
        raise StoreUnavailable(f"{_said(error.orig)}.") from error
    finally:
        engine.dispose()


def _said(error: BaseException | None) -> str:
    """The server's own words, which the drivers' errors carry behind a number."""
    return str(error.args[-1] if error is not None and error.args else error).rstrip(".")
