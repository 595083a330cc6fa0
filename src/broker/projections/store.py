"""The database behind the read models: connections, transactions, and its failures in the broker's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiomysql
import pymysql

from broker import clock
from broker.errors import BrokerError, StoreUnavailable
from broker.projections import address, sql

STATEMENT_BYTES: Final = 1024 * 1024
"""Statements are cut at this size, or at half of what the server takes in one packet."""

IDLE_SECONDS: Final = 60.0
"""An idle connection older than this is replaced; proxies drop silent ones."""

# Lock wait time-out, deadlock, changed under a snapshot: the transaction is gone, the same one may pass.
_RETRY: Final = frozenset({1205, 1213, 1020})
# The rows do not fit: null, duplicate, out of range, wrong, truncated, too long, check constraint.
_REJECT: Final = frozenset({1048, 1062, 1153, 1264, 1265, 1292, 1366, 1367, 1406, 3140, 3819, 4025})


class StoreRetry(BrokerError):
    """The transaction lost against another; the same one may pass now."""

    code = "store_retry"


class StoreRejected(BrokerError):
    """The database refuses these rows, and would again."""

    code = "store_rejected"


def translate(error: BaseException) -> BrokerError:
    """The broker's error for one of the driver's or the socket's.

    Whatever is not surely about the rows counts as the database being away: waiting loses nothing.
    """
    if isinstance(error, BrokerError):
        return error
    number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    message = f"{type(error).__name__}: {error}"[:300]
    if isinstance(error, pymysql.err.MySQLError):
        if number in _RETRY:
            return StoreRetry(message)
        if number in _REJECT:
            return StoreRejected(message)
    return StoreUnavailable(message)


_FAILURES = (pymysql.err.MySQLError, OSError, asyncio.IncompleteReadError, TimeoutError, RuntimeError)


class Transaction:
    """One transaction on one connection; made by `Store.transaction`."""

    def __init__(self, connection: Any, limit: int) -> None:
        self._connection = connection
        self._limit = limit

    async def execute(self, statement: str) -> int:
        """Run a statement; the number of affected rows (changed ones for UPDATE)."""
        affected: int = await self._connection.query(statement)
        return affected

    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        """Run a SELECT; all its rows."""
        await self._connection.query(statement)
        return tuple(self._connection._result.rows or ())  # noqa: SLF001  the driver's own cursor does so

    async def apply(self, writes: Sequence[sql.Write]) -> None:
        """Write rows. Raises StoreRejected when rows to update do not all exist."""
        for write in writes:
            for statement, rows in sql.statements(write, self._limit):
                affected = await self.execute(statement)
                if isinstance(write, sql.Update) and affected != 2 * rows:
                    missing = 2 * rows - affected
                    raise StoreRejected(f"{missing} of {rows} rows of {write.table} to change do not exist.")


class Store:
    """Connections to the database at `url`, at most `pool` at a time; connects on first use."""

    def __init__(
        self, url: str, *, pool: int = 8, connect_timeout: float = 5.0, timeout: float = 30.0
    ) -> None:
        self._url = url
        self._address = address.parse(url)
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        """Seconds one transaction may take before its connection counts as dead."""
        self._places = asyncio.Semaphore(pool)
        # Newest last and used first, so that surplus ones grow old. (aiomysql's own pool does not wake its
        # waiters when a broken connection comes back.)
        self._idle: list[tuple[Any, float]] = []
        self._limit = STATEMENT_BYTES

    async def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop()[0].close()

    def beside(self, pool: int) -> Store:
        """Another store on the same database, for work that must not take this one's connections."""
        return Store(self._url, pool=pool, connect_timeout=self._connect_timeout, timeout=self._timeout)

    async def ping(self) -> None:
        """One round trip. Raises StoreUnavailable."""
        await self.select("SELECT 1")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction, committed at the end of the block and rolled back when it raises.

        Raises StoreUnavailable (also when it is unknown whether the commit happened), StoreRetry and
        StoreRejected.
        """
        async with self._connected() as connection:
            await connection.query("START TRANSACTION")
            yield Transaction(connection, self._limit)
            await connection.query("COMMIT")

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Transaction]:
        """A connection of one's own for as long as the block takes: its settings and named locks end with it.

        Each statement commits by itself. Raises as `transaction` does.
        """
        async with self._places:
            try:
                connection = await self._connect()
            except _FAILURES as error:
                raise translate(error) from error
            try:
                yield Transaction(connection, self._limit)
            except _FAILURES as error:
                raise translate(error) from error
            finally:
                connection.close()

    async def select(self, statement: str, args: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a SELECT as dicts. Raises StoreUnavailable."""
        async with self._connected() as connection, connection.cursor(aiomysql.DictCursor) as cursor:
            await cursor.execute(statement, args or None)
            rows: list[dict[str, Any]] = list(await cursor.fetchall())
            return rows

    async def execute(self, statement: str, args: Sequence[Any] = ()) -> int:
        """Run one statement and commit it; the affected rows. Raises as `transaction` does."""
        async with self._connected() as connection, connection.cursor() as cursor:
            affected: int = await cursor.execute(statement, args or None)
            return affected

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """A connection, with its failures translated; never used again after one."""
        async with self._places:
            connection = None
            sound = False
            try:
                async with asyncio.timeout(self._timeout):
                    connection = self._take() or await self._connect()
                    yield connection
                sound = True
            except _FAILURES as error:
                raise translate(error) from error
            finally:
                if connection is not None:
                    if sound:
                        self._idle.append((connection, clock.monotonic()))
                    else:
                        # Closing rolls back.
                        connection.close()

    def _take(self) -> Any:
        while self._idle:
            connection, since = self._idle.pop()
            reader = connection._reader  # noqa: SLF001  no public way to see that the server hung up
            if clock.monotonic() - since < IDLE_SECONDS and not (reader.at_eof() or reader.exception()):
                return connection
            connection.close()
        return None

    async def _connect(self) -> Any:
        connection = await aiomysql.connect(
            **self._address.options(),
            db=self._address.database,
            connect_timeout=self._connect_timeout,
            # Reads see what is committed at once; `transaction` starts its own transactions.
            autocommit=True,
        )
        try:
            # No gap locks between streams. (The variable's name differs between MySQL and MariaDB.)
            await connection.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            await connection.query("SELECT @@max_allowed_packet")
            packet = int(connection._result.rows[0][0])  # noqa: SLF001  as in Transaction.rows
            self._limit = min(STATEMENT_BYTES, packet // 2)
        except BaseException:
            connection.close()
            raise
        return connection
