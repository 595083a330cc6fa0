"""`clients` and `certificates`: producers, their routes, and every certificate our CA signed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from broker.events import types
from broker.projections import base, sql
from broker.projections.base import Folded, Item
from broker.projections.rows import Rows, marks

_CLIENT_FILLERS: Final = {
    "status": "''",
    "registered_at": "'2000-01-01'",
    "changed_ms": "0",
    "changed_seq": "0",
}
_CERTIFICATE_FILLERS: Final = {
    "serial": "''",
    "client_id": "''",
    "role": "''",
    "status": "''",
    "not_before": "'2000-01-01'",
    "not_after": "'2000-01-01'",
    "issued_at": "'2000-01-01'",
    "changed_ms": "0",
    "changed_seq": "0",
}


class ClientsFold:
    def __init__(self) -> None:
        self._clients = Rows("clients", "client_id", _CLIENT_FILLERS)
        self._certificates = Rows("certificates", "fingerprint", _CERTIFICATE_FILLERS)

    def apply(self, item: Item) -> None:
        handler = _HANDLERS.get(type(base.expect(item)))
        if handler is not None:
            handler(self, item, item.event)

    def finish(self) -> Folded:
        return Folded([*self._clients.writes(), *self._certificates.writes()])

    def registered(self, item: Item, event: types.ClientRegistered) -> None:
        self._clients.put(
            event.client_id,
            {
                "domain": sql.text(base.clip(event.domain, 255)),
                "status": "'active'",
                "channel": "NULL",
                "target": "NULL",
                "registered_at": sql.stamp(item.envelope.at),
                "erased_at": "NULL",
                "erased_reason": "NULL",
                **_marks(item),
            },
        )

    def routed(self, item: Item, event: types.ClientRouteChanged) -> None:
        route = {"channel": sql.text(event.channel), "target": sql.text(base.clip(event.target, 2048))}
        self._clients.change(event.client_id, route | _marks(item))

    def erased(self, item: Item, event: types.ClientErased) -> None:
        self._clients.change(
            event.client_id,
            {
                "status": "'erased'",
                "erased_at": sql.stamp(item.envelope.at),
                "erased_reason": sql.text(base.clip(event.reason)),
                **_marks(item),
            },
        )

    def issued(self, item: Item, event: types.CertIssued | types.CertRenewed) -> None:
        replaces = event.replaces if isinstance(event, types.CertRenewed) else None
        self._certificates.put(
            event.fingerprint,
            {
                "serial": sql.text(event.serial),
                "client_id": sql.text(event.client_id),
                "role": sql.text(event.role),
                "status": "'active'",
                "not_before": sql.stamp(event.not_before_ms),
                "not_after": sql.stamp(event.not_after_ms),
                "issued_at": sql.stamp(item.envelope.at),
                "replaces": sql.text(replaces),
                "replaced_by": "NULL",
                "overlap_until": "NULL",
                "revoked_at": "NULL",
                "reason": "NULL",
                **_marks(item),
            },
        )

    def renewed(self, item: Item, event: types.CertRenewed) -> None:
        self._certificates.change(
            event.replaces,
            {
                "status": "'superseded'",
                "replaced_by": sql.text(event.fingerprint),
                "overlap_until": sql.stamp(event.overlap_until_ms),
                **_marks(item),
            },
        )
        self.issued(item, event)

    def revoked(self, item: Item, event: types.CertRevoked) -> None:
        self._certificates.change(
            event.fingerprint,
            {
                "status": "'revoked'",
                "revoked_at": sql.stamp(item.envelope.at),
                "reason": sql.text(base.clip(event.reason, 64)),
                **_marks(item),
            },
        )


def _marks(item: Item) -> dict[str, str]:
    return marks(item.position.ms, item.position.seq)


_HANDLERS: Final[dict[type, Callable[[ClientsFold, Item, Any], None]]] = {
    types.ClientRegistered: ClientsFold.registered,
    types.ClientRouteChanged: ClientsFold.routed,
    types.ClientErased: ClientsFold.erased,
    types.CertIssued: ClientsFold.issued,
    types.CertRenewed: ClientsFold.renewed,
    types.CertRevoked: ClientsFold.revoked,
}


class Clients:
    """The projection `clients`, with certificates."""

    name: ClassVar[str] = "clients"
    tables: ClassVar[tuple[str, ...]] = ("clients", "certificates")

    def wants(self, stream: str) -> bool:
        return base.is_control(stream)

    def begin(self, stream: str, state: bytes | None) -> ClientsFold:  # noqa: ARG002  stateless
        return ClientsFold()
