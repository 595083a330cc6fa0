"""Files that are whole or absent, and readable by their owner only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from broker import directories
from broker.events import private_files

PRIVATE = 0o600
PUBLIC = 0o644


def write_file(path: Path, data: bytes, *, mode: int = PRIVATE) -> None:
    """Write and rename into place, on disk when this returns; directories are made for the owner only."""
    path.parent.mkdir(mode=directories.mode(), parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # O_EXCL with the final mode: at no moment can another user open it.
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # The umask may have taken bits that a public file needs.
        draft.chmod(mode)
        private_files.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_pair(certificate: Path, key: Path, *, certificate_pem: bytes, key_pem: bytes) -> None:
    """Write a key (owner only) and its certificate; the key first, so that a certificate never lacks it."""
    write_file(key, key_pem, mode=PRIVATE)
    write_file(certificate, certificate_pem, mode=PUBLIC)


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory to sync it
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
