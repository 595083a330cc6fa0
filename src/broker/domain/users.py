"""Portal users as the registry knows them, and the rules for them. Pure: no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import structs

from broker.errors import Conflict, NotFound, ValidationError

ROLES: Final = ("user", "admin", "auditor")
MAX_EMAIL: Final = 254
MIN_PASSWORD: Final = 8
"""Characters."""
MAX_PASSWORD_BYTES: Final = 72
"""bcrypt reads no more; a longer password is refused rather than cut."""

# Deliverability is not ours to judge; this keeps out what could not be one, and white space.
_EMAIL = re.compile(r"[^\s@\x00-\x1f\x7f]{1,64}@[^\s@\x00-\x1f\x7f]{1,189}\Z")


class UserEntry(msgspec.Struct, frozen=True, array_like=True):
    """A person who may sign in. A user sees the messages of `client_ids`."""

    user_id: str
    email: str
    role: str
    password_hash: str
    client_ids: list[str] = []
    disabled: bool = False

    def __repr__(self) -> str:
        return f"<UserEntry {self.user_id} {self.role}>"


def normalised_email(email: str) -> str:
    """The e-mail address in lower case. Raises ValidationError."""
    address = email.strip().lower()
    if len(address) > MAX_EMAIL or not _EMAIL.match(address):
        raise ValidationError("email", f"must be an e-mail address of at most {MAX_EMAIL} characters")
    return address


def check_role(role: str) -> str:
    """The role. Raises ValidationError."""
    if role not in ROLES:
        raise ValidationError("role", f"must be one of {', '.join(ROLES)}")
    return role


def check_password(password: str) -> str:
    """The password, when bcrypt can hash all of it. Raises ValidationError, which never quotes it."""
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        raise ValidationError("password", "must be valid Unicode") from None
    if len(password) < MIN_PASSWORD:
        raise ValidationError("password", f"must have at least {MIN_PASSWORD} characters")
    if size > MAX_PASSWORD_BYTES:
        raise ValidationError(
            "password", f"must have at most {MAX_PASSWORD_BYTES} bytes in UTF-8; this one has {size}"
        )
    if "\x00" in password:
        raise ValidationError("password", "must not contain NUL")
    if len(set(password)) == 1:
        raise ValidationError("password", "must be more than one character repeated")
    return password


def known(existing: UserEntry | None, user_id: str) -> UserEntry:
    """The user, disabled or not. Raises NotFound."""
    if existing is None:
        raise NotFound(f"There is no user {user_id}.")
    return existing


def decide_create(holder: str | None, new: UserEntry) -> UserEntry:
    """The new user; `holder` is the id of the one who has the e-mail address. Raises Conflict."""
    check_role(new.role)
    if holder is not None:
        raise Conflict("A user with this e-mail address exists.")
    return new


def decide_role(entry: UserEntry, role: str, admins: Iterable[str]) -> UserEntry:
    """The user with another role. Raises Conflict for the last admin."""
    check_role(role)
    if role != "admin":
        keep_an_admin(entry, admins)
    return structs.replace(entry, role=role)


def decide_disable(entry: UserEntry, admins: Iterable[str]) -> UserEntry:
    """The user, disabled. Raises Conflict for the last admin."""
    keep_an_admin(entry, admins)
    return structs.replace(entry, disabled=True)


def keep_an_admin(entry: UserEntry, admins: Iterable[str]) -> None:
    """Raises Conflict when `entry` is the only one of `admins`: ids of the admins who may sign in."""
    remaining = set(admins)
    if entry.user_id in remaining and len(remaining) == 1:
        raise Conflict("This is the last admin who can sign in.")
