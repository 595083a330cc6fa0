"""Steps of rotating keys: each a transaction on the control slot, each recorded as a KeyRotated event.

What makes a rotation of them, and how long to wait between, is `key_rotation`'s. No event holds a key. All
raise LogUnavailable (outcome unknown) and LogRefused.
"""

from __future__ import annotations

from typing import Literal

from broker.domain import clients
from broker.domain.clients import ClientEntry
from broker.errors import NotFound
from broker.events import types
from broker.events.control import Changes, Committed, Registry, View, client_field
from broker.events.keyring import Keyring
from broker.events.sealing import ClientKeys


class KeyCommands:
    """Commands on keys. `actor` is who asks (`user:…`, `system`)."""

    def __init__(self, registry: Registry, keyring: Keyring) -> None:
        self._registry = registry
        self._keyring = keyring

    async def add(self, client_id: str, *, actor: str, correlation_id: str | None = None) -> Committed[int]:
        """Give the client a fresh key, not used yet; its number. One that waits already is that one.

        Raises NotFound, KeyUnavailable, Undecryptable.
        """

        def decide(view: View) -> Changes[int]:
            entry, keys = self._held(view, client_id)
            newest = max(keys.versions)
            if newest > keys.active.number:
                return Changes(newest)
            return self._changed(entry, keys.added(), newest + 1, "added")

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def activate(
        self, client_id: str, number: int, *, actor: str, correlation_id: str | None = None
    ) -> Committed[int]:
        """Seal with this key from now on; the others still unseal. Again changes nothing. Raises as `add`."""

        def decide(view: View) -> Changes[int]:
            entry, keys = self._held(view, client_id)
            if keys.active.number >= number:
                # Somebody rotated further meanwhile; nobody goes back.
                return Changes(keys.active.number)
            return self._changed(entry, keys.activated(number), number, "active")

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def rewrap(
        self, client_id: str, *, actor: str, correlation_id: str | None = None
    ) -> Committed[bool]:
        """Wrap the client's keys by the active master key; False where they are already. Raises as `add`."""
        master = self._keyring.active_id

        def decide(view: View) -> Changes[bool]:
            entry, keys = self._held(view, client_id)
            wrapped = view.client_keys(client_id)
            if wrapped is None or ClientKeys.masters(client_id, wrapped) == {master}:
                return Changes(value=False)
            field = client_field(client_id)
            event = types.KeyRotated("master", master, client_id, "wrapped")
            return Changes(True, [(field, event)], {field: entry}, {client_id: keys.wrapped(self._keyring)})

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def record(
        self,
        kind: Literal["master", "signing"],
        key_id: str,
        state: Literal["active", "added", "removed"],
        *,
        actor: str,
        correlation_id: str | None = None,
    ) -> Committed[None]:
        """Put on record what became of a key that lies in a file."""
        event = types.KeyRotated(kind, key_id, None, state)
        return await self._registry.transact(
            lambda _: Changes(None, [(f"key:{key_id}", event)]), actor=actor, correlation_id=correlation_id
        )

    def _held(self, view: View, client_id: str) -> tuple[ClientEntry, ClientKeys]:
        entry = clients.known(view.get(client_field(client_id), ClientEntry), client_id)
        wrapped = view.client_keys(client_id)
        if wrapped is None:
            raise NotFound(f"{client_id} has no keys.")
        return entry, ClientKeys.unwrap(client_id, wrapped, self._keyring)

    def _changed(
        self, entry: ClientEntry, keys: ClientKeys, number: int, state: Literal["active", "added"]
    ) -> Changes[int]:
        field, client_id = client_field(entry.client_id), entry.client_id
        event = types.KeyRotated("client", str(number), client_id, state)
        # The entry is written unchanged: its version is what makes two rotations notice each other.
        return Changes(number, [(field, event)], {field: entry}, {client_id: keys.wrapped(self._keyring)})
