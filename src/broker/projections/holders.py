"""Clients and certificates as the read model knows them, for lists."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from broker.projections import keyset, queries, sql
from broker.projections.keyset import Cursor, Page, Wanted
from broker.projections.store import Store

CertificateStatus = Literal["active", "expiring", "superseded", "expired", "revoked"]
ClientStatus = Literal["active", "erased"]

_CLIENT: Final = "client_id,domain,status,channel,target,registered_at,erased_at,erased_reason"
_CERTIFICATE: Final = (
    "fingerprint,serial,client_id,role,status,not_before,not_after,issued_at,replaces,replaced_by,"
    "overlap_until,revoked_at,reason"
)


class Certificate(msgspec.Struct, frozen=True):
    """A certificate as it was signed and what became of it; times in milliseconds.

    `status` is what was decided about it: `active` says nothing of its dates.
    """

    fingerprint: str
    serial: str
    client_id: str
    role: str
    status: str
    not_before: int
    not_after: int
    issued_at: int
    replaces: str | None
    replaced_by: str | None
    overlap_until: int | None
    revoked_at: int | None
    reason: str | None


class Client(msgspec.Struct, frozen=True):
    """A producer; times in milliseconds. `certificate`: its current one, if any, expired or not."""

    client_id: str
    domain: str | None
    status: str
    channel: str | None
    target: str | None
    registered_at: int
    erased_at: int | None
    erased_reason: str | None
    certificate: Certificate | None


async def certificates(
    store: Store,
    *,
    status: CertificateStatus | None,
    client_id: str | None = None,
    role: str | None = None,
    now_ms: int,
    warning_days: int,
    per_page: int,
    at: int | Cursor = 1,
) -> tuple[list[Certificate], Page]:
    """A page, the newest first; of those that expire, the soonest first.

    Raises StoreUnavailable, ValidationError.
    """
    where, args = _of_status(status, now_ms, warning_days)
    for column, value in (("client_id", client_id), ("role", role)):
        if value is not None:
            where.append(f"{column}=%s")
            args.append(value)
    column = "not_after" if status == "expiring" else "issued_at"
    wanted = Wanted(
        table="certificates",
        columns=_CERTIFICATE,
        where=where,
        args=args,
        order=(column, "fingerprint"),
        times=frozenset({column}),
        descending=status != "expiring",
    )
    found = await keyset.page(store, wanted, per_page=per_page, at=at)
    return [_certificate(row) for row in found.rows], found


async def certificate(store: Store, fingerprint: str) -> Certificate | None:
    """The certificate with this SHA-256, None while the read model knows none. Raises StoreUnavailable."""
    rows = await store.select(f"SELECT {_CERTIFICATE} FROM certificates WHERE fingerprint=%s", (fingerprint,))
    return _certificate(rows[0]) if rows else None


async def clients(
    store: Store,
    *,
    status: ClientStatus | None,
    search: str | None = None,
    per_page: int,
    at: int | Cursor = 1,
) -> tuple[list[Client], Page]:
    """A page by name; `search` is a part of it. Raises StoreUnavailable, ValidationError."""
    where: list[str] = []
    args: list[str | int] = []
    if status is not None:
        where.append("status=%s")
        args.append(status)
    if search is not None:
        # Names are ASCII, and what is searched for may be anything.
        where.append("LOCATE(%s,CONVERT(client_id USING utf8mb4))>0")
        args.append(search)
    wanted = Wanted(table="clients", columns=_CLIENT, where=where, args=args, order=("client_id",))
    found = await keyset.page(store, wanted, per_page=per_page, at=at)
    return await _with_certificates(store, found.rows), found


async def client(store: Store, client_id: str) -> Client | None:
    """The client of this name, None while the read model does not know it. Raises StoreUnavailable."""
    rows = await store.select(f"SELECT {_CLIENT} FROM clients WHERE client_id=%s", (client_id,))
    found = await _with_certificates(store, rows)
    return found[0] if found else None


def _of_status(
    status: CertificateStatus | None, now_ms: int, warning_days: int
) -> tuple[list[str], list[str | int]]:
    """The condition; an active one that ran out is expired, whatever it was before it ran out."""
    now = _stamp(now_ms)
    match status:
        case None:
            return [], []
        case "revoked":
            return ["status='revoked'"], []
        case "expired":
            return ["status<>'revoked'", "not_after<=%s"], [now]
        case "expiring":
            last = _stamp(now_ms + warning_days * 24 * 3_600_000)
            return ["status='active'", "not_after>%s", "not_after<=%s"], [now, last]
        case _:
            return ["status=%s", "not_after>%s"], [status, now]


async def _with_certificates(store: Store, rows: list[dict[str, Any]]) -> list[Client]:
    if not rows:
        return []
    names = [row["client_id"] for row in rows]
    marks = ",".join(["%s"] * len(names))
    held = await store.select(
        f"SELECT {_CERTIFICATE} FROM certificates "
        f"WHERE status='active' AND role='producer' AND client_id IN ({marks})",
        names,
    )
    current = {row["client_id"]: _certificate(row) for row in held}
    return [_client(row, current.get(row["client_id"])) for row in rows]


def _client(row: dict[str, Any], certificate: Certificate | None) -> Client:
    return Client(
        client_id=row["client_id"],
        domain=row["domain"],
        status=row["status"],
        channel=row["channel"],
        target=row["target"],
        registered_at=queries.milliseconds(row["registered_at"]),
        erased_at=queries.optional_milliseconds(row["erased_at"]),
        erased_reason=row["erased_reason"],
        certificate=certificate,
    )


def _certificate(row: dict[str, Any]) -> Certificate:
    return Certificate(
        fingerprint=row["fingerprint"],
        serial=row["serial"],
        client_id=row["client_id"],
        role=row["role"],
        status=row["status"],
        not_before=queries.milliseconds(row["not_before"]),
        not_after=queries.milliseconds(row["not_after"]),
        issued_at=queries.milliseconds(row["issued_at"]),
        replaces=row["replaces"],
        replaced_by=row["replaced_by"],
        overlap_until=queries.optional_milliseconds(row["overlap_until"]),
        revoked_at=queries.optional_milliseconds(row["revoked_at"]),
        reason=row["reason"],
    )


def _stamp(ms: int) -> str:
    return sql.stamp(ms)[1:-1]
