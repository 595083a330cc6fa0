"""What a repair found, does, or did, for people and programs."""

from __future__ import annotations

import msgspec


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """One stream, counted in events unless said otherwise."""

    stream: str
    events: int
    """Of the whole history, after the repair."""
    archived: int
    recorded: int
    """Found in the audit log only, or in Redis too."""
    in_redis: int
    """Found in Redis only."""
    missing: int
    """That Redis had lost, and has again as far as it needs them."""
    lost: int
    """That a read model has applied and nobody has any more."""
    lost_after: str | None = None
    """After which position those are."""
    void: int = 0
    """That Redis took in after it had lost others, and that contradict those: left out."""
    moved: int = 0
    """That Redis took in while its clock was behind: at the stream's end now."""
    completed: int = 0
    """Added, because they were lost: what attempts had led to; erasures that the copies of keys know."""
    last: str
    """The id that new ones are above."""
    kept: int | None = None
    """In Redis now."""
    open: int | None = None
    due: int | None = None
    parked: int | None = None
    outcomes: int | None = None
    idempotency_keys: int | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A repair, done or to be done."""

    log_id: str
    done: bool
    refused: list[str]
    """Why the log is refused, or would have to be."""
    at_work: list[str]
    """Processes that say they are alive."""
    streams: list[StreamReport] = []
    clients: int = 0
    certificates: int = 0
    users: int = 0
    keys_restored: list[str] = []
    """Clients whose keys come from the copies, in whole or in part."""
    keys_lost: list[str] = []
    """Clients whose newest key is nowhere: what it sealed cannot be read any more."""
    messages_lost: list[str] = []
    """Messages that the tables know and the history does not; the first thousand of a stream."""
    rebuild: list[str] = []
    """Read models that must be built anew from the history."""
    incarnations: dict[str, str] = {}

    @property
    def lost(self) -> int:
        """Events that are gone for good."""
        return sum(one.lost for one in self.streams)
