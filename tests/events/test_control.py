"""Transactions on the control slot, and the commands on clients, certificates and users."""

from __future__ import annotations

import asyncio
import secrets

import bcrypt
import msgspec
import pytest

from broker import clock
from broker.domain.certificates import CertificateEntry, works
from broker.domain.clients import ClientEntry
from broker.domain.users import UserEntry
from broker.errors import Conflict, LogRefused, LogUnavailable, NotFound, ValidationError
from broker.events import codec, connection, types, user_commands
from broker.events.certificate_commands import CertificateCommands, holder_field
from broker.events.client_commands import ClientCommands
from broker.events.control import Changes, Registry, certificate_field, client_field, user_field
from broker.events.key_commands import KeyCommands
from broker.events.keyring import Keyring
from broker.events.positions import at
from broker.events.sealing import ClientKeys, Sealer
from broker.events.user_commands import ADMINS, UserCommands
from support import log as logs
from support.proxy import proxy_to_unix

DAY = 24 * 3600 * 1000


class Slot:
    """A control slot of the test's own with every command on it."""

    def __init__(self, redis, keys, incarnation, keyring, **options) -> None:
        self.redis, self.keys, self.keyring = redis, keys, keyring
        self.registry = Registry(redis, keys, incarnation, **options)
        self.clients = ClientCommands(self.registry, keyring)
        self.certificates = CertificateCommands(self.registry)
        self.users = UserCommands(self.registry)

    async def events(self) -> list[types.Event]:
        entries = await self.redis.xrange(self.keys.events)
        return [codec.recorded(codec.stored(at("control", id_), fields)).event for id_, fields in entries]

    async def names(self) -> list[str]:
        return [type(event).__name__ for event in await self.events()]


@pytest.fixture
async def slot(redis, log_name, tmp_path):
    keys, identity = await logs.create(redis, log_name)
    keyring = Keyring.create(tmp_path / "keys" / "keyring")
    return Slot(redis, keys.control, identity.incarnations["control"], keyring)


def certificate(client_id: str = "demo", role: str = "producer", *, days: int = 365, **changes):
    now = clock.now_ms()
    made = CertificateEntry(
        fingerprint=secrets.token_hex(32),
        serial=secrets.token_hex(8),
        client_id=client_id,
        role=role,
        not_before_ms=now - 1000,
        not_after_ms=now + days * DAY,
        issued_at_ms=now,
    )
    return msgspec.structs.replace(made, **changes)


def note(field: str, value: str):
    """A decision that sets a field nobody follows and records something harmless."""

    def decide(view):
        before = view.get(field, str)
        return Changes(before, [(field, types.ReplayStarted("messages", 1))], {field: value})

    return decide


# -- Transactions ---------------------------------------------------------------------------------------------


async def test_events_entries_and_keys_are_written_together(slot):
    """A registration leaves one event, an entry and wrapped keys; the position is the event's."""
    done = await slot.clients.register_client("demo", "shop.example", actor="user:ada", correlation_id="c-1")
    [(entry_id, fields)] = await slot.redis.xrange(slot.keys.events)
    assert done.positions == (at("control", entry_id),)
    recorded = codec.recorded(codec.stored(done.positions[0], fields))
    assert recorded.event == types.ClientRegistered("demo", "shop.example")
    assert (recorded.subject, recorded.envelope.actor) == (b"client:demo", "user:ada")
    assert recorded.envelope.correlation_id == "c-1"
    assert await slot.registry.read(client_field("demo"), ClientEntry) == done.value
    wrapped = await slot.registry.client_keys("demo")
    assert ClientKeys.unwrap("demo", wrapped, slot.keyring).active.number == 1


async def test_a_refused_decision_writes_nothing(slot):
    """Neither event nor entry nor keys, and the keys that exist are not replaced."""
    await slot.clients.register_client("demo", actor="system")
    wrapped = await slot.registry.client_keys("demo")
    with pytest.raises(Conflict):
        await slot.clients.register_client("demo", actor="system")
    assert await slot.registry.client_keys("demo") == wrapped
    assert await slot.names() == ["ClientRegistered"]


async def test_an_overtaken_decision_decides_anew(slot):
    """What was read must still stand when it is written; the second run sees the other's write."""
    runs = []

    def decide(view):
        runs.append(view.get("x", str))
        return Changes(None, [("x", types.ReplayStarted("messages", 1))], {"x": f"{runs[-1]}+mine"})

    real = slot.registry._write

    async def overtaken(args):
        slot.registry._write = real
        await slot.registry.transact(note("x", "theirs"), actor="system")
        return await real(args)

    slot.registry._write = overtaken
    await slot.registry.transact(decide, actor="system")
    assert runs == [None, "theirs"]
    assert await slot.registry.read("x", str) == "theirs+mine"


async def test_a_field_that_was_only_read_is_checked_too(slot):
    """A decision that relies on an absence is overtaken by its appearance."""
    seen = []

    def decide(view):
        view.raw("x")
        seen.append(view.get("other", str))
        return Changes(None, [("x", types.ReplayStarted("messages", 1))], {"x": "mine"})

    real = slot.registry._write

    async def overtaken(args):
        slot.registry._write = real
        await slot.registry.transact(note("other", "appeared"), actor="system")
        return await real(args)

    slot.registry._write = overtaken
    await slot.registry.transact(decide, actor="system")
    assert seen == [None, "appeared"]


async def test_deleting_and_making_anew_does_not_look_unchanged(slot):
    """A version is never given twice, so that a stale reader of the first life is refused in the second."""

    def delete(view):
        view.raw("x")
        return Changes(None, [("x", types.ReplayStarted("messages", 1))], {"x": None})

    versions = []
    for _ in range(3):
        await slot.registry.transact(note("x", "same"), actor="system")
        versions.append((await slot.redis.hget(slot.keys.registry, "x")).partition(b"|")[0])
        await slot.registry.transact(delete, actor="system")
        assert await slot.redis.hexists(slot.keys.registry, "x") is False
    assert len(set(versions)) == 3


async def test_concurrent_increments_are_all_counted(slot):
    """Thirty at once on one entry: thirty."""

    def increment(view):
        count = view.get("count", int) or 0
        return Changes(count, [("count", types.ReplayStarted("messages", 1))], {"count": count + 1})

    await asyncio.gather(*(slot.registry.transact(increment, actor="system") for _ in range(30)))
    assert await slot.registry.read("count", int) == 30
    assert len(await slot.names()) == 30


@pytest.mark.parametrize("drops", [1, 3])
async def test_lost_replies_write_once(slot, valkey, drops):
    """The reply is lost after the write happened: the retry answers instead of writing again."""
    async with proxy_to_unix(str(valkey.socket)) as proxy:
        redis = connection.connect(f"redis://127.0.0.1:{proxy.port}")
        behind = Slot(redis, slot.keys, slot.registry._incarnation, slot.keyring)
        await behind.registry.read("x", str)
        real = behind.registry._write

        async def losing(args):
            proxy.drops, proxy.mode = drops, "drop-reply"
            return await real(args)

        behind.registry._write = losing
        done = await behind.clients.register_client("demo", actor="system")
        assert proxy.dropped == drops
        await redis.aclose()
    assert await slot.names() == ["ClientRegistered"]
    [(entry_id, _)] = await slot.redis.xrange(slot.keys.events)
    assert done.positions == (at("control", entry_id),)


async def test_an_outage_is_unknown_and_another_incarnation_refused(slot, valkey):
    """Cut off past the retries: LogUnavailable; on another log: LogRefused; nothing written by either."""
    async with proxy_to_unix(str(valkey.socket)) as proxy:
        redis = connection.connect(f"redis://127.0.0.1:{proxy.port}")
        behind = Slot(redis, slot.keys, slot.registry._incarnation, slot.keyring, retry_for=0.1)
        proxy.mode = "cut"
        with pytest.raises(LogUnavailable):
            await behind.clients.register_client("demo", actor="system")
        await redis.aclose()
    other = Slot(slot.redis, slot.keys, "another", slot.keyring)
    with pytest.raises(LogRefused):
        await other.clients.register_client("demo", actor="system")
    assert await slot.names() == []
    assert await slot.redis.exists(slot.keys.registry, slot.keys.client_keys) == 0


async def test_control_writes_pass_a_redis_at_its_maxmemory(own_valkey, log_name, tmp_path):
    """A revocation must bite while the queue is full."""
    redis = connection.connect(own_valkey.url)
    keys, identity = await logs.create(redis, log_name)
    keyring = Keyring.create(tmp_path / "keys" / "keyring")
    slot = Slot(redis, keys.control, identity.incarnations["control"], keyring)
    await slot.clients.register_client("demo", actor="system")
    made = certificate()
    await slot.certificates.record_certificate(made, actor="system")
    await redis.config_set("maxmemory", 1)
    await slot.certificates.revoke_certificate(reason="keyCompromise", actor="system", client_id="demo")
    entry = await slot.registry.read(certificate_field(made.fingerprint), CertificateEntry)
    assert entry.status == "revoked"
    await redis.aclose()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (Changes(None, [], {"unread": 1}), "without having been read"),
        (Changes(None, [], {}, {"demo": b"x"}), "without their client's entry"),
        (
            Changes(None, [("x", types.ReplayStarted("m", 1))], {"client:demo": ClientEntry("demo")}),
            "followers",
        ),
    ],
)
async def test_mistakes_in_a_decision_are_caught_before_they_are_written(slot, changes, says):
    """Unread writes, unguarded keys and changes that followers would not hear of."""

    def decide(view):
        view.raw("client:demo")
        return changes

    with pytest.raises(ValueError, match=says):
        await slot.registry.transact(decide, actor="system")
    assert await slot.names() == []


def test_every_control_event_is_known_to_touched():
    """A new control event is either followed or listed here as touching nothing."""
    nothing = {"ReplayStarted", "ReplayFinished", "DigestSigned"}
    from broker.events.control import touched

    for kind in types.CONTROL_EVENTS:
        values = [
            "x" if "str" in str(f.type) else [] if "list" in str(f.type) else 1
            for f in msgspec.structs.fields(kind)
        ]
        assert bool(touched(kind(*values))) is (kind.__name__ not in nothing), kind


# -- Clients --------------------------------------------------------------------------------------------------


async def test_a_route_and_its_secret(slot):
    """The secret is stored sealed, readable with the client's keys; bad routes write nothing."""
    await slot.clients.register_client("demo", actor="system")
    target = "https://shop.example/hook"
    done = await slot.clients.change_route("demo", "webhook", target, b"whsec-1", actor="system")
    assert (done.value.channel, done.value.target) == ("webhook", target)
    assert b"whsec-1" not in await slot.redis.hget(slot.keys.registry, "client:demo")
    keys = ClientKeys.unwrap("demo", await slot.registry.client_keys("demo"), slot.keyring)
    assert Sealer(slot.keyring, lambda _: keys).unseal_secret("demo", done.value.sealed_secret) == b"whsec-1"
    for channel, bad, secret in (
        ("pigeon", None, None),
        ("webhook", None, b"s"),
        ("webhook", "ftp://x", b"s"),
        ("webhook", "https://user@x/", b"s"),
        ("webhook", "https://x:99999/", b"s"),
        ("webhook", "https://x/\n", b"s"),
        ("webhook", target, None),
    ):
        with pytest.raises(ValidationError):
            await slot.clients.change_route("demo", channel, bad, secret, actor="system")
    with pytest.raises(NotFound):
        await slot.clients.change_route("nobody", "inbox", actor="system")
    assert await slot.names() == ["ClientRegistered", "ClientRouteChanged"]


async def test_concurrent_rotations_lose_no_key(slot):
    """Ten at once: the newest key that anybody was told is active, none is lost, what the first sealed still opens."""
    await slot.clients.register_client("demo", actor="system")
    keys = ClientKeys.unwrap("demo", await slot.registry.client_keys("demo"), slot.keyring)
    sealed = Sealer(slot.keyring, lambda _: keys).seal("demo", bytes(16), "+4915200000000", "body")
    done = await asyncio.gather(*(rotate(slot) for _ in range(10)))
    after = ClientKeys.unwrap("demo", await slot.registry.client_keys("demo"), slot.keyring)
    assert after.active.number == max(done) > 1
    assert sorted(after.versions) == list(range(1, max(done) + 1))
    assert Sealer(slot.keyring, lambda _: after).unseal("demo", bytes(16), sealed).message_body == "body"
    names = (await slot.names())[1:]
    assert names == ["KeyRotated"] * 2 * (max(done) - 1)


async def rotate(slot) -> int:
    """Both steps of a rotation; the number that is active then."""
    commands = KeyCommands(slot.registry, slot.keyring)
    added = await commands.add("demo", actor="system")
    return (await commands.activate("demo", added.value, actor="system")).value


async def test_erasing_destroys_keys_and_revokes(slot):
    """Keys gone, certificate revoked, the name stays taken, nothing can be routed or rotated any more."""
    await slot.clients.register_client("demo", actor="system")
    made = certificate()
    await slot.certificates.record_certificate(made, actor="system")
    await slot.clients.change_route("demo", "webhook", "https://x/", b"s", actor="system")
    done = await slot.clients.erase_client("demo", "request", actor="user:ada")
    assert (done.value.status, done.value.sealed_secret, done.value.active_certificate) == (
        "erased",
        None,
        None,
    )
    assert await slot.registry.client_keys("demo") is None
    entry = await slot.registry.read(certificate_field(made.fingerprint), CertificateEntry)
    assert entry.status == "revoked"
    assert (await slot.names())[-2:] == ["ClientErased", "CertRevoked"]
    for refused in (
        KeyCommands(slot.registry, slot.keyring).add("demo", actor="system"),
        KeyCommands(slot.registry, slot.keyring).activate("demo", 2, actor="system"),
        slot.clients.change_route("demo", "inbox", actor="system"),
        slot.clients.erase_client("demo", "again", actor="system"),
        slot.certificates.record_certificate(certificate(), actor="system"),
    ):
        with pytest.raises(NotFound):
            await refused
    with pytest.raises(Conflict):
        await slot.clients.register_client("demo", actor="system")


# -- Certificates ---------------------------------------------------------------------------------------------


async def test_one_active_certificate_a_client(slot):
    """Of twenty issued at once exactly one gets in; a renewal replaces it; after a revocation another may come."""
    await slot.clients.register_client("demo", actor="system")
    results = await asyncio.gather(
        *(slot.certificates.record_certificate(certificate(), actor="system") for _ in range(20)),
        return_exceptions=True,
    )
    issued = [one.value for one in results if not isinstance(one, BaseException)]
    assert len(issued) == 1
    assert all(isinstance(one, Conflict) for one in results if isinstance(one, BaseException))
    renewed = certificate()
    await slot.certificates.renew_certificate(renewed, actor="system", overlap_ms=5000)
    old = await slot.registry.read(certificate_field(issued[0].fingerprint), CertificateEntry)
    assert old.status == "superseded"
    assert works(old, clock.now_ms())
    assert not works(old, clock.now_ms() + 5001)
    client = await slot.registry.read(client_field("demo"), ClientEntry)
    assert client.active_certificate == renewed.fingerprint
    done = await slot.certificates.revoke_certificate(reason="superseded", actor="x", client_id="demo")
    assert {entry.fingerprint for entry in done.value} == {issued[0].fingerprint, renewed.fingerprint}
    again = await slot.certificates.revoke_certificate(reason="superseded", actor="x", client_id="demo")
    assert (again.value, again.positions) == ((), ())
    await slot.certificates.record_certificate(certificate(), actor="system")
    names = await slot.names()
    assert names == [
        "ClientRegistered",
        "CertIssued",
        "CertRenewed",
        "CertRevoked",
        "CertRevoked",
        "CertIssued",
    ]


async def test_an_expired_certificate_is_replaced_by_an_issue(slot):
    """It is no longer active; the event names what was replaced, and expired ones leave the list in time."""
    await slot.clients.register_client("demo", actor="system")
    expired = certificate(not_after_ms=clock.now_ms() - 10)
    await slot.certificates.record_certificate(expired, actor="system")
    new = certificate()
    await slot.certificates.record_certificate(new, actor="system")
    events = await slot.events()
    assert isinstance(events[-1], types.CertRenewed)
    assert events[-1].replaces == expired.fingerprint
    assert await slot.registry.read(holder_field("demo"), list[str]) == [new.fingerprint]


async def test_services_may_have_several(slot):
    """Two gateways, a certificate each; renewing says which; nobody needs to be registered for it."""
    first, second = certificate("gateway", "gateway"), certificate("gateway", "gateway")
    await slot.certificates.record_certificate(first, actor="system")
    await slot.certificates.record_certificate(second, actor="system")
    with pytest.raises(ValidationError, match="several"):
        await slot.certificates.renew_certificate(certificate("gateway", "gateway"), actor="system")
    new = certificate("gateway", "gateway")
    await slot.certificates.renew_certificate(new, actor="system", replaces=first.fingerprint)
    statuses = [
        (await slot.registry.read(certificate_field(one.fingerprint), CertificateEntry)).status
        for one in (first, second, new)
    ]
    assert statuses == ["superseded", "active", "active"]


async def test_certificates_of_nobody_and_known_ones_are_refused(slot):
    """A producer must be registered; the same certificate or serial is not recorded twice."""
    with pytest.raises(NotFound):
        await slot.certificates.record_certificate(certificate("nobody"), actor="system")
    with pytest.raises(NotFound):
        await slot.certificates.renew_certificate(certificate("gateway", "gateway"), actor="system")
    one = certificate("gateway", "gateway")
    await slot.certificates.record_certificate(one, actor="system")
    with pytest.raises(Conflict):
        await slot.certificates.record_certificate(one, actor="system")
    with pytest.raises(Conflict):
        await slot.certificates.record_certificate(
            certificate("gateway", "gateway", serial=one.serial.upper()), actor="system"
        )
    assert await slot.names() == ["CertIssued"]


async def test_revoking_by_serial_and_fingerprint(slot):
    """Both find it, in either case; unknown ones and none or two selectors are refused."""
    one, two = certificate("worker", "worker"), certificate("worker", "worker")
    for made in (one, two):
        await slot.certificates.record_certificate(made, actor="system")
    revoke = slot.certificates.revoke_certificate
    await revoke(reason="keyCompromise", actor="x", serial=one.serial.upper())
    await revoke(reason="keyCompromise", actor="x", fingerprint=two.fingerprint)
    for made in (one, two):
        entry = await slot.registry.read(certificate_field(made.fingerprint), CertificateEntry)
        assert (entry.status, entry.reason) == ("revoked", "keyCompromise")
    for selector in ({"serial": "00"}, {"fingerprint": "00"}, {"client_id": "nobody"}):
        with pytest.raises(NotFound):
            await revoke(reason="keyCompromise", actor="x", **selector)
    for selector in ({}, {"serial": "00", "client_id": "demo"}):
        with pytest.raises(ValidationError):
            await revoke(reason="keyCompromise", actor="x", **selector)
    with pytest.raises(ValidationError):
        await revoke(reason=" ", actor="x", serial=one.serial)


# -- Users ----------------------------------------------------------------------------------------------------


@pytest.mark.case("TC-S-012")
@pytest.mark.usefixtures("full_cost")
async def test_passwords_are_bcrypt_cost_12(slot):
    """The stored hash starts with $2b$12$ and matches only its password; the password is nowhere in Redis."""
    done = await slot.users.create_user("ada@example.com", "korrekt-Pferd", "admin", actor="system")
    assert done.value.password_hash.startswith("$2b$12$")
    assert bcrypt.checkpw(b"korrekt-Pferd", done.value.password_hash.encode())
    assert await user_commands.password_matches("korrekt-Pferd", done.value.password_hash)
    for wrong in ("korrekt-pferd", "", "x" * 73, "\ud800"):
        assert not await user_commands.password_matches(wrong, done.value.password_hash)
    everything = str(await slot.redis.xrange(slot.keys.events)) + str(
        await slot.redis.hgetall(slot.keys.registry)
    )
    assert "Pferd" not in everything
    assert done.value.password_hash not in repr(done.value)


@pytest.mark.parametrize("password", ["short", "ä" * 37, "x" * 73, "nul\x00nul\x00nul", "\ud800" * 9, ""])
async def test_passwords_that_bcrypt_would_cut_or_that_are_weak_are_refused(slot, password):
    """Refused before anything is hashed or written; the error does not quote it."""
    with pytest.raises(ValidationError) as caught:
        await slot.users.create_user("ada@example.com", password, "admin", actor="system")
    assert not password or password not in str(caught.value)
    assert await slot.names() == []


async def test_passwords_of_72_bytes_count_whole(slot):
    """The last byte matters."""
    done = await slot.users.create_user("ada@example.com", "x" * 71 + "y", "user", actor="system")
    assert await user_commands.password_matches("x" * 71 + "y", done.value.password_hash)
    assert not await user_commands.password_matches("x" * 71 + "z", done.value.password_hash)


async def test_of_twenty_with_the_same_address_exactly_one_is_created(slot):
    """Whatever the case and the spaces around it."""
    spellings = ["ada@example.com", "Ada@Example.com", " ADA@EXAMPLE.COM ", "aDa@example.com"]
    results = await asyncio.gather(
        *(
            slot.users.create_user(spellings[n % 4], f"password-{n}", "user", actor="system")
            for n in range(20)
        ),
        return_exceptions=True,
    )
    created = [one.value for one in results if not isinstance(one, BaseException)]
    assert len(created) == 1
    assert all(isinstance(one, Conflict) for one in results if isinstance(one, BaseException))
    assert await slot.names() == ["UserCreated"]
    assert await slot.registry.read("email:ada@example.com", str) == created[0].user_id
    assert await slot.registry.read(user_field(created[0].user_id), UserEntry) == created[0]


@pytest.mark.parametrize(
    "email",
    ["", "ada", "@example.com", "ada@", "a da@example.com", "a@b@c", "ada@exa mple", "x" * 300 + "@x"],
)
async def test_what_is_no_address_is_refused(slot, email):
    """Before the password is hashed."""
    with pytest.raises(ValidationError):
        await slot.users.create_user(email, "long enough", "user", actor="system")


async def test_the_last_admin_stays(slot):
    """Neither disabled nor made a user, even when two admins are removed at the same moment."""
    users = slot.users
    made = [
        (await users.create_user(f"admin{n}@example.com", "long enough", "admin", actor="system")).value
        for n in range(2)
    ]
    results = await asyncio.gather(
        users.disable_user(made[0].user_id, actor="system"),
        users.change_role(made[1].user_id, "auditor", actor="system"),
        return_exceptions=True,
    )
    assert [type(one) for one in results].count(Conflict) == 1
    [left] = await slot.registry.read(ADMINS, list[str])
    with pytest.raises(Conflict, match="last admin"):
        await users.disable_user(left, actor="system")
    with pytest.raises(Conflict, match="last admin"):
        await users.change_role(left, "user", actor="system")
    third = (await users.create_user("third@example.com", "long enough", "user", actor="system")).value
    await users.change_role(third.user_id, "admin", actor="system")
    await users.disable_user(left, actor="system")
    assert await slot.registry.read(ADMINS, list[str]) == [third.user_id]


async def test_changes_of_a_user(slot):
    """Role, clients, password and disabling each leave one event; nothing new leaves none; unknown ids are refused."""
    users = slot.users
    await slot.clients.register_client("demo", actor="system")
    with pytest.raises(ValidationError, match="nobody"):
        await users.create_user("a@example.com", "long enough", "user", ["nobody"], actor="system")
    user = (await users.create_user("a@example.com", "long enough", "user", ["demo"], actor="system")).value
    await users.change_role(user.user_id, "auditor", actor="system")
    await users.change_role(user.user_id, "auditor", actor="system")
    await users.change_clients(user.user_id, [], actor="system")
    await users.change_password(user.user_id, "another one", actor="system")
    await users.disable_user(user.user_id, "left", actor="system")
    await users.disable_user(user.user_id, "left", actor="system")
    assert (await slot.names())[1:] == [
        "UserCreated",
        "UserRoleChanged",
        "UserClientsChanged",
        "PasswordChanged",
        "UserDisabled",
    ]
    entry = await slot.registry.read(user_field(user.user_id), UserEntry)
    assert (entry.role, entry.client_ids, entry.disabled) == ("auditor", [], True)
    assert await user_commands.password_matches("another one", entry.password_hash)
    with pytest.raises(NotFound):
        await users.disable_user("nobody", actor="system")
    with pytest.raises(ValidationError):
        await users.change_role(user.user_id, "root", actor="system")
