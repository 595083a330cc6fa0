"""OpenAPI 3.1 documents out of msgspec types: what is served is what is read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker.web.health import Answer, version
from broker.web.problems import CONTENT_TYPE, Document

JSON = "application/json"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path. Content, of the request or a status, is a type, a tuple of them, or None."""

    method: str
    path: str
    summary: str
    answers: Mapping[int, Any]
    request: Any = None
    request_types: Sequence[str] = (JSON,)
    errors: Sequence[int] = ()
    parameters: Sequence[Mapping[str, Any]] = ()
    certificate: bool = True
    bearer: bool = False
    """An access token instead of a certificate."""


def document(title: str, description: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document."""
    types = [Document]
    for operation in operations:
        for content in (operation.request, *operation.answers.values()):
            types += _types(content)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))
    schemes: dict[str, Any] = {"certificate": {"type": "mutualTLS"}}
    if any(operation.bearer for operation in operations):
        schemes["bearer"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, by_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": version()},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": schemes,
        },
    }


def _operation(operation: Operation, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"summary": operation.summary}
    if operation.parameters:
        out["parameters"] = list(operation.parameters)
    if operation.request is not None:
        schema = _schema(operation.request, schemas)
        out["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": schema} for kind in operation.request_types},
        }
    responses: dict[str, Any] = {}
    for status, kind in operation.answers.items():
        responses[str(status)] = {"description": "Success."}
        if kind is not None:
            responses[str(status)]["content"] = {JSON: {"schema": _schema(kind, schemas)}}
    for status in operation.errors:
        schema = schemas[Document]
        responses[str(status)] = {
            "description": "A problem document (RFC 9457).",
            "content": {CONTENT_TYPE: {"schema": schema}},
        }
    out["responses"] = responses
    if operation.bearer:
        out["security"] = [{"bearer": []}]
    else:
        out["security"] = [{"certificate": []}] if operation.certificate else []
    return out


def _types(content: Any) -> tuple[Any, ...]:
    if content is None:
        return ()
    return content if isinstance(content, tuple) else (content,)


def _schema(content: Any, schemas: Mapping[Any, Any]) -> Any:
    found = [schemas[kind] for kind in _types(content)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def common(health: str, doing: str) -> list[Operation]:
    """What every surface serves: its health at the path `health`, metrics, this document."""
    return [
        Operation(
            method="get",
            path=health,
            summary=f"Whether {doing}, and what it waits for.",
            answers={200: Answer, 503: Answer},
            certificate=False,
        ),
        Operation(
            method="get",
            path="/metrics",
            summary="Metrics in Prometheus' text format.",
            answers={200: None},
            errors=(401, 403, 503),
        ),
        Operation(
            method="get",
            path="/openapi.json",
            summary="This document.",
            answers={200: None},
            certificate=False,
        ),
    ]


def path_parameter(name: str, description: str) -> dict[str, Any]:
    """A parameter that is a part of the path."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
    }


def endpoint(make: Callable[[], dict[str, Any]]) -> Callable[[Request], Any]:
    """GET of the document, which is made when first asked for."""
    content: bytes | None = None

    async def answer(_request: Request) -> Response:
        nonlocal content
        if content is None:
            content = encode(make())
        return Response(content, media_type=JSON)

    return answer


def encode(made: dict[str, Any]) -> bytes:
    """The document as it is served, and written to `schemas/`."""
    return msgspec.json.format(msgspec.json.encode(made, order="sorted"), indent=2) + b"\n"
