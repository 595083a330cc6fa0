"""The portal's routes inside what every surface shares, with pages instead of problem documents."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from broker.services.portal import admin, assets, faults
from broker.services.portal.audit import Audit
from broker.services.portal.dashboard import Dashboard
from broker.services.portal.messages import Messages
from broker.services.portal.parts import Parts
from broker.services.portal.profile import Profile
from broker.services.portal.secured import Secured
from broker.services.portal.signing import Signing
from broker.services.portal.single_sign_on import SingleSignOn
from broker.web import application, metrics
from broker.web.health import Checks, Health
from broker.web.oidc_provider import Provider
from broker.web.rate_limit import RateLimited, RateLimits

HEALTH = "/health"


def build(
    parts: Parts, checks: Checks, limits: RateLimits, provider: Provider | None, *, secure: bool
) -> ASGIApp:
    """The application. `secure`: it is served over TLS. `provider`: where people may sign in, too."""
    routes = [
        Route(HEALTH, Health(checks).endpoint, methods=["GET"]),
        *([Route("/metrics", metrics.endpoint)] if parts.settings.metrics_public else []),
        *assets.routes(),
        *Signing(parts.gate, parts.accounts, single=provider is not None).routes(),
        *SingleSignOn(parts, provider, secure=secure).routes(),
        *Dashboard(parts).routes(),
        *Messages(parts).routes(),
        *Profile(parts).routes(),
        *admin.routes(parts),
        *Audit(parts).routes(),
    ]
    inner = Starlette(routes=routes, exception_handlers=faults.handlers())
    inner.router.redirect_slashes = False
    inner.state.inspection = parts.settings.inspection
    return application.wrap(Secured(RateLimited(inner, limits, faults.page), secure=secure), role="portal")


def unlimited(scope: Scope) -> bool:
    """Whether no limit of addresses holds: for who watches over the process."""
    return bool(scope["path"] == HEALTH)
