"""Shadow tables take the place of the others, by one RENAME, while nobody can move the projection.

`held` in the checkpoints does what a lease would, and more: it is decided where the rows are, so that not
even an owner that lost its lease long ago can write between the last look and the RENAME. Whatever the
process that rebuilds dies of, the next to look finds out from the tables that are there how far it had come.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from broker.errors import BrokerError
from broker.lifecycle import backoff
from broker.projections import checkpoints
from broker.projections.base import Projection
from broker.projections.rebuild import leftovers, progress, shadow
from broker.projections.rebuild.progress import RebuildRunning
from broker.projections.store import Store, StoreRetry, Transaction, translate
from broker.telemetry import get_logger

log = get_logger(__name__)

LOCK_WAIT_SECONDS: Final = 1
"""RENAME queues behind open readers, and new readers behind it: it must give up soon and come again."""
ATTEMPTS: Final = 60

Found = Literal["nothing", "building", "switched"]


class RebuildBlocked(BrokerError):
    """The tables could not change places, because something reads the old ones without end."""

    code = "rebuild_blocked"


async def switch(session: Transaction, projection: Projection) -> None:
    """Put the shadow tables in place; the projection is held and goes on from their checkpoints.

    Raises RebuildBlocked, after which nothing has changed, and StoreUnavailable (`settle` finds out).
    """
    name = projection.name
    await shadow.drop(session, projection.tables, shadow.OLD)
    there = await shadow.existing(session, projection.tables)
    pairs = [f"{table} TO {table}{shadow.OLD}" for table in projection.tables if table in there]
    pairs += [f"{table}{shadow.NEXT} TO {table}" for table in projection.tables]
    await progress.set_phase(session, name, progress.SWITCHING)
    await session.execute(f"SET SESSION lock_wait_timeout={LOCK_WAIT_SECONDS}")
    waits = backoff(0.1, 2.0)
    for attempt in range(ATTEMPTS):
        try:
            await session.execute(f"RENAME TABLE {', '.join(pairs)}")
            break
        except Exception as error:
            if not isinstance(translate(error), StoreRetry):
                raise
            if attempt + 1 == ATTEMPTS:
                await progress.set_phase(session, name, progress.BUILDING)
                raise RebuildBlocked(
                    f"The tables of {name} were in use at each of {ATTEMPTS} attempts to replace them; end "
                    "the long queries on them and run the rebuild again: it goes on from here."
                ) from None
            await asyncio.sleep(next(waits))
    await _finish(session, projection)


async def settle(session: Transaction, projection: Projection) -> Found:
    """Finish or undo what a process that died left of a rebuild; the caller has its lock."""
    parts = await session.rows(f"SELECT phase FROM rebuilds WHERE projection='{projection.name}'")
    if not parts:
        await checkpoints.hold(session, projection.name, held=False)
        await leftovers.remove(session, projection)
        return "nothing"
    there = await shadow.existing(session, projection.tables, shadow.NEXT)
    if not there and _text(parts[0][0]) == progress.SWITCHING:
        await _finish(session, projection)
        return "switched"
    if there != set(projection.tables):
        await discard(session, projection)
        return "nothing"
    if _text(parts[0][0]) == progress.SWITCHING:
        await progress.set_phase(session, projection.name, progress.BUILDING)
    await checkpoints.hold(session, projection.name, held=False)
    return "building"


async def release_abandoned(store: Store, projection: Projection) -> None:
    """For an owner that finds its projection held: if whoever held it died, settle that.

    Raises StoreUnavailable.
    """
    if await progress.locked(store, projection.name):
        return
    async with store.session() as session:
        try:
            await progress.take_lock(session, projection.name)
        except RebuildRunning:
            return
        found = await settle(session, projection)
        await progress.release_lock(session, projection.name)
    log.warning("rebuild_abandoned", projection=projection.name, found=found)


async def discard(session: Transaction, projection: Projection) -> None:
    """Remove the shadow tables and all that was known of them; the projection goes on as it was."""
    await shadow.drop(session, projection.tables, shadow.NEXT)
    await progress.forget(session, projection.name)
    await checkpoints.hold(session, projection.name, held=False)


async def _finish(session: Transaction, projection: Projection) -> None:
    """The tables are in place: their checkpoints, too, and let the projection go on."""
    await session.execute("START TRANSACTION")
    await session.execute(
        "INSERT INTO checkpoints (projection,stream,ms,seq,events,incarnation,state,updated_at) "
        "SELECT projection,stream,ms,seq,events,incarnation,state,updated_at FROM rebuilds "
        f"WHERE projection='{projection.name}' ON DUPLICATE KEY UPDATE ms=VALUES(ms),seq=VALUES(seq),"
        "events=VALUES(events),incarnation=VALUES(incarnation),state=VALUES(state),halted=NULL,held=0,"
        "updated_at=VALUES(updated_at)"
    )
    await progress.forget(session, projection.name)
    await session.execute("COMMIT")
    await session.execute(f"SET SESSION lock_wait_timeout={LOCK_WAIT_SECONDS}")
    await shadow.drop(session, projection.tables, shadow.OLD)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
