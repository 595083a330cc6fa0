"""Bodies of the endpoints that mend by hand: resending, and what is done to parked messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.services.server.admin.paging import Paged
from broker.services.server.reading import wire as reading
from broker.services.server.wire import ErrorText

MAX_AT_ONCE = 1000

Text = Annotated[str, Meta(min_length=1, max_length=512)]
Note = Annotated[ErrorText, Meta(min_length=1)]


class Resend(msgspec.Struct, forbid_unknown_fields=True):
    """How a message is sent again; everything may be left out, the body too."""

    reason: Annotated[Note, Meta(description="Recorded with the resend, in plain text.")] | None = None
    even_delivered: Annotated[
        bool, Meta(description="Also a message that was delivered: its recipient sees the same id again.")
    ] = False


class Resent(msgspec.Struct, frozen=True, omit_defaults=True):
    """The message is queued again. `continued`: it was parked, and goes on in the cycle it was in."""

    message_id: str
    client_id: str
    status: Literal["queued"]
    cycle: int
    position: str
    continued: bool = False
    visible: bool = True


class Selection(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which messages: those named, or those that match every filter given, or `all`."""

    message_ids: Annotated[list[str], Meta(min_length=1, max_length=MAX_AT_ONCE)] | None = None
    client_id: Text | None = None
    from_date: Text | None = None
    to_date: Text | None = None
    search: Annotated[Text, Meta(description="An exact sender number, E.164.")] | None = None
    all: Annotated[bool, Meta(description="Must be true where no filter is given.")] = False
    dry_run: Annotated[bool, Meta(description="Only count.")] = False
    limit: Annotated[
        int, Meta(ge=1, le=MAX_AT_ONCE, description="Messages of one call; `next` leads to the others.")
    ] = MAX_AT_ONCE
    cursor: Annotated[Text, Meta(description="The `next` of the call before.")] | None = None


class ResendMany(Selection, forbid_unknown_fields=True, kw_only=True):
    """Messages to be sent again: those that failed, unless `status` says otherwise."""

    status: Literal["failed", "delivered"] = "failed"
    reason: Annotated[Note, Meta(description="Recorded with each resend, in plain text.")] | None = None


class ParkedSelection(Selection, forbid_unknown_fields=True, kw_only=True):
    """Parked messages."""

    parked_reason: (
        Annotated[Text, Meta(description="Parked for this reason, as the list shows it.")] | None
    ) = None


class Discard(ParkedSelection, forbid_unknown_fields=True, kw_only=True):
    """Parked messages that will not be delivered, and why."""

    reason: Annotated[Note, Meta(description="Recorded with each, in plain text.")]


class Refusal(msgspec.Struct, frozen=True):
    """A message that was left as it is."""

    message_id: str
    error: str
    message: str


class Mended(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What was done. A dry run says how many match, and does nothing."""

    matched: Annotated[int, Meta(description="Counted up to 10,000.")]
    matched_exact: Annotated[bool, Meta(description="False where there are more than were counted.")]
    dry_run: bool
    done: int
    refused: Sequence[Refusal]
    next: Annotated[str, Meta(description="As `cursor`, goes on where this call ended.")] | None
    visible: bool = True


class ParkedMessage(reading.Message, frozen=True, kw_only=True):
    """A parked message; `parked_seconds` is for how long."""

    parked_at: str
    parked_seconds: float


class ParkedReason(msgspec.Struct, frozen=True):
    """Why messages are parked, how many for it, and for how long the oldest of them."""

    reason: str
    count: int
    oldest_at: str
    oldest_seconds: float


class Parked(Paged, frozen=True, kw_only=True):
    """A page of parked messages, those that came last first; `reasons` are of all that are parked."""

    messages: Sequence[ParkedMessage]
    oldest_seconds: Annotated[float, Meta(description="Of the reasons named.")] | None
    reasons: Annotated[Sequence[ParkedReason], Meta(description="The commonest hundred.")]
