"""Sealing what producers send: AES-256-GCM under the client's own key, numbers also as keyed hashes.

A client has, per key number (1–65535), a data key and a key for hashes of numbers, and one request key that
stays for life. They are wrapped by the master key and lie in the control slot, never in the history: erasing
them erases what they sealed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.domain.submission import Submission
from broker.errors import KeyUnavailable, Undecryptable
from broker.events.keyring import KEY_BYTES, NONCE_BYTES, Keyring

MAX_KEY_NUMBER: Final = 0xFFFF
MESSAGE_FORM: Final = 1
SECRET_FORM: Final = 2

_head = struct.Struct(">BH")
_BODY_AT: Final = _head.size + NONCE_BYTES
_TAG_BYTES: Final = 16
_SECRET_AAD: Final = b"\x02route secret\x00"
# Whole numbers beyond this are not exact as floats, so 1e20 and its digits need not be the same request.
_EXACT: Final = 2.0**53


class Plain(msgspec.Struct, frozen=True, array_like=True):
    """What a sealed message holds."""

    sender_number: str
    message_body: str
    metadata_json: bytes | None = None

    def __repr__(self) -> str:
        return "<Plain>"

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The metadata as an object."""
        if self.metadata_json is None:
            return None
        decoded: dict[str, Any] = msgspec.json.decode(self.metadata_json)
        return decoded


class _Wrapped(msgspec.Struct, frozen=True, array_like=True):
    number: int
    master_key: str
    wrapped: bytes


class _WrappedKeys(msgspec.Struct, frozen=True, array_like=True):
    active: int
    keys: list[_Wrapped]


class _Version:
    """One key number of a client, with its cipher ready."""

    __slots__ = ("cipher", "data_key", "head", "number", "number_key")

    def __init__(self, number: int, data_key: bytes, number_key: bytes) -> None:
        self.number = number
        self.data_key = data_key
        self.number_key = number_key
        self.head = _head.pack(MESSAGE_FORM, number)
        self.cipher = AESGCM(data_key)


class ClientKeys:
    """The keys of one client, unwrapped. Immutable."""

    __slots__ = ("_request_key", "active", "client_id", "name", "versions")

    def __init__(
        self, client_id: str, versions: dict[int, _Version], active: int, request_key: bytes
    ) -> None:
        self.client_id = client_id
        self.name = client_id.encode()
        self.versions = versions
        self.active = versions[active]
        self._request_key = request_key

    def __repr__(self) -> str:
        return f"<ClientKeys {self.client_id}: {sorted(self.versions)}, active {self.active.number}>"

    def __reduce__(self) -> str:
        raise TypeError("Keys are not to be copied out of their process.")

    @classmethod
    def new(cls, client_id: str) -> ClientKeys:
        """Fresh random keys, number 1."""
        return cls(client_id, {1: _fresh(1)}, 1, os.urandom(KEY_BYTES))

    def rotated(self) -> ClientKeys:
        """The same with a fresh key active; the old ones still unseal. Raises KeyUnavailable past 65535."""
        added = self.added()
        return added.activated(max(added.versions))

    def added(self) -> ClientKeys:
        """The same with a fresh key that is not active yet. Raises KeyUnavailable past 65535."""
        number = max(self.versions) + 1
        if number > MAX_KEY_NUMBER:
            raise KeyUnavailable(f"{self.client_id} has used up its key numbers.")
        versions = {**self.versions, number: _fresh(number)}
        return ClientKeys(self.client_id, versions, self.active.number, self._request_key)

    def activated(self, number: int) -> ClientKeys:
        """The same with another of its keys active. Raises KeyUnavailable."""
        if number not in self.versions:
            raise KeyUnavailable(f"{self.client_id} has no key number {number}.")
        return ClientKeys(self.client_id, self.versions, number, self._request_key)

    def wrapped(self, keyring: Keyring) -> bytes:
        """The form stored in Redis: every version under the active master key."""
        keys = []
        for number, version in sorted(self.versions.items()):
            plain = version.data_key + version.number_key + self._request_key
            keys.append(_Wrapped(number, *keyring.wrap(plain, _aad(self.client_id, number))))
        return msgspec.msgpack.encode(_WrappedKeys(self.active.number, keys))

    @classmethod
    def unwrap(cls, client_id: str, wrapped: bytes, keyring: Keyring) -> ClientKeys:
        """The inverse of `wrapped`. Raises KeyUnavailable (master key not loaded) or Undecryptable."""
        stored = _stored(client_id, wrapped)
        versions, request_key = {}, b""
        for key in stored.keys:
            plain = keyring.unwrap(key.master_key, key.wrapped, _aad(client_id, key.number))
            if len(plain) != 3 * KEY_BYTES:
                raise Undecryptable(f"The keys of {client_id} were changed.")
            data_key, number_key = plain[:KEY_BYTES], plain[KEY_BYTES : 2 * KEY_BYTES]
            versions[key.number] = _Version(key.number, data_key, number_key)
            request_key = plain[2 * KEY_BYTES :]
        if stored.active not in versions:
            raise Undecryptable(f"The keys of {client_id} lack number {stored.active}.")
        return cls(client_id, versions, stored.active, request_key)

    @staticmethod
    def masters(client_id: str, wrapped: bytes) -> set[str]:
        """The ids of the master keys that wrap them. Raises Undecryptable."""
        return {key.master_key for key in _stored(client_id, wrapped).keys}

    @staticmethod
    def numbers(client_id: str, wrapped: bytes) -> set[int]:
        """The key numbers that a wrapped form holds. Raises Undecryptable."""
        return {key.number for key in _stored(client_id, wrapped).keys}

    @staticmethod
    def merged(client_id: str, *copies: bytes, active: int | None = None) -> bytes:
        """Every key number that one of these wrapped forms holds, earlier forms first; still wrapped.

        `active`: the one to seal with, where it is among them. Raises Undecryptable.
        """
        forms = [_stored(client_id, wrapped) for wrapped in copies]
        keys = {key.number: key for form in reversed(forms) for key in form.keys}
        best = max(form.active for form in forms) if active not in keys else active
        return msgspec.msgpack.encode(_WrappedKeys(best or 0, [keys[number] for number in sorted(keys)]))

    def request_hash(self, canonical: bytes) -> bytes:
        """32 bytes, the same for the same bytes for as long as the client's keys exist."""
        return hmac.digest(self._request_key, canonical, "sha256")


def _stored(client_id: str, wrapped: bytes) -> _WrappedKeys:
    try:
        return msgspec.msgpack.decode(wrapped, type=_WrappedKeys)
    except msgspec.MsgspecError:
        raise Undecryptable(f"The keys of {client_id} were changed.") from None


def _fresh(number: int) -> _Version:
    return _Version(number, os.urandom(KEY_BYTES), os.urandom(KEY_BYTES))


def _aad(client_id: str, number: int) -> bytes:
    return b"client keys\x00" + number.to_bytes(2, "big") + client_id.encode()


_encoder = msgspec.msgpack.Encoder()
_json = msgspec.json.Encoder()
_canonical_json = msgspec.json.Encoder(order="deterministic")
_plain = msgspec.msgpack.Decoder(Plain)


class Sealer:
    """Seals, unseals and hashes with the keys that `lookup` gives.

    `lookup(client_id)` raises KeyUnavailable or KeyErased (`Trust.keys`); so do the methods here.
    """

    def __init__(self, keyring: Keyring, lookup: Callable[[str], ClientKeys]) -> None:
        self._keyring = keyring
        self._lookup = lookup

    def seal(
        self,
        client_id: str,
        message_id: bytes,
        number: str,
        body: str,
        metadata: dict[str, Any] | None = None,
    ) -> bytes:
        """`0x01 | key number (2 bytes) | nonce (12) | ciphertext + tag`, bound to message id and client."""
        keys = self._lookup(client_id)
        key = keys.active
        # JSON inside, because msgpack has no integers past 64 bits and metadata may hold them.
        extra = None if metadata is None else _json.encode(metadata)
        # Random nonces are safe up to 2**32 messages a key (NIST SP 800-38D, 8.3).
        nonce = os.urandom(NONCE_BYTES)
        plain = _encoder.encode((number, body, extra))
        return key.head + nonce + key.cipher.encrypt(nonce, plain, message_id + keys.name)

    def unseal(self, client_id: str, message_id: bytes, sealed: bytes) -> Plain:
        """The inverse of `seal`. Raises KeyUnavailable, KeyErased, Undecryptable."""
        keys = self._lookup(client_id)
        plain = _open(keys, MESSAGE_FORM, sealed, message_id + keys.name)
        try:
            return _plain.decode(plain)
        except msgspec.MsgspecError:
            raise Undecryptable("What was sealed is not a message.") from None

    def seal_secret(self, client_id: str, secret: bytes) -> bytes:
        """A secret of the client's route, such as a webhook's signing key; can be read as nothing else."""
        keys = self._lookup(client_id)
        nonce = os.urandom(NONCE_BYTES)
        head = _head.pack(SECRET_FORM, keys.active.number)
        return head + nonce + keys.active.cipher.encrypt(nonce, secret, _SECRET_AAD + keys.name)

    def unseal_secret(self, client_id: str, sealed: bytes) -> bytes:
        """The inverse of `seal_secret`. Raises KeyUnavailable, KeyErased, Undecryptable."""
        keys = self._lookup(client_id)
        return _open(keys, SECRET_FORM, sealed, _SECRET_AAD + keys.name)

    def number_hash(self, client_id: str, number: str) -> bytes:
        """HMAC-SHA-256 of a sender number under the client's active key, 32 bytes."""
        return hmac.digest(self._lookup(client_id).active.number_key, number.encode(), "sha256")

    def number_hashes(self, client_id: str, number: str) -> list[bytes]:
        """The hashes of a number under every key of the client, newest first: what a search looks for."""
        versions = sorted(self._lookup(client_id).versions.items(), reverse=True)
        return [hmac.digest(version.number_key, number.encode(), "sha256") for _, version in versions]

    def idempotency_hash(self, client_id: str, key: str) -> bytes:
        """16 bytes that stand for a client's idempotency key; stable over every rotation."""
        # A client's name holds no NUL, so that no two pairs give the same bytes.
        text = f"{client_id}\x00{key}".encode()
        return hashlib.blake2b(
            text, digest_size=16, key=self._keyring.index_key, person=b"idempotency"
        ).digest()

    def rate_hash(self, kind: str, who: str) -> bytes:
        """16 bytes that stand for somebody whom a rate limit counts, such as an address."""
        text = f"{kind}\x00{who}".encode()
        return hashlib.blake2b(text, digest_size=16, key=self._keyring.index_key, person=b"rate").digest()

    def request_hash(self, client_id: str, submission: Submission) -> bytes:
        """32 bytes, equal for equal requests: the order of keys and the spelling of JSON do not count.

        Under the client's own key, so that erasing it leaves nothing to try guesses against.
        """
        extra = None if submission.metadata is None else _canonical(submission.metadata)
        plain = _canonical_json.encode((submission.sender_number, submission.message_body, extra))
        return self._lookup(client_id).request_hash(plain)


def key_number(sealed: bytes) -> int:
    """The key number that a ciphertext names. Raises Undecryptable."""
    if len(sealed) < _BODY_AT + _TAG_BYTES:
        raise Undecryptable("It is too short.")
    number: int = _head.unpack_from(sealed)[1]
    return number


def _open(keys: ClientKeys, form: int, sealed: bytes, aad: bytes) -> bytes:
    number = key_number(sealed)
    if sealed[0] != form:
        raise Undecryptable(f"It has form {sealed[0]}, not {form}.")
    key = keys.versions.get(number)
    if key is None:
        raise KeyUnavailable(f"{keys.client_id} has no key number {number}.")
    try:
        return key.cipher.decrypt(sealed[_head.size : _BODY_AT], sealed[_BODY_AT:], aad)
    except InvalidTag:
        raise Undecryptable from None


def _canonical(value: Any) -> Any:
    """`value` with whole floats as integers: 1.0, 1e0 and 1 are the same JSON number."""
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value
