"""What a rebuild has done so far, kept in the database: it is taken up from there after a crash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from broker import clock
from broker.errors import BrokerError, Conflict, LeaseLost
from broker.events.positions import Position
from broker.projections import queries, sql
from broker.projections.store import Store, Transaction

Phase = Literal["building", "switching", "no_redis", "no_archive", "no_mysql"]
BUILDING: Final = "building"
SWITCHING: Final = "switching"
WaitingFor = Literal["redis", "archive", "mysql"]
WAITING: Final[Mapping[Phase, WaitingFor]] = {
    "no_redis": "redis",
    "no_archive": "archive",
    "no_mysql": "mysql",
}
"""Phases in which a rebuild waits, and for what; until its next transaction."""
GRACE_SECONDS: Final = 3
"""The server may take a moment to notice that a process which had the lock is gone."""


class RebuildRunning(Conflict):
    """Another process is rebuilding this read model."""

    def __str__(self) -> str:
        return self.detail


class RebuildCancelled(BrokerError):
    """Somebody cancelled the rebuild; the shadow tables are gone, the others serve on."""

    code = "rebuild_cancelled"


class Part(msgspec.Struct, frozen=True):
    """A rebuild on one stream: the shadow tables hold `events` events of it, up to `position`."""

    projection: str
    position: Position
    events: int
    total: int
    """Of the stream, when last looked at."""
    version: int
    incarnation: str
    phase: Phase
    started_ms: int
    """When the process that builds began, and with how many events, for the rate."""
    started_with: int
    updated_ms: int
    cancelled: bool
    state: bytes | None = None


async def load(store: Store, projection: str | None = None) -> list[Part]:
    """The parts of a rebuild, or of every one that was begun and not ended. Raises StoreUnavailable."""
    where, args = ("WHERE projection=%s ", (projection,)) if projection else ("", ())
    return [
        _part(row)
        for row in await store.select(f"SELECT * FROM rebuilds {where}ORDER BY projection,stream", args)
    ]


async def begin(session: Transaction, projection: str, version: int, incarnations: Mapping[str, str]) -> None:
    """Record that a rebuild begins, at the beginning of these streams."""
    now = sql.stamp(clock.now_ms())
    rows = ",".join(
        f"({sql.text(projection)},{sql.text(stream)},{version},'{BUILDING}',{sql.text(incarnation)},{now},{now})"
        for stream, incarnation in incarnations.items()
    )
    await session.execute(
        "INSERT INTO rebuilds (projection,stream,version,phase,incarnation,started_at,updated_at) "
        f"VALUES {rows}"
    )


async def begun(session: Transaction, projection: str) -> bool:
    """Whether a rebuild is on record: one that runs, or that can be gone on with."""
    return bool(await session.rows(f"SELECT 1 FROM rebuilds WHERE projection={sql.text(projection)}"))


async def started(session: Transaction, projection: str, totals: Mapping[str, int]) -> None:
    """A process takes the rebuild up now; `totals` are the events of each stream."""
    now = sql.stamp(clock.now_ms())
    for stream, total in totals.items():
        await session.execute(
            f"UPDATE rebuilds SET started_at={now},started_with=events,total={total},updated_at={now} "
            f"WHERE projection={sql.text(projection)} AND stream={sql.text(stream)}"
        )


async def advance(
    transaction: Transaction, at: Part, position: Position, events: int, state: bytes | None
) -> Part:
    """Move a part that is still where `at` says. Raises LeaseLost when it is not, RebuildCancelled."""
    now = clock.now_ms()
    where = f"projection={sql.text(at.projection)} AND stream={sql.text(at.position.stream)}"
    changed = await transaction.execute(
        f"UPDATE rebuilds SET ms={position.ms},seq={position.seq},events=events+{events},phase='{BUILDING}',"
        f"state={sql.blob(state)},updated_at={sql.stamp(now)} "
        f"WHERE {where} AND ms={at.position.ms} AND seq={at.position.seq} AND cancelled=0"
    )
    if changed != 1:
        rows = await transaction.rows(f"SELECT cancelled FROM rebuilds WHERE {where}")
        if not rows or int(rows[0][0]):
            raise RebuildCancelled(f"The rebuild of {at.projection} was cancelled.")
        raise LeaseLost(f"The rebuild of {at.projection} was taken over on stream {position.stream}.")
    return msgspec.structs.replace(
        at, position=position, events=at.events + events, state=state, updated_ms=now, phase=BUILDING
    )


async def set_phase(session: Transaction, projection: str, phase: Phase) -> None:
    """Say what the rebuild is about to do. Raises RebuildCancelled where it was to switch."""
    where = f"projection={sql.text(projection)}"
    await session.execute(
        f"UPDATE rebuilds SET phase='{phase}' WHERE {where} AND (cancelled=0 OR '{phase}'='{BUILDING}')"
    )
    if phase == SWITCHING and await session.rows(
        f"SELECT 1 FROM rebuilds WHERE {where} AND phase<>'{SWITCHING}'"
    ):
        raise RebuildCancelled(f"The rebuild of {projection} was cancelled.")


async def wait(store: Store, projection: str, what: WaitingFor) -> None:
    """Let others know what the rebuild waits for; the lock that it had is free meanwhile."""
    (phase,) = (phase for phase, awaited in WAITING.items() if awaited == what)
    await store.execute(
        f"UPDATE rebuilds SET phase='{phase}',updated_at={sql.stamp(clock.now_ms())} "
        f"WHERE projection={sql.text(projection)} AND phase<>'{SWITCHING}'"
    )


async def forget(session: Transaction, projection: str) -> None:
    """The rebuild has ended."""
    await session.execute(f"DELETE FROM rebuilds WHERE projection={sql.text(projection)}")


async def ask_to_cancel(store: Store, projection: str) -> None:
    """Let whoever builds notice at their next transaction."""
    await store.execute("UPDATE rebuilds SET cancelled=1 WHERE projection=%s", (projection,))


async def take_lock(session: Transaction, projection: str) -> None:
    """One rebuild of a read model at a time; the lock ends with its connection. Raises RebuildRunning."""
    if not int((await session.rows(f"SELECT GET_LOCK({_lock(projection)},{GRACE_SECONDS})"))[0][0] or 0):
        raise RebuildRunning(f"Another process is rebuilding {projection}.")


async def release_lock(session: Transaction, projection: str) -> None:
    """Let others rebuild."""
    await session.rows(f"SELECT RELEASE_LOCK({_lock(projection)})")


async def locked(store: Store, projection: str) -> bool:
    """Whether a process is rebuilding it now. Raises StoreUnavailable."""
    rows = await store.select(f"SELECT IS_FREE_LOCK({_lock(projection)}) AS free")
    return not int(rows[0]["free"] or 0)


def _lock(projection: str) -> str:
    """Locks are the whole server's, and their names short: the database's name goes in as a hash."""
    return f"CONCAT('rebuild-',SHA1(CONCAT(DATABASE(),{sql.text('/' + projection)})))"


def _part(row: dict[str, Any]) -> Part:
    return Part(
        projection=row["projection"],
        position=Position(row["stream"], row["ms"], row["seq"]),
        events=row["events"],
        total=row["total"],
        version=row["version"],
        incarnation=row["incarnation"],
        phase=row["phase"],
        started_ms=queries.milliseconds(row["started_at"]),
        started_with=row["started_with"],
        updated_ms=queries.milliseconds(row["updated_at"]),
        cancelled=bool(row["cancelled"]),
        state=row["state"],
    )
