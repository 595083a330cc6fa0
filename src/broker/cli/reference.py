"""The reference pages of `docs/`, written from the code: `python -m broker.cli.reference`.

A page that is not this module's text, or an error code or metric without a meaning, fails the tests.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin

import broker
from broker.errors import BrokerError
from broker.events import types, upcasting
from broker.web import problems

DOCS: Final = Path(__file__).resolve().parents[3] / "docs"
WRITTEN: Final = "This page is written by `python -m broker.cli.reference`.\n"

CODES: Final[dict[str, str]] = {
    "validation_error": "A field is missing, unknown or wrong; `details` names each with what it takes.",
    "malformed_json": "The body is no JSON, or JSON that two readers could take differently.",
    "bad_request": "The request itself is malformed: its framing, a header, a parameter.",
    "unauthorized": "Sign in, or refresh the access token.",
    "client_certificate_required": "Come with a client certificate of this broker.",
    "forbidden": "The role may not do this.",
    "certificate_revoked": "Have another certificate issued.",
    "certificate_expired": "Have the certificate renewed.",
    "certificate_purpose": "The certificate is for something else; take a producer's.",
    "client_unknown": "The certificate or its client is not registered.",
    "not_found": "There is no such thing, or it is somebody else's.",
    "method_not_allowed": "`Allow` names the methods of this path.",
    "request_timeout": "The request came too slowly; send it again.",
    "conflict": "The state does not allow it; `detail` says what is in the way.",
    "idempotency_conflict": "The key was used for another message; take a new one.",
    "key_erased": "The client's keys were destroyed; its messages are unreadable for ever.",
    "body_too_large": "Send less; a batch can be cut.",
    "uri_too_long": "Shorten the address.",
    "unsupported_media_type": "Send the content type that `detail` names.",
    "rate_limit_exceeded": "Wait as long as `Retry-After` says.",
    "headers_too_large": "Send fewer or shorter headers.",
    "internal_error": "A fault of the broker; its log has the traceback under the correlation id.",
    "overloaded": "Too much at once; wait as long as `Retry-After` says.",
    "shutting_down": "The process stopped. Whether it was done is unknown: repeat with the same key.",
    "log_unavailable": "Redis is away. Whether it was done is unknown: repeat with the same key.",
    "log_full": "Memory or disk of the log is full; repeat later with the same key.",
    "trust_unproved": "Revocations cannot be seen now, so nobody is let in; repeat later.",
    "key_unavailable": "The key is not loaded here; an operator looks at the keyring.",
    "ca_unavailable": "This server has no CA key; ask one that has.",
    "inspection_only": "This is a copy for inspection (the setting `inspection`); ask the system itself.",
    "store_unavailable": "MySQL is away; repeat later. Submitting does not need it.",
    "identity_provider_unavailable": "Sign in by password, or later.",
    "archive_unavailable": "The archive cannot be reached; repeat later.",
    "history_altered": "The history is not what was signed; `detail` names where. Compare backups.",
    "history_gap": "Events are neither in Redis nor in the archive; an operator looks at archive_url.",
    "digest_invalid": "A signed digest was changed; `detail` names it.",
    "archive_damaged": "A segment of the archive was changed or lost; `broker archive verify` names it.",
    "unknown_event": "The history holds an entry that is no event; `detail` names it.",
    "lease_lost": "Never answered: another process does this work now.",
    "unsafe_redis": "Never answered: the process does not start on this Redis.",
}

EVENTS_HEAD: Final = f"""# Events

Every fact that the broker keeps, in the stream where it lies. `./broker events tail` and `./broker
events show` read them; the exact form of an exported event is in [schemas](../schemas/), one file
for each type and version. A field in *italics* is withheld from exports, which carry a commitment
to it instead. Fields that end in `_ms` are milliseconds, since 1970 UTC or of a duration.

{WRITTEN}"""

STREAMS: Final = (
    (
        "Messages",
        "In the partition that the message's id names. The subject is the message.",
        types.MESSAGE_EVENTS,
    ),
    ("Control", "In the stream `control`, in one total order.", types.CONTROL_EVENTS),
    (
        "Access",
        "In the stream `access`, so that nobody can delay a revocation by flooding.",
        types.ACCESS_EVENTS,
    ),
)

ERRORS_HEAD: Final = f"""# Errors

Every error answer is a problem document (RFC 9457, `application/problem+json`): `error` is one of
the codes below, `detail` one sentence, `details` names the fields at fault, `correlation_id` finds
the request in logs and events. 429 and 503 always carry `Retry-After`. A 503 to a submit, or no
answer, means *unknown*: send it again with the same `Idempotency-Key`.

{WRITTEN}
## Answers

| code | status | what to do |
|---|---|---|
"""

FAULTS_HEAD: Final = """
## Logs and command line

What processes log under `code`, and what commands end with. [Troubleshooting](troubleshooting.md)
goes by symptom.

| code | what it means |
|---|---|
"""


def events() -> str:
    """The page of events."""
    parts = [EVENTS_HEAD]
    for title, where, kinds in STREAMS:
        parts.append(
            f"\n## {title}\n\n{where}\n\n| event | version | what happened | fields |\n|---|---|---|---|\n"
        )
        parts += [_event(kind) for kind in kinds]
    return "".join(parts)


def _event(kind: type[types.Event]) -> str:
    import msgspec

    name = kind.__name__
    fields = []
    for field in msgspec.structs.fields(kind):
        shown = f"`{field.name}` {_type(field.type)}"
        fields.append(f"*{shown}*" if (name, field.name) in types.WITHHELD else shown)
    version = upcasting.VERSIONS.get(name, 1)
    return f"| `{name}` | {version} | {_sentences(kind.__doc__)} | {', '.join(fields)} |\n"


def _type(kind: Any) -> str:
    """For people: `text`, `text or none`, `list of texts`."""
    if isinstance(kind, UnionType):
        return " or ".join(_type(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(f"`{one}`" for one in get_args(kind))
    if get_origin(kind) in {list, tuple}:
        return f"list of {_type(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "map"
    names = {
        str: "text",
        int: "integer",
        bytes: "bytes",
        bool: "yes or no",
        type(None): "none",
        float: "number",
    }
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def errors() -> str:
    """The page of errors."""
    parts = [ERRORS_HEAD]
    for code, status in problems.STATUS.items():
        phrase = HTTPStatus(status).phrase
        parts.append(f"| `{code}` | {status} {phrase} | {CODES.get(code, '')} |\n")
    parts.append(FAULTS_HEAD)
    parts += [f"| `{code}` | {meaning} |\n" for code, meaning in sorted(_faults().items())]
    return "".join(parts)


def undescribed() -> set[str]:
    """Codes without a meaning here, and meanings without a code."""
    return set(CODES) ^ set(problems.STATUS)


def _faults() -> dict[str, str]:
    """The codes of failures that no request is answered with, each with its class's own words."""
    for module in pkgutil.walk_packages(broker.__path__, "broker."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return {
        one.code: _sentences(one.__doc__)
        for one in _below(BrokerError)
        if one.code not in problems.STATUS and not one.__name__.startswith("_")
    }


def _below(kind: type[BrokerError]) -> Iterator[type[BrokerError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def _sentences(text: str | None) -> str:
    """The first paragraph on one line, fit for a cell."""
    paragraph = (text or "").strip().partition("\n\n")[0]
    return re.sub(r"\s+", " ", paragraph).replace("|", "\\|")


class Page(NamedTuple):
    """A page and what writes it."""

    path: Path
    text: Callable[[], str]


def pages() -> list[Page]:
    """All that this module writes."""
    from broker.cli import metrics_page

    return [
        Page(DOCS / "events.md", events),
        Page(DOCS / "errors.md", errors),
        Page(DOCS / "metrics.md", metrics_page.text),
    ]


def main(arguments: list[str]) -> int:
    """Write the pages; with `--check` only say which differ, and answer 1 then."""
    different = [
        page for page in pages() if not page.path.exists() or page.path.read_text("utf-8") != page.text()
    ]
    for page in different:
        if "--check" in arguments:
            print(f"{page.path.name} differs: python -m broker.cli.reference writes it")
        else:
            page.path.write_text(page.text(), "utf-8")
    return 1 if different and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
