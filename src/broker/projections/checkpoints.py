"""Checkpoints: how far each projection is on each stream, moved in the transaction of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from broker import clock
from broker.errors import LeaseLost
from broker.events.positions import Position
from broker.projections import sql
from broker.projections.base import clip
from broker.projections.store import Store, Transaction

HELD: Final = "Rebuilt tables are taking the place of its own."


class Checkpoint(msgspec.Struct, frozen=True):
    """`events` counts all events of the stream up to `position`; `halted` says why it goes no further.

    `held`: it stands still while rebuilt tables take the place of its own.
    """

    projection: str
    position: Position
    events: int
    incarnation: str
    state: bytes | None = None
    halted: str | None = None
    held: bool = False


class Move(msgspec.Struct, frozen=True):
    """One projection's step from a checkpoint to a later position."""

    before: Checkpoint
    position: Position
    events: int
    state: bytes | None
    halted: str | None = None

    def after(self) -> Checkpoint:
        """The checkpoint once the move is committed."""
        before = self.before
        events = before.events + self.events
        return Checkpoint(
            before.projection, self.position, events, before.incarnation, self.state, self.halted
        )


async def load(
    store: Store, stream: str, projections: Iterable[str], incarnation: str
) -> dict[str, Checkpoint]:
    """The checkpoints of `projections` on `stream`; those that do not exist yet are made, at the beginning.

    Raises StoreUnavailable.
    """
    names = list(projections)
    now = sql.stamp(clock.now_ms())
    found = await _rows(store, stream)
    if missing := [name for name in names if name not in found]:
        rows = ",".join(
            f"({sql.text(name)},{sql.text(stream)},{sql.text(incarnation)},{now})" for name in missing
        )
        async with store.transaction() as transaction:
            # Another projector may make the same rows now.
            await transaction.execute(
                "INSERT INTO checkpoints (projection,stream,incarnation,updated_at) "
                f"VALUES {rows} ON DUPLICATE KEY UPDATE projection=VALUES(projection)"
            )
        found = await _rows(store, stream)
    return {name: found[name] for name in names}


async def move(transaction: Transaction, stream: str, epoch: int, moves: Sequence[Move]) -> None:
    """Advance checkpoints that are still where `moves` expect them. Locks their rows.

    Raises LeaseLost when one is not: another owner wrote, and this transaction must not.
    """
    targets = " UNION ALL ".join(
        f"SELECT {_ascii(step.before.projection)} AS p,{step.before.position.ms} AS at_ms,"
        f"{step.before.position.seq} AS at_seq,{step.position.ms} AS to_ms,{step.position.seq} AS to_seq,"
        f"{step.events} AS more,{sql.blob(step.state)} AS st,{sql.text(clip(step.halted))} AS why"
        for step in moves
    )
    changed = await transaction.execute(
        f"UPDATE checkpoints c JOIN ({targets}) n ON c.projection=n.p AND c.ms=n.at_ms AND c.seq=n.at_seq "
        "SET c.ms=n.to_ms,c.seq=n.to_seq,c.events=c.events+n.more,c.state=n.st,c.halted=n.why,"
        f"c.epoch={epoch},c.updated_at={sql.stamp(clock.now_ms())} "
        f"WHERE c.stream={_ascii(stream)} AND c.incarnation={_ascii(moves[0].before.incarnation)} "
        "AND c.held=0"
    )
    if changed != len(moves):
        raise LeaseLost(f"{len(moves) - changed} checkpoints of stream {stream} were moved by another owner.")


async def resume(store: Store, projection: str, stream: str | None = None) -> int:
    """Clear the halt of a projection, on one stream or all; its owner tries again. The number cleared."""
    where = "projection=%s AND halted IS NOT NULL" + ("" if stream is None else " AND stream=%s")
    args = (projection,) if stream is None else (projection, stream)
    return await store.execute(f"UPDATE checkpoints SET halted=NULL WHERE {where}", args)


async def hold(session: Transaction, projection: str, *, held: bool) -> None:
    """Keep every owner from moving the projection's checkpoints, or let them.

    On return no transaction that moves one is under way: whatever was, has ended.
    """
    await session.execute(f"UPDATE checkpoints SET held={held:d} WHERE projection={_ascii(projection)}")


async def halted(store: Store, stream: str) -> dict[str, str]:
    """Why projections stand still on `stream`, by their names."""
    found = await _rows(store, stream)
    return {name: row.halted for name, row in found.items() if row.halted is not None}


async def everything(store: Store) -> list[Checkpoint]:
    """Every checkpoint there is."""
    rows = await store.select("SELECT * FROM checkpoints ORDER BY projection,stream")
    return [_checkpoint(row["stream"], row) for row in rows]


async def highest(store: Store) -> dict[str, Position]:
    """The furthest checkpoint of each stream: repair must set the stream's last id past it."""
    rows = await store.select("SELECT stream,ms,seq FROM checkpoints")
    found: dict[str, Position] = {}
    for row in rows:
        position = Position(row["stream"], row["ms"], row["seq"])
        found[position.stream] = max(position, found.get(position.stream, position))
    return found


async def adopt(store: Store, stream: str, incarnation: str) -> int:
    """For repair: let the read models follow `stream` in its next incarnation. The number of rows changed."""
    return await store.execute(
        "UPDATE checkpoints SET incarnation=%s WHERE stream=%s AND incarnation<>%s",
        (incarnation, stream, incarnation),
    )


async def _rows(store: Store, stream: str) -> dict[str, Checkpoint]:
    rows = await store.select(
        "SELECT projection,ms,seq,events,incarnation,state,halted,held FROM checkpoints WHERE stream=%s",
        (stream,),
    )
    return {row["projection"]: _checkpoint(stream, row) for row in rows}


def _checkpoint(stream: str, row: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        row["projection"],
        Position(stream, row["ms"], row["seq"]),
        row["events"],
        row["incarnation"],
        row["state"],
        HELD if row["held"] and row["halted"] is None else row["halted"],
        bool(row["held"]),
    )


def _ascii(text: str) -> str:
    """A literal that compares with an ascii column by its index."""
    return f"_ascii{sql.text(text)}"
