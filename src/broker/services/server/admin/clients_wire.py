"""Bodies of the admin API about clients; the OpenAPI document is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.services.server.admin.paging import Paged
from broker.services.server.wire import ErrorText

Channel = Literal["inbox", "webhook", "simulated"]


class NewClient(msgspec.Struct, forbid_unknown_fields=True):
    """A producer. `domain`: a note of whose it is, which travels with its messages."""

    client_id: Annotated[str, Meta(description="1 to 64 of a-z 0-9 . _ -, the first a letter or digit.")]
    domain: str | None = None


class Route(msgspec.Struct, forbid_unknown_fields=True):
    """Where a client's messages go. `target`: a webhook's URL, or what a simulated recipient does."""

    channel: Channel
    target: str | None = None
    secret: (
        Annotated[
            str, Meta(description="Of a webhook: `whsec_…`, or any text. Without one a new one is made.")
        ]
        | None
    ) = None

    def __repr__(self) -> str:
        return f"<Route {self.channel}>"


class Erase(msgspec.Struct, forbid_unknown_fields=True):
    """To erase a client for good."""

    reason: Annotated[ErrorText, Meta(min_length=1, description="Recorded in the history, in plain text.")]
    confirm: Annotated[str, Meta(description="The client's name once more.")]


class Erased(msgspec.Struct, frozen=True):
    """A client whose keys are gone. `forgotten`: Redis' own file does not hold them either."""

    client_id: str
    discarded: Annotated[int, Meta(description="Parked messages that ended.")]
    waiting: Annotated[int, Meta(description="Messages that end when their next attempt is due.")]
    forgotten: bool
    visible: bool


class HeldCertificate(msgspec.Struct, frozen=True):
    """A client's current certificate."""

    serial: str
    fingerprint: str
    expires_at: str


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A producer. Without a channel its messages go to the default one."""

    client_id: str
    domain: str | None
    status: Literal["active", "erased"]
    channel: Channel | None
    target: str | None
    registered_at: str
    erased_at: str | None
    erased_reason: str | None
    certificate: HeldCertificate | None


class Clients(Paged, frozen=True, kw_only=True):
    """A page of clients, by name."""

    clients: Sequence[Client]


class Registered(msgspec.Struct, frozen=True, omit_defaults=True):
    """A client that may have a certificate. `visible` is there, false, while lists do not show it yet."""

    client_id: str
    domain: str | None = None
    visible: bool = True


class Routed(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where its messages go from the next attempt on. `secret` is there when one was made: only now."""

    client_id: str
    channel: Channel
    target: str | None = None
    secret: str | None = None
    visible: bool = True

    def __repr__(self) -> str:
        return f"<Routed {self.client_id}>"
