"""Others' files that come with ours: what `manifest.json` beside them says of them holds."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The npm package that the files come from, and the SHA-256 of each."""

    package: str
    version: str
    license: str
    files: dict[str, str]


def check(directory: Path) -> Manifest:
    """Name, version and licence are on record, and every file, none more and none less, has the hash noted."""
    manifest = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=Manifest)
    assert manifest.package
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest.version)
    assert manifest.license
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    del found["manifest.json"]
    assert found == manifest.files
    return manifest
