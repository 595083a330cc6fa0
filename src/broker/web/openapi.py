"""OpenAPI 3.1 documents out of msgspec types: what is served is what is read and written.

An operation names the statuses of its own. What every listener may answer to any request is added here, and
so are the codes that a status can carry, out of the one table of `broker.web.problems`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker.web import problems, shapes
from broker.web.health import Answer, version
from broker.web.problems import CONTENT_TYPE, Document

JSON = "application/json"

# Before or around any application: broken framing, a slow or long head, a fault of ours, too much at once.
ALWAYS: Final = (400, 408, 414, 429, 431, 500, 503)
_ALWAYS_CODES: Final = frozenset(
    {
        "bad_request",
        "request_timeout",
        "uri_too_long",
        "headers_too_large",
        "rate_limit_exceeded",
        "internal_error",
        "overloaded",
        "shutting_down",
    }
)
# Answered to those who come with a certificate, and to those who come with a token.
_OF_CERTIFICATES: Final = frozenset(
    {
        "client_certificate_required",
        "certificate_revoked",
        "certificate_expired",
        "certificate_purpose",
        "client_unknown",
        "trust_unproved",
    }
)
_OF_TOKENS: Final = frozenset({"unauthorized", "forbidden"})
# Few operations answer these: `Operation.also` names them.
_RARE: Final = frozenset(
    {
        "identity_provider_unavailable",
        "archive_unavailable",
        "archive_damaged",
        "digest_invalid",
        "history_altered",
        "history_gap",
        "unknown_event",
        "inspection_only",
    }
)
# These end or stop a process of ours; no request is answered with them.
_UNANSWERED: Final = frozenset({"lease_lost", "unsafe_redis"})


class Media(msgspec.Struct, frozen=True):
    """Content that is none of our types: text, a file, a document of another standard."""

    media_type: str
    type: str = "string"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path. Content, of the request or a status: a type, Media, a tuple of either, or None.

    `errors` are the statuses beyond those of ALWAYS; 400 and 503 are named where its own codes may come too.
    """

    method: str
    path: str
    summary: str
    answers: Mapping[int, Any]
    request: Any = None
    request_types: Sequence[str] = (JSON,)
    request_required: bool = True
    errors: Sequence[int] = ()
    parameters: Sequence[Mapping[str, Any]] = ()
    certificate: bool = True
    bearer: bool = False
    """An access token instead of a certificate."""
    also: Sequence[str] = ()
    """Codes that only few operations answer, such as those of another service."""

    @property
    def statuses(self) -> set[int]:
        """All that it may answer."""
        return {*self.answers, *self.errors, *ALWAYS}

    def codes(self, status: int) -> list[str]:
        """The `error` codes that its problem documents of this status may have."""
        return [code for code, of in problems.STATUS.items() if of == status and self._may(code)]

    def _may(self, code: str) -> bool:
        if problems.STATUS[code] not in self.errors:
            return code in _ALWAYS_CODES
        match code:
            case _ if code in _RARE:
                return code in self.also
            case "malformed_json":
                return self.request is not None
            case "conflict" | "idempotency_conflict":
                keyed = any(each["name"] == "Idempotency-Key" for each in self.parameters)
                return keyed == (code == "idempotency_conflict")
        by_certificate = self.certificate and not self.bearer
        return code not in _UNANSWERED | (_OF_TOKENS if by_certificate else _OF_CERTIFICATES)


def document(title: str, description: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document."""
    types: list[Any] = [Document]
    for operation in operations:
        for content in (operation.request, *operation.answers.values()):
            types += _types(content)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    made = _Document(dict(zip(types, schemas, strict=True)))
    schemes: dict[str, Any] = {"certificate": {"type": "mutualTLS"}}
    if any(operation.bearer for operation in operations):
        schemes["bearer"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = made.operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": version()},
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": made.problems,
            "headers": _HEADERS,
            "securitySchemes": schemes,
        },
    }


class _Document:
    """Makes operations; the problem responses they share gather in `problems`."""

    def __init__(self, schemas: Mapping[Any, Any]) -> None:
        self._schemas = schemas
        self.problems: dict[str, Any] = {}

    def operation(self, operation: Operation) -> dict[str, Any]:
        words = re.findall(r"[a-z0-9_]+", operation.path.lower())
        out: dict[str, Any] = {
            "operationId": "_".join((operation.method, *words)),
            "summary": operation.summary,
            "tags": [words[0] if words and len(operation.path.split("/")) > 2 else "public"],
        }
        if operation.parameters:
            out["parameters"] = list(operation.parameters)
        if operation.request is not None:
            schema = self._schema(operation.request)
            out["requestBody"] = {
                "required": operation.request_required,
                "content": {kind: {"schema": schema} for kind in operation.request_types},
            }
        out["responses"] = self._responses(operation)
        if operation.bearer:
            out["security"] = [{"bearer": []}]
        else:
            out["security"] = [{"certificate": []}] if operation.certificate else []
        return out

    def _responses(self, operation: Operation) -> dict[str, Any]:
        responses: dict[str, Any] = {}
        for status, content in operation.answers.items():
            phrase = f"{HTTPStatus(status).phrase}."
            made = responses[str(status)] = {"description": phrase, "headers": _named("X-Correlation-ID")}
            media = {
                each.media_type: {"schema": {"type": each.type}}
                for each in _each(content)
                if isinstance(each, Media)
            }
            if _types(content):
                media[JSON] = {"schema": self._schema(content)}
            if media:
                made["content"] = media
        for status in sorted(operation.statuses - operation.answers.keys()):
            responses[str(status)] = self._problem(status, operation.codes(status))
        # An unhealthy process is 503 with its health; one that takes nothing more is 503 with a problem.
        if 503 in operation.answers:
            problem = self._problem(503, operation.codes(503))
            shared = self.problems[problem["$ref"].rpartition("/")[2]]
            responses["503"]["content"] |= shared["content"]
        return responses

    def _problem(self, status: int, codes: Sequence[str]) -> dict[str, Any]:
        name = f"{status}-{'-'.join(codes)}"
        if name not in self.problems:
            only = {"properties": {"status": {"const": status}, "error": {"enum": list(codes)}}}
            headers = ["X-Correlation-ID"]
            if status in {429, 503}:
                headers.append("Retry-After")
            if status == 429:
                headers += ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"]
            self.problems[name] = {
                "description": f"A problem document (RFC 9457): {', '.join(f'`{code}`' for code in codes)}.",
                "headers": _named(*headers),
                "content": {CONTENT_TYPE: {"schema": {"allOf": [self._schemas[Document], only]}}},
            }
        return {"$ref": f"#/components/responses/{name}"}

    def _schema(self, content: Any) -> Any:
        found = [self._schemas[kind] for kind in _types(content)]
        return found[0] if len(found) == 1 else {"anyOf": found}


_HEADERS: Final = {
    name: {"description": text, "schema": schema}
    for name, text, schema in (
        ("X-Correlation-ID", "In every log line and event that the request caused.", {"type": "string"}),
        ("Retry-After", "Seconds after which to come back.", {"type": "integer", "minimum": 1}),
        ("RateLimit-Limit", "Messages of a certificate, or requests, at once.", {"type": "integer"}),
        ("RateLimit-Remaining", "How many are left now.", {"type": "integer"}),
        ("RateLimit-Reset", "Seconds until all are back.", {"type": "integer"}),
    )
}


def _named(*headers: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


def _each(content: Any) -> tuple[Any, ...]:
    if content is None:
        return ()
    return content if isinstance(content, tuple) else (content,)


def _types(content: Any) -> tuple[Any, ...]:
    return tuple(each for each in _each(content) if not isinstance(each, Media))


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
            answers={200: Media("text/plain")},
            errors=(401, 403, 503),
        ),
        Operation(
            method="get",
            path="/openapi.json",
            summary="This document.",
            answers={200: Media(JSON, "object")},
            certificate=False,
        ),
    ]


def path_parameter(name: str, description: str) -> dict[str, Any]:
    """A parameter that is a part of the path; `message_id` has the form of one."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": shapes.MESSAGE_ID if name == "message_id" else {"type": "string"},
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
