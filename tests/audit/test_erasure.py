"""Erasing a client: nothing of it can be read any more, nothing waits, and every proof still holds."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from broker.domain import ids
from broker.errors import KeyErased, NotFound, Undecryptable
from broker.events import codec, digests, digests_making, exported_formats, key_copies, types
from broker.events.archive.storage import ArchiveUnavailable
from broker.events.client_commands import ClientCommands
from broker.events.control import Registry
from broker.events.erasure import Erasure, forget
from broker.events.exported_session import Exports
from broker.events.exported_walk import Filter
from broker.events.positions import Position
from broker.events.reopening import Reopening
from broker.events.sealing import ClientKeys, Sealer
from support import histories, log
from support.audits import lines, shown, verify
from support.reading import BODY, NUMBER, Reading
from support.waiting import wait_until


def reopening(world) -> Reopening:
    return Reopening(world.redis, world.keys, world.identity, outcomes_kept_ms=log.OUTCOMES_KEPT_MS)


@pytest.fixture
def erasure(world) -> Erasure:
    return Erasure(world.clients, world.registry, world.redis, world.keys, reopening(world))


async def test_nothing_can_be_read_and_everything_proved(world, erasure: Erasure) -> None:
    """The keys are gone for every process; the history is byte for byte what it was and verifies, before and after."""
    exports = Exports.of(world.settings, world.redis, world.keys, world.identity, world.keyring)
    async with world.server() as server:
        people = Reading(world, server, None)
        message_id = await people.register("demo")
        wrapped = await world.registry.client_keys("demo")
        sealer = Sealer(world.keyring, lambda name: ClientKeys.unwrap(name, wrapped, world.keyring))

        async def sealed() -> bytes:
            partition = world.keys.partitions[ids.partition(ids.parse(message_id))]
            [(_, fields)] = await log.history(world.redis, partition)
            return codec.decode("MessageSubmitted", fields[b"d"]).sealed

        assert sealer.unseal("demo", ids.parse(message_id), await sealed()).message_body == BODY
        before = await exported(exports)
        done = await erasure.erase("demo", "the contract ended", actor="user:7")
        assert (done.discarded, done.waiting, done.forgotten) == (0, 1, True)
        assert await world.registry.client_keys("demo") is None
        # The follower hears of it within its poll.
        await wait_until(lambda: server.trust.client("demo").status == "erased")
        with pytest.raises(KeyErased):
            server.trust.keys("demo")
        fresh = Sealer(world.keyring, ClientKeys.new)
        with pytest.raises(Undecryptable):
            fresh.unseal("demo", ids.parse(message_id), await sealed())
    after = await exported(exports)
    known = {line["id"] for line in before[0]}
    assert len(known) > 5
    assert [line for line in after[0] if line["id"] in known] == before[0]
    for found, given in (before, after):
        assert verify(found, given, exports_key(exports))["complete"]
    [erased] = [line for line in after[0] if line["type"] == "ClientErased"]
    assert (erased["actor"], erased["data"]) == (
        "user:7", {"client_id": "demo", "reason": "the contract ended"},
    )  # fmt: skip
    assert NUMBER not in str(after)


def exports_key(exports: Exports) -> bytes:
    return exports.digester._key.public


async def exported(exports: Exports) -> tuple[list[dict], list[dict]]:
    """Lines and digests of an export of everything."""
    begun = await exports.begin(Filter(), "jsonl", actor="system")
    made = exported_formats.named("jsonl")
    found = [line async for block in begun.walk.lines() for line in lines(made.encode(block))]
    return found, [shown(one) for one in begun.signed]


async def test_parked_messages_end(world, erasure: Erasure) -> None:
    """A parked message, which no worker would touch, ends as discarded with the reason; other clients' stay."""
    await world.producer("acme")
    parked = {}
    for client in ("demo", "acme"):
        draft = log.draft(0, client)
        event = types.MessageSubmitted(client, b"sealed", b"h" * 32)
        fact = histories.Fact(draft.message_id, event)
        [position] = await histories.append(world.redis, world.keys.partitions[0], [fact])
        record = f"{position.entry_id}|1|2|p|0|0||{client}|".encode() + b"\xc0"
        await world.redis.hset(world.keys.partitions[0].open, draft.message_id, record)
        parked[client] = draft.message_id
    done = await erasure.erase("demo", "asked for", actor="system")
    assert (done.discarded, done.waiting) == (1, 0)
    [last] = [
        codec.decode(tag, fields[b"d"])
        for tag, fields in await log.history(world.redis, world.keys.partitions[0])
        if tag == "MessageDiscarded"
    ]
    assert last == types.MessageDiscarded("demo", 1, 2, "the client was erased")
    assert await world.redis.hkeys(world.keys.partitions[0].open) == [parked["acme"]]


async def test_an_interrupted_erasure_is_completed(world, erasure: Erasure) -> None:
    """Once more is no error, and does what was left; one event says that it happened. An unknown client is one."""
    await erasure.erase("demo", "first", actor="system")
    again = await erasure.erase("demo", "second", actor="system")
    assert again.positions == ()
    assert (await log.tags(world.redis, world.keys.control)).count("ClientErased") == 1
    with pytest.raises(NotFound):
        await erasure.erase("nobody", "x", actor="system")


class Away:
    """A storage that cannot be reached."""

    shown = "away"

    def names(self, _folder: str) -> list[str]:
        raise ArchiveUnavailable("away")


async def test_copies_go_at_once(world) -> None:
    """⚠ Redis lost before an archiver had read of it: no copy brings the keys back. Unreachable ones are told of."""
    copies = key_copies.opened(world.settings, world.identity.log_id)
    parts = world.clients, world.registry, world.redis, world.keys, reopening(world)
    for client in ("acme", "other"):
        await world.clients.register_client(client, actor="system")
    assert not (await Erasure(*parts, copies=copies).erase("acme", "x", actor="system")).copied
    assert copies.held() == ({}, set()), "what lies elsewhere is no business of this machine"
    wrapped = await world.registry.client_keys("demo")
    copies.put("demo", Position("control", 1, 0), wrapped)
    assert not (await Erasure(*parts, copies=copies).erase("demo", "x", actor="system")).copied
    assert copies.held() == ({}, {"demo"})
    away = key_copies.KeyCopies(Away(), world.identity.log_id)
    assert (await Erasure(*parts, copies=away).erase("other", "x", actor="system")).copied
    assert await world.registry.client_keys("other") is None


async def test_redis_file_forgets(own_valkey, tmp_path, log_name: str) -> None:
    """The append-only file, which holds every key ever written, holds those of an erased client no more."""
    from broker.events import connection
    from broker.events.keyring import Keyring

    redis = connection.connect(own_valkey.url)
    keys, identity = await log.create(redis, log_name)
    registry = Registry(redis, keys.control, identity.incarnations["control"])
    commands = ClientCommands(registry, Keyring.create(tmp_path / "keys" / "keyring"))
    await commands.register_client("demo", actor="system")
    wrapped = msgspec.msgpack.decode(await registry.client_keys("demo"))[1][0][2]

    def held() -> bool:
        return any(
            wrapped in path.read_bytes() for path in (tmp_path / "valkey").rglob("*") if path.is_file()
        )

    assert held()
    by_hand = Reopening(redis, keys, identity, outcomes_kept_ms=log.OUTCOMES_KEPT_MS)
    done = await Erasure(commands, registry, redis, keys, by_hand).erase("demo", "x", actor="system")
    assert done.forgotten
    assert not held()
    assert await asyncio.gather(forget(redis, 10.0), forget(redis, 10.0)) != [False, False]
    await own_valkey.stop()
    assert not await forget(redis, 0.5)
    await redis.aclose()


async def test_by_the_admin_api(world) -> None:
    """An admin who says the name twice and a reason; anything less is a 400 that names the field."""
    async with world.server() as server:
        people = Reading(world, server, None)
        path = "/admin/clients/demo/erase"
        for body, field in (
            ({"reason": "x", "confirm": "Demo"}, "confirm"), ({"reason": "", "confirm": "demo"}, "reason"),
            ({"confirm": "demo"}, "reason"), ({"reason": "a\u0000b", "confirm": "demo"}, "reason"),
        ):  # fmt: skip
            answer = await people.post("admin", path, body)
            assert (answer.status, answer.json["details"][0]["field"]) == (400, field), answer.body
        wrapped = await world.registry.client_keys("demo")
        copies = key_copies.opened(world.settings, world.identity.log_id)
        copies.put("demo", Position("control", 1, 0), wrapped)
        answer = await people.post("admin", path, {"reason": "asked for", "confirm": "demo"})
        assert (answer.status, answer.json["forgotten"], answer.json["visible"]) == (200, True, False)
        assert await world.registry.client_keys("demo") is None
        assert copies.held() == ({}, {"demo"})
        nobody = await people.post(
            "admin", "/admin/clients/nobody/erase", {"reason": "x", "confirm": "nobody"}
        )
        assert nobody.status == 404
        assert (await people.post("auditor", path, {"reason": "x", "confirm": "demo"})).status == 403


async def test_a_copy_leaves_the_copies_of_the_system_alone(world, tmp_path) -> None:
    """⚠ On a copy for inspection an admin erases a client: of the log's keys elsewhere, the system's own, none goes."""
    wrapped = await world.registry.client_keys("demo")
    elsewhere = msgspec.structs.replace(world.settings, client_keys_url=str(tmp_path / "keys of the system"))
    the_systems = key_copies.opened(elsewhere, world.identity.log_id)
    the_systems.put("demo", Position("control", 1, 0), wrapped)
    before = the_systems.held()
    inspecting = msgspec.structs.replace(elsewhere, inspection=True)
    async with world.server(settings=inspecting) as server:
        people = Reading(world, server, None)
        body = {"reason": "a trial", "confirm": "demo"}
        answer = await people.post("admin", "/admin/clients/demo/erase", body)
    assert answer.status == 200, answer.body
    assert await world.registry.client_keys("demo") is None
    assert the_systems.held() == before
    assert the_systems.load() == {"demo": wrapped}
    # Those in its own directory are the copy's.
    own = key_copies.erasable(world.settings, world.identity.log_id, inspection=True)
    assert own is not None


async def test_digests_are_read_from_a_log_with_erasures(world, erasure: Erasure) -> None:
    """A digest after an erasure follows on the one before it."""
    exports = Exports.of(world.settings, world.redis, world.keys, world.identity, world.keyring)
    await exports.digester.make()
    await erasure.erase("demo", "x", actor="system")
    await exports.digester.make()
    assert len(digests.chained(await digests_making.recorded(exports.source))) == 2
