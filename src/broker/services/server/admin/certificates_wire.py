"""Bodies of the admin API about certificates; the OpenAPI document is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.domain import certificates
from broker.services.server.admin.paging import Paged

Role = Literal["producer", "gateway", "server", "worker", "internal"]
Status = Literal["active", "superseded", "expired", "revoked"]
Days = Annotated[int, Meta(ge=1, le=certificates.MAX_VALIDITY_DAYS)]
Csr = Annotated[
    str,
    Meta(
        description="A PEM signing request; its key and its proof of it count, names and extensions do not."
    ),
]
Names = Annotated[list[Annotated[str, Meta(max_length=253)]], Meta(max_length=32)]
Hex = Annotated[
    str, Meta(max_length=200, description="Hexadecimal, with or without colons, capitals or not.")
]


class Generate(msgspec.Struct, forbid_unknown_fields=True):
    """A certificate for a client, who is registered with it if need be, or for a process of a service.

    `dns` and `ips` are names of a gateway's or server's; without any it is good for this machine.
    """

    client_name: str
    domain: str | None = None
    validity_days: Days = 365
    role: Role = "producer"
    csr_pem: Csr | None = None
    dns: Names = []
    ips: Names = []


class Renew(msgspec.Struct, forbid_unknown_fields=True):
    """Another certificate in place of the current one, which works for the overlap yet.

    `fingerprint`: which one is replaced; needed only where a service has several.
    """

    client_name: str
    fingerprint: Hex | None = None
    validity_days: Days = 365
    csr_pem: Csr | None = None
    overlap_hours: Annotated[int, Meta(ge=0, le=24 * 30)] = 24
    dns: Names = []
    ips: Names = []


class Revoke(msgspec.Struct, forbid_unknown_fields=True):
    """One certificate, or all of a name's: exactly one of the three says which."""

    reason: Annotated[
        str,
        Meta(
            description=f"Of RFC 5280, by name: {', '.join(certificates.REASONS)}; or words, for which the "
            "revocation list says unspecified.",
            max_length=certificates.MAX_REASON,
        ),
    ]
    client_name: str | None = None
    serial: Hex | None = None
    fingerprint: Hex | None = None


class Issued(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fresh certificate. The private key is here and nowhere else; with a CSR there is none."""

    client_id: str
    role: Role
    serial: str
    fingerprint: str
    certificate_pem: str
    private_key_pem: str | None = None
    ca_pem: str
    expires_at: str
    registered: Annotated[bool, Meta(description="There, true, if the client was registered with it.")] = (
        False
    )
    replaces: Annotated[str, Meta(description="Fingerprint of the one before.")] | None = None
    overlap_until: Annotated[str, Meta(description="Until when the one before works.")] | None = None
    visible: Annotated[bool, Meta(description="There, false, while lists do not show it yet.")] = True

    def __repr__(self) -> str:
        return f"<Issued {self.fingerprint}>"


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate. `superseded`: another took its place, and it works until `overlap_until`."""

    client_id: str
    role: Role
    serial: str
    fingerprint: str
    status: Status
    issued_at: str
    not_before: str
    expires_at: str
    replaces: str | None
    replaced_by: str | None
    overlap_until: str | None
    revoked_at: str | None
    reason: str | None


class Certificates(Paged, frozen=True, kw_only=True):
    """A page of certificates, the newest first; of those that expire, the soonest first."""

    certificates: Sequence[Certificate]


class RevokedOne(msgspec.Struct, frozen=True):
    """A certificate that nobody is let in with any more."""

    client_id: str
    role: Role
    serial: str
    fingerprint: str
    expires_at: str
    revoked_at: str
    reason: str


class Revoked(msgspec.Struct, frozen=True, omit_defaults=True):
    """What this call revoked: nothing, if it was all revoked before."""

    revoked: Sequence[RevokedOne]
    visible: Annotated[bool, Meta(description="There, false, while lists do not show it yet.")] = True
