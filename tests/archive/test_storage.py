"""One contract for every storage, run on a directory and on a bucket; and what each does about trouble."""

from __future__ import annotations

import resource
import secrets

import pytest

from broker.errors import SettingsError
from broker.events.archive import storage
from broker.events.archive.storage import ArchiveUnavailable, BucketStorage, LocalStorage
from broker.settings import Settings
from support import buckets


@pytest.fixture(params=["directory", "s3", "memory"])
def place(request, tmp_path):
    """An empty storage of each kind."""
    if request.param == "directory":
        return LocalStorage(tmp_path / "archive")
    if request.param == "s3":
        request.getfixturevalue("s3")
        return BucketStorage(buckets.Bucket().url)
    return BucketStorage(f"memory://bucket-{secrets.token_hex(4)}/archive")


def test_what_was_put_is_there(place):
    """Contents come back as they were, names are listed in order, folders too."""
    place.put("log/0/0000000/b", b"two\0")
    place.put("log/0/0000000/a", b"")
    assert place.get("log/0/0000000/b") == b"two\0"
    assert place.get("log/0/0000000/a") == b""
    assert place.names("log/0/0000000") == ["a", "b"]
    assert place.names("log/0") == ["0000000"]
    assert place.names("") == ["log"]


def test_what_is_not_there(place):
    """Neither an error nor a guess."""
    assert place.get("log/0/none") is None
    assert place.names("log/1") == []
    place.remove("log/0/none")


def test_putting_the_same_again_is_no_error(place):
    """The answer to the first time may have been lost."""
    for _ in range(2):
        place.put("log/0/a", b"same")
    assert place.get("log/0/a") == b"same"


def test_removed_is_gone(place):
    """And only that."""
    place.put("log/a", b"1")
    place.put("log/b", b"2")
    place.remove("log/a")
    assert place.names("log") == ["b"]


@pytest.mark.parametrize("place", ["s3", "memory"], indirect=True)
def test_a_bucket_s_object_is_never_overwritten(place):
    """⚠ The put is conditional: another content under the name stays, and the writer is told."""
    place.put("a", b"first")
    with pytest.raises(ArchiveUnavailable, match="another content"):
        place.put("a", b"second")
    assert place.get("a") == b"first"


def test_a_bucket_that_stored_and_says_no():
    """⚠ The reply was lost and the client's own next try refused, by whatever error: it is there, so all is well."""
    place, client = buckets.unsteady()
    client.mode = "unheard"
    place.put("a", b"first")
    place.put("a", b"first")
    with pytest.raises(ArchiveUnavailable, match="another content"):
        place.put("a", b"second")
    assert (place.get("a"), client.refused) == (b"first", 3)


def test_a_bucket_that_refuses():
    """Nothing is there, and the error is the bucket's."""
    place, client = buckets.unsteady()
    client.mode = "refuse"
    with pytest.raises(ArchiveUnavailable, match="PermissionError: Access Denied"):
        place.put("a", b"first")
    assert place.get("a") is None


@pytest.fixture
def full_disk():
    """No file of this process can grow beyond 1000 bytes: a write breaks off in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_breaks_off_leaves_nothing(full_disk, tmp_path):
    """⚠ A full disk: no file, no part of one, the reason in the error; what was there stays."""
    place = LocalStorage(tmp_path)
    place.put("log/small", b"x" * 900)
    with pytest.raises(ArchiveUnavailable, match="File too large"):
        place.put("log/large", b"x" * 5000)
    assert place.names("log") == ["small"]


def test_a_directory_that_cannot_be_used(tmp_path):
    """A file in the place of the directory, for one: the error names the place."""
    (tmp_path / "archive").write_bytes(b"")
    place = LocalStorage(tmp_path / "archive")
    for act in (lambda: place.put("log/a", b""), lambda: place.names("log"), lambda: place.get("log/a")):
        with pytest.raises(ArchiveUnavailable, match=r"archive: (Not a directory|File exists)"):
            act()


def test_the_setting_says_where(tmp_path):
    """A path, a file:// address, any scheme that fsspec knows; `archive` in the data directory by default."""
    assert storage.opened(Settings(data_dir=tmp_path)).root == tmp_path / "archive"
    assert storage.opened(Settings(archive_url=str(tmp_path))).root == tmp_path
    assert storage.opened(Settings(archive_url=f"file://{tmp_path}")).root == tmp_path
    assert isinstance(storage.opened(Settings(archive_url="memory://x/y")), BucketStorage)


@pytest.mark.parametrize(
    ("url", "says"), [("gs://bucket/x", "needs the package gcsfs"), ("nothing://x", "not known")]
)
def test_a_scheme_that_is_not_there_is_refused_at_once(url, says):
    """With the package to install where one is known; never later, when there is something to archive."""
    with pytest.raises(SettingsError, match=says):
        storage.opened(Settings(archive_url=url))


def test_secrets_of_the_address_are_not_shown():
    """Neither in errors nor in what is logged."""
    place = BucketStorage("memory://user:secret@bucket/x")
    assert "secret" not in place.shown


def test_nothing_half_written_is_listed_as_a_file(tmp_path, monkeypatch):
    """⚠ A crash before the rename leaves a file whose name begins with a dot."""
    place = LocalStorage(tmp_path)

    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", crash)
    monkeypatch.setattr("pathlib.Path.unlink", crash)
    with pytest.raises(KeyboardInterrupt):
        place.put("log/0000000001-e1.json", b"x")
    [left] = place.names("log")
    assert left.startswith(".0000000001-e1.json.")
