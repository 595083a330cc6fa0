"""Sessions of people: families of refresh tokens, of which only the newest is good, and only once.

They lie in the control slot beside the registry, so that one script sees a session and its user together: a
user who was disabled or has another password has no session any more, whoever changed it and however, because
each use looks. An older token that comes back has been copied, and ends its session.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import Any, Final

import msgspec

from broker import telemetry
from broker.domain.users import UserEntry
from broker.errors import BrokerError, LogRefused, LogUnavailable
from broker.events import control
from broker.events.connection import Redis, text
from broker.events.keys import ControlKeys
from broker.events.scripting import Arg, Script

ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
TOKEN_CHARACTERS: Final = 64
"""48 bytes in base64."""
MAX_TOKENS: Final = 10_000
"""A session that was refreshed this often ends; each token leaves a hash behind."""
MAX_SESSIONS: Final = 100
"""Of one user; the oldest ends when one more begins."""
DAY_MS: Final = 86_400_000

_start = Script("session_start")
_rotate = Script("session_rotate", allow_oom=True)
_read = Script("session_read", allow_oom=True)
_end = Script("session_end", allow_oom=True)
_user = msgspec.msgpack.Decoder(UserEntry)

log = telemetry.get_logger(__name__)


class SessionEnded(BrokerError):
    """The session has ended; sign in again."""

    code = "unauthorized"


class Session(msgspec.Struct, frozen=True):
    """A live session: its id, its user as of now, and the refresh token that works next."""

    session_id: str
    user: UserEntry
    refresh_token: str

    def __repr__(self) -> str:
        return f"<Session {self.session_id} of {self.user.user_id}>"


class Sessions:
    """All sessions of one log. `index_key` is the keyring's; a session ends `days` after sign-in.

    Everything raises LogUnavailable and LogRefused; `start` also LogFull.
    """

    def __init__(
        self, redis: Redis, keys: ControlKeys, incarnation: str, index_key: bytes, *, days: int = 14
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._incarnation = incarnation
        self._index_key = index_key
        self._lifetime = days * DAY_MS

    async def start(self, user: UserEntry) -> Session:
        """A session of `user`, whose password was checked against just this entry."""
        raw = secrets.token_bytes(ID_BYTES + SECRET_BYTES)
        session_id = raw[:ID_BYTES].hex()
        args: list[Arg] = [user.user_id, self._mark(user), self._hash(raw), self._lifetime, session_id]
        keys = [self._keys.meta, self._keys.session(session_id), self._keys.sessions_of(user.user_id)]
        for oldest in await self._run(_start, keys, [*args, MAX_SESSIONS]):
            await self.end(text(oldest), user.user_id)
        return Session(session_id, user, base64.urlsafe_b64encode(raw).decode())

    async def rotate(self, refresh_token: str) -> Session:
        """The session with its next token; this one is dead. Raises SessionEnded."""
        raw = _raw(refresh_token)
        session_id = raw[:ID_BYTES].hex()
        fresh = raw[:ID_BYTES] + secrets.token_bytes(SECRET_BYTES)
        keys = [self._keys.meta, self._keys.registry, self._keys.session(session_id)]
        reply = await self._run(_rotate, keys, [self._hash(raw), self._hash(fresh), MAX_TOKENS])
        if reply[0] == b"reused":
            log.warning("refresh_token_reused", session_id=session_id, user_id=text(reply[1]))
        user = self._judge(reply[1:]) if reply[0] == b"ok" else None
        if user is None:
            raise SessionEnded
        return Session(session_id, user, base64.urlsafe_b64encode(fresh).decode())

    async def user(self, session_id: str) -> UserEntry:
        """Whose session it is, as of now. Raises SessionEnded."""
        keys = [self._keys.meta, self._keys.registry, self._keys.session(session_id)]
        reply = await self._run(_read, keys, [])
        user = self._judge(reply) if reply else None
        if user is None:
            raise SessionEnded
        return user

    async def end(self, session_id: str, user_id: str) -> bool:
        """End this session of this user: its tokens are dead. False if it had ended."""
        keys = [self._keys.meta, self._keys.session(session_id), self._keys.sessions_of(user_id)]
        return bool(await self._run(_end, keys, [session_id]))

    def _judge(self, found: list[Any]) -> UserEntry | None:
        """The user, if they may go on with a session that bears this mark."""
        user_id, mark, entry = found
        payload = control.split(entry)[1]
        if payload is None:
            return None
        user = _user.decode(payload)
        same = user.user_id == text(user_id) and secrets.compare_digest(self._mark(user), mark)
        return user if same and not user.disabled else None

    def _mark(self, user: UserEntry) -> bytes:
        """Changes with the password."""
        return self._digest(user.password_hash.encode(), b"session-mark", 16)

    def _hash(self, token: bytes) -> bytes:
        return self._digest(token, b"refresh-token", 32)

    def _digest(self, content: bytes, purpose: bytes, size: int) -> bytes:
        return hashlib.blake2b(content, digest_size=size, key=self._index_key, person=purpose).digest()

    async def _run(self, script: Script, keys: list[str], args: list[Arg]) -> Any:
        try:
            return await script(self._redis, keys, [self._incarnation, *args])
        except LogRefused:
            raise
        except LogUnavailable:
            # Each script answers the same when it is asked again, so that a lost connection ends no session.
            return await script(self._redis, keys, [self._incarnation, *args])


def _raw(refresh_token: str) -> bytes:
    """The bytes of a token that has the form of one. Raises SessionEnded."""
    try:
        if len(refresh_token) != TOKEN_CHARACTERS:
            raise SessionEnded
        return base64.b64decode(refresh_token.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise SessionEnded from None
