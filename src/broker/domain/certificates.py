"""Certificates as the registry knows them, and the rules of issuing, renewing and revoking. Pure: no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from broker.errors import Conflict, NotFound, ValidationError

Status = Literal["active", "superseded", "revoked"]

ROLES = frozenset({"producer", "gateway", "server", "worker", "internal"})
MAX_VALIDITY_DAYS = 825
# Of RFC 5280, section 5.3.1, those of an end entity. A hold could not be lifted, so it is none of them.
REASONS = (
    "unspecified",
    "keyCompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)
MAX_REASON = 64
"""Characters of a reason in words of one's own, for which the revocation list says `unspecified`."""
# How long the replaced certificate of a renewal still works, so that its owner can change over unhurried.
RENEWAL_OVERLAP_MS = 24 * 3600 * 1000

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SPELT = {reason.lower(): reason for reason in REASONS}
# Names of RFC 5280 that say what is not so here.
_NOT_OURS = {"certificatehold", "removefromcrl", "cacompromise", "aacompromise"}
_WORDS = re.compile(rf"(?! )[ -~]{{1,{MAX_REASON}}}(?<! )")
_SEPARATORS = str.maketrans("", "", " _-")
_HEX = re.compile(r"[0-9a-f]{1,64}")


class CertificateEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One certificate in the registry. Times in milliseconds since the epoch, serial and fingerprint in hex.

    `revoked_at_ms` is when it stops working: at once when revoked, after the overlap when superseded.
    """

    fingerprint: str
    serial: str
    client_id: str
    role: str
    not_before_ms: int
    not_after_ms: int
    status: Status = "active"
    reason: str | None = None
    issued_at_ms: int
    revoked_at_ms: int | None = None


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A fresh certificate, times in milliseconds. Without `private_key_pem` the requester kept the key."""

    certificate_pem: str
    private_key_pem: str | None
    serial: str
    fingerprint: str
    not_before_ms: int
    not_after_ms: int

    def __repr__(self) -> str:
        return f"<Issued {self.fingerprint}>"

    def entry(self, client_id: str, role: str, *, issued_at_ms: int) -> CertificateEntry:
        """The registry entry that lets this certificate in."""
        return CertificateEntry(
            fingerprint=self.fingerprint,
            serial=self.serial,
            client_id=client_id,
            role=role,
            not_before_ms=self.not_before_ms,
            not_after_ms=self.not_after_ms,
            issued_at_ms=issued_at_ms,
        )


class Crl(msgspec.Struct, frozen=True):
    """A signed revocation list in its two spellings."""

    pem: bytes
    der: bytes


class Change(msgspec.Struct, frozen=True):
    """What a decision writes: the new entry, if any, and the entries that it supersedes or revokes."""

    issued: CertificateEntry | None = None
    closed: tuple[CertificateEntry, ...] = ()


def check_name(name: str, field: str = "client_name") -> str:
    """The name, when it can name a client. Raises ValidationError."""
    if _NAME.fullmatch(name) is None:
        raise ValidationError(
            field, "takes 1 to 64 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit"
        )
    return name


def check_role(role: str) -> str:
    """The role, when a certificate can carry it. Raises ValidationError."""
    if role not in ROLES:
        raise ValidationError("role", f"takes one of {', '.join(sorted(ROLES))}")
    return role


def check_validity(days: int) -> int:
    """The validity in days. Raises ValidationError outside 1 to 825."""
    if not 1 <= days <= MAX_VALIDITY_DAYS:
        raise ValidationError("validity_days", f"takes 1 to {MAX_VALIDITY_DAYS}")
    return days


def reason_named(text: str) -> str | None:
    """The reason as RFC 5280 spells it; `key_compromise`, `Key Compromise` name it too. None: no reason."""
    return _SPELT.get(text.translate(_SEPARATORS).lower())


def check_reason(text: str) -> str:
    """As `reason_named`, or the words of whoever revokes. Raises ValidationError."""
    if (reason := reason_named(text)) is not None:
        return reason
    if _WORDS.fullmatch(text) is None or text.translate(_SEPARATORS).lower() in _NOT_OURS:
        raise ValidationError(
            "reason",
            f"takes one of {', '.join(REASONS)}, or words: up to {MAX_REASON} printable ASCII characters",
        )
    return text


def check_hex(text: str, field: str) -> str:
    """A serial number or fingerprint as tools print it (`0A:B1`) in the registry's spelling.

    Raises ValidationError.
    """
    digits = text.replace(":", "").lower()
    if _HEX.fullmatch(digits) is None:
        raise ValidationError(field, "takes 1 to 64 hexadecimal digits, colons between them or not")
    return digits.lstrip("0") or "0" if field == "serial" else digits


def is_active(entry: CertificateEntry, now_ms: int) -> bool:
    """Whether it is its client's current certificate: not closed and not past its date."""
    return entry.status == "active" and now_ms < entry.not_after_ms


def works(entry: CertificateEntry, now_ms: int) -> bool:
    """Whether a request with it is let in now: in date, not revoked, not superseded past its overlap."""
    if not entry.not_before_ms <= now_ms < entry.not_after_ms or entry.status == "revoked":
        return False
    return entry.status == "active" or (entry.revoked_at_ms is not None and now_ms < entry.revoked_at_ms)


def stopped(entry: CertificateEntry, now_ms: int) -> bool:
    """Whether it was taken back, whatever its date: revoked, or superseded and past its overlap."""
    if entry.status == "active":
        return False
    return entry.status == "revoked" or entry.revoked_at_ms is None or entry.revoked_at_ms <= now_ms


def decide_issue(existing: Iterable[CertificateEntry], new: CertificateEntry, *, now_ms: int) -> Change:
    """Issue `new` to a client that holds `existing`. Raises Conflict when one of them is active.

    One that ran out without a renewal is superseded, so that never two entries of a client are active.
    """
    existing = tuple(existing)
    _check_new(existing, new)
    for entry in existing:
        if is_active(entry, now_ms):
            raise Conflict(f"{new.client_id} has an active certificate, serial {entry.serial}.")
    return Change(new, tuple(_supersede(entry, now_ms) for entry in existing if entry.status == "active"))


def decide_renew(
    existing: Iterable[CertificateEntry],
    new: CertificateEntry,
    *,
    now_ms: int,
    overlap_ms: int = RENEWAL_OVERLAP_MS,
) -> Change:
    """Replace the client's current certificate, expired or not, by `new`; the old one works for the overlap.

    Raises NotFound when there is none: after a revocation a certificate is issued, not renewed.
    """
    existing = tuple(existing)
    _check_new(existing, new)
    current = tuple(entry for entry in existing if entry.status == "active")
    if not current:
        raise NotFound(f"{new.client_id} has no certificate to renew.")
    if any(entry.role != new.role for entry in current):
        raise Conflict(f"A renewal keeps the role {current[0].role}.")
    return Change(new, tuple(_supersede(entry, now_ms + max(0, overlap_ms)) for entry in current))


def decide_revoke(chosen: Iterable[CertificateEntry], *, reason: str, now_ms: int) -> Change:
    """Revoke what was chosen (all of a client's, or one), superseded ones in their overlap too.

    Revoking again changes nothing. Raises NotFound when nothing was chosen, ValidationError on the reason.
    """
    chosen = tuple(chosen)
    if not chosen:
        raise NotFound("No such certificate.")
    reason = check_reason(reason)
    return Change(
        None,
        tuple(
            msgspec.structs.replace(entry, status="revoked", reason=reason, revoked_at_ms=now_ms)
            for entry in chosen
            if entry.status != "revoked"
        ),
    )


def _check_new(existing: tuple[CertificateEntry, ...], new: CertificateEntry) -> None:
    check_name(new.client_id)
    check_role(new.role)
    if any(entry.fingerprint == new.fingerprint for entry in existing):
        raise Conflict("This certificate is already registered.")


def _supersede(entry: CertificateEntry, until_ms: int) -> CertificateEntry:
    until = min(until_ms, entry.not_after_ms)
    return msgspec.structs.replace(entry, status="superseded", reason="superseded", revoked_at_ms=until)
