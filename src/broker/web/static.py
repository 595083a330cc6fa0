"""Files that come with the program, as browsers get them: with their type, hash, and compressed."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

KINDS: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_WORTH_PACKING: Final = 512
UNCHANGED_FOR_A_YEAR: Final = "public, max-age=31536000, immutable"
ASKED_AGAIN: Final = "no-cache"
"""Looked at again each time, and sent again only after an upgrade."""


class File(msgspec.Struct, frozen=True):
    """Content, the same gzipped where that is worth it, media type, and 32 hex digits of its SHA-256."""

    content: bytes
    packed: bytes | None
    kind: str
    digest: str


@cache
def load(path: Path) -> File:
    """The file at `path`; read once."""
    content = path.read_bytes()
    packed = gzip.compress(content, 9, mtime=0) if len(content) > _WORTH_PACKING else None
    smaller = packed is not None and len(packed) < len(content)
    digest = hashlib.sha256(content).hexdigest()[:32]
    return File(content, packed if smaller else None, KINDS[path.suffix], digest)


def answer(request: Request, file: File, headers: Mapping[str, str], *, keep: str = ASKED_AGAIN) -> Response:
    """The file, or a 304 to who has it already. Nothing secret is in it, so compressing tells nothing."""
    etag = f'"{file.digest}"'
    told = {
        "cache-control": keep,
        "etag": etag,
        "vary": "accept-encoding",
        "cross-origin-resource-policy": "same-origin",
        "x-content-type-options": "nosniff",
        **headers,
    }
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=told)
    if file.packed is not None and _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(file.packed, headers={**told, "content-encoding": "gzip"}, media_type=file.kind)
    return Response(file.content, headers=told, media_type=file.kind)


def _takes_gzip(accepted: str) -> bool:
    for one in accepted.lower().split(","):
        coding, _, weight = one.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
