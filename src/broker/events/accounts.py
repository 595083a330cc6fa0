"""What signing in is made of, and what people do with their own accounts; every surface for people has it."""

from __future__ import annotations

from broker import telemetry
from broker.domain.users import UserEntry
from broker.errors import ValidationError
from broker.events.access import AccessLog
from broker.events.connection import Redis
from broker.events.control import Committed, Registry
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.login_throttle import LoginThrottle
from broker.events.sessions import Session, Sessions
from broker.events.sign_in import Failures, SignIn
from broker.events.types import LoggedOut
from broker.events.user_commands import UserCommands
from broker.settings import Settings


class Accounts:
    """The accounts of one log; `failures` must be running. `index_key` is the keyring's.

    Everything also raises LogUnavailable and LogRefused.
    """

    def __init__(
        self, settings: Settings, redis: Redis, keys: LogKeys, identity: LogIdentity, index_key: bytes
    ) -> None:
        control = identity.incarnations[keys.control.stream]
        access = identity.incarnations[keys.access.stream]
        self.registry = Registry(redis, keys.control, control)
        self.commands = UserCommands(self.registry)
        self.access = AccessLog(redis, keys.access, access)
        self.sessions = Sessions(redis, keys.control, control, index_key, days=settings.session_days)
        self.failures = Failures(self.access)
        throttle = LoginThrottle(
            redis,
            keys.access,
            access,
            index_key,
            attempts=settings.login_attempts,
            window=settings.login_window,
        )
        self.sign_in = SignIn(self.registry, self.sessions, throttle, self.access, self.failures)

    async def sign_out(self, session_id: str, user_id: str) -> None:
        """End the session; recorded, unless it had ended."""
        if await self.sessions.end(session_id, user_id):
            actor = f"user:{user_id}"
            event = LoggedOut(user_id)
            await self.access.append((actor, event), actor=actor, correlation_id=telemetry.correlation.get())

    async def change_password(
        self, user: UserEntry, current: str, new: str, address: str
    ) -> tuple[Session, Committed[UserEntry]]:
        """Another password for somebody signed in at `address`: every session ends, and a new one begins.

        Raises ValidationError for `current_password` or `new_password`, Throttled.
        """
        if not await self.sign_in.check(user, current, address):
            raise ValidationError("current_password", "is not your password")
        if new == current:
            raise ValidationError("new_password", "must be another one")
        try:
            done = await self.commands.change_password(
                user.user_id,
                new,
                actor=f"user:{user.user_id}",
                correlation_id=telemetry.correlation.get(),
            )
        except ValidationError as error:
            raise ValidationError("new_password", error.reason) from None
        return await self.sessions.start(done.value), done

    async def aclose(self) -> None:
        """Write what is still to be recorded."""
        await self.failures.aclose()
