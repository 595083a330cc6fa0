"""Backups that break off: by a crash between any two writes, kill -9, a full disk, and while messages arrive."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path

import pytest

from broker.events import private_files
from broker.events.archive.trimming import Trimmer
from broker.events.backup.layout import BackupError
from broker.events.backup.repository import Repository
from support import archives, backups
from support.waiting import wait_until


class PowerCut(BaseException):
    """Nothing after it is written."""


async def test_a_crash_at_any_write(source, target, monkeypatch, tmp_path) -> None:
    """⚠ Before the first write, between them, after the last: no part of it counts, the one before stays whole, the next one tidies up."""
    await backups.create(source, target)
    await backups.append(source, 1)
    await backups.archive_all(source)
    await backups.append(source, 1)
    real, left = private_files.write, 0

    def write(path, content) -> None:
        nonlocal left
        if left == 0:
            # A draft of half of it stays.
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f".{path.name}.{'0' * 12}").write_bytes(content[: len(content) // 2])
            raise PowerCut
        left -= 1
        real(path, content)

    monkeypatch.setattr(private_files, "write", write)
    for writes in range(0, 1000, 3):
        copy = tmp_path / f"copy{writes}"
        shutil.copytree(target, copy)
        left = writes
        try:
            await backups.create(source, copy)
            break
        except PowerCut:
            report = backups.verify(copy)
            assert report.ok, writes
            assert len(report.backups) == 1, writes
            assert report.interrupted, writes
            if writes % 12 == 0:
                left = 1000
                await backups.create(source, copy)
                report = backups.verify(copy)
                assert (report.ok, len(report.backups), report.interrupted) == (True, 2, []), writes
            shutil.rmtree(copy)
    assert writes > 5
    assert len(backups.verify(copy).backups) == 2


def written(target: Path) -> int:
    """Files that are there, of whatever is being made, too."""
    return sum(len(files) for *_, files in os.walk(target))


async def test_kill_9(source, installation, target) -> None:
    """⚠ A process that makes one after another is killed: what counts is whole, and the next one tidies up."""
    process = backups.spawn(installation, target)
    await wait_until(lambda: len(Repository(target).names()) > 1)
    # Into the next one, of which some is written by then.
    begun = written(target)
    await wait_until(lambda: written(target) != begun)
    process.kill()
    process.wait()
    assert backups.verify(target).ok
    await backups.create(source, target)
    report = backups.verify(target)
    assert (report.ok, report.interrupted) == (True, [])


async def test_a_full_disk(source, target, monkeypatch) -> None:
    """⚠ It says that the disk is full, nothing half made counts, and with room again it goes on."""
    real, room = private_files.write, 4

    def write(path, content) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(private_files, "write", write)
    with pytest.raises(BackupError, match=r"No space left on device\. Free some space"):
        await backups.create(source, target)
    report = backups.verify(target)
    assert (report.backups, report.unlisted, report.ok) == ([], [], False)
    room = 1000
    await backups.create(source, target)
    assert backups.verify(target).ok


async def test_while_messages_arrive(source, target) -> None:
    """⚠ Appended, archived and trimmed all the while: each backup holds all from before it, in order, without a gap."""
    archivers = backups.archivers(source)
    for stream in source.keys.partitions:
        await source.redis.xgroup_create(stream.events, "delivery", "$", mkstream=True)
    stop = asyncio.Event()

    async def more() -> None:
        while not stop.is_set():
            await backups.append(source, 4)
            for stream in source.keys.partitions:
                await source.redis.xgroup_setid(stream.events, "delivery", "$")

    async def needs():
        return {}

    async with archives.running(*archivers):
        tasks = [asyncio.create_task(more()), asyncio.create_task(_trim(archivers, needs, stop))]
        known = {}
        for _ in range(3):
            before = {
                each.stream: (await source.redis.xinfo_stream(each.events)) for each in source.keys.streams
            }
            made = await backups.create(source, target)
            for stream, info in before.items():
                assert made.snapshot.streams[stream].events >= info["entries-added"], stream
            known[made.snapshot.name] = made.snapshot
        stop.set()
        await asyncio.gather(*tasks)
    assert backups.verify(target).ok
    for stream in source.keys.streams:
        everything = await backups.whole(source, stream.stream)
        for name, snapshot in known.items():
            count = snapshot.streams[stream.stream].events
            assert archives.same(backups.held(target, name)[stream.stream], everything[:count]), stream.stream
    assert await source.redis.xlen(source.keys.partitions[0].events) < count * 100
    for stream in source.keys.partitions:
        await source.redis.xgroup_destroy(stream.events, "delivery")


async def _trim(archivers, needs, stop: asyncio.Event) -> None:
    await Trimmer(archivers, needs, lambda: 0, interval=0.02).run(stop)
