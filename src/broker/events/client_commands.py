"""What is done to clients: each command one transaction on the control slot.

`actor` is who asks (`user:…`, `system`). Every command also raises LogUnavailable (outcome unknown) and
LogRefused.
"""

from __future__ import annotations

from msgspec import structs

from broker import clock
from broker.domain import certificates, clients
from broker.domain.certificates import CertificateEntry
from broker.domain.clients import ClientEntry
from broker.errors import Conflict, NotFound
from broker.events import certificate_commands, types
from broker.events.control import Changes, Committed, Registry, View, client_field
from broker.events.keyring import Keyring
from broker.events.sealing import ClientKeys, Sealer


class ClientCommands:
    """Commands on clients."""

    def __init__(self, registry: Registry, keyring: Keyring) -> None:
        self._registry = registry
        self._keyring = keyring

    async def register_client(
        self, client_id: str, domain: str | None = None, *, actor: str, correlation_id: str | None = None
    ) -> Committed[ClientEntry]:
        """A new client with keys of its own. Raises ValidationError, Conflict when the name is taken."""
        clients.decide_register(None, client_id, domain)
        wrapped = ClientKeys.new(client_id).wrapped(self._keyring)
        field = client_field(client_id)

        def decide(view: View) -> Changes[ClientEntry]:
            entry = clients.decide_register(view.get(field, ClientEntry), client_id, domain)
            event = types.ClientRegistered(client_id, domain)
            return Changes(entry, [(field, event)], {field: entry}, {client_id: wrapped})

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def admit_client(
        self,
        certificate: CertificateEntry,
        domain: str | None = None,
        *,
        actor: str,
        correlation_id: str | None = None,
    ) -> Committed[bool]:
        """Let a client's new certificate in; who is unknown is registered with it, which the value says.

        Raises Conflict when a certificate is active, the client was erased or has another domain; and
        ValidationError.
        """
        client_id = certificate.client_id
        clients.decide_register(None, client_id, domain)
        wrapped = ClientKeys.new(client_id).wrapped(self._keyring)
        field = client_field(client_id)

        def decide(view: View) -> Changes[bool]:
            known = view.get(field, ClientEntry)
            unknown = known is None
            if known is None or known.status != "active":
                known = clients.decide_register(known, client_id, domain)
            elif domain not in {None, known.domain}:
                raise Conflict(f"The client {client_id} is registered with another domain.")
            held = certificate_commands.held(view, client_id)
            change = certificates.decide_issue(held, certificate, now_ms=clock.now_ms())
            issued = certificate_commands.issue(view, certificate, change, known)
            if not unknown:
                return Changes(False, issued.events, issued.writes)
            events = [(field, types.ClientRegistered(client_id, domain)), *issued.events]
            return Changes(True, events, issued.writes, {client_id: wrapped})

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def change_route(
        self,
        client_id: str,
        channel: str,
        target: str | None = None,
        secret: bytes | None = None,
        *,
        actor: str,
        correlation_id: str | None = None,
    ) -> Committed[ClientEntry]:
        """Send the client's messages elsewhere; `secret` is sealed. Raises NotFound, ValidationError."""
        field = client_field(client_id)
        sealed = None if secret is None else await self._seal_secret(client_id, secret)

        def decide(view: View) -> Changes[ClientEntry]:
            entry = clients.decide_route(view.get(field, ClientEntry), client_id, channel, target, sealed)
            event = types.ClientRouteChanged(client_id, channel, target, sealed)
            return Changes(entry, [(field, event)], {field: entry})

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def _seal_secret(self, client_id: str, secret: bytes) -> bytes:
        wrapped = await self._registry.client_keys(client_id)
        if wrapped is None:
            raise NotFound(f"There is no client {client_id}.")
        keys = ClientKeys.unwrap(client_id, wrapped, self._keyring)
        return Sealer(self._keyring, lambda _: keys).seal_secret(client_id, secret)

    async def erase_client(
        self, client_id: str, reason: str, *, actor: str, correlation_id: str | None = None
    ) -> Committed[ClientEntry]:
        """Destroy the client's keys and revoke its certificates, for good. Raises NotFound."""
        field = client_field(client_id)

        def decide(view: View) -> Changes[ClientEntry]:
            entry = clients.known(view.get(field, ClientEntry), client_id)
            # The sealed secret goes too; the keys that could open it are gone anyway.
            erased = structs.replace(entry, status="erased", active_certificate=None, sealed_secret=None)
            changes = Changes(erased, [(field, types.ClientErased(client_id, reason))])
            held = certificate_commands.held(view, client_id)
            if held:
                change = certificates.decide_revoke(
                    held, reason="cessationOfOperation", now_ms=clock.now_ms()
                )
                certificate_commands.close(changes, change.closed)
            changes.writes[field] = erased
            changes.client_keys[client_id] = None
            return changes

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)
