"""Access tokens: what is accepted, and every way to forge or bend one."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OKPKey

from broker import clock
from broker.errors import KeyUnavailable
from broker.events.keyring import Keyring
from broker.services.server import tokens
from broker.services.server.token_keys import KEPT_MS, TokenKeyError, TokenKeys
from broker.services.server.tokens import TokenExpired, TokenRefused, Tokens

ISSUER = "broker:log1"


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "keys" / "keyring")


@pytest.fixture
def keys(tmp_path: Path, keyring) -> TokenKeys:
    return TokenKeys.open(tmp_path / "keys" / "token-keys", keyring)


@pytest.fixture
def ours(keys) -> Tokens:
    return Tokens(keys, ISSUER)


def part(value) -> str:
    raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def plain(token: str) -> tuple[dict, dict]:
    header, claims, _ = (base64.urlsafe_b64decode(p + "==") for p in token.split("."))
    return msgspec.json.decode(header), msgspec.json.decode(claims)


def signed(keys: TokenKeys, header: dict, claims: dict) -> str:
    """Signed by our own key, whatever it says: what only a bug could issue."""
    _, key = keys.signing()
    content = f"{part(header)}.{part(claims)}"
    return f"{content}.{part(key.private_key.sign(content.encode()))}"


def test_a_token_says_who_for_half_an_hour(ours):
    """All registered claims, session and role; two tokens are never the same."""
    token = ours.issue("u1", "auditor", "s1")
    claims = ours.verify(token)
    assert (claims.iss, claims.aud, claims.sub, claims.role, claims.sid) == (
        ISSUER, "broker:portal-api", "u1", "auditor", "s1",
    )  # fmt: skip
    assert claims.exp - claims.iat == 1800
    assert claims.nbf == claims.iat
    header, _ = plain(token)
    assert header.keys() == {"alg", "kid", "typ"}
    assert ours.verify(ours.issue("u1", "auditor", "s1")).jti != claims.jti


@pytest.mark.parametrize("at", range(3))
def test_any_changed_part_is_refused(ours, at):
    """Header, claims or signature of another valid token do not fit."""
    one, two = ours.issue("u1", "user", "s1").split("."), ours.issue("u2", "admin", "s2").split(".")
    one[at] = two[at] if at else part({"alg": "Ed25519", "kid": plain(".".join(one))[0]["kid"], "typ": "JWT"})
    with pytest.raises(TokenRefused):
        ours.verify(".".join(one))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None])
def test_no_algorithm_is_none(ours, alg):
    """`none`, in any spelling, with no signature, an empty or a borrowed one."""
    token = ours.issue("u1", "user", "s1")
    header, claims = plain(token)
    head = header | {"alg": alg}
    for signature in ("", token.split(".")[2]):
        with pytest.raises(TokenRefused):
            ours.verify(f"{part(head)}.{part(claims)}.{signature}")


@pytest.mark.parametrize("name", ["HS256", "HS512", "Ed25519"])
def test_the_public_key_is_no_shared_secret(ours, keys, name):
    """Algorithm confusion: an HMAC keyed with our public key, raw or PEM, under any name."""
    token = ours.issue("u1", "user", "s1")
    header, claims = plain(token)
    public = keys.signing()[1].public_key
    content = f"{part(header | {'alg': name})}.{part(claims | {'role': 'admin'})}"
    for secret in (
        public.public_bytes_raw(),
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ):
        for size in ("sha256", "sha512"):
            mac = hmac.digest(secret, content.encode(), size)
            with pytest.raises(TokenRefused):
                ours.verify(f"{content}.{part(mac)}")


@pytest.mark.parametrize("alg", ["EdDSA", "Ed448", "ES256", "RS256", "HS256"])
def test_another_name_for_our_own_signature_is_refused(ours, keys, alg):
    """The algorithm is pinned even where the signature itself is good."""
    header, claims = plain(ours.issue("u1", "user", "s1"))
    with pytest.raises(TokenRefused):
        ours.verify(signed(keys, header | {"alg": alg}, claims))


@pytest.mark.parametrize(
    "extra",
    [{"jwk": {}}, {"jku": "https://x"}, {"x5u": "https://x"}, {"crit": ["exp"]}, {"b64": False}, {"x": 1}],
)
def test_a_header_brings_no_key_and_no_rules(ours, keys, extra):
    """Keys and extensions that a token brings along are refused, not looked at."""
    header, claims = plain(ours.issue("u1", "user", "s1"))
    with pytest.raises(TokenRefused):
        ours.verify(signed(keys, header | extra, claims))


def test_another_key_is_refused(ours, keys):
    """A stranger's Ed25519 key: under its own id, under ours, and with its public key in the header."""
    header, claims = plain(ours.issue("u1", "admin", "s1"))
    foreign = OKPKey.import_key(Ed25519PrivateKey.generate())
    for kid in ("t-00000000", header["kid"], "", "../token-keys", "t-1' OR '1", 7):
        content = f"{part(header | {'kid': kid})}.{part(claims)}"
        with pytest.raises(TokenRefused):
            ours.verify(f"{content}.{part(foreign.private_key.sign(content.encode()))}")


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "another"}, {"aud": ["broker:portal-api"]}, {"iss": "broker:log2"}, {"iss": ""}, {"aud": None},
        {"exp": "never"}, {"exp": None}, {"sub": ""}, {"sub": 1}, {"extra": 1}, {"exp": 1e400}, {"exp": 10**30},
        {"role": ["admin"]}, {"sid": None}, {"nbf": -1},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_claims_under_a_good_signature(ours, keys, change):
    """Audience, issuer, and each type is checked, however well it is signed."""
    header, claims = plain(ours.issue("u1", "user", "s1"))
    with pytest.raises(TokenRefused):
        ours.verify(signed(keys, header, claims | change))


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "role", "sid", "jti", "iat", "nbf", "exp"])
def test_no_claim_may_be_missing(ours, keys, name):
    header, claims = plain(ours.issue("u1", "user", "s1"))
    del claims[name]
    with pytest.raises(TokenRefused):
        ours.verify(signed(keys, header, claims))


def test_times(ours, keys):
    """Expired at its second, not before its time, and never longer than half an hour."""
    header, claims = plain(ours.issue("u1", "user", "s1"))
    now = clock.now_ms() // 1000
    with pytest.raises(TokenExpired):
        ours.verify(signed(keys, header, claims | {"iat": now - 1800, "nbf": now - 1800, "exp": now}))
    for early in ({"nbf": now + 60}, {"iat": now + 60, "exp": now + 120}):
        with pytest.raises(TokenRefused, match="not valid yet"):
            ours.verify(signed(keys, header, claims | early))
    with pytest.raises(TokenRefused, match="too long"):
        ours.verify(signed(keys, header, claims | {"exp": now + 86_400}))
    assert ours.verify(signed(keys, header, claims | {"iat": now + 1, "nbf": now + 1, "exp": now + 1801}))


class NoKeys:
    """Nobody asks it."""

    def verifying(self, key_id: str) -> None:
        raise AssertionError(key_id)


@given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{86}")))
@example(f"0.0.{'0' * 86}")
def test_nothing_malformed_raises_anything_else(text):
    """Any text gives the same refusal, before a key is even looked for."""
    with pytest.raises(TokenRefused):
        Tokens(NoKeys(), ISSUER).verify(text)


@pytest.mark.parametrize("head", [[], "x", 1, None, {}, {"alg": ["Ed25519"]}, b"\xff\xfe", b"{", b"[" * 900])
def test_headers_that_are_none(ours, head):
    with pytest.raises(TokenRefused):
        ours.verify(f"{part(head)}.{part({})}.{'A' * 86}")


def test_a_long_token_is_not_read(ours):
    with pytest.raises(TokenRefused):
        ours.verify(ours.issue("u" * 100, "user", "s") + "A" * tokens.MAX_BYTES)


def test_rotation_logs_nobody_out(ours, keys, keyring, monkeypatch):
    """Two servers with one file: a new key signs at both, the old one verifies at both, for a day."""
    other = Tokens(TokenKeys.open(keys.path, keyring), ISSUER)
    old = ours.issue("u1", "user", "s1")
    fresh = keys.rotate()
    for each in (ours, other):
        assert each.verify(old).sub == "u1"
        assert plain(each.issue("u1", "user", "s1"))[0]["kid"] == fresh
    assert ours.verify(other.issue("u2", "user", "s2")).sub == "u2"
    keys.rotate()
    assert keys.verifying(plain(old)[0]["kid"]) is not None
    later = clock.now_ms() + KEPT_MS + 1
    monkeypatch.setattr(clock, "now_ms", lambda: later)
    keys.rotate()
    assert keys.verifying(plain(old)[0]["kid"]) is None


def test_a_dropped_key_is_gone_at_once(ours, keys, keyring):
    """After a leak: `drop` ends every token that was signed before, at every server."""
    other = Tokens(TokenKeys.open(keys.path, keyring), ISSUER)
    old = ours.issue("u1", "user", "s1")
    keys.rotate(drop=True)
    for each in (ours, other):
        with pytest.raises(TokenRefused, match="unknown"):
            each.verify(old)


def test_the_file_is_private_and_sealed(keys, keyring, tmp_path):
    """Mode 0600, no key in plain; another keyring opens nothing; open to others it is refused."""
    assert keys.path.stat().st_mode & 0o777 == 0o600
    seed = keys.signing()[1].private_key.private_bytes_raw()
    content = keys.path.read_bytes()
    for form in (seed, base64.b64encode(seed), seed.hex().encode()):
        assert form not in content
    assert hashlib.sha256(seed).hexdigest() not in repr(keys)
    with pytest.raises(KeyUnavailable):
        TokenKeys.open(keys.path, Keyring.create(tmp_path / "other" / "keyring"))
    keys.path.chmod(0o640)
    with pytest.raises(TokenKeyError, match="chmod 600"):
        TokenKeys.open(keys.path, keyring)
    keys.path.chmod(0o600)
    keys.path.write_bytes(b"{}")
    with pytest.raises(TokenKeyError, match="damaged"):
        TokenKeys.open(keys.path, keyring)


def test_the_seal_follows_the_master_key(ours, keys, keyring):
    """Opened after a rotation of the master key it is sealed anew, so that the old one can be removed."""
    token = ours.issue("u1", "user", "s1")
    old = keyring.active_id
    keyring.activate(keyring.add())
    TokenKeys.open(keys.path, keyring)
    keyring.remove(old)
    assert Tokens(TokenKeys.open(keys.path, keyring), ISSUER).verify(token).sub == "u1"


def test_it_is_a_jwt_like_any_other(ours, keys):
    """An independent reading, by the public key alone, agrees."""
    token = ours.issue("u1", "user", "s1")
    public = OKPKey.import_key(keys.signing()[1].as_dict(private=False))
    assert jwt.decode(token, public, algorithms=["Ed25519"]).claims["sub"] == "u1"
