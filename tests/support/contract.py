"""What the OpenAPI documents say, held against the applications' own routes and against every answer of a test."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from starlette.routing import Route

from broker.services.gateway import api as gateway
from broker.services.server import api as server
from broker.web.openapi import Media, Operation
from broker.web.problems import CONTENT_TYPE
from support.serving import Answered

OPERATIONS = [*gateway.OPERATIONS, *server.OPERATIONS]


def routes(app) -> set[tuple[str, str]]:
    """Method and path of each route of an application, whatever layers are around it."""
    while not hasattr(app, "routes"):
        app = getattr(app, "_others", None) or app.app
    found = set()
    for route in app.routes:
        assert type(route) is Route, "what is mounted hides its routes"
        found |= {(method, route.path) for method in route.methods or {"GET"} if method != "HEAD"}
    return found


def described(operations: Iterable[Operation]) -> set[tuple[str, str]]:
    """Method and path of each operation."""
    return {(operation.method.upper(), operation.path) for operation in operations}


def operation(method: str, target: str) -> Operation | None:
    """What a request is described by; a literal path goes before a template."""
    path = target.partition("?")[0]
    wanted = "get" if method == "HEAD" else method.lower()
    fitting = [
        each
        for each in OPERATIONS
        if each.method == wanted and re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", each.path), path)
    ]
    return min(fitting, key=lambda each: each.path.count("{"), default=None)


def hold(method: str, target: str, answer: Answered) -> None:
    """Fail where the answer is not among those that the description of its operation names."""
    found = operation(method, target)
    what = f"{method} {target} -> {answer.status} {answer.body[:500]!r}"
    if found is None:
        assert answer.status in {400, 404, 405, 408, 414, 431, 503}, f"{what}: no such operation is described"
        return
    assert answer.status in found.statuses, f"{what}: this status is not described"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == CONTENT_TYPE:
        code = msgspec.json.decode(answer.body)["error"] if method != "HEAD" else None
        assert code in {None, *found.codes(answer.status)}, f"{what}: this code is not described"
    else:
        assert answer.status in found.answers, f"{what}: this status comes with a problem document"
        content = found.answers[answer.status]
        each = content if isinstance(content, tuple) else (content,)
        kinds = {one.media_type if isinstance(one, Media) else "application/json" for one in each if one}
        assert kind in (kinds or {""}), f"{what}: {kind} is not described"
    assert "x-correlation-id" in answer.headers, what
    if answer.status in {429, 503}:
        assert int(answer.headers["retry-after"]) >= 1, what
