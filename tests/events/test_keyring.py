"""The keyring file: private, whole, sealed, and silent about what it holds."""

from __future__ import annotations

import base64
import os
import pickle
import threading
import traceback
from pathlib import Path

import pytest

from broker.errors import Conflict, KeyUnavailable, Undecryptable
from broker.events import private_files
from broker.events.keyring import Keyring, KeyringError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keyring"


def secrets_of(ring: Keyring) -> list[bytes]:
    """Every key in every spelling in which it could leak."""
    raw = [ring.index_key, *(key.key for key in ring._contents.keys)]
    return [
        form for key in raw for form in (key.hex().encode(), base64.b64encode(key), repr(key)[2:-1].encode())
    ]


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_what_was_wrapped_is_unwrapped_after_a_restart(path, passphrase):
    """Creating, wrapping, loading again and unwrapping gives the same; the index key stays."""
    ring = Keyring.create(path, passphrase)
    key_id, wrapped = ring.wrap(b"secret", b"aad")
    again = Keyring.load(path, passphrase)
    assert again.unwrap(key_id, wrapped, b"aad") == b"secret"
    assert again.index_key == ring.index_key
    assert len(ring.index_key) == 32


def test_the_file_and_its_directory_are_private(path):
    """Mode 0600 in a 0700 directory, whatever the umask, and nothing is left beside it."""
    before = os.umask(0)
    try:
        Keyring.create(path).add()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {entry.name for entry in path.parent.iterdir()} == {"keyring", "keyring.lock"}


def test_a_second_creation_is_refused(path):
    """An existing keyring is never replaced."""
    first = Keyring.create(path)
    with pytest.raises(KeyringError, match="exists already"):
        Keyring.create(path)
    assert Keyring.load(path).active_id == first.active_id


def test_sealed_files_hold_no_key(path):
    """With a passphrase the file holds none of the keys; without, it does (so the check can fail)."""
    sealed = Keyring.create(path, "correct horse")
    content = path.read_bytes()
    assert not any(secret in content for secret in secrets_of(sealed))
    assert b"correct horse" not in content
    sealed.change_passphrase(None)
    assert any(secret in path.read_bytes() for secret in secrets_of(sealed))
    sealed.change_passphrase("another")
    with pytest.raises(KeyringError):
        Keyring.load(path, "correct horse")
    assert Keyring.load(path, "another").index_key == sealed.index_key


@pytest.mark.parametrize(
    ("made_with", "loaded_with", "says"),
    [
        ("right", "wrong", "passphrase is another one"),
        ("right", None, "BROKER_KEY_PASSPHRASE"),
        (None, "right", "not sealed"),
    ],
)
def test_another_passphrase_is_a_clear_error(path, made_with, loaded_with, says):
    """The error says what is wrong and quotes no passphrase."""
    Keyring.create(path, made_with)
    with pytest.raises(KeyringError, match=says) as caught:
        Keyring.load(path, loaded_with)
    assert "right" not in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_open_to_others_is_refused(path, mode):
    """The error names the command that closes it."""
    Keyring.create(path)
    path.chmod(mode)
    with pytest.raises(KeyringError, match=r"chmod 600"):
        Keyring.load(path)


def test_a_directory_that_others_can_write_to_is_refused(path):
    """Who can write there could put another file in place."""
    Keyring.create(path)
    path.parent.chmod(0o770)
    with pytest.raises(KeyringError, match=r"chmod 700"):
        Keyring.load(path)


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_every_truncation_and_a_missing_file_are_clear_errors(path, passphrase):
    """Whatever length is left: KeyringError, and no traceback holds a key."""
    ring = Keyring.create(path, passphrase)
    content = path.read_bytes()
    # Each sealed decoding costs an argon2id; a few lengths show it there.
    lengths = range(len(content) - 1) if passphrase is None else (0, 1, len(content) // 2, len(content) - 2)
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(KeyringError) as caught:
            Keyring.load(path, passphrase)
        text = "".join(traceback.format_exception(caught.value)).encode()
        assert not any(secret in text for secret in secrets_of(ring))
    path.unlink()
    with pytest.raises(KeyringError, match="does not exist"):
        Keyring.load(path, passphrase)


def test_a_changed_byte_of_a_sealed_file_is_noticed(path):
    """The ciphertext and the parameters of the derivation are authenticated."""
    Keyring.create(path, "correct horse")
    content = path.read_bytes()
    for old, new in ((b'"time_cost":3', b'"time_cost":2'), (b'"lanes":4', b'"lanes":2')):
        assert old in content
        path.write_bytes(content.replace(old, new))
        with pytest.raises(KeyringError):
            Keyring.load(path, "correct horse")


def test_keys_are_never_shown(path):
    """Not by repr, str, format, pickling or the errors of unwrapping."""
    ring = Keyring.create(path)
    key_id, wrapped = ring.wrap(b"x" * 32, b"aad")
    shown = [repr(ring), str(ring), f"{ring}", repr(ring._contents), repr(ring._contents.keys)]
    for attempt in (
        lambda: ring.unwrap(key_id, wrapped, b"other"),
        lambda: ring.unwrap("m-none", wrapped, b"aad"),
        lambda: ring.unwrap(key_id, b"short", b"aad"),
    ):
        with pytest.raises((Undecryptable, KeyUnavailable)) as caught:
            attempt()
        shown.append("".join(traceback.format_exception(caught.value)))
    with pytest.raises(TypeError):
        pickle.dumps(ring)
    assert not any(secret in text.encode() for secret in secrets_of(ring) for text in shown)


def test_rotation_added_active_retired_removed(path):
    """Others load the new key before it wraps; a retired one still unwraps; only a retired one can go."""
    ring, other = Keyring.create(path), Keyring.load(path)
    old_id, wrapped = ring.wrap(b"secret", b"")
    new_id = ring.add()
    assert ring.active_id == old_id
    assert other.reload_if_changed()
    assert other.states() == {old_id: "active", new_id: "added"}
    ring.activate(new_id)
    later = ring.wrap(b"later", b"")
    assert later[0] == new_id
    # `other` has not read the file again, yet it can unwrap already.
    assert other.unwrap(*later, b"") == b"later"
    assert ring.unwrap(old_id, wrapped, b"") == b"secret"
    with pytest.raises(Conflict):
        ring.remove(new_id)
    ring.remove(old_id)
    with pytest.raises(KeyUnavailable):
        ring.unwrap(old_id, wrapped, b"")
    with pytest.raises(KeyUnavailable):
        ring.activate("m-none")


def test_an_unchanged_file_is_not_read_again_and_a_damaged_one_keeps_the_keys(path):
    """A reload that fails raises and leaves what was loaded usable; the repaired file is read again."""
    ring = Keyring.create(path)
    key_id, wrapped = ring.wrap(b"secret", b"")
    content = path.read_bytes()
    assert not ring.reload_if_changed()
    private_files.write(path, content[:10])
    with pytest.raises(KeyringError):
        ring.reload_if_changed()
    assert ring.unwrap(key_id, wrapped, b"") == b"secret"
    private_files.write(path, content)
    assert ring.reload_if_changed()


def test_two_that_add_at_once_lose_no_key(path):
    """Changes take turns and start from what the file holds."""
    Keyring.create(path)
    rings = [Keyring.load(path) for _ in range(8)]
    threads = [threading.Thread(target=ring.add) for ring in rings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Keyring.load(path).states()) == 9


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    """A disk that is full at the flush: the keyring is as before and no half file lies about."""
    ring = Keyring.create(path)
    content = path.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyringError, match="No space left"):
        ring.add()
    monkeypatch.undo()
    assert path.read_bytes() == content
    assert {entry.name for entry in path.parent.iterdir()} == {"keyring", "keyring.lock"}
    assert len(ring.states()) == 1
