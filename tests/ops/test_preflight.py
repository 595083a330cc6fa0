"""`preflight`: seven checks, each shown to fail when what it looks at is really broken."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import broker
from broker.cli.installation import certificates
from broker.cli.preflight import TABLES
from broker.projections import schema
from broker.settings import load
from support import databases, docs
from support.installation import Installation
from support.pki import Pki

CHECKS = [
    "Python version",
    "Dependencies",
    "MySQL connection",
    "Redis connection",
    "Database schema",
    "Certificates",
    "Project structure",
]


def claiming(directory: Path, line: str) -> str:
    """Where an installation of the broker lies whose metadata say `line`, to be put on Python's path."""
    metadata = directory / "broker-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.4\nName: broker\nVersion: 0.1.0\n{line}\n")
    return str(directory)


def test_all_seven_pass_where_all_is_well(installation: Installation) -> None:
    """One line each in the requirement's order, the count, exit 0; the same as JSON."""
    found = installation.checked("preflight")
    assert list(found) == CHECKS
    assert {one["status"] for one in found.values()} == {"ok"}, found
    shown = installation.broker("preflight")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert [line[2:20].strip() for line in lines[:7]] == CHECKS
    assert lines[7:] == ["7 of 7 checks passed."]


def test_the_script_that_the_requirements_name_is_the_same_command(installation: Installation) -> None:
    """`python preflight_check.py` in tests/ says the same and exits the same."""
    script = docs.ROOT / "tests" / "preflight_check.py"
    for changes in ({}, {"BROKER_REDIS_URL": "redis://127.0.0.1:1/0"}):
        done = subprocess.run(
            [sys.executable, str(script), "--json"],
            env=installation.surroundings(**changes),
            capture_output=True,
            text=True,
            check=False,
        )
        expected = installation.broker("preflight", "--json", **changes)
        assert (done.stdout, done.returncode) == (expected.stdout, expected.returncode)


def test_the_scripts_that_the_requirements_name_work_with_any_python(tmp_path: Path) -> None:
    """One that has no broker hands on to the checkout's launcher: command, options, the caller's directory, the code."""
    tests = tmp_path / "tests"
    tests.mkdir()
    launcher = tmp_path / "broker"
    launcher.write_text('#!/bin/sh\necho "$*" "in $BROKER_CALLER_DIR"\nexit 7\n')
    launcher.chmod(0o755)
    commands = {
        "preflight_check": "preflight",
        "integration_test": "test integration",
        "load_test": "test load",
        "security_test": "test security",
    }
    for name, command in commands.items():
        shutil.copy(docs.ROOT / "tests" / f"{name}.py", tests)
        # -S: without the packages of an environment.
        done = subprocess.run(
            [sys.executable, "-S", f"{name}.py", "--json"],
            cwd=tests,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.returncode) == (f"{command} --json in {tests}\n", 7), done.stderr


def test_a_python_that_is_too_old(installation: Installation, tmp_path: Path) -> None:
    """The installation asks for a newer one than it runs on."""
    path = claiming(tmp_path, "Requires-Python: >=3.99")
    failed = installation.failed("preflight", PYTHONPATH=path)
    assert list(failed) == ["Python version"]
    assert "needs >=3.99" in failed["Python version"]


def test_a_package_that_is_missing(installation: Installation, tmp_path: Path) -> None:
    """It is named."""
    path = claiming(tmp_path, "Requires-Python: >=3.11\nRequires-Dist: no-such-package>=1")
    assert installation.failed("preflight", PYTHONPATH=path) == {"Dependencies": "missing: no-such-package"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda url: url.replace("://broker:", "://broker:wrong"), "Access denied"),
        (lambda url: url.replace("/message_system", "/no_such_database"), "no_such_database"),
        (lambda _url: "mysql://u:hidden@127.0.0.1:1/message_system", "127.0.0.1"),
    ],
    ids=["password", "database", "server"],
)
def test_a_database_that_cannot_be_used(installation: Installation, change, says: str) -> None:
    """Connection and schema fail, the server's word is shown, the password is not."""
    url = change(installation.environ["BROKER_MYSQL_URL"])
    failed = installation.failed("preflight", BROKER_MYSQL_URL=url)
    assert list(failed) == ["MySQL connection", "Database schema"]
    assert says in failed["MySQL connection"]
    assert "hidden" not in str(failed)


def test_a_redis_that_does_not_answer(installation: Installation) -> None:
    """Nothing listens there."""
    failed = installation.failed("preflight", BROKER_REDIS_URL="redis://127.0.0.1:1/0")
    assert list(failed) == ["Redis connection"]


def test_a_schema_that_is_not_whole(installation: Installation, mariadb) -> None:
    """An empty database, then one that lost a table, then one of an older revision."""
    url = databases.create(mariadb)
    failed = installation.failed("preflight", BROKER_MYSQL_URL=url)
    assert failed == {"Database schema": f"missing tables: {', '.join(sorted(TABLES))}"}
    schema.migrate(url)
    with databases.connected(url) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE audit_log")
    assert installation.failed("preflight", BROKER_MYSQL_URL=url) == {
        "Database schema": "missing tables: audit_log"
    }
    with databases.connected(url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE audit_log (i INT)")
        cursor.execute("UPDATE alembic_version SET version_num='0001'")
    assert "revision 0001" in installation.failed("preflight", BROKER_MYSQL_URL=url)["Database schema"]
    databases.drop(url)


@pytest.fixture
def copied(installation: Installation, tmp_path: Path) -> Path:
    """The installation's certificates, to be spoiled."""
    return shutil.copytree(installation.certs, tmp_path / "certs")


def test_certificates_are_looked_at(installation: Installation, copied: Path) -> None:
    """By the command: one file away is one check failed, with what to do."""
    (copied / "services" / "worker.crt").unlink()
    found = installation.checked("preflight", BROKER_CERTS_DIR=str(copied))
    assert [name for name, one in found.items() if one["status"] == "failed"] == ["Certificates"]
    assert "worker.crt is missing" in found["Certificates"]["detail"]
    assert "`broker prepare`" in found["Certificates"]["fix"]


def swap(one: Path, other: Path) -> None:
    shutil.copy(other, one)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda certs, _pki: (certs / "ca.crt").unlink(), "ca.crt is missing"),
        (lambda certs, _pki: (certs / "services" / "worker.key").unlink(), "worker.key is missing"),
        (
            lambda certs, _pki: (certs / "services" / "server.crt").write_text("no"),
            "is not a PEM certificate",
        ),
        (
            lambda certs, _pki: swap(certs / "services" / "gateway.key", certs / "services" / "server.key"),
            "is not the key of",
        ),
        (
            lambda certs, pki: swap(certs / "clients" / "demo" / "client.crt", pki.client()[0]),
            "is not signed by",
        ),
        (lambda certs, pki: swap(certs / "services" / "internal.crt", pki.expired()[0]), "expired on"),
        (lambda certs, _pki: shutil.rmtree(certs / "clients"), "no client has a certificate"),
    ],
    ids=["ca", "key", "garbage", "other-key", "other-ca", "expired", "no-client"],
)
def test_certificates_that_are_of_no_use(
    installation: Installation, copied: Path, tmp_path: Path, spoil, says: str
) -> None:
    """Missing, unreadable, expired, of another authority, with another's key: the file is named."""
    spoil(copied, Pki(tmp_path / "other"))
    settings = load(environ=installation.environ, certs_dir=copied)
    found = asyncio.run(certificates(settings))
    assert (found.status, says in found.detail) == ("failed", True), found


@pytest.mark.parametrize("part", ["services/delivery", "events/scripts"])
def test_an_installation_that_lost_a_component(installation: Installation, tmp_path: Path, part: str) -> None:
    """The part is named; nothing else fails for it."""
    source = Path(broker.__file__).parent
    copy = shutil.copytree(source, tmp_path / "src" / "broker", ignore=shutil.ignore_patterns("static"))
    (tmp_path / "migrations").symlink_to(docs.ROOT / "migrations")
    shutil.rmtree(copy / part)
    failed = installation.failed("preflight", PYTHONPATH=str(copy.parent))
    assert part in failed["Project structure"]


def test_a_data_directory_that_is_a_file(installation: Installation, tmp_path: Path) -> None:
    """Nothing could be kept there."""
    (tmp_path / "file").write_text("")
    failed = installation.failed("preflight", BROKER_DATA_DIR=str(tmp_path / "file"))
    assert "cannot be written to" in failed["Project structure"]
