"""The registry out of the control stream: clients, certificates, users, and what is unique among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import structs

from broker.domain.certificates import CertificateEntry
from broker.domain.clients import ClientEntry
from broker.domain.users import UserEntry
from broker.events import codec, digests_making, envelope, types
from broker.events.archive.segments import Entry
from broker.events.certificate_commands import PRODUCER, holder_field, serial_field
from broker.events.codec import Stored
from broker.events.control import certificate_field, client_field, user_field
from broker.events.user_commands import ADMINS, email_field

ERASED: Final = "its keys were destroyed; recorded by a repair of the log"


class RegistryFold:
    """Every entry as the commands would have left it; times of the events stand in for those of decisions."""

    def __init__(self) -> None:
        self.clients: dict[str, ClientEntry] = {}
        self.certificates: dict[str, CertificateEntry] = {}
        self.users: dict[str, UserEntry] = {}
        self._holders: dict[str, list[str]] = {}
        self._admins: list[str] = []
        self._emails: dict[str, str] = {}
        self._digest: digests_making.Newest | None = None
        self.active_keys: dict[str, int] = {}
        """The number of the key that a client seals with, where it was ever rotated."""

    def entries(self) -> dict[str, bytes]:
        """The registry's fields and their payloads."""
        found: dict[str, Any] = {client_field(name): entry for name, entry in self.clients.items()}
        found |= {certificate_field(name): entry for name, entry in self.certificates.items()}
        found |= {serial_field(entry.serial): name for name, entry in self.certificates.items()}
        found |= {holder_field(name): held for name, held in self._holders.items()}
        found |= {user_field(name): entry for name, entry in self.users.items()}
        found |= {email_field(address): name for address, name in self._emails.items()}
        if self._admins:
            found[ADMINS] = self._admins
        if self._digest is not None:
            found[digests_making.FIELD] = self._digest
        return {field: msgspec.msgpack.encode(value) for field, value in found.items()}

    def allows(self, entry: Stored) -> bool:
        """Whether this event can follow on what is known, which a rolled-back Redis did not know.

        Raises UnknownEvent.
        """
        match codec.decode(entry.tag, entry.data):
            case types.ClientRegistered(client_id=client):
                return client not in self.clients
            case types.UserCreated(email=address):
                return address not in self._emails
            case types.CertIssued(fingerprint=fingerprint) | types.CertRenewed(fingerprint=fingerprint):
                return fingerprint not in self.certificates
            case types.DigestSigned(number=number):
                return number == (1 if self._digest is None else self._digest.number + 1)
            case types.ClientRouteChanged(client_id=client) | types.ClientErased(client_id=client):
                known = self.clients.get(client)
                return known is not None and known.status == "active"
        return True

    def apply(self, entry: Entry) -> None:
        """Take in the next event. Raises UnknownEvent."""
        if isinstance(entry, Stored):
            event = codec.decode(entry.tag, entry.data)
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event, entry)

    def erasing(self, name: str) -> list[tuple[str, types.Event]]:
        """The events, with their subjects, that erase a client; none where it is erased or unknown."""
        known = self.clients.get(name)
        if known is None or known.status != "active":
            return []
        found: list[tuple[str, types.Event]] = [(client_field(name), types.ClientErased(name, ERASED))]
        for one in (self.certificates[each] for each in self._holders.get(name, [])):
            if one.status != "revoked":
                event = types.CertRevoked(one.fingerprint, one.serial, name, "cessationOfOperation")
                found.append((certificate_field(one.fingerprint), event))
        return found

    # -- Clients ------------------------------------------------------------------------------------------

    def registered(self, event: types.ClientRegistered, _: Stored) -> None:
        self.clients[event.client_id] = ClientEntry(event.client_id, event.domain)

    def routed(self, event: types.ClientRouteChanged, _: Stored) -> None:
        self._client(
            event.client_id, channel=event.channel, target=event.target, sealed_secret=event.sealed_secret
        )

    def erased(self, event: types.ClientErased, _: Stored) -> None:
        self._client(event.client_id, status="erased", active_certificate=None, sealed_secret=None)

    def rotated(self, event: types.KeyRotated, _: Stored) -> None:
        if event.kind == "client" and event.client_id is not None and event.state == "active":
            self.active_keys[event.client_id] = int(event.key_id)

    def _client(self, name: str, **changes: Any) -> None:
        if (known := self.clients.get(name)) is not None:
            self.clients[name] = structs.replace(known, **changes)

    # -- Certificates -------------------------------------------------------------------------------------

    def issued(self, event: types.CertIssued | types.CertRenewed, entry: Stored) -> None:
        at = envelope.decode(entry.envelope).at
        self.certificates[event.fingerprint] = CertificateEntry(
            fingerprint=event.fingerprint,
            serial=event.serial,
            client_id=event.client_id,
            role=event.role,
            not_before_ms=event.not_before_ms,
            not_after_ms=event.not_after_ms,
            issued_at_ms=at,
        )
        held = (self.certificates[each] for each in self._holders.get(event.client_id, []))
        kept = [one.fingerprint for one in held if at < one.not_after_ms]
        self._holders[event.client_id] = [*kept, event.fingerprint]
        if event.role == PRODUCER:
            self._client(event.client_id, active_certificate=event.fingerprint)

    def renewed(self, event: types.CertRenewed, entry: Stored) -> None:
        if (old := self.certificates.get(event.replaces)) is not None:
            self.certificates[event.replaces] = structs.replace(
                old, status="superseded", reason="superseded", revoked_at_ms=event.overlap_until_ms
            )
        self.issued(event, entry)

    def revoked(self, event: types.CertRevoked, entry: Stored) -> None:
        if (known := self.certificates.get(event.fingerprint)) is not None:
            at = envelope.decode(entry.envelope).at
            self.certificates[event.fingerprint] = structs.replace(
                known, status="revoked", reason=event.reason, revoked_at_ms=at
            )
        client = self.clients.get(event.client_id)
        if client is not None and client.active_certificate == event.fingerprint:
            self._client(event.client_id, active_certificate=None)

    # -- Users --------------------------------------------------------------------------------------------

    def created(self, event: types.UserCreated, _: Stored) -> None:
        user = UserEntry(event.user_id, event.email, event.role, event.password_hash, event.client_ids)
        self._emails[event.email] = event.user_id
        self._user(user)

    def role(self, event: types.UserRoleChanged, _: Stored) -> None:
        self._changed(event.user_id, role=event.role)

    def sees(self, event: types.UserClientsChanged, _: Stored) -> None:
        self._changed(event.user_id, client_ids=event.client_ids)

    def disabled(self, event: types.UserDisabled, _: Stored) -> None:
        self._changed(event.user_id, disabled=True)

    def password(self, event: types.PasswordChanged, _: Stored) -> None:
        self._changed(event.user_id, password_hash=event.password_hash)

    def _changed(self, user_id: str, **changes: Any) -> None:
        if (known := self.users.get(user_id)) is not None:
            self._user(structs.replace(known, **changes))

    def _user(self, user: UserEntry) -> None:
        self.users[user.user_id] = user
        counts = user.role == "admin" and not user.disabled
        if counts and user.user_id not in self._admins:
            self._admins.append(user.user_id)
        elif not counts and user.user_id in self._admins:
            self._admins.remove(user.user_id)

    def digest(self, event: types.DigestSigned, _: Stored) -> None:
        self._digest = digests_making.Newest(event.number, event.body, event.signature)


_HANDLERS: Final[dict[type[types.Event], Callable[[RegistryFold, Any, Stored], None]]] = {
    types.ClientRegistered: RegistryFold.registered,
    types.ClientRouteChanged: RegistryFold.routed,
    types.ClientErased: RegistryFold.erased,
    types.KeyRotated: RegistryFold.rotated,
    types.CertIssued: RegistryFold.issued,
    types.CertRenewed: RegistryFold.renewed,
    types.CertRevoked: RegistryFold.revoked,
    types.UserCreated: RegistryFold.created,
    types.UserRoleChanged: RegistryFold.role,
    types.UserClientsChanged: RegistryFold.sees,
    types.UserDisabled: RegistryFold.disabled,
    types.PasswordChanged: RegistryFold.password,
    types.DigestSigned: RegistryFold.digest,
}
