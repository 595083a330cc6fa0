"""The part of the server that people use, out of its parts: tokens, sessions, signing in, the portal API."""

from __future__ import annotations

from starlette.routing import Route

from broker.events.accounts import Accounts
from broker.events.connection import Redis
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.projections.visibility import ReadModels
from broker.services.server import oidc
from broker.services.server.bearer import Bearer
from broker.services.server.portal import Portal
from broker.services.server.token_keys import TokenKeys
from broker.services.server.tokens import Tokens
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
        self._accounts = Accounts(settings, redis, keys, identity, keyring.index_key)
        token_keys = TokenKeys.open(settings.token_keys_path, keyring)
        self.registry = self._accounts.registry
        self.access = self._accounts.access
        self.sessions = self._accounts.sessions
        self.failures = self._accounts.failures
        self.tokens = Tokens(token_keys, f"broker:{identity.log_id}")
        self.admitted = Bearer(self.tokens, self.sessions)
        self._portal = Portal(
            admitted=self.admitted, tokens=self.tokens, accounts=self._accounts, models=models
        )
        self._provider = oidc.provider(settings)
        self._single = oidc.SingleSignOn(self._provider, self._accounts.sign_in, keyring, self._portal.pair)

    def routes(self) -> list[Route]:
        """All routes that take access tokens or give them."""
        return [*self._portal.routes(), *self._single.routes()]

    async def aclose(self) -> None:
        """Write what is still to be recorded, and close connections."""
        if self._provider is not None:
            await self._provider.aclose()
        await self._accounts.aclose()
