"""A log with an installation around it, to be backed up; and what a backup has of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from broker import preparation
from broker.events import positions
from broker.events.archive import segments, storage
from broker.events.archive.archiver import Archiver
from broker.events.archive.segments import Entry
from broker.events.archive.store import StreamArchive
from broker.events.backup import layout
from broker.events.backup.creating import Creation, Made, Source
from broker.events.backup.repository import Repository
from broker.events.backup.streams import manifests_of
from broker.events.backup.verifying import Report, Verification
from broker.events.digests_key import DigestKey
from broker.events.feed import Feed
from broker.events.keys import ARCHIVE_GROUP
from broker.preparation import Tools
from broker.settings import Settings
from support import archives, histories
from support.waiting import wait_until

PASSPHRASE = "correct horse battery staple"


def settings_of(redis_url: str, directory: Path, log_name: str) -> Settings:
    """Of an installation in a directory."""
    return Settings(
        data_dir=directory,
        certs_dir=directory / "certs",
        redis_url=redis_url,
        log_name=log_name,
        partitions=2,
        archive_segment_mb=1,
    )


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Tools, Source]]:
    """The log of an installation that was prepared."""
    async with preparation.opened(settings) as tools:
        yield (
            tools,
            Source(
                settings,
                tools.redis,
                tools.keys,
                tools.identity,
                storage.opened(settings),
                DigestKey.open(settings, tools.keyring),
            ),
        )


async def create(
    source: Source, target: Path, passphrase: str = PASSPHRASE, *, keys: Path | None = None, **options: object
) -> Made:
    """A backup."""
    return await Creation(source, Repository(target, keys), passphrase, actor="system").run(**options)


def verify(target: Path, passphrase: str | None = PASSPHRASE, trusted: set[str] | None = None) -> Report:
    """What a verification finds."""
    return Verification(Repository(target), trusted, passphrase).run()


def wrong(report: Report) -> list[str]:
    """All that is wrong, wherever it stands."""
    return [*report.problems, *report.unlisted, *(each for one in report.backups for each in one.problems)]


def archivers(source: Source, limits: archives.Limits = archives.SMALL) -> list[Archiver]:
    """One for each stream."""
    return [
        Archiver(
            Feed(
                source.redis,
                stream,
                source.identity.incarnations[stream.stream],
                "a1",
                2.0,
                group=ARCHIVE_GROUP,
                lease=stream.archive_lease,
            ),
            StreamArchive(source.storage, source.identity.log_id, stream.stream),
            limits,
        )
        for stream in source.keys.streams
    ]


async def archive_all(source: Source) -> None:
    """Seal all there is."""

    async def sealed() -> bool:
        for stream in source.keys.streams:
            newest = StreamArchive(source.storage, source.identity.log_id, stream.stream).last()
            last = await source.redis.xrevrange(stream.events, count=1)
            if last and (newest is None or newest.last != last[0][0].decode()):
                return False
        return True

    async with archives.running(*archivers(source)):
        await wait_until(sealed)


async def append(source: Source, count: int) -> None:
    """Messages submitted and delivered, in every partition."""
    for partition in source.keys.partitions:
        await histories.append(source.redis, partition, histories.happy(count, partition.number))


async def whole(source: Source, stream: str) -> list[Entry]:
    """All that a stream ever had."""
    keys = next(each for each in source.keys.streams if each.stream == stream)
    archive = StreamArchive(source.storage, source.identity.log_id, stream)
    found: list[Entry] = []
    from broker.events.archive.reader import history

    incarnation = source.identity.incarnations[stream]
    async for block in history(archive, source.redis, keys, incarnation, positions.start(stream)):
        found += block
    return found


def held(target: Path, name: str | None = None) -> dict[str, list[Entry]]:
    """Every event that a backup has, by stream."""
    repository = Repository(target)
    name = repository.chosen(name)
    snapshot = repository.snapshot(name)
    found: dict[str, list[Entry]] = {}
    for stream, part in snapshot.streams.items():
        paths = [(layout.segment_path(each), each) for each in manifests_of(repository, part)]
        paths += [(layout.tail_path(name, each), each) for each in part.tail]
        found[stream] = [
            entry
            for path, manifest in paths
            for block in segments.unpack(manifest, repository.get(path))
            for entry in block
        ]
    return found


def spawn(settings: Settings, target: Path) -> subprocess.Popen[bytes]:
    """Create one backup after another in another process, for ever."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "support.backups",
            settings.redis_url or "",
            str(settings.data_dir),
            settings.log_name,
            str(target),
        ],
        cwd=Path(__file__).parents[1],
    )


async def main(redis_url: str, directory: str, log_name: str, target: str) -> None:
    """Make one backup after another."""
    async with opened(settings_of(redis_url, Path(directory), log_name)) as (_, source):
        while True:
            await create(source, Path(target))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
