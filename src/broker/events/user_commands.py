"""What is done to users: each command one transaction on the control slot.

`actor` is who asks (`user:…`, `system`). Every command also raises LogUnavailable (outcome unknown) and
LogRefused.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import uuid4

import bcrypt
from msgspec import structs

from broker.domain import users
from broker.domain.clients import ClientEntry
from broker.domain.users import UserEntry
from broker.errors import ValidationError
from broker.events import types
from broker.events.control import Changes, Committed, Registry, View, client_field, user_field

BCRYPT_COST: Final = 12
ADMINS: Final = "admins"
"""Registry field: ids of the admins who may sign in."""


def email_field(email: str) -> str:
    """The registry field that names the holder of an e-mail address (in lower case)."""
    return f"email:{email}"


async def hash_password(password: str) -> str:
    """bcrypt, cost 12, off the event loop. Raises ValidationError for what bcrypt would cut or a weak one."""
    plain = users.check_password(password).encode()
    salt = bcrypt.gensalt(BCRYPT_COST)
    return (await asyncio.to_thread(bcrypt.hashpw, plain, salt)).decode()


async def password_matches(password: str, password_hash: str) -> bool:
    """Whether it is the password, in constant time, off the event loop; False for one that cannot be."""
    try:
        plain = password.encode()
    except UnicodeEncodeError:
        return False
    if len(plain) > users.MAX_PASSWORD_BYTES:
        return False
    return await asyncio.to_thread(bcrypt.checkpw, plain, password_hash.encode())


class UserCommands:
    """Commands on users."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def create_user(
        self,
        email: str,
        password: str,
        role: str,
        client_ids: list[str] | None = None,
        *,
        actor: str,
        correlation_id: str | None = None,
    ) -> Committed[UserEntry]:
        """A person who may sign in. Raises ValidationError, Conflict when the address is taken."""
        address = users.normalised_email(email)
        users.check_role(role)
        user_id, seen = str(uuid4()), list(dict.fromkeys(client_ids or []))
        entry = UserEntry(user_id, address, role, await hash_password(password), seen)

        def decide(view: View) -> Changes[UserEntry]:
            users.decide_create(view.get(email_field(address), str), entry)
            _check_clients(view, seen)
            view.raw(user_field(user_id))
            event = types.UserCreated(user_id, address, role, entry.password_hash, seen)
            changes = _changes(entry, event, _admins(view) if role == "admin" else None)
            changes.writes[email_field(address)] = user_id
            return changes

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def change_role(
        self, user_id: str, role: str, *, actor: str, correlation_id: str | None = None
    ) -> Committed[UserEntry]:
        """Raises NotFound, ValidationError, Conflict for the last admin."""

        def decide(view: View) -> Changes[UserEntry]:
            before = _user(view, user_id)
            admins = _admins(view)
            entry = users.decide_role(before, role, admins)
            if entry == before:
                return Changes(entry)
            return _changes(entry, types.UserRoleChanged(user_id, role), admins)

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def disable_user(
        self, user_id: str, reason: str | None = None, *, actor: str, correlation_id: str | None = None
    ) -> Committed[UserEntry]:
        """Again changes nothing. Raises NotFound, Conflict for the last admin."""

        def decide(view: View) -> Changes[UserEntry]:
            before = _user(view, user_id)
            if before.disabled:
                return Changes(before)
            admins = _admins(view)
            entry = users.decide_disable(before, admins)
            return _changes(entry, types.UserDisabled(user_id, reason), admins)

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def change_clients(
        self, user_id: str, client_ids: list[str], *, actor: str, correlation_id: str | None = None
    ) -> Committed[UserEntry]:
        """Which clients' messages the user sees. Raises NotFound, ValidationError."""
        seen = list(dict.fromkeys(client_ids))

        def decide(view: View) -> Changes[UserEntry]:
            before = _user(view, user_id)
            entry = structs.replace(before, client_ids=seen)
            if entry == before:
                return Changes(entry)
            _check_clients(view, seen)
            return _changes(entry, types.UserClientsChanged(user_id, seen))

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)

    async def change_password(
        self, user_id: str, password: str, *, actor: str, correlation_id: str | None = None
    ) -> Committed[UserEntry]:
        """Raises NotFound, ValidationError."""
        hashed = await hash_password(password)

        def decide(view: View) -> Changes[UserEntry]:
            entry = structs.replace(_user(view, user_id), password_hash=hashed)
            return _changes(entry, types.PasswordChanged(user_id, hashed))

        return await self._registry.transact(decide, actor=actor, correlation_id=correlation_id)


def _user(view: View, user_id: str) -> UserEntry:
    return users.known(view.get(user_field(user_id), UserEntry), user_id)


def _admins(view: View) -> list[str]:
    return view.get(ADMINS, list[str]) or []


def _check_clients(view: View, client_ids: list[str]) -> None:
    for client_id in client_ids:
        entry = view.get(client_field(client_id), ClientEntry)
        if entry is None:
            raise ValidationError("client_ids", f"there is no client {client_id}")


def _changes(entry: UserEntry, event: types.Event, admins: list[str] | None = None) -> Changes[UserEntry]:
    """Write the entry with its event and, where `admins` is given, its place among them."""
    field = user_field(entry.user_id)
    changes = Changes(entry, [(field, event)], {field: entry})
    if admins is not None:
        others = [one for one in admins if one != entry.user_id]
        counts = entry.role == "admin" and not entry.disabled
        after = [*others, entry.user_id] if counts else others
        if after != admins:
            changes.writes[ADMINS] = after
    return changes
