"""Where a running system leaves bytes, the secrets it holds, and the looking for one in the other."""

from __future__ import annotations

import base64
import json
import re
import sys
import urllib.parse
from collections.abc import Iterator

import psutil
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker.events.keyring import Keyring
from broker.events.sealing import ClientKeys
from broker.services.ca.authority import Authority
from broker.services.server.token_keys import TokenKeys
from support.system import System

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Place = tuple[str, bytes]
_ZEROS = re.compile(rb"\x00{64,}")
# Their owners' own copies; each is private to the user that runs the broker.
OWNERS = re.compile(r"(^|/)certs/(services|clients/[^/]+)/[^/]+\.key$|^admin-password$")


def forms(secret: bytes) -> set[bytes]:
    """How it may be written: plain, hex, base64 at any offset, percent-encoded, as JSON or wide characters."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode(), secret.hex(":").encode()}
    for offset in range(3):
        # What comes before and after decides the first and the last characters.
        coded = base64.b64encode(b"\x00" * offset + secret)
        coded = coded[(0, 2, 3)[offset] : -4]
        found |= {coded, coded.translate(bytes.maketrans(b"+/", b"-_"))}
    for quoted in (urllib.parse.quote_from_bytes, urllib.parse.quote_plus):
        found |= {quoted(secret, safe="").encode(), quoted(secret, safe="/").encode()}
    if secret.isascii():
        text = secret.decode("ascii")
        found |= {json.dumps(text)[1:-1].encode(), text.encode("utf-16-le")}
    # Shorter ones would be met by chance.
    return {each for each in found if len(each) >= 7}


def seen(secrets: dict[str, bytes], places: Iterator[Place]) -> list[str]:
    """Which secret lies where."""
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    found = []
    for place, raw in places:
        content = _ZEROS.sub(b"\x00", raw)
        found += [
            f"{name} in {place}" for name, each in wanted.items() if any(one in content for one in each)
        ]
    return found


def files(system: System) -> Iterator[Place]:
    """Every file of the installation: logs, Redis' and MySQL's, archive, keys, certificates; not their owners' copies."""
    for path in sorted(system.data.rglob("*")):
        name = str(path.relative_to(system.data))
        if path.is_file() and not OWNERS.search(name):
            content = path.read_bytes()
            yield name, zstd.decompress(content) if path.suffix == ".zst" else content


def tables(system: System) -> Iterator[Place]:
    """Every row of every table, all columns."""
    for table in system.query("SHOW TABLES"):
        (name,) = table.values()
        for row in system.query(f"SELECT * FROM `{name}`"):
            yield (
                f"table {name}",
                b"\x00\x00".join(v if isinstance(v, bytes) else str(v).encode() for v in row.values()),
            )


async def redis(system: System) -> list[Place]:
    """Every key with its whole content."""
    client = system.redis()
    found: list[Place] = []
    async for key in client.scan_iter():
        kind = await client.type(key)
        parts = [key]
        if kind == b"hash":
            parts += [part for pair in (await client.hgetall(key)).items() for part in pair]
        elif kind == b"stream":
            parts += [part for _, fields in await client.xrange(key) for part in fields.values()]
        elif kind == b"string":
            parts.append(await client.get(key))
        elif kind == b"zset":
            parts += await client.zrange(key, 0, -1)
        elif kind == b"set":
            parts += await client.smembers(key)
        else:
            raise AssertionError(f"{key}: a {kind} is not looked into")
        found.append((f"redis {key.decode('latin-1')}", b"\x00\x00".join(parts)))
    await client.aclose()
    return found


def processes(system: System) -> Iterator[Place]:
    """The command lines of all that runs, which every user of the machine can read."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(system.data) in line:
            yield f"command line of {process.pid}", line.encode()


async def keys(system: System, passphrase: str) -> dict[str, bytes]:
    """Every key of the installation, raw."""
    settings = system.settings
    keyring = Keyring.load(settings.keyring_path, passphrase)
    found = {f"master key {key.id}": key.key for key in keyring._contents.keys}
    found["index key"] = keyring.index_key
    client = system.redis()
    for name, wrapped in (await client.hgetall(system.keys().control.client_keys)).items():
        opened = ClientKeys.unwrap(name.decode(), wrapped, keyring)
        for number, version in opened.versions.items():
            found[f"data key {number} of {name.decode()}"] = version.data_key
            found[f"number key {number} of {name.decode()}"] = version.number_key
    await client.aclose()
    token_keys = TokenKeys.open(settings.data_dir / "keys" / "token-keys", keyring)
    for key in token_keys._read()[1]:
        found[f"token key {key.id}"] = key.seed
    authority = Authority.load(system.certs, passphrase, settings.ca_key_path)
    found["CA key"] = _scalar(authority._key)
    for path in (*system.certs.glob("services/*.key"), *system.certs.glob("clients/*/*.key")):
        found[f"{path.parent.name}/{path.name}"] = _scalar(load_pem_private_key(path.read_bytes(), None))
    return found


def _scalar(key) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")
