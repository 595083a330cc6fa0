"""Digests: signed, chained, one a number, one an hour; and what reads history by them."""

from __future__ import annotations

import asyncio
import stat

import msgspec
import pytest
from prometheus_client import REGISTRY

from broker import clock
from broker.errors import LogRefused
from broker.events import digests, digests_making, exported_verifier, merkle
from broker.events.archive.archiver import Archiver
from broker.events.archive.reader import HistoryGap
from broker.events.archive.segments import Segment, encode_manifest
from broker.events.archive.storage import LocalStorage
from broker.events.archive.store import StreamArchive
from broker.events.archive.verification import verify as check_archive
from broker.events.digests import DigestInvalid
from broker.events.digests_key import DigestKey, DigestKeyError
from broker.events.digests_making import Digester
from broker.events.exported_check import checked
from broker.events.exported_walk import Filter, HistoryAltered
from broker.events.feed import Feed
from broker.events.keys import ARCHIVE_GROUP
from broker.events.positions import parse, start
from broker.services.projector.digesting import Digesting
from support import archives, histories
from support.audits import Audited, lines, verify
from support.waiting import wait_until


async def test_a_digest_vouches_for_every_stream(audited: Audited) -> None:
    """Last event, count, head of the chain and Merkle root of each; the next names the hash of this one."""
    await audited.lived()
    first, second = digests.chained(await audited.signed())
    assert first.streams.keys() == {"0", "1", "control", "access"}
    assert (first.streams["0"].events, second.streams["0"].events) == (9, 18)
    assert second.streams["0"].covered == 9
    found = [line for line in lines(await audited.export()) if line["stream"] == "0"]
    assert second.streams["0"].head == found[-1]["hash"]
    assert second.streams["0"].end("0") == parse(found[-1]["id"])
    newest = merkle.Tree([bytes.fromhex(line["hash"]) for line in found[9:]])
    assert second.streams["0"].root == newest.root.hex()


async def test_nothing_new_needs_no_digest(audited: Audited) -> None:
    """Asked again with nothing but digests since, the newest is given; it stands in the registry and on control."""
    await audited.lived(rounds=1)
    again = await audited.digester.make()
    assert again.number == 1
    assert len(await audited.signed()) == 1
    assert await audited.digester.newest() == msgspec.structs.replace(again, position=None)


async def test_a_large_step_is_several_digests(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    """No digest adds more events of a stream than a proof can hold; they follow at once, and prove the same."""
    monkeypatch.setattr(digests, "MAX_COVERED", 7)
    await audited.append("0", histories.happy(10))
    made = await audited.digester.make()
    assert made.number == 5
    assert [digest.streams["0"].covered for digest in digests.chained(await audited.signed())] == [
        7,
        7,
        7,
        7,
        2,
    ]
    for wanted in (Filter(), Filter(types=("Delivered",))):
        report = verify(lines(await audited.export(wanted)), await audited.digest_lines(), audited.key.public)
        assert report["events"] >= 10


async def test_many_at_once_make_one_chain(audited: Audited) -> None:
    """Ten processes that make digests at once, of a log that grows: one digest a number, none lost, all valid."""
    makers = [
        Digester(audited.registry, audited.source, audited.key, audited.identity.log_id) for _ in range(10)
    ]

    async def work(maker: Digester) -> None:
        for _ in range(3):
            await audited.append("0", histories.happy(1))
            await maker.make()

    await asyncio.gather(*map(work, makers))
    known = digests.chained(await audited.signed())
    assert known[-1].streams["0"].events == 90
    verify(lines(await audited.export()), await audited.digest_lines(), audited.key.public)


async def test_one_an_hour(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many projectors look, and however often, an hour has one digest; the next hour the next."""
    parts = {name: getattr(audited, name) for name in ("redis", "keys", "identity", "keyring")}
    looking = [Digesting(audited.settings, **parts, interval=0.01) for _ in range(3)]
    at = clock.now_ms() // 3_600_000 * 3_600_000

    def now() -> int:
        return at

    monkeypatch.setattr(clock, "now_ms", now)
    stop = asyncio.Event()
    tasks = [asyncio.create_task(each.run(stop)) for each in looking]
    for hour in range(1, 4):

        async def there(hour: int = hour) -> bool:
            return len(await audited.signed()) == hour

        await wait_until(there)
        for each in looking:
            assert await each.look() is None
        assert await there()
        at += 3_600_000
    stop.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_age_grows_while_none_can_be_made(
    audited: Audited, monkeypatch: pytest.MonkeyPatch, *, restarted: bool
) -> None:
    """The alert waits for it; also where the projector was started anew since."""
    parts = {name: getattr(audited, name) for name in ("redis", "keys", "identity", "keyring")}
    looking = Digesting(audited.settings, **parts)
    made = await looking.look()
    assert made is not None
    (audited.directory / "keys" / "digest-key").unlink()
    later = clock.now_ms() + 3 * 3_600_000
    monkeypatch.setattr(clock, "now_ms", lambda: later)
    # It is opened again by a new one only: there another key is the reason, here another way to fail.
    if restarted:
        looking = Digesting(audited.settings, **parts)
    else:
        monkeypatch.setattr(Digester, "hourly", _unable)
    with pytest.raises(DigestKeyError):
        await looking.look()
    shown = (REGISTRY.get_sample_value(f"broker_digest_{name}") for name in ("age_seconds", "number"))
    assert tuple(shown) == ((later - clock.parse_iso(digests.read(made).at)) / 1000, made.number)


async def _unable(_digester: Digester) -> None:
    raise DigestKeyError("no key")


async def test_the_key_is_private_and_its_public_half_is_not(audited: Audited) -> None:
    """Sealed by the keyring, mode 0600; another process signs with the same; a damaged file is said to be."""
    path = audited.directory / "keys" / "digest-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((audited.directory / "certs" / "digests.pub").stat().st_mode) == 0o644
    again = DigestKey.open(audited.settings, audited.keyring)
    assert again.public == audited.key.public
    audited.keyring.activate(audited.keyring.add())
    assert DigestKey.open(audited.settings, audited.keyring).public == audited.key.public
    with pytest.raises(TypeError):
        __import__("copy").copy(again)
    path.chmod(0o644)
    with pytest.raises(DigestKeyError, match="chmod 600"):
        DigestKey.open(audited.settings, audited.keyring)
    path.chmod(0o600)
    path.write_bytes(b"{}")
    with pytest.raises(DigestKeyError, match="damaged"):
        DigestKey.open(audited.settings, audited.keyring)


async def test_another_key_does_not_go_on_by_itself(audited: Audited) -> None:
    """A lost or another machine's key signs nothing unless told to; both public halves stay to verify with."""
    await audited.lived(rounds=1)
    (audited.directory / "keys" / "digest-key").unlink()
    other = DigestKey.open(audited.settings, audited.keyring)
    digester = Digester(audited.registry, audited.source, other, audited.identity.log_id)
    for make in (digester.make, digester.make):
        with pytest.raises(DigestKeyError, match="--new-key"):
            await make()
    made = await digester.make(new_key=True)
    assert digests.read(made).key == other.public.hex()
    await digester.make()
    found, given = lines(await audited.export()), await audited.digest_lines()
    files = sorted((audited.directory / "certs").glob("digests*.pub"))
    keys = [exported_verifier.public_key(path.read_text()) for path in files]
    assert set(keys) == {audited.key.public, other.public}
    assert verify(found, given, *keys)["key_trusted"]
    with pytest.raises(exported_verifier.Bad, match="untrusted"):
        verify(found, given, other.public)


async def test_a_changed_newest_digest_is_refused(audited: Audited) -> None:
    """Who alters the registry's entry cannot make the next digest follow on it."""
    await audited.lived(rounds=1)

    async def put(newest: digests_making.Newest) -> None:
        value = b"9|" + msgspec.msgpack.encode(newest)
        await audited.redis.hset(audited.keys.control.registry, digests_making.FIELD, value)

    signed = (await audited.signed())[0]
    await put(digests_making.Newest(1, signed.body.replace('"events":9', '"events":8'), signed.signature))
    with pytest.raises(DigestInvalid):
        await audited.digester.make()


@pytest.mark.parametrize("harm", ["changed", "removed"])
@pytest.mark.parametrize("wanted", [Filter(), Filter(types=("Delivered",))], ids=["complete", "filtered"])
async def test_an_altered_history_is_not_exported(audited: Audited, harm: str, wanted: Filter) -> None:
    """An event changed or removed in Redis after a digest vouched for it stops an export, and is found live."""
    await audited.lived()
    keys = audited.keys.partitions[1]
    entries = await audited.redis.xrange(keys.events)
    ids = [entry for entry, _ in entries]
    async for _ in checked(audited.source, digests.chained(await audited.signed()), "1"):
        pass
    if harm == "removed":
        await audited.redis.xdel(keys.events, ids[4])
    else:
        await audited.redis.delete(keys.events)
        for entry, fields in entries:
            changed = fields | ({b"m": fields[b"m"].replace(b"w1", b"w2")} if entry == ids[4] else {})
            await audited.redis.xadd(keys.events, changed, id=entry)
    with pytest.raises((HistoryAltered, HistoryGap), match=r"(?i)stream 1"):
        await audited.export(wanted)
    with pytest.raises((HistoryAltered, HistoryGap), match=r"(?i)stream 1"):
        async for _ in checked(audited.source, digests.chained(await audited.signed()), "1"):
            pass


async def test_what_left_redis_is_exported_from_the_archive(audited: Audited) -> None:
    """After archiving and cutting, an export, a filtered one, a proof and the next digest are what they were."""
    await audited.lived()
    every, some = await audited.export(), await audited.export(Filter(types=("Delivered",)))
    keys = audited.keys.partitions[0]
    archived = StreamArchive(LocalStorage(audited.directory / "archive"), audited.identity.log_id, "0")
    feed = Feed(audited.redis, keys, "inc-0", "a1", 5.0, group=ARCHIVE_GROUP, lease=keys.archive_lease)
    archiver = Archiver(feed, archived, archives.SMALL)
    async with archives.running(archiver):
        await wait_until(lambda: archiver.status.sealed is not None and archiver.status.lag_events == 0)
    assert await audited.redis.xtrim(keys.events, maxlen=4, approximate=False) == 14
    assert await audited.export() == every
    assert await audited.export(Filter(types=("Delivered",))) == some
    known = digests.chained(await audited.signed())
    assert sum([len(block) async for block in checked(audited.source, known, "0")]) == 18
    first = lines(every)[0]
    assert (await (await audited.walk()).proof(parse(first["id"]))).hash == first["hash"]
    await audited.append("0", histories.happy(2))
    await audited.digester.make()
    report = verify(lines(await audited.export()), await audited.digest_lines(), audited.key.public)
    assert report["streams"]["0"] == 24


async def test_a_segment_that_was_changed_is_not_exported(audited: Audited) -> None:
    """A segment rewritten with a manifest that fits it passes the archive's own check, and not the digest's."""
    await audited.lived()
    keys = audited.keys.partitions[0]
    where = LocalStorage(audited.directory / "archive")
    archived = StreamArchive(where, audited.identity.log_id, "0")
    feed = Feed(audited.redis, keys, "inc-0", "a1", 5.0, group=ARCHIVE_GROUP, lease=keys.archive_lease)
    archiver = Archiver(feed, archived, archives.SMALL)
    async with archives.running(archiver):
        await wait_until(lambda: archiver.status.sealed is not None and archiver.status.lag_events == 0)
    await audited.redis.xtrim(keys.events, maxlen=0, approximate=False)
    last = archives.manifests(archived)[-1]
    segment = Segment("0")
    for block in archived.read(last):
        segment.add([msgspec.structs.replace(entry, envelope=entry.envelope + b"\x00") for entry in block])
    content, digest = segment.pack()
    where.put(f"{archived.base}/{last.file}", content)
    forged = msgspec.structs.replace(last, sha256=digest, bytes=len(content), plain_bytes=segment.size)
    where.put(f"{archived.base}/{last.name}", encode_manifest(forged))
    assert check_archive(archived).damage is None
    with pytest.raises(HistoryAltered):
        await audited.export()


async def test_one_event_is_proved(audited: Audited) -> None:
    """Any event that a digest covers comes with a path to its root; what none covers, or is not there, does not."""
    await audited.lived()
    walk = await audited.walk()
    for line in lines(await audited.export())[::5]:
        found = await walk.proof(parse(line["id"]))
        shown = msgspec.json.decode(msgspec.json.encode(found))
        report = verify([shown], await audited.digest_lines(), audited.key.public)
        assert (report["complete"], report["events"]) == (False, 1)
    assert await walk.proof(start("0")) is None
    assert await walk.proof(parse("0:1-0")) is None
    assert await walk.proof(parse("nowhere:1-0")) is None
    assert await walk.proof((await audited.signed())[-1].position) is None


async def test_filters(audited: Audited) -> None:
    """Type, client, subject, actor and time choose; all together too; `after` goes on where a reader was."""
    await audited.lived()
    every = lines(await audited.export())

    async def ids(wanted: Filter) -> list[str]:
        found = lines(await audited.export(wanted))
        verify(found, await audited.digest_lines(), audited.key.public, filtered=True)
        return [line["id"] for line in found]

    def those(**fields: object) -> list[str]:
        return [line["id"] for line in every if all(line[name] == value for name, value in fields.items())]

    message = every[0]["subject"]
    assert await ids(Filter(types=("Delivered",))) == those(type="Delivered")
    assert await ids(Filter(subject=message)) == those(subject=message)
    assert await ids(Filter(subject="user:7")) == those(subject="user:7")
    assert await ids(Filter(actor="user:7")) == those(actor="user:7")
    assert await ids(Filter(client_id="demo", actor="worker:w1")) == those(actor="worker:w1")
    assert await ids(Filter(client_id="nobody")) == []
    for conversation in {line["correlation_id"] for line in every} - {None}:
        assert await ids(Filter(correlation_id=conversation)) == those(correlation_id=conversation)
    assert await ids(Filter(correlation_id="never")) == []
    at = clock.parse_iso(every[1]["at"])
    assert await ids(Filter(since=at, until=at + 1)) == those(at=every[1]["at"])
    assert await ids(Filter(since=at + 3_600_000 * 24 * 9000)) == []
    rest = lines(await audited.export(after=parse(every[20]["id"])))
    assert rest == every[21:]


async def test_a_lost_log_makes_no_digest(audited: Audited) -> None:
    """An emptied Redis is refused, and gets no digest that vouches for nothing."""
    await audited.lived(rounds=1)
    await audited.redis.delete(*[stream.meta for stream in audited.keys.streams])
    with pytest.raises(LogRefused):
        await audited.digester.make()
