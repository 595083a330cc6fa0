"""What people began in this process and come back to: found by its id, by its owner alone, within bounds."""

from __future__ import annotations

import secrets
from typing import Final, Generic, Protocol, TypeVar

from broker import clock
from broker.errors import NotFound
from broker.web.problems import Problem

MOST: Final = 200
"""Jobs of one kind that are remembered; the oldest that ended make room for new ones."""
WAITS_SECONDS: Final = 3600.0
"""After so long one that nobody came for makes room, too."""
_ID_BYTES: Final = 16


class Job(Protocol):
    """`begun_at` is on the monotonic clock. `open`: it can be ended still. `waiting`: nobody came for it."""

    id: str
    owner: str
    begun_at: float

    @property
    def open(self) -> bool: ...

    @property
    def waiting(self) -> bool: ...


J = TypeVar("J", bound=Job)


def new_id() -> str:
    """An address that nobody guesses."""
    return secrets.token_hex(_ID_BYTES)


class Jobs(Generic[J]):
    """Those of one kind, of one process; `what` they are called in a sentence."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._known: dict[str, J] = {}

    def add(self, job: J) -> None:
        """Remember one."""
        self._known[job.id] = job

    @property
    def open(self) -> int:
        """How many have not ended."""
        return sum(job.open for job in self._known.values())

    def make_room(self) -> None:
        """For one more. Raises Problem 503 while all that are remembered are under way."""
        now = clock.monotonic()
        for job in list(self._known.values()):
            if len(self._known) < MOST:
                return
            late = job.waiting and now - job.begun_at > WAITS_SECONDS
            if late or not job.open:
                del self._known[job.id]
        if len(self._known) >= MOST:
            raise Problem("overloaded", f"Too many {self._what}s are under way at once.")

    def of(self, owner: str, job_id: str) -> J:
        """The one of this person. Raises NotFound."""
        found = self._known.get(job_id)
        if found is None or found.owner != owner:
            raise NotFound("It may have been begun before the portal was started again. Begin another.")
        return found
