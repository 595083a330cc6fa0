"""Small private files: whole whatever happens, and nobody's but those whose they are, on Windows, too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from broker import directories
from broker.events import private_files
from broker.services.ca import files


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(private_files, "WAITS", (0.0, 0.0))


def held(monkeypatch: pytest.MonkeyPatch, method: str, times: int) -> None:
    """Somebody else has the file open: so often it is refused."""
    real, left = getattr(Path, method), [times]

    def refused(path: Path, *args: object) -> object:
        if left[0] > 0:
            left[0] -= 1
            raise PermissionError(13, "The process cannot access the file", str(path))
        return real(path, *args)

    monkeypatch.setattr(Path, method, refused)


@pytest.mark.parametrize("write", [private_files.write, files.write_file])
def test_directories_are_their_owners(tmp_path: Path, write) -> None:
    """Mode 0700, and what lies in them 0600."""
    write(tmp_path / "keys" / "keyring", b"x")
    assert directories.mode() == 0o700
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "keys" / "keyring").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("windows")
def test_directories_on_windows_keep_their_parents_rights(tmp_path: Path) -> None:
    """⚠ 0700 would there shut the services' account out of what an administrator prepares: no mode is asked for."""
    made: list[int] = []

    class Seen(type(tmp_path)):
        def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
            made.append(mode)
            super().mkdir(mode, parents, exist_ok)

    private_files.write(Seen(tmp_path) / "run" / "log-identity.json", b"x")
    files.write_file(Seen(tmp_path) / "services" / "gateway.key", b"x")
    private_files.make_directory(Seen(tmp_path) / "backups", directories.PRIVATE)
    assert made == [0o777, 0o777, 0o700]


@pytest.mark.usefixtures("windows")
def test_a_file_that_is_being_read_is_replaced_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ Windows refuses it meanwhile, and the reader in its turn; both try again, but not for ever."""
    path = tmp_path / "backups.json"
    private_files.write(path, b"old")
    held(monkeypatch, "replace", 2)
    private_files.write(path, b"new")
    held(monkeypatch, "read_bytes", 2)
    assert private_files.read(path) == b"new"
    held(monkeypatch, "replace", 3)
    with pytest.raises(PermissionError):
        private_files.write(path, b"never")
    assert [each.name for each in tmp_path.iterdir()] == ["backups.json"]


def test_elsewhere_what_is_not_permitted_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing there gets better by waiting."""
    held(monkeypatch, "replace", 1)
    with pytest.raises(PermissionError):
        private_files.write(tmp_path / "a", b"x")
    private_files.write(tmp_path / "a", b"x")
