"""Scripts and styles. Addresses name the content, so that a browser asks once and an upgrade shows at once.

Others' files lie in a directory each, whose `manifest.json` says where they come from, with hashes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.web import static

STATIC: Final = Path(__file__).parent / "static"
FILES: Final = {
    path.rpartition("/")[2]: path
    for path in (
        "portal.css",
        "portal.js",
        "chart.js",
        "icon.svg",
        "htmx/htmx.min.js",
        "htmx/hx-sse.min.js",
        "pico/pico.min.css",
        "uplot/uPlot.iife.min.js",
        "uplot/uPlot.min.css",
    )
}
_DIGITS: Final = 12


def address(name: str) -> str:
    """Where pages find one of FILES."""
    return f"/static/{static.load(STATIC / FILES[name]).digest[:_DIGITS]}/{name}"


def routes() -> list[Route]:
    """Nobody's leave is needed."""
    return [Route("/static/{digest}/{name}", _serve, methods=["GET"])]


async def _serve(request: Request) -> Response:
    path = FILES.get(request.path_params["name"])
    if path is None:
        raise HTTPException(404)
    file = static.load(STATIC / path)
    # Of another version, as a page from before an upgrade asks: what there is now, but not for long.
    same = request.path_params["digest"] == file.digest[:_DIGITS]
    return static.answer(request, file, {}, keep=static.UNCHANGED_FOR_A_YEAR if same else static.ASKED_AGAIN)
