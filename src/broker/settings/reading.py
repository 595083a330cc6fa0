"""Settings out of a file and the environment, checked; the environment that gives a child the same ones."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from broker.errors import SettingsError
from broker.settings.fields import PREFIX, Settings, networks, variable
from broker.settings.telling import SECRET_URLS, SECRETS, takes

# Variables with our prefix that are no settings.
RESERVED = frozenset({"config", "debug", "caller_dir", "program", "backup_passphrase"})


def load(file: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read `broker.toml` (or `file`), then the environment, then `overrides` (None means not given).

    Raises SettingsError naming the setting and what it takes.
    """
    environ = os.environ if environ is None else environ
    path, required = _file(file, environ)
    values = _from_toml(path, required=required)
    values |= _from_environ(environ)
    values |= {name: value for name, value in overrides.items() if value is not None}
    known = {field.name for field in msgspec.structs.fields(Settings)}
    for name in values:
        if name not in known:
            raise SettingsError(_unknown(name, known))
    try:
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error), values)) from None
    if settings.oidc_issuer is not None and settings.oidc_client_id is None:
        raise SettingsError("oidc_client_id (BROKER_OIDC_CLIENT_ID) is needed where oidc_issuer is set.")
    if (settings.portal_certificate is None) != (settings.portal_key is None):
        raise SettingsError(
            "portal_certificate (BROKER_PORTAL_CERTIFICATE) and portal_key (BROKER_PORTAL_KEY) are set both, "
            "or neither."
        )
    _check_networks("trusted_proxies", settings.trusted_proxies)
    return settings


def to_environ(settings: Settings) -> dict[str, str]:
    """The variables that give a child process the same settings; there are secrets among them."""
    values = {field.name: getattr(settings, field.name) for field in msgspec.structs.fields(Settings)}
    return {
        variable(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
        if value is not None
    }


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    raise ValueError(f"Expected `{kind.__name__}`")


def _file(file: Path | None, environ: Mapping[str, str]) -> tuple[Path, bool]:
    """The settings file, and whether it must exist; a relative one lies where the caller is."""
    if file is not None:
        return file, True
    if named := environ.get(f"{PREFIX}CONFIG"):
        return Path(environ.get(f"{PREFIX}CALLER_DIR", "")) / named, True
    return Path("broker.toml"), False


def _from_toml(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.exists():
        if required:
            raise SettingsError(f"The settings file {path} does not exist.")
        return {}
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path}: {error}") from None
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and value != ""
    }
    return {name: value for name, value in found.items() if name not in RESERVED}


def _check_networks(name: str, text: str) -> None:
    for part in networks(text):
        try:
            ipaddress.ip_network(part)
        except ValueError as error:
            raise SettingsError(
                f"{name} ({variable(name)}) is {text!r}; it takes {takes(name)}: {error}."
            ) from None


def _unknown(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(sorted(known))}."
    return f"{name} ({variable(name)}) is not a setting. {hint}"


def _explain(text: str, values: Mapping[str, Any]) -> str:
    """Msgspec says where and what; say the name, the value unless it is secret, and what it takes."""
    found = re.search(r" - at `\$\.(\w+)", text)
    if found is None:
        return text
    name = found[1]
    value = "not valid" if name in SECRET_URLS | SECRETS else repr(values[name])
    return f"{name} ({variable(name)}) is {value}; it takes {takes(name)}."
