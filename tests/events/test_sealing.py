"""Sealing: what is bound to what, what is equal to what, and what never shows."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain import submission
from broker.domain.submission import Submission
from broker.errors import KeyUnavailable, Undecryptable
from broker.events.keyring import Keyring
from broker.events.sealing import ClientKeys, Plain, Sealer, key_number
from support.examples import examples

MESSAGE = bytes(range(16))
NUMBER = "+4915200000000"


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.create(tmp_path_factory.mktemp("sealing") / "keys" / "keyring")


@pytest.fixture(scope="module")
def clients() -> dict[str, ClientKeys]:
    return {name: ClientKeys.new(name) for name in ("demo", "other")}


@pytest.fixture(scope="module")
def sealer(keyring: Keyring, clients: dict[str, ClientKeys]) -> Sealer:
    return Sealer(keyring, clients.__getitem__)


def test_a_sealed_message_has_the_documented_form(sealer):
    """One byte of form, two of key number, twelve of nonce, then ciphertext and tag; no plain text in it."""
    sealed = sealer.seal("demo", MESSAGE, NUMBER, "a secret body", {"order": "7"})
    assert sealed[0] == 1
    assert key_number(sealed) == 1
    plain = msgspec.msgpack.encode((NUMBER, "a secret body", b'{"order":"7"}'))
    assert len(sealed) == 3 + 12 + len(plain) + 16
    assert not any(word in sealed for word in (b"secret", NUMBER.encode(), b"order"))
    assert sealed != sealer.seal("demo", MESSAGE, NUMBER, "a secret body", {"order": "7"})


metadata = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(body=st.text(min_size=1, max_size=1000), extra=st.none() | metadata)
@settings(max_examples=examples(50, 150), deadline=None)
def test_every_message_comes_back_as_it_was(sealer, body, extra):
    """Any text and any JSON object, integers of any size too."""
    plain = sealer.unseal("demo", MESSAGE, sealer.seal("demo", MESSAGE, NUMBER, body, extra))
    assert (plain.sender_number, plain.message_body, plain.metadata) == (NUMBER, body, extra)


def test_a_ciphertext_fits_only_its_message_and_client(sealer, clients):
    """Moved to another message or client it is Undecryptable, even under the same key."""
    sealed = sealer.seal("demo", MESSAGE, NUMBER, "body")
    with pytest.raises(Undecryptable):
        sealer.unseal("demo", MESSAGE[::-1], sealed)
    with pytest.raises(Undecryptable):
        sealer.unseal("other", MESSAGE, sealed)
    demo = clients["demo"]
    renamed = ClientKeys("renamed", demo.versions, 1, b"")
    with pytest.raises(Undecryptable):
        Sealer(sealer._keyring, lambda _: renamed).unseal("renamed", MESSAGE, sealed)


def test_any_changed_bit_and_any_cut_is_noticed(sealer):
    """Never a wrong plain text, never another error."""
    sealed = sealer.seal("demo", MESSAGE, NUMBER, "body")
    for index in range(len(sealed)):
        for bit in (1, 128):
            changed = bytearray(sealed)
            changed[index] ^= bit
            with pytest.raises((Undecryptable, KeyUnavailable)):
                sealer.unseal("demo", MESSAGE, bytes(changed))
        with pytest.raises(Undecryptable):
            sealer.unseal("demo", MESSAGE, sealed[:index])


def test_a_route_secret_cannot_be_read_as_a_message_nor_the_reverse(sealer):
    """The form is bound, not only written in front."""
    secret = sealer.seal_secret("demo", b"whsec")
    assert sealer.unseal_secret("demo", secret) == b"whsec"
    with pytest.raises(Undecryptable):
        sealer.unseal("demo", MESSAGE, secret)
    with pytest.raises(Undecryptable):
        sealer.unseal("demo", MESSAGE, b"\x01" + secret[1:])
    with pytest.raises(Undecryptable):
        sealer.unseal_secret("other", secret)
    message = sealer.seal("demo", MESSAGE, NUMBER, "body")
    with pytest.raises(Undecryptable):
        sealer.unseal_secret("demo", b"\x02" + message[1:])


def test_rotation_seals_anew_and_still_reads_and_finds_the_old(keyring):
    """After a rotation: new number, old ciphertexts readable, searches look for both hashes."""
    before = ClientKeys.new("demo")
    after = before.rotated()
    old, new = Sealer(keyring, lambda _: before), Sealer(keyring, lambda _: after)
    sealed = old.seal("demo", MESSAGE, NUMBER, "body")
    assert new.unseal("demo", MESSAGE, sealed).message_body == "body"
    assert key_number(new.seal("demo", MESSAGE, NUMBER, "body")) == 2
    assert new.number_hashes("demo", NUMBER) == [
        new.number_hash("demo", NUMBER),
        old.number_hash("demo", NUMBER),
    ]
    with pytest.raises(KeyUnavailable):
        old.unseal("demo", MESSAGE, new.seal("demo", MESSAGE, NUMBER, "body"))
    request = Submission(NUMBER, "body")
    assert old.request_hash("demo", request) == new.request_hash("demo", request)


def test_wrapped_keys_come_back_and_are_bound_to_their_client(keyring, tmp_path: Path):
    """Wrapped and unwrapped they are the same; under another name, changed or without the master key they are not."""
    keys = ClientKeys.new("demo").rotated()
    wrapped = keys.wrapped(keyring)
    again = ClientKeys.unwrap("demo", wrapped, keyring)
    assert again.active.data_key == keys.active.data_key
    assert again.versions[1].number_key == keys.versions[1].number_key
    assert again.request_hash(b"x") == keys.request_hash(b"x")
    assert not any(v.data_key in wrapped or v.number_key in wrapped for v in keys.versions.values())
    with pytest.raises(Undecryptable):
        ClientKeys.unwrap("other", wrapped, keyring)
    with pytest.raises(Undecryptable):
        ClientKeys.unwrap("demo", wrapped[:-1] + bytes([wrapped[-1] ^ 1]), keyring)
    with pytest.raises(Undecryptable):
        ClientKeys.unwrap("demo", b"\xc1", keyring)
    foreign = Keyring.create(tmp_path / "keys" / "keyring")
    with pytest.raises(KeyUnavailable):
        ClientKeys.unwrap("demo", wrapped, foreign)


def test_keys_and_plain_text_are_never_shown(clients, sealer):
    """Not by repr nor by pickling."""
    keys = clients["demo"]
    plain = sealer.unseal("demo", MESSAGE, sealer.seal("demo", MESSAGE, NUMBER, "a secret body"))
    assert "secret" not in repr(plain)
    assert NUMBER not in f"{plain}"
    assert keys.active.data_key.hex() not in repr(keys)
    with pytest.raises(TypeError):
        pickle.dumps(keys)


def test_hashes_differ_by_client_and_have_their_sizes(sealer):
    """The same number, key or request of two clients gives unrelated hashes."""
    request = Submission(NUMBER, "body")
    for give, size in (
        (lambda client: sealer.number_hash(client, NUMBER), 32),
        (lambda client: sealer.idempotency_hash(client, "key-1"), 16),
        (lambda client: sealer.request_hash(client, request), 32),
    ):
        assert give("demo") == give("demo")
        assert len(give("demo")) == size
        assert give("demo") != give("other")


def test_idempotency_hashes_cannot_be_confused_between_client_and_key(sealer):
    """`a` + `bc` is not `ab` + `c`."""
    assert sealer.idempotency_hash("a", "bc") != sealer.idempotency_hash("ab", "c")


def request_of(text: str) -> Submission:
    decoded: dict[str, Any] = msgspec.json.decode(text)
    return submission.validate(decoded["sender_number"], decoded["message_body"], decoded.get("metadata"))


@pytest.mark.parametrize(
    "spelling",
    [
        '{"metadata":{"a":{"x":1,"y":[1,2]},"b":100},"message_body":"Hé","sender_number":"+4915200000000"}',
        '{"sender_number":"\\u002b4915200000000","message_body":"H\\u00e9","metadata":{"b":1e2,"a":{"y":[1.0,2],"x":1}}}',
        ' { "message_body" : "Hé" , "sender_number":"+4915200000000", "metadata":{"b":100.0,"a":{"y":[1,2],"x":1}}} ',
    ],
)
def test_equal_requests_hash_equal_whatever_their_spelling(sealer, spelling):
    """Order of keys, escapes, white space and the spelling of numbers do not count."""
    plain = Submission(NUMBER, "Hé", {"a": {"x": 1, "y": [1, 2]}, "b": 100})
    assert sealer.request_hash("demo", request_of(spelling)) == sealer.request_hash("demo", plain)


def test_different_requests_hash_differently(sealer):
    """No two of these are the same request; the idempotency key itself is no part of it."""
    base: dict[str, Any] = {"sender_number": NUMBER, "message_body": "body"}
    requests = [
        Submission(**base),
        Submission(**base, metadata={}),
        Submission(**base, metadata={"a": None}),
        Submission(**base, metadata={"a": 1}),
        Submission(**base, metadata={"a": True}),
        Submission(**base, metadata={"a": "1"}),
        Submission(**base, metadata={"a": 1.5}),
        Submission(**base, metadata={"a": [1, 2]}),
        Submission(**base, metadata={"a": [2, 1]}),
        Submission(NUMBER, "body "),
        Submission("+4915200000001", "body"),
    ]
    assert len({sealer.request_hash("demo", request) for request in requests}) == len(requests)
    keyed = Submission(**base, idempotency_key="k")
    assert sealer.request_hash("demo", keyed) == sealer.request_hash("demo", requests[0])


def test_what_is_sealed_but_no_message_is_undecryptable(clients, sealer):
    """A plain text of another shape, under the right key, is still an Undecryptable."""
    key = clients["demo"].active
    sealed = key.head + bytes(12) + key.cipher.encrypt(bytes(12), b"\x93\x01\x02\x03", MESSAGE + b"demo")
    with pytest.raises(Undecryptable):
        sealer.unseal("demo", MESSAGE, sealed)
    assert isinstance(sealer.unseal("demo", MESSAGE, sealer.seal("demo", MESSAGE, NUMBER, "x")), Plain)
