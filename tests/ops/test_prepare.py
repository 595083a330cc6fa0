"""`prepare`: what roles need, made once, for servers of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.services.ca import authority
from support import databases
from support.installation import Installation


def test_what_is_there_stays(installation: Installation) -> None:
    """Called again, after an upgrade for one, it makes nothing anew: same keys, same certificates."""
    kept = [installation.data / "keys" / "keyring", installation.certs / "ca.key"]
    kept += sorted(installation.certs.rglob("*.crt"))
    before = [path.read_bytes() for path in kept]
    done = installation.broker("prepare")
    assert (done.stdout, done.stderr, done.returncode) == ("Everything is there.\n", "", 0)
    assert [path.read_bytes() for path in kept] == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"BROKER_REDIS_URL": "redis://127.0.0.1:1/0"}, "Redis at redis://127.0.0.1:1/0 cannot be used"),
        (
            {"BROKER_MYSQL_URL": "mysql://u:hidden@127.0.0.1:1/message_system"},
            "The database cannot be reached",
        ),
    ],
    ids=["redis", "mysql"],
)
def test_a_server_that_is_away_is_said_before_anything_is_made(
    installation: Installation, tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    """One clear line, exit 1; no key, certificate or log is left behind."""
    places = {"BROKER_DATA_DIR": str(tmp_path / "data"), "BROKER_CERTS_DIR": str(tmp_path / "certs")}
    done = installation.broker("prepare", **places, **changes, BROKER_LOG_NAME="t-not-made")
    assert done.returncode == 1
    assert says in done.stderr
    assert "hidden" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupted_set_up_is_completed(installation: Installation, mariadb, tmp_path: Path) -> None:
    """A database without schema, a service's certificate lost: the next call makes what is missing.

    A certificate that ends soon is renewed, with the names that somebody gave it.
    """
    url = databases.create(mariadb)
    places = {
        "BROKER_DATA_DIR": str(tmp_path / "data"),
        "BROKER_CERTS_DIR": str(tmp_path / "certs"),
        "BROKER_MYSQL_URL": url,
        "BROKER_LOG_NAME": "t-interrupted",
    }
    assert installation.broker("prepare", **places).returncode == 0
    lost = tmp_path / "certs" / "services" / "worker.crt"
    lost.unlink()
    named = ("--dns", "broker.example", "--ip", "10.0.0.7", "--days", "20")
    assert installation.broker("cert", "renew", "gateway", *named, **places).returncode == 0
    ending = tmp_path / "certs" / "services" / "gateway.crt"
    before = ending.read_bytes()
    done = installation.broker("prepare", **places)
    assert done.returncode == 0, done.stderr
    assert {f"Issued {lost}.", f"Issued {ending}."} <= set(done.stdout.splitlines())
    assert ending.read_bytes() != before
    dns, addresses = authority.names_of(ending)
    assert {"localhost", "broker.example"} <= set(dns)
    assert {"127.0.0.1", "10.0.0.7"} <= set(addresses)
    assert installation.failed("preflight", **places) == {}
    databases.drop(url)
