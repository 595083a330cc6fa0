"""What a backup has, what the next one adds, and what is never in one."""

from __future__ import annotations

import asyncio
import shutil

import msgspec
import pytest

from broker.errors import Conflict
from broker.events import positions
from broker.events.archive.store import StreamArchive
from broker.events.backup import bundle, layout, sealing, streams
from broker.events.backup.layout import BackupError
from broker.events.backup.repository import Repository
from broker.events.backup.verifying import Verification
from support import archives, backups


async def test_everything_appended_before_it_began(source, target) -> None:
    """Every event of every stream, archived or not, in order, up to the position that the backup names."""
    before = {stream.stream: await backups.whole(source, stream.stream) for stream in source.keys.streams}
    made = await backups.create(source, target)
    found = backups.held(target)
    for stream, entries in before.items():
        assert archives.same(found[stream][: len(entries)], entries), stream
        part = made.snapshot.streams[stream]
        assert part.events == len(found[stream])
        assert positions.at(stream, part.position) == found[stream][-1].position
    # That it was made is in it.
    assert len(found["access"]) == len(before["access"]) + 1
    assert found["access"][-1].tag == "HistoryExported"
    assert backups.verify(target).ok


async def test_the_next_one_adds_what_is_new(source, target) -> None:
    """⚠ A segment is copied once; what was in no segment yet is in the next backup's segments, and both are whole."""
    first = await backups.create(source, target)
    assert first.snapshot.streams["0"].tail
    there = {path for path in Repository(target).files() if path.startswith("segments/0/")}
    assert there
    await backups.append(source, 5)
    await backups.archive_all(source)
    second = await backups.create(source, target)
    assert second.snapshot.streams["0"].tail == []
    assert second.written < first.written
    now = {path for path in Repository(target).files() if path.startswith("segments/0/")}
    assert there < now
    report = backups.verify(target)
    assert report.ok
    assert [one.name for one in report.backups] == [first.snapshot.name, second.snapshot.name]
    # The older one has what it had.
    assert len(backups.held(target, first.snapshot.name)["0"]) == first.snapshot.streams["0"].events
    assert archives.same(backups.held(target)["0"], await backups.whole(source, "0"))


async def test_an_archive_that_went_another_way(source, target, tmp_path) -> None:
    """⚠ After a restore of an older backup the archive says other things from some number on: so does the next one."""
    await backups.archive_all(source)
    first = await backups.create(source, target)
    other = tmp_path / "other"
    shutil.copytree(source.storage.root, other)
    base = other / source.identity.log_id / "0"
    manifests = sorted(base.glob("*/*.json"))
    assert len(manifests) > 2
    for path in (*manifests[2:], *(each.with_suffix(".zst") for each in manifests[2:])):
        path.unlink()
    there = msgspec.structs.replace(source, storage=type(source.storage)(other))
    second = await backups.create(there, target)
    assert len(backups.held(target)["0"]) == second.snapshot.streams["0"].events
    assert second.snapshot.streams["0"].tail
    assert archives.same(backups.held(target)["0"], backups.held(target, first.snapshot.name)["0"])
    assert backups.verify(target).ok


async def test_nothing_readable_without_the_passphrase(log, target) -> None:
    """⚠ No key, no password, nothing that opens one, in any file of a backup; all of it under the passphrase."""
    tools, source = log
    await backups.create(source, target)
    content = b"".join((target / path).read_bytes() for path in Repository(target).files())
    assert b"PRIVATE KEY" not in content
    password = (source.settings.data_dir / "admin-password").read_bytes().strip()
    wrapped = await tools.redis.hget(tools.keys.control.client_keys, "demo")
    for secret in (password, tools.keyring.index_key, wrapped):
        assert secret not in content
    assert b"index_key" not in content
    repository = Repository(target)
    opened = bundle.unseal(repository.get(repository.keys()), backups.PASSPHRASE, source.identity.log_id)
    assert opened.client_keys["demo"] == wrapped
    assert {"keys/keyring", "certs/ca.key", "certs/services/gateway.key", "admin-password"} <= set(
        opened.files
    )
    assert opened.signers == [source.signer.public.hex()]
    for path in Repository(target).files():
        assert (target / path).stat().st_mode & 0o077 == 0, path


async def test_destroyed_keys_leave_every_backup(log, target) -> None:
    """⚠ A client that was erased has no key in any backup of the directory once the next one is made."""
    tools, source = log
    await tools.clients.register_client("leaving", actor="system")
    await backups.create(source, target)
    await tools.clients.erase_client("leaving", "asked for", actor="system")
    made = await backups.create(source, target)
    repository = Repository(target)
    assert [path for path in repository.files() if path.startswith("keys/")] == [made.snapshot.keys]
    opened = bundle.unseal(repository.get(repository.keys()), backups.PASSPHRASE, source.identity.log_id)
    assert "leaving" not in opened.client_keys
    assert "leaving" in opened.erased
    assert len(backups.verify(target).backups) == 2
    assert backups.verify(target).ok


async def test_keys_apart(source, target, tmp_path) -> None:
    """⚠ Keys in another directory are nowhere in this one; there, too, the next backup replaces them."""
    elsewhere = tmp_path / "keys"
    for _ in range(2):
        made = await backups.create(source, target, keys=elsewhere)
    assert not (target / "keys").exists()
    assert [path.name for path in elsewhere.iterdir()] == [f"{made.snapshot.name}.sealed"]
    whole = Verification(Repository(target, elsewhere), None, backups.PASSPHRASE).run()
    assert (whole.ok, whole.opened) == (True, True)
    assert backups.wrong(backups.verify(target))[0].startswith("keys/ holds no keys")
    identity = msgspec.structs.replace(source.identity, log_id="f" * 32)
    with pytest.raises(Conflict, match="holds the keys of another log"):
        await backups.create(
            msgspec.structs.replace(source, identity=identity), tmp_path / "x", keys=elsewhere
        )
    await backups.create(source, tmp_path / "both")
    with pytest.raises(Conflict, match="There are keys in"):
        await backups.create(source, tmp_path / "both", keys=elsewhere)


async def test_passphrases(source, target) -> None:
    """⚠ A mistyped passphrase replaces no keys; a new one is taken when that is said, for all backups there."""
    first = await backups.create(source, target)
    with pytest.raises(sealing.WrongPassphrase):
        await backups.create(source, target, "another")
    with pytest.raises(sealing.WrongPassphrase):
        backups.verify(target, "another")
    assert Repository(target).names() == [first.snapshot.name]
    await backups.create(source, target, "another", new_passphrase=True)
    report = backups.verify(target, "another")
    assert (report.ok, report.opened, len(report.backups)) == (True, True, 2)


async def test_only_so_many_are_kept(source, target) -> None:
    """Older backups go with what only they had; segments that others need stay."""
    for _ in range(3):
        await backups.append(source, 1)
        made = await backups.create(source, target, keep=2)
    repository = Repository(target)
    assert len(made.removed) == 1
    assert [layout.number_of(name) for name in repository.names()] == [2, 3]
    assert not (target / layout.folder_of(made.removed[0])).exists()
    assert backups.verify(target).ok
    assert backups.verify(target).interrupted == []


async def test_wrong_targets(source, target, tmp_path) -> None:
    """A directory with something else in it, and one with backups of another log, are left alone."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("Dear")
    with pytest.raises(Conflict, match="not empty"):
        await backups.create(source, full)
    assert [path.name for path in full.iterdir() if not path.name.startswith(".")] == ["letter.txt"]
    await backups.create(source, target)
    identity = msgspec.structs.replace(source.identity, log_id="f" * 32)
    with pytest.raises(Conflict, match="another log"):
        await backups.create(msgspec.structs.replace(source, identity=identity), target)
    with pytest.raises(BackupError, match=r"letter\.txt"):
        await backups.create(source, full / "letter.txt" / "target")


async def test_keys_that_are_elsewhere(source, target, tmp_path) -> None:
    """⚠ A machine without the CA's key does not take it from the backups that have it."""
    await backups.create(source, target)
    lesser = msgspec.structs.replace(source.settings, ca_key=tmp_path / "nowhere" / "ca.key")
    (source.settings.certs_dir / "ca.key").rename(tmp_path / "ca.key")
    try:
        with pytest.raises(BackupError, match=r"certs/ca\.key: in the backups"):
            await backups.create(msgspec.structs.replace(source, settings=lesser), target)
    finally:
        (tmp_path / "ca.key").rename(source.settings.certs_dir / "ca.key")
    report = backups.verify(target)
    assert (len(report.backups), report.ok) == (1, True)


async def test_a_stream_that_redis_holds_nothing_of(source, target) -> None:
    """⚠ What is archived after the end was noted is not taken: its client may be none of the backup's."""
    await backups.append(source, 4)
    await backups.archive_all(source)
    keys = source.keys.partitions[0]
    archive = StreamArchive(source.storage, source.identity.log_id, keys.stream)
    manifests = archives.manifests(archive)
    noted = streams.End(None, manifests[-2].end, 0, 0)
    backup = streams.StreamBackup(
        Repository(target), archive, "x", "inc", size=1000, on_events=lambda _: None
    )
    part = await backup.take(source.redis, keys, noted, None)
    assert (part.position, part.tail) == (manifests[-2].last, [])


async def test_two_at_once(source, target) -> None:
    """Two into one directory at the same time take turns: two backups, both whole."""
    made = await asyncio.gather(backups.create(source, target), backups.create(source, target))
    assert {one.snapshot.name for one in made} == set(Repository(target).names())
    assert backups.verify(target).ok


async def test_damaged_files_are_written_anew(source, target) -> None:
    """What bit rot took from the directory is brought back from the archive, when everything is copied again."""
    await backups.create(source, target)
    victim = next(path for path in Repository(target).files() if path.startswith("segments/0/"))
    (target / victim).write_bytes(b"\0" * (target / victim).stat().st_size)
    await backups.create(source, target)
    assert set(backups.wrong(backups.verify(target))) == {f"{victim} was changed."}
    await backups.create(source, target, full=True)
    assert backups.verify(target).ok
