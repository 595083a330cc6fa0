"""Pages for what cannot be shown, and the way to signing in."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from broker import telemetry
from broker.errors import BrokerError
from broker.services.portal import pages
from broker.services.portal.forms import StaleForm
from broker.services.portal.visitors import SignInNeeded
from broker.web import problems
from broker.web.problems import ClientDisconnected

MAX_NEXT: Final = 2000
LOGIN: Final = "/login"
AGAIN_SECONDS: Final = 5
_HTMX: Final = "hx-request"
_STALE: Final = "stale_form"
# What people can do about it; by error code, else by status.
_ADVICE: Final = {
    "store_unavailable": (
        "The database is away",
        "Nothing is lost: messages go on being accepted and delivered.",
    ),
    "log_unavailable": (
        "The log is away",
        "Redis does not answer. Nothing that was accepted is lost.",
    ),
    "trust_unproved": (
        "The log is away",
        "Redis does not answer. Nothing that was accepted is lost.",
    ),
    "rate_limit_exceeded": (
        "Too much at once",
        "More was asked for from your address than is allowed. Wait a moment.",
    ),
    "overloaded": ("Too busy", "Wait a moment."),
    _STALE: (
        "This page was too old",
        "Nothing was changed. Go back, load the page anew, and do it once more.",
    ),
    "forbidden": ("Not for you", "Ask an admin if you should be able to do this."),
    "not_found": ("There is nothing here", "It may have moved, or it is not yours to see."),
    "internal_error": (
        "Something went wrong here",
        "It has been written to the log. Tell an admin the number below.",
    ),
}
_OTHERWISE: Final = ("This did not work", "Go back and try again.")

log = telemetry.get_logger(__name__)


def handlers() -> dict[Any, Any]:
    """The exception handlers of the portal."""
    return problems.handlers() | {
        ClientDisconnected: problems.handlers()[ClientDisconnected],
        SignInNeeded: _sign_in,
        BrokerError: _handle,
        HTTPException: _handle,
        Exception: page,
    }


async def _handle(request: Request, error: Exception) -> Response:
    if problems.of(error).code == "internal_error":
        log.error("request_failed", path=request.url.path, exc_info=error)
    return await page(request, error)


async def page(request: Request, error: Exception) -> Response:
    """The page of any error; what is away for a while is tried again by the page itself."""
    problem = problems.of(error)
    answer = problems.response(error)
    title, advice = _ADVICE.get(_STALE if isinstance(error, StaleForm) else problem.code, _OTHERWISE)
    # What was asked for may be tried again where nothing is done by asking.
    again = answer.status_code in {429, 503} and request.method == "GET"
    wait = max(AGAIN_SECONDS, int(answer.headers.get("retry-after", "0")))
    said = problem.detail or problem.message
    shown = pages.render(
        request,
        "fault.html",
        answer.status_code,
        title=title,
        advice=advice,
        said=said,
        again=wait if again else 0,
    )
    for name in ("retry-after", "allow"):
        if name in answer.headers:
            shown.headers[name] = answer.headers[name]
    return shown


async def _sign_in(request: Request, error: SignInNeeded) -> Response:
    """To the login page, and after it back to the page where somebody was."""
    why = "unsent" if request.method == "POST" else error.why
    given = {"next": _where(request)} | ({"why": why} if why else {})
    target = f"{LOGIN}?{urlencode(given)}" if given["next"] != "/" or why else LOGIN
    if _HTMX in request.headers:
        # A script would put the login page into a part of the old one.
        return Response(headers={"hx-redirect": target})
    return RedirectResponse(target, 303)


def _where(request: Request) -> str:
    if request.method == "GET" and _HTMX not in request.headers:
        query = f"?{request.url.query}" if request.url.query else ""
        return local(request.url.path + query)
    named = _split(request.headers.get("hx-current-url") or request.headers.get("referer") or "")
    if named is None or named.netloc != request.headers.get("host"):
        return "/"
    return local(named.path + (f"?{named.query}" if named.query else ""))


def local(target: str) -> str:
    """`target` if it is a page of ours that one can return to, else the dashboard."""
    parts = _split(target) if target.isprintable() and "\\" not in target else None
    good = (
        parts is not None
        and len(target) <= MAX_NEXT
        and target.isascii()
        and target.startswith("/")
        and not target.startswith("//")
        and not (parts.scheme or parts.netloc)
        and parts.path not in {LOGIN, "/logout"}
    )
    return target if good else "/"


def _split(address: str) -> SplitResult | None:
    """None for what is no address at all, as `//[`."""
    try:
        return urlsplit(address)
    except ValueError:
        return None
