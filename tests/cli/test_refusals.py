"""What people do wrong before `up`: each time one sentence that says what to do, and nothing left running."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from broker.services.ca.authority import expires_within
from support.furnishing import furnish
from support.system import System, eventually

MESSAGE = ("send", "--from", "+4915200000000", "--body", "x", "--wait")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A data directory that was set up, with nothing running; tests put back what they take away."""
    system = System(tmp_path_factory.mktemp("refusals"), grace_period="5")
    try:
        system.furnish()
        system.up()
        system.down()
        yield system
    finally:
        system.down()


def refused(done: subprocess.CompletedProcess[str], *says: str) -> None:
    """One error, with these words."""
    assert done.returncode == 1, done.stdout
    assert len(re.findall("^Error: ", done.stderr, re.MULTILINE)) == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "BROKER_DEBUG" not in done.stderr
    for words in says:
        assert words in done.stderr


def nothing_started(system: System) -> bool:
    return all(one["pid"] is None for one in system.status()["processes"])


# -- Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("up",), ("up", "--detach")])
def test_a_data_directory_that_cannot_be(tmp_path: Path, args: tuple[str, ...]) -> None:
    """Its path, the reason, and how to choose another."""
    (tmp_path / "file").touch()
    refused(
        System(tmp_path / "file" / "data").run(*args), str(tmp_path / "file"), "--data", "BROKER_DATA_DIR"
    )


@pytest.mark.parametrize(("lost", "kept"), [("ca.crt", "ca.key"), ("ca.key", "ca.crt")])
def test_half_an_authority_is_never_replaced(used: System, lost: str, kept: str) -> None:
    """What is left of it stays as it was: a new one would void every certificate."""
    path, before = used.certs / lost, (used.certs / kept).read_bytes()
    content = path.read_bytes()
    path.unlink()
    done = used.run("up", "--detach")
    assert not path.exists()
    path.write_bytes(content)
    refused(done, f"{path} is missing", "restore it from a backup", f"remove {used.certs / kept}")
    assert (used.certs / kept).read_bytes() == before


def test_a_lost_keyring_is_never_replaced(used: System) -> None:
    """Not even when the data directory has forgotten the log: Redis still holds what only that keyring opens."""
    keyring, remembered = used.settings.keyring_path, used.data / "run" / "log-identity.json"
    content, identity = keyring.read_bytes(), remembered.read_bytes()
    keyring.unlink()
    refused(used.run("up", "--detach"), f"{keyring} is missing", "restore the file from its backup")
    remembered.unlink()
    refused(used.run("up", "--detach"), f"{keyring} is missing", "restore the file from its backup")
    assert not keyring.exists()
    keyring.write_bytes(content)
    keyring.chmod(0o600)
    remembered.write_bytes(identity)


def test_a_torn_certificate_is_named(used: System) -> None:
    """With what to do about it."""
    path = used.certs / "services" / "worker.crt"
    content = path.read_bytes()
    path.write_text("torn")
    done = used.run("up", "--detach")
    path.write_bytes(content)
    refused(done, f"{path} is not a PEM certificate", "Remove it")


def test_lost_certificates_are_made_again(used: System) -> None:
    """All of them, with a new authority."""
    shutil.rmtree(used.certs)
    used.up()
    assert used.run(*MESSAGE).returncode == 0
    used.down()


def test_another_authority_s_certificates_are_replaced(used: System) -> None:
    """A new authority beside old certificates: they would be refused by everybody."""
    (used.certs / "ca.crt").unlink()
    (used.certs / "ca.key").unlink()
    used.up()
    assert used.run(*MESSAGE).returncode == 0
    # For the next test: it takes a running system to revoke.
    for name in ("worker", "demo"):
        assert used.run("cert", "revoke", name, "--reason", "key_compromise").returncode == 0
    used.down()


async def test_what_a_service_cannot_use_is_issued_again(used: System) -> None:
    """A lost certificate, an expired one and one that was revoked are none of the operator's business.

    `up` is the operator's word that the service shall run; a revoked producer stays out.
    """
    services = used.certs / "services"
    (services / "server.crt").unlink()
    expire(services / "gateway.crt", used.certs)
    assert expires_within(services / "gateway.crt", 0)
    done = used.run("up", "--detach")
    assert done.returncode == 0, done.stderr
    for name in ("server", "gateway", "worker"):
        assert f"Issued {services / name}.crt." in done.stdout
        assert not expires_within(services / f"{name}.crt", 30)
    assert "Issued" not in done.stdout.replace(f"Issued {services}", "")
    assert "certificate_revoked" in used.run(*MESSAGE).stderr
    for command in (("client", "register", "shop"), ("cert", "issue", "shop")):
        assert used.run(*command).returncode == 0
    # Gateways follow the registry within a second.
    await eventually(lambda: used.run(*MESSAGE, "--client", "shop").returncode == 0, what="shop let in")
    used.down()


def expire(path: Path, certs: Path) -> None:
    """The same certificate, but ended yesterday."""
    old = x509.load_pem_x509_certificate(path.read_bytes())
    key = load_pem_private_key((certs / "ca.key").read_bytes(), None)
    day = dt.timedelta(days=1)
    builder = (
        x509.CertificateBuilder(extensions=list(old.extensions))
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(old.not_valid_before_utc - 9 * day)
        .not_valid_after(old.not_valid_before_utc - day)
    )
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


# -- Servers of one's own ---------------------------------------------------------------------------------------


def test_a_redis_that_does_not_answer(tmp_path: Path) -> None:
    """Said before anything is started, without the password."""
    system = System(tmp_path / "data", redis_url="redis://me:hidden@127.0.0.1:1/0")
    done = system.run("up", "--detach")
    refused(done, "Redis at redis://me:***@127.0.0.1:1/0 cannot be used", "BROKER_REDIS_URL")
    assert "hidden" not in done.stdout + done.stderr
    assert not (tmp_path / "data" / "mariadb").exists()


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("appendonly", "no", "CONFIG SET appendonly yes"),
        ("appendfsync", "everysec", "CONFIG SET appendfsync always"),
        ("maxmemory-policy", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
    ],
)
async def test_a_redis_that_could_lose_messages(
    tmp_path: Path, setting: str, value: str, remedy: str
) -> None:
    """Refused with the exact setting, before anything is started."""
    server = Valkey(tmp_path / "valkey", extra={setting: value})
    await server.start()
    done = System(tmp_path / "data", redis_url=server.url).run("up", "--detach")
    await server.stop()
    refused(done, "can lose acknowledged messages", remedy, "allow_unsafe_redis")
    assert not (tmp_path / "data" / "mariadb").exists()


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    """Said before anything is started, without the password."""
    done = System(tmp_path / "data", mysql_url="mysql://me:hidden@127.0.0.1:1/x").run("up", "--detach")
    refused(done, "MySQL at mysql://me:***@127.0.0.1:1/x cannot be used", "BROKER_MYSQL_URL")
    assert "hidden" not in done.stdout + done.stderr
    assert not (tmp_path / "data" / "valkey").exists()


async def test_a_database_that_lets_nobody_in(tmp_path: Path) -> None:
    """A wrong password, a missing database: the server's own words."""
    server = furnish(MariaDB(tmp_path / "mariadb", port=0))
    await server.start()
    wrong = server.url.replace(server.password, "hidden")
    absent = server.url.replace("/message_system", "/elsewhere")
    for url, says in ((wrong, "Access denied for user 'broker'"), (absent, "elsewhere")):
        done = System(tmp_path / "data", mysql_url=url).run("up", "--detach")
        refused(done, "cannot be used", says)
        assert "hidden" not in done.stdout + done.stderr
    await server.stop()
