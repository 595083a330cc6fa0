"""GET /docs: the API's description in Swagger UI, out of our own files, under a policy that admits no others.

`static/swagger-ui/manifest.json` says where the files come from, with the hash of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.web import static
from broker.web.openapi import Media, Operation, path_parameter

STATIC: Final = Path(__file__).parent / "static"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE: Final = "docs.html"
_FILES: Final = (
    "docs.js",
    "swagger-ui/swagger-ui-bundle.js",
    "swagger-ui/swagger-ui.css",
    "swagger-ui/favicon-32x32.png",
)
_NAMES: Final = {path.rpartition("/")[2]: path for path in _FILES}
_KINDS: Final = sorted({static.KINDS[Path(path).suffix] for path in _FILES})

OPERATIONS: Final = [
    Operation(
        method="get",
        path="/docs",
        summary="This document, to be read and tried in a browser.",
        answers={200: Media("text/html"), 304: None},
        certificate=False,
    ),
    Operation(
        method="get",
        path="/docs/{file}",
        summary="Scripts and styles of that page.",
        answers={200: tuple(Media(kind) for kind in _KINDS), 304: None},
        errors=(404,),
        parameters=[path_parameter("file", "One that the page names.")],
        certificate=False,
    ),
]


def routes() -> list[Route]:
    """The page and its files; they need nothing of the broker, and nobody's leave."""
    return [Route("/docs", _page, methods=["GET"]), Route("/docs/{file}", _asset, methods=["GET"])]


async def _page(request: Request) -> Response:
    return _answer(request, _PAGE)


async def _asset(request: Request) -> Response:
    path = _NAMES.get(request.path_params["file"])
    if path is None:
        raise HTTPException(404)
    return _answer(request, path)


def _answer(request: Request, path: str) -> Response:
    headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
    return static.answer(request, static.load(STATIC / path), headers)
