"""Where segments lie: a directory of this machine, or a bucket by any fsspec URL. Names use `/`.

Nothing is ever overwritten by something else: each writer's names carry its own fencing epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from broker.errors import BrokerError, SettingsError
from broker.events import private_files
from broker.settings import Settings, safe_url

_SCHEME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
KEYS_FOLDER: Final = ".client-keys"
"""In the archive's place, where that is not the data directory; no log's name begins with a dot."""
EXTRAS: Final = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""Packages that bring a scheme's file system."""


class ArchiveUnavailable(BrokerError):
    """The archive cannot be read or written."""

    code = "archive_unavailable"


class Storage(Protocol):
    """A place for files. Everything blocks, so call it in a thread. Raises ArchiveUnavailable."""

    shown: str
    """For people, without secrets."""

    def put(self, name: str, content: bytes) -> None:
        """Make a file: whole and durable on return, or not there at all. The same once more is no error."""
        ...

    def get(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted, without the folder's own name; nothing where there is none."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


class LocalStorage:
    """A directory. A file is written beside under another name, flushed and renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shown = str(root)

    def put(self, name: str, content: bytes) -> None:
        """As in Storage."""
        with self._refused():
            private_files.write(self.root / name, content)

    def get(self, name: str) -> bytes | None:
        """As in Storage."""
        with self._refused():
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """As in Storage."""
        with self._refused():
            try:
                return sorted(path.name for path in (self.root / folder).iterdir())
            except FileNotFoundError:
                return []

    def remove(self, name: str) -> None:
        """As in Storage."""
        with self._refused():
            (self.root / name).unlink(missing_ok=True)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArchiveUnavailable(f"{self.shown}: {error.strerror or error}.") from error


class BucketStorage:
    """Any fsspec file system. A put is conditional where the file system can do that, as S3 and GCS can."""

    def __init__(self, url: str) -> None:
        self.shown = safe_url(url)
        try:
            import fsspec

            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            scheme = url.partition("://")[0]
            package = EXTRAS.get(scheme)
            what = (
                f"It needs the package {package} (pip install {package})"
                if package
                else f"{error}".rstrip(".")
            )
            raise SettingsError(f"archive_url (BROKER_ARCHIVE_URL) {self.shown}: {what}.") from None
        self._root = str(root).rstrip("/")

    def put(self, name: str, content: bytes) -> None:
        """As in Storage."""
        try:
            self._fs.pipe_file(self._path(name), content, mode="create")
        except Exception as error:
            # It may be there all the same: with the reply lost, even the client's own next try is refused.
            there = self.get(name)
            if there == content:
                return
            if there is None:
                raise self._unavailable(error) from error
            raise ArchiveUnavailable(
                f"{self.shown}/{name} is there already, with another content."
            ) from error

    def get(self, name: str) -> bytes | None:
        """As in Storage."""
        with self._refused():
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def names(self, folder: str) -> list[str]:
        """As in Storage."""
        with self._refused():
            self._fs.invalidate_cache()
            try:
                found: list[Any] = self._fs.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str) -> None:
        """As in Storage."""
        with self._refused():
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                pass

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if self._root else name

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> ArchiveUnavailable:
        """Each file system raises its own client's errors."""
        return ArchiveUnavailable(f"{self.shown}: {type(error).__name__}: {error}")


def opened(settings: Settings) -> Storage:
    """The storage that `archive_url` names; nothing is looked at yet. Raises SettingsError."""
    url = settings.archive_url
    return at(str(settings.data_dir / "archive") if url is None else url)


def beside(settings: Settings) -> Storage:
    """The storage of the client keys' copies, which are no part of the archive. Raises SettingsError."""
    url = settings.client_keys_url
    if url is None:
        own = settings.archive_url
        # A place that every projector reaches, as the archive is.
        url = str(settings.data_dir / "client-keys") if own is None else f"{own.rstrip('/')}/{KEYS_FOLDER}"
    return at(url)


def at(url: str) -> Storage:
    """The storage at an address or in a directory. Raises SettingsError."""
    if url.startswith("file://"):
        return LocalStorage(Path(url.removeprefix("file://")))
    return BucketStorage(url) if _SCHEME.match(url) else LocalStorage(Path(url))
