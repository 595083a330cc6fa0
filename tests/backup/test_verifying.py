"""Backups that somebody touched: the file is named, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.errors import BrokerError
from broker.events.backup import layout
from broker.events.backup.layout import BackupDamaged
from broker.events.backup.repository import Repository
from broker.events.backup.sealing import WrongPassphrase
from support import backups


@pytest.fixture
async def made(source, target: Path) -> Path:
    """Two backups, with a tail each."""
    await backups.create(source, target)
    await backups.append(source, 2)
    await backups.create(source, target)
    return target


def found(target: Path) -> str:
    """What is wrong with the directory, without the passphrase."""
    try:
        return "\n".join(backups.wrong(backups.verify(target, None)))
    except BrokerError as error:
        return str(error)


def name_of(path: str) -> str:
    """How a file is named: a manifest's signature stands beside it and is looked at with it."""
    return path.replace(layout.SIGNATURE, layout.MANIFEST)


def test_every_file_changed(made: Path) -> None:
    """⚠ Any byte of any file: first, last, one in the middle."""
    assert found(made) == ""
    for path in Repository(made).files():
        content = (made / path).read_bytes()
        for at in {0, len(content) // 2, len(content) - 1}:
            (made / path).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert name_of(path) in found(made), (path, at)
        (made / path).write_bytes(content + b"\n")
        assert name_of(path) in found(made), path
        (made / path).write_bytes(content)
    assert found(made) == ""


def test_every_file_missing(made: Path) -> None:
    """⚠ Whichever file is gone is named; with a manifest, all that it had listed."""
    for path in Repository(made).files():
        shutil.move(made / path, made.parent / "aside")
        told = found(made)
        if path.endswith(layout.MANIFEST):
            # Without it there is no such backup; what was its own belongs to none.
            report = backups.verify(made, None)
            assert len(report.backups) == 1
            assert any(str(Path(path).parent) in each for each in report.interrupted)
        elif path.startswith("keys/"):
            assert "keys/" in told
        else:
            assert name_of(path) in told or path in told, path
        shutil.move(made.parent / "aside", made / path)
    assert found(made) == ""


def test_a_backup_removed_by_hand(made: Path) -> None:
    """⚠ The newest one taken away: the one before is whole, and opened by the keys that are there."""
    newest = Repository(made).chosen(None)
    shutil.rmtree(made / layout.folder_of(newest))
    report = backups.verify(made)
    assert (report.ok, report.opened, report.keys_listed, len(report.backups)) == (True, True, False, 1)
    assert not backups.verify(made, None).keys_listed
    (made / layout.keys_path(newest)).write_bytes(b"x")
    assert layout.keys_path(newest) in "".join(backups.wrong(backups.verify(made)))


def test_files_that_belong_to_no_backup(made: Path) -> None:
    """Named, wherever they lie; a backup beside them is whole all the same."""
    for path in ("letter.txt", "segments/0/0000000/../../x.zst", "keys/keyring", "backups/x/manifest.json"):
        extra = (made / path).resolve()
        extra.parent.mkdir(exist_ok=True)
        extra.write_bytes(b"x")
        report = backups.verify(made)
        assert report.unlisted == [extra.relative_to(made.resolve()).as_posix()]
        assert not report.ok
        assert [one.problems for one in report.backups] == [[], []]
        extra.unlink()
    shutil.rmtree(made / "backups/x")
    assert backups.verify(made).ok


def test_segments_that_changed_places(made: Path) -> None:
    """⚠ Two segments swapped, or one put in another's place: both names tell."""
    one, other = [path for path in Repository(made).files() if path.startswith("segments/0/")][:2]
    contents = (made / one).read_bytes(), (made / other).read_bytes()
    (made / one).write_bytes(contents[1])
    (made / other).write_bytes(contents[0])
    told = found(made)
    assert one in told
    assert other in told


async def test_who_signed(made: Path, source) -> None:
    """⚠ A manifest that somebody else signed is whole by its own word only; key and passphrase tell the difference."""
    repository = Repository(made)
    name = repository.chosen(None)
    own = source.signer.public.hex()
    assert not backups.verify(made, None).proved
    assert backups.verify(made, None, {own}).proved
    assert backups.verify(made).proved
    forger = Ed25519PrivateKey.generate()
    manifest = repository.get(f"{layout.folder_of(name)}/{layout.MANIFEST}")
    forged = manifest.replace(own.encode(), forger.public_key().public_bytes_raw().hex().encode())
    folder = made / layout.folder_of(name)
    (folder / layout.MANIFEST).write_bytes(forged)
    (folder / layout.SIGNATURE).write_bytes(forger.sign(layout.signed(forged)).hex().encode())
    assert backups.verify(made, None).ok
    for report in (backups.verify(made, None, {own}), backups.verify(made)):
        assert not report.ok
        assert "none of this log's" in backups.wrong(report)[0]
    # Nothing is built on it: the next backup begins from the one before.
    await backups.create(source, made)
    assert [bool(one.problems) for one in backups.verify(made).backups] == [False, True, False]


def test_passphrases(made: Path) -> None:
    """With the right one the keys are opened, with another one that is said; nothing there to open is damage."""
    assert backups.verify(made).opened
    with pytest.raises(WrongPassphrase):
        backups.verify(made, "another")
    shutil.rmtree(made / "keys")
    assert any("keys/" in each for each in backups.wrong(backups.verify(made)))


def test_no_backups(tmp_path: Path) -> None:
    """A directory without any, and one that is not there, say so."""
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BackupDamaged, match=layout.MARKER):
            backups.verify(path)
