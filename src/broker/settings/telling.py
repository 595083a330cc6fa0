"""What is said of settings to people: what they take, and what is in effect, without secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from broker.settings.fields import Settings

SECRET_URLS = frozenset({"redis_url", "mysql_url", "archive_url", "client_keys_url"})
SECRETS = frozenset({"key_passphrase", "oidc_client_secret"})


def takes(name: str) -> str:
    """What a setting takes, for people: `a TCP port, 0 for any free one`, `an integer from 1 to 256`."""
    return _describe(msgspec.inspect.type_info(_types()[name]))


def shown(settings: Settings) -> dict[str, Any]:
    """The effective settings with secrets hidden, fit to print."""
    out: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            value = str(value)
        elif field.name in SECRET_URLS and value:
            value = safe_url(value)
        elif field.name in SECRETS and value:
            value = "(set)"
        out[field.name] = value
    return out


def safe_url(url: str) -> str:
    """`url` with its passwords hidden, fit to print."""
    parts = urlsplit(url)
    query = re.sub(r"(password=)[^&]*", r"\1***", parts.query)
    host = parts.netloc
    if "@" in host:
        user, _, place = host.rpartition("@")
        host = f"{user.partition(':')[0]}:***@{place}" if ":" in user else host
    if (host, query) == (parts.netloc, parts.query):
        return url
    return urlunsplit(parts._replace(netloc=host, query=query))


def _types() -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(Settings)}


def _describe(kind: Any) -> str:  # noqa: PLR0911 - one answer for each kind
    match kind:
        case msgspec.inspect.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description") or _describe(inner))
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(
                _describe(one) for one in types if not isinstance(one, msgspec.inspect.NoneType)
            )
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.LiteralType(values=choices):
            return " or ".join(str(choice) for choice in choices)
        case msgspec.inspect.IntType():
            return "an integer" + _range(kind)
        case msgspec.inspect.FloatType():
            return "a number" + _range(kind)
        case msgspec.inspect.CustomType():
            return "a path"
    return "a text"


def _range(kind: Any) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    parts = [
        f"{word} {bound}"
        for word, bound in (("at least", kind.ge), ("more than", kind.gt), ("at most", kind.le))
        if bound is not None
    ]
    return f", {' and '.join(parts)}" if parts else ""
