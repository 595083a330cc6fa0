"""Bent and forged access tokens at the door itself: an admin's session is alive, and none of them opens it."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from broker import clock
from broker.events.user_commands import UserCommands
from broker.services.server import api
from support.calling import Caller

GUARDED = [each for each in api.OPERATIONS if each.bearer and each.method == "get" and "{" not in each.path]


def part(value) -> str:
    raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Forge:
    """A good token of an admin, and the key that signed it, to make others from."""

    def __init__(self, people, token: str) -> None:
        self.good = token
        self.key_id, self.key = people.tokens._keys.signing()
        header, claims, _ = (base64.urlsafe_b64decode(p + "==") for p in token.split("."))
        self.header, self.claims = msgspec.json.decode(header), msgspec.json.decode(claims)

    def signed(self, header: dict | None = None, **claims) -> str:
        """By our own key: what only a bug, or another service with this key, could issue."""
        said = {name: value for name, value in (self.claims | claims).items() if value is not None}
        content = f"{part(self.header | (header or {}))}.{part(said)}"
        return f"{content}.{part(self.key.private_key.sign(content.encode()))}"

    def unsigned(self, alg: str, signature: str) -> str:
        return f"{part(self.header | {'alg': alg})}.{part(self.claims)}.{signature}"

    def hmac(self, secret: bytes, alg: str) -> str:
        content = f"{part(self.header | {'alg': alg})}.{part(self.claims)}"
        return f"{content}.{part(hmac.digest(secret, content.encode(), 'sha256'))}"

    def by(self, key, alg: str, **header) -> str:
        return jwt.encode(self.header | {"alg": alg} | header, self.claims, key, algorithms=[alg])


@pytest.fixture
async def forge(world, server) -> Forge:
    made = await UserCommands(world.registry).create_user(
        "admin@example.com", "a good password", "admin", actor="system"
    )
    people = server.role._people
    session = await people.sessions.start(made.value)
    return Forge(people, people.tokens.issue(made.value.user_id, "admin", session.session_id))


def confused(forge: Forge) -> dict[str, str]:
    """Another algorithm than ours, with whatever a stranger has: no key, our public key, keys of their own."""
    public = forge.key.public_key
    raw, pem = public.public_bytes_raw(), public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = forge.good.rpartition(".")[2]
    theirs = OKPKey.generate_key("Ed25519")
    return {
        **{f"alg {alg!r}, no signature": forge.unsigned(alg, "") for alg in ("none", "None", "NONE", "")},
        "none, ours borrowed": forge.unsigned("none", signature),
        **{f"HS256 of the public key, {len(key)}": forge.hmac(key, "HS256") for key in (raw, pem)},
        "an HMAC that says Ed25519": forge.hmac(raw, "Ed25519"),
        "RS256": forge.by(RSAKey.generate_key(2048), "RS256"),
        "ES256": forge.by(ECKey.generate_key("P-256"), "ES256"),
        "another Ed25519 key": forge.by(theirs, "Ed25519"),
        "another, brought along": forge.by(theirs, "Ed25519", jwk=theirs.as_dict(private=False)),
        "another, by address": forge.by(theirs, "Ed25519", jku="https://localhost/keys"),
        "another under an unknown id": forge.by(theirs, "Ed25519", kid="t-00000000"),
        "our signature as EdDSA": forge.signed({"alg": "EdDSA"}),
        "our signature, another type": forge.signed({"typ": "JWT"}),
        "our signature, no type": forge.signed({"typ": None}),
    }


def untimely(forge: Forge) -> dict[str, str]:
    """Ours, but for another time."""
    now = clock.now_ms() // 1000
    return {
        "expired": forge.signed(iat=now - 1801, nbf=now - 1801, exp=now - 1),
        "expired long ago": forge.signed(iat=1, nbf=1, exp=2),
        "of the future": forge.signed(iat=now + 600, nbf=now + 600, exp=now + 1200),
        "not yet": forge.signed(nbf=now + 600),
        "for ever": forge.signed(exp=now + 10**9),
        "without end": forge.signed(exp=None),
        "ends as a text": forge.signed(exp=str(now + 600)),
    }


def elsewhere(forge: Forge) -> dict[str, str]:
    """Ours, but not for this service, this session, this user."""
    return {
        "another audience": forge.signed(aud="broker:another-api"),
        "audiences": forge.signed(aud=["broker:portal-api"]),
        "no audience": forge.signed(aud=None),
        "another issuer": forge.signed(iss="broker:another-log"),
        "no issuer": forge.signed(iss=None),
        "another user": forge.signed(sub="somebody-else"),
        "another session": forge.signed(sid="0" * 32),
        "no session": forge.signed(sid=None),
    }


def malformed(forge: Forge) -> dict[str, str]:
    header, claims, signature = forge.good.split(".")
    return {
        "cut": forge.good[:-2],
        "its last bit": forge.good[:-1] + ("A" if forge.good[-1] != "A" else "Q"),
        "two parts": f"{header}.{claims}",
        "four parts": f"{forge.good}.{signature}",
        "another's claims": f"{header}.{part(forge.claims | {'role': 'auditor'})}.{signature}",
        "padded": forge.good + "==",
        "not even that": "x" * 5000,
    }


@pytest.mark.case("TC-S-006", "TC-S-007", "TC-S-008")
@pytest.mark.parametrize("attack", [confused, untimely, elsewhere, malformed])
async def test_none_comes_in(world, server, forge, attack: Callable[[Forge], dict[str, str]]):
    """401 `invalid_token` on every route that is guarded, while the good one of the same session comes in."""
    caller = Caller(server.port, world.pki.client_context())
    for what, token in attack(forge).items():
        for operation in GUARDED:
            answer = await caller.get(operation.path, headers={"authorization": f"Bearer {token}"})
            assert (answer.status, answer.json["error"]) == (401, "unauthorized"), (what, operation.path)
            assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    good = await caller.get("/portal/profile", headers={"authorization": f"Bearer {forge.good}"})
    assert (good.status, good.json["role"]) == (200, "admin")


async def test_the_way_in_is_one(world, server, forge):
    """A good token counts in no other scheme, place or number."""
    caller = Caller(server.port, world.pki.client_context())
    for headers in (
        {"authorization": forge.good}, {"authorization": f"Basic {forge.good}"}, {"cookie": f"access_token={forge.good}"},
        {"x-access-token": forge.good}, {"authorization": f"Bearer {forge.good}, Bearer {forge.good}"},
    ):  # fmt: skip
        assert (await caller.get("/portal/profile", headers=headers)).status == 401
    assert (await caller.get(f"/portal/profile?access_token={forge.good}")).status in {400, 401}
