"""The part of the server that people use, out of its parts: tokens, sessions, signing in, the portal API."""

from __future__ import annotations

from starlette.routing import Route

from broker.events.access import AccessLog
from broker.events.connection import Redis
from broker.events.control import Registry
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.login_throttle import LoginThrottle
from broker.events.sessions import Sessions
from broker.events.sign_in import Failures, SignIn
from broker.events.user_commands import UserCommands
from broker.services.server import oidc
from broker.services.server.bearer import Bearer
from broker.services.server.portal import Portal
from broker.services.server.token_keys import TokenKeys
from broker.services.server.tokens import Tokens
from broker.services.server.visibility import ReadModels
from broker.settings import Settings


class People:
    """What routes for people are made of. Opens the token keys: raises TokenKeyError, and SettingsError."""

    def __init__(
        self,
        settings: Settings,
        *,
        redis: Redis,
        keys: LogKeys,
        identity: LogIdentity,
        keyring: Keyring,
        models: ReadModels | None,
    ) -> None:
        control = identity.incarnations[keys.control.stream]
        access = identity.incarnations[keys.access.stream]
        index_key = keyring.index_key
        token_keys = TokenKeys.open(settings.data_dir / "keys" / "token-keys", keyring)
        self.registry = Registry(redis, keys.control, control)
        self.access = AccessLog(redis, keys.access, access)
        self.sessions = Sessions(redis, keys.control, control, index_key, days=settings.session_days)
        self.tokens = Tokens(token_keys, f"broker:{identity.log_id}")
        self.admitted = Bearer(self.tokens, self.sessions)
        self.failures = Failures(self.access)
        throttle = LoginThrottle(
            redis,
            keys.access,
            access,
            index_key,
            attempts=settings.login_attempts,
            window=settings.login_window,
        )
        sign_in = SignIn(self.registry, self.sessions, throttle, self.access, self.failures)
        self._portal = Portal(
            admitted=self.admitted,
            tokens=self.tokens,
            sessions=self.sessions,
            sign_in=sign_in,
            commands=UserCommands(self.registry),
            access=self.access,
            models=models,
        )
        self._provider = oidc.provider(settings)
        self._single = oidc.SingleSignOn(self._provider, sign_in, keyring, self._portal.pair)

    def routes(self) -> list[Route]:
        """All routes that take access tokens or give them."""
        return [*self._portal.routes(), *self._single.routes()]

    async def aclose(self) -> None:
        """Write what is still to be recorded, and close connections."""
        if self._provider is not None:
            await self._provider.aclose()
        await self.failures.aclose()
