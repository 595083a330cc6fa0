"""GET /docs: the API's description in Swagger UI, out of our own files, under a policy that admits no others.

`static/swagger-ui/manifest.json` says where the files come from, with the hash of each.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.web.openapi import Media, Operation, path_parameter

STATIC: Final = Path(__file__).parent / "static"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE: Final = "docs.html"
_KINDS: Final = {
    "docs.js": "text/javascript",
    "swagger-ui/swagger-ui-bundle.js": "text/javascript",
    "swagger-ui/swagger-ui.css": "text/css",
    "swagger-ui/favicon-32x32.png": "image/png",
}
_NAMES: Final = {path.rpartition("/")[2]: path for path in _KINDS}

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
        answers={200: tuple(Media(kind) for kind in sorted(set(_KINDS.values()))), 304: None},
        errors=(404,),
        parameters=[path_parameter("file", "One that the page names.")],
        certificate=False,
    ),
]


class _File(msgspec.Struct, frozen=True):
    content: bytes
    kind: str
    etag: str


@cache
def _file(path: str, kind: str) -> _File:
    content = (STATIC / path).read_bytes()
    return _File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def routes() -> list[Route]:
    """The page and its files; they need nothing of the broker, and nobody's leave."""
    return [Route("/docs", _page, methods=["GET"]), Route("/docs/{file}", _asset, methods=["GET"])]


async def _page(request: Request) -> Response:
    return _answer(request, _file(_PAGE, "text/html"))


async def _asset(request: Request) -> Response:
    path = _NAMES.get(request.path_params["file"])
    if path is None:
        raise HTTPException(404)
    return _answer(request, _file(path, _KINDS[path]))


def _answer(request: Request, file: _File) -> Response:
    headers = {
        # Looked at again each time, and sent again only after an upgrade.
        "cache-control": "no-cache",
        "etag": file.etag,
        "content-security-policy": POLICY,
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.kind)
