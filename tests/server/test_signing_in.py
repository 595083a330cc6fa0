"""Signing in, staying in, and getting out, over real TLS connections without a client certificate."""

from __future__ import annotations

import asyncio

import bcrypt
import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import OKPKey

from broker.events import codec, envelope, sign_in
from broker.events.user_commands import UserCommands
from broker.services.server import tokens
from support.calling import Caller
from support.serving import Raw
from support.waiting import wait_until

LOGIN, REFRESH, LOGOUT = ("/portal/auth/login", "/portal/auth/refresh", "/portal/auth/logout")
PROFILE, PASSWORD = "/portal/profile", "/portal/profile/password"
EMAIL, SECRET = "reader@example.com", "a good password"


class Person(Caller):
    """Somebody with a browser's means: TLS, no client certificate, perhaps an access token."""

    token: str | None = None
    source = "127.0.0.1"

    async def request(self, method, path, body=None, headers=None, raw=None):
        given = dict(headers or {})
        if self.token is not None:
            given.setdefault("authorization", f"Bearer {self.token}")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.context, server_hostname="localhost", local_addr=(self.source, 0)
        )
        try:
            return await super().request(method, path, body, given, Raw(reader, writer))
        finally:
            writer.transport.abort()

    async def login(self, email: str = EMAIL, password: str = SECRET):
        return await self.post(LOGIN, {"email": email, "password": password})

    async def sign_in(self, **options):
        answer = await self.login(**options)
        assert answer.status == 200, answer.body
        self.token = answer.json["access_token"]
        return answer.json


@pytest.fixture
def users(world) -> UserCommands:
    return UserCommands(world.registry)


@pytest.fixture
async def reader(users):
    made = await users.create_user(EMAIL, SECRET, "user", ["demo"], actor="system")
    return made.value


@pytest.fixture
def person(world, server) -> Person:
    return Person(server.port, world.pki.client_context())


def another(person: Person, source: str = "127.0.0.1") -> Person:
    made = Person(person.port, person.context)
    made.source = source
    return made


async def access_events(world):
    """Actor and event of everything on the access stream."""
    return [
        (envelope.decode(fields[b"m"]).actor, codec.decode(fields[b"t"].decode(), fields[b"d"]))
        for _, fields in await world.redis.xrange(world.keys.access.events)
    ]


async def refused(person: Person, token: str | None = None) -> str:
    """The profile's 401, with its reason."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    answer = await person.get(PROFILE, headers=headers)
    assert (answer.status, answer.json["error"]) == (401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    return answer.json["message"]


@pytest.mark.case("TC-M-004")
async def test_signing_in_gives_a_valid_jwt(world, server, person, reader):
    """The pair of the contract; the JWT verifies by the public key alone; the sign-in is in the history."""
    answer = await person.login("  Reader@Example.com ")
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    pair = answer.json
    assert pair.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert (pair["token_type"], pair["expires_in"]) == ("bearer", 1800)
    public = OKPKey.import_key(server.role._people.tokens._keys.signing()[1].as_dict(private=False))
    claims = jwt.decode(pair["access_token"], public, algorithms=["Ed25519"]).claims
    assert (claims["sub"], claims["role"], claims["exp"] - claims["iat"]) == (reader.user_id, "user", 1800)
    ((actor, event),) = await access_events(world)
    assert actor == f"user:{reader.user_id}"
    assert (type(event).__name__, event.user_id, event.address) == (
        "LoginSucceeded",
        reader.user_id,
        "127.0.0.1",
    )


@pytest.mark.case("TC-M-007")
async def test_the_profile(person, reader):
    """Who is signed in, without anything secret."""
    await person.sign_in()
    answer = await person.get(PROFILE)
    assert answer.status == 200
    assert answer.json == {
        "user_id": reader.user_id, "email": EMAIL, "role": "user", "client_ids": ["demo"],
    }  # fmt: skip


@pytest.mark.case("TC-M-005")
async def test_refreshing_gives_the_next_pair_once(person, reader):
    """The new pair works; the old refresh token does not, and using it ends the session for everybody."""
    first = await person.sign_in()
    answer = await person.post(REFRESH, {"refresh_token": first["refresh_token"]})
    assert answer.status == 200
    second = answer.json
    assert second.keys() == first.keys()
    assert second["refresh_token"] != first["refresh_token"]
    assert second["access_token"] != first["access_token"]
    person.token = second["access_token"]
    assert (await person.get(PROFILE)).status == 200
    reused = await person.post(REFRESH, {"refresh_token": first["refresh_token"]})
    assert (reused.status, reused.json["error"]) == (401, "unauthorized")
    assert (await person.post(REFRESH, {"refresh_token": second["refresh_token"]})).status == 401
    await refused(person)


@pytest.mark.case("TC-I-008", "TC-S-008")
async def test_the_life_of_a_token(person, reader, monkeypatch):
    """Signed in, used, expired by the real clock, refused, refreshed, used again."""
    monkeypatch.setattr(tokens, "LIFETIME", 2)
    pair = await person.sign_in()
    assert (await person.get(PROFILE)).status == 200

    async def expired():
        return (await person.get(PROFILE)).status == 401

    await wait_until(expired)
    assert "expired" in await refused(person)
    renewed = await person.post(REFRESH, {"refresh_token": pair["refresh_token"]})
    assert renewed.status == 200
    monkeypatch.setattr(tokens, "LIFETIME", 1800)
    renewed = await person.post(REFRESH, {"refresh_token": renewed.json["refresh_token"]})
    person.token = renewed.json["access_token"]
    assert (await person.get(PROFILE)).status == 200


@pytest.mark.case("TC-S-006", "TC-S-007")
async def test_forged_tokens_are_refused(server, person, reader):
    """No signature, another's, a changed claim, another key, another algorithm, a token for somebody else."""
    pair = await person.sign_in()
    header, claims, signature = pair["access_token"].split(".")
    theirs = OKPKey.generate_key("Ed25519")
    own = server.role._people.tokens
    said = own.verify(pair["access_token"])
    kid = own._keys.signing()[0]
    forged = {"alg": "Ed25519", "kid": kid, "typ": "at+jwt"}
    content = msgspec.structs.asdict(said)
    bad = [
        f"{header}.{claims}.",
        f"{header}.{claims}",
        f"{header}.{claims}.{signature[:-4]}AAAA",
        f"{header}.{claims[:-2]}.{signature}",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.",
        jwt.encode(forged, content, theirs, algorithms=["Ed25519"]),
        own.issue(reader.user_id, "user", "0" * 32),
        own.issue("somebody-else", "user", said.sid),
    ]
    for token in bad:
        await refused(person, token)
    # Our own signature under an untrue role opens nothing: the registry decides.
    admin = own.issue(reader.user_id, "admin", said.sid)
    answer = await person.get(PROFILE, headers={"authorization": f"bearer {admin}"})
    assert (answer.status, answer.json["role"]) == (200, "user")


async def test_every_server_takes_the_tokens_of_the_others(world, person, reader):
    """One file of keys and one Redis: no sticky sessions."""
    await person.sign_in()
    async with world.server() as second:
        elsewhere = Person(second.port, person.context)
        elsewhere.token = person.token
        assert (await elsewhere.get(PROFILE)).status == 200
        assert (await elsewhere.post(LOGOUT)).status == 204
    await refused(person)


async def test_signing_out_bites(world, person, reader):
    """Access and refresh token are dead with the answer; other sessions go on; it is in the history."""
    pair = await person.sign_in()
    other = another(person)
    await other.sign_in()
    answer = await person.post(LOGOUT)
    assert (answer.status, answer.body) == (204, b"")
    await refused(person)
    assert (await person.post(LOGOUT)).status == 401
    person.token = None
    assert (await person.post(REFRESH, {"refresh_token": pair["refresh_token"]})).status == 401
    assert (await other.get(PROFILE)).status == 200
    assert [type(event).__name__ for _, event in await access_events(world)] == [
        "LoginSucceeded", "LoginSucceeded", "LoggedOut",
    ]  # fmt: skip


async def test_a_disabled_user_is_out_at_once(person, users, reader):
    """With the command's answer: access, refresh, and signing in again, which says no more than to strangers."""
    pair = await person.sign_in()
    await users.disable_user(reader.user_id, actor="system")
    await refused(person)
    person.token = None
    assert (await person.post(REFRESH, {"refresh_token": pair["refresh_token"]})).status == 401
    theirs, strangers = await person.login(), await person.login("nobody@example.com")
    assert (theirs.status, theirs.json["message"]) == (strangers.status, strangers.json["message"]) == (
        401, "E-mail address or password is wrong.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("email", "password"),
    [
        (EMAIL, "wrong"), ("nobody@example.com", SECRET), ("", SECRET), ("no address", SECRET), (EMAIL, "é"),
        ("\x00@x", SECRET),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("full_cost")
async def test_every_refusal_costs_the_same(person, reader, monkeypatch, email, password):
    """One bcrypt check at full cost, whether there is such an account or not; the answers are alike."""
    checked = []
    real = bcrypt.checkpw
    monkeypatch.setattr(
        bcrypt, "checkpw", lambda plain, hashed: checked.append(hashed) or real(plain, hashed)
    )
    answer = await person.login(email, password)
    assert (answer.status, answer.json["message"]) == (401, "E-mail address or password is wrong.")
    (hashed,) = checked
    assert hashed.startswith(b"$2b$12$")


async def test_a_password_past_bcrypts_bytes_is_not_cut(person, users):
    """73 bytes that begin with the right 72 are another password."""
    longest = "xy" * 36
    await users.create_user("long@example.com", longest, "user", actor="system")
    assert (await person.login("long@example.com", f"{longest}z")).status == 401
    assert (await person.login("long@example.com", longest)).status == 200


async def test_guessing_is_throttled_and_locks_nobody_else_out(world, person, reader):
    """The sixth try from an address waits, a right password too; from another address the owner comes in."""
    for _ in range(world.settings.login_attempts):
        assert (await person.login(password="wrong")).status == 401
    answer = await person.login()
    assert (answer.status, answer.json["error"]) == (429, "rate_limit_exceeded")
    assert 0 < int(answer.headers["retry-after"]) <= world.settings.login_window
    assert (await another(person, "127.0.0.2").login()).status == 200
    # Nor does it touch another account from the same address, or a session that is open.
    assert (await person.login("nobody@example.com")).status == 401


async def test_tries_at_the_same_time_count_each(world, person, reader):
    """Twelve at once get no more answers than twelve in a row."""
    answers = await asyncio.gather(*(person.login(password="wrong") for _ in range(12)))
    statuses = sorted(answer.status for answer in answers)
    assert set(statuses) == {401, 429}
    assert statuses.count(401) == world.settings.login_attempts


async def test_signing_in_forgets_the_failures_before(world, person, reader):
    """Who mistypes now and then is never held up."""
    for _ in range(3):
        for _ in range(world.settings.login_attempts - 1):
            assert (await person.login(password="wrong")).status == 401
        await person.sign_in()
        person.token = None


async def test_failures_are_recorded_together(world, person, reader):
    """Counted by account and address; the account is a keyed hash, and no password is anywhere."""
    for _ in range(3):
        await person.login(password="wrong guess")
    await person.login("nobody@example.com", "wrong guess")

    async def counted():
        failures = [event for _, event in await access_events(world)]
        return failures if sum(event.count for event in failures) == 4 else None

    failures = await wait_until(counted)
    assert {type(event).__name__ for event in failures} == {"LoginFailed"}
    assert {event.address for event in failures} == {"127.0.0.1"}
    by_account: dict[bytes, int] = {}
    for event in failures:
        by_account[event.account_hash] = by_account.get(event.account_hash, 0) + event.count
    assert sorted(by_account.values()) == [1, 3]
    entries = await world.redis.xrange(world.keys.access.events)
    assert b"example.com" not in b"".join(value for _, fields in entries for value in fields.values())


async def test_failures_are_recorded_when_the_server_stops(world, reader):
    """What was gathered is written before the process ends."""
    async with world.server() as server:
        person = Person(server.port, world.pki.client_context())
        await person.login(password="wrong")
    (failure,) = [event for _, event in await access_events(world)]
    assert failure.count == 1


async def test_an_attackers_rate_is_not_the_streams(world):
    """Past so many accounts at once the rest is one event."""
    async with world.server() as server:
        gathered = server.role._people.failures
        for number in range(1000):
            gathered.add(number.to_bytes(16, "big"), "127.0.0.1")
        await gathered.flush()
    events = [event for _, event in await access_events(world)]
    assert len(events) <= 2 * (sign_in.MAX_GROUPS + 1)
    assert sum(event.count for event in events) == 1000


async def test_another_password(world, person, reader):
    """Every session ends, the answer begins one; the old password is dead. No table here: not visible yet."""
    pair = await person.sign_in()
    other = another(person)
    await other.sign_in()
    answer = await person.post(PASSWORD, {"current_password": SECRET, "new_password": "another password"})
    assert answer.status == 200, answer.body
    assert answer.json["visible"] is False
    for gone in (person, other):
        await refused(gone)
    assert (await person.post(REFRESH, {"refresh_token": pair["refresh_token"]})).status == 401
    person.token = answer.json["access_token"]
    assert (await person.get(PROFILE)).status == 200
    assert (await other.login()).status == 401
    assert (await other.login(password="another password")).status == 200
    _, fields = (await world.redis.xrevrange(world.keys.control.events, count=1))[0]
    assert fields[b"t"] == b"PasswordChanged"
    assert envelope.decode(fields[b"m"]).actor == f"user:{reader.user_id}"


@pytest.mark.parametrize(
    ("current", "new", "field"),
    [
        ("wrong", "another password", "current_password"), (SECRET, SECRET, "new_password"),
        (SECRET, "short", "new_password"), (SECRET, "x" * 73, "new_password"),
        (SECRET, "nul\x00 in it", "new_password"),
    ],
)  # fmt: skip
async def test_a_password_is_refused_by_name(person, reader, current, new, field):
    """400 with the field and the rule, which never quotes it; the session goes on."""
    await person.sign_in()
    answer = await person.post(PASSWORD, {"current_password": current, "new_password": new})
    assert (answer.status, answer.json["error"]) == (400, "validation_error")
    assert [detail["field"] for detail in answer.json["details"]] == [field]
    assert new.encode() not in answer.body
    assert (await person.get(PROFILE)).status == 200


async def test_a_stolen_token_guesses_no_password(world, person, reader):
    """Trying current passwords counts as signing in does."""
    await person.sign_in()
    change = {"current_password": "wrong", "new_password": "another password"}
    for _ in range(world.settings.login_attempts):
        assert (await person.post(PASSWORD, change)).status == 400
    answer = await person.post(PASSWORD, change | {"current_password": SECRET})
    assert answer.status == 429
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (LOGIN, b"{", 400), (LOGIN, {}, 400), (LOGIN, {"email": 1, "password": []}, 400), (LOGIN, [], 400),
        (LOGIN, {"email": EMAIL, "password": SECRET, "extra": 1}, 400),
        (LOGIN, b'{"email":"a@b","email":"c@d","password":"x"}', 400),
        (LOGIN, {"email": "x" * 9000, "password": "x"}, 413), (REFRESH, {}, 400),
        (REFRESH, {"refresh_token": "x"}, 401), (REFRESH, {"refresh_token": "é" * 64}, 401),
        (REFRESH, {"refresh_token": "A" * 64}, 401), (REFRESH, {"refresh_token": ["A" * 64]}, 400),
    ],
)  # fmt: skip
async def test_hostile_bodies(person, reader, path, body, status):
    """The contract's errors, never a 500, and no word of what was sent."""
    answer = await person.post(path, body)
    assert answer.status == status, answer.body
    assert SECRET.encode() not in answer.body
