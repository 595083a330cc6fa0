"""Tables that a rebuild left behind when its process died between making or keeping them and saying so."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from broker.projections import sql
from broker.projections.base import Projection
from broker.projections.rebuild import progress, shadow
from broker.projections.rebuild.progress import RebuildRunning
from broker.projections.store import Store, StoreRetry, Transaction, translate
from broker.telemetry import get_logger

log = get_logger(__name__)

LOCK_WAIT_SECONDS: Final = 1
"""A table that somebody still reads is left to the next one who looks."""
REBUILD: Final = (shadow.NEXT, shadow.OLD)
TRIAL: Final = (shadow.TRIAL,)
_ENDINGS: Final = (*REBUILD, *TRIAL)


async def remove(session: Transaction, projection: Projection, endings: Sequence[str] = REBUILD) -> None:
    """Drop the projection's tables of these endings; the caller has the lock, and nothing is on record."""
    tables = projection.tables
    found = [ending for ending in endings if await shadow.existing(session, tables, ending)]
    if not found:
        return
    await session.execute(f"SET SESSION lock_wait_timeout={LOCK_WAIT_SECONDS}")
    try:
        for ending in found:
            await shadow.drop(session, tables, ending)
    except Exception as error:
        if not isinstance(translate(error), StoreRetry):
            raise
    else:
        log.info("rebuild_leftovers_removed", projection=projection.name, endings=found)
    await session.execute("SET SESSION lock_wait_timeout=DEFAULT")


async def tidy(store: Store, projections: Sequence[Projection]) -> None:
    """Drop what rebuilds and dry runs of these left that run no more and cannot be gone on with.

    Raises StoreUnavailable, StoreRetry.
    """
    tables = {
        f"{table}{ending}": each for each in projections for table in each.tables for ending in _ENDINGS
    }
    rows = await store.select(
        "SELECT table_name AS name FROM information_schema.tables "
        f"WHERE table_schema=DATABASE() AND table_name IN ({','.join(map(sql.text, tables))})"
    )
    left = {each.name: each for row in rows if (each := tables.get(row["name"])) is not None}
    for projection in left.values():
        for lock, endings in ((projection.name, REBUILD), (f"{projection.name}{shadow.TRIAL}", TRIAL)):
            if not await progress.locked(store, lock):
                with suppress(RebuildRunning):
                    await _tidy(store, projection, lock, endings)


async def _tidy(store: Store, projection: Projection, lock: str, endings: Sequence[str]) -> None:
    async with store.session() as session:
        await progress.take_lock(session, lock)
        if endings is TRIAL or not await progress.begun(session, projection.name):
            await remove(session, projection, endings)
        await progress.release_lock(session, lock)
