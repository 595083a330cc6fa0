"""What a browser keeps for us: a cookie that it can neither read nor make.

It names a session that lies in Redis, or none yet, and holds the word that forms must bring back.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from broker import clock
from broker.events import sealed_text
from broker.events.keyring import Keyring

_PURPOSE: Final = b"broker portal ticket 1"
_CSRF_BYTES: Final = 16


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """`session_id` is empty before signing in; `seen_ms` is when its holder last asked for something."""

    session_id: str
    csrf: str
    seen_ms: int

    def __repr__(self) -> str:
        return "<Ticket>"


def fresh(session_id: str = "") -> Ticket:
    """A ticket with a word of its own, so that no form from before signing in works after."""
    return Ticket(session_id, secrets.token_hex(_CSRF_BYTES), clock.now_ms())


class Tickets:
    """Cookies of tickets. `secure`: over TLS alone."""

    def __init__(self, keyring: Keyring, *, secure: bool) -> None:
        self._keyring = keyring
        # The prefix makes browsers refuse it from any other host, or without TLS.
        self.name = "__Host-broker" if secure else "broker"
        self._rest = "; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")

    def read(self, cookies: dict[str, str]) -> Ticket | None:
        """The ticket among a request's cookies, if it is one of ours."""
        content = sealed_text.unseal(self._keyring, cookies.get(self.name, ""), _PURPOSE)
        try:
            return None if content is None else msgspec.msgpack.decode(content, type=Ticket)
        except msgspec.MsgspecError:
            return None

    def header(self, ticket: Ticket) -> bytes:
        """The value of `Set-Cookie`; the browser forgets it when it is closed."""
        sealed = sealed_text.seal(self._keyring, msgspec.msgpack.encode(ticket), _PURPOSE)
        return f"{self.name}={sealed}{self._rest}".encode("ascii")
