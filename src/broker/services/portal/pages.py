"""Pages out of templates, which escape whatever people and producers wrote, everywhere."""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from broker import clock, telemetry
from broker.services.portal import assets, notices
from broker.services.portal.visitors import VISITOR, Visitor
from broker.web.health import version

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}(?=$|[T ])")
_TEMPLATES: Final = Path(__file__).parent / "templates"
_PART: Final = re.compile(r"<(table|thead|tbody|tr|th|td)(?=[ >])")
_ROLES: Final = {
    "table": "table", "thead": "rowgroup", "tbody": "rowgroup",
    "tr": "row", "th": "columnheader", "td": "cell",
}  # fmt: skip
# What each role is led to: address, name.
NAVIGATION: Final = {
    "user": (("/", "Dashboard"), ("/messages", "Messages")),
    "admin": (
        ("/", "Dashboard"),
        ("/admin", "Overview"),
        ("/admin/messages", "Messages"),
        ("/admin/parked", "Parked"),
        ("/admin/users", "Users"),
        ("/admin/clients", "Clients"),
        ("/admin/certificates", "Certificates"),
        ("/admin/projections", "Projections"),
        ("/admin/streams", "Streams"),
        ("/audit", "Audit"),
    ),
    "auditor": (("/audit", "Audit"),),
}
# What events of a message are called in its timeline.
TITLES: Final = {
    "MessageSubmitted": "Submitted",
    "DeliveryAttempted": "Attempt",
    "RetryScheduled": "Retry scheduled after attempt",
    "DeliveryDue": "Due again",
    "MessageParked": "Parked",
    "ResendRequested": "Resend requested",
    "MessageDiscarded": "Discarded",
}


def _source(name: str) -> tuple[str, str, None]:
    path = _TEMPLATES / name
    # Some browsers forget what a table is where its rows are shown as blocks, on phones: each part says it.
    text = _PART.sub(lambda part: f'{part[0]} role="{_ROLES[part[1]]}"', path.read_text("utf-8"))
    return text, str(path), None


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals.update(
        asset=assets.address,
        iso=clock.iso,
        when=when,
        count=count,
        took=took,
        as_day=as_day,
        query=query,
        titles=TITLES,
        version=version(),
    )
    return environment


def render(request: Request, template: str, status: int = 200, /, **content: Any) -> Response:
    """A page. Templates also know `visitor` (None while nobody is signed in), `csrf` and `notice`."""
    visitor: Visitor | None = request.scope.get(VISITOR)
    shown = {
        "visitor": visitor,
        "csrf": visitor.ticket.csrf if visitor is not None else "",
        "path": request.url.path,
        "navigation": () if visitor is None else NAVIGATION[visitor.user.role],
        "notice": notices.TEXTS.get(request.query_params.get(notices.PARAMETER, "")),
        "inspection": inspected(request),
        "correlation_id": telemetry.correlation.get(),
        "field_errors": {},
        **content,
    }
    text = _environment().get_template(template).render(shown)
    return Response(text, status, media_type="text/html")


def inspected(request: Request) -> bool:
    """Whether the portal shows a copy that runs for inspection; what never reached the routes cannot say."""
    return "app" in request.scope and bool(request.app.state.inspection)


def fragment(template: str, /, **content: Any) -> str:
    """A part of a page."""
    return _environment().get_template(template).render(content)


def see(path: str, notice: str = "") -> Response:
    """Lead the browser there after a form was done, with something to say."""
    joined = f"{path}{'&' if '?' in path else '?'}{notices.PARAMETER}={notice}" if notice else path
    return RedirectResponse(joined, HTTPStatus.SEE_OTHER)


def when(moment: int | str | None) -> Markup:
    """A time, in milliseconds or RFC 3339, as people and programs read it; UTC."""
    if moment is None:
        return Markup("–")
    iso = moment if isinstance(moment, str) else clock.iso(moment)
    return Markup('<time datetime="{}">{}</time>').format(iso, f"{iso[:10]} {iso[11:19]}")


def count(number: float) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


def took(ms: float | None) -> str:
    """A span of milliseconds in the unit that suits it."""
    if ms is None:
        return "–"
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")):
        if ms >= size:
            return f"{ms / size:.1f} {unit}"
    return f"{ms:.0f} ms"


def as_day(given: str | None) -> str:
    """What a date field can show of a time that was asked for: nothing, where it is none."""
    found = _DAY.match(given or "")
    return found[0] if found else ""


def query(path: str, given: dict[str, str | None], **changes: str | int | None) -> str:
    """The address of `path` with these parameters; what is None is left out."""
    pairs = {name: value for name, value in {**given, **changes}.items() if value is not None}
    return f"{path}?{urlencode(pairs)}" if pairs else path
