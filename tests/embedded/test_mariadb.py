"""The embedded MariaDB, started, stopped and killed for real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pymysql
import pytest

from broker.embedded import install
from broker.embedded.mariadb import MariaDB
from broker.embedded.process import EmbeddedError
from broker.projections import address
from support import helpers


def query(server: MariaDB, statement: str) -> list[tuple]:
    place = address.parse(server.url)
    connection = pymysql.connect(**place.options(), database=place.database, autocommit=True)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())
    finally:
        connection.close()


async def test_commits_survive_a_kill(own_mariadb: MariaDB) -> None:
    """What was committed is there after SIGKILL and a new start at the same address."""
    url = own_mariadb.url
    query(own_mariadb, "CREATE TABLE kept (a INT)")
    query(own_mariadb, "INSERT INTO kept VALUES (1)")
    await own_mariadb.kill()
    await own_mariadb.start()
    assert own_mariadb.url == url
    assert query(own_mariadb, "SELECT a FROM kept") == [(1,)]


async def test_it_is_durable_strict_and_private(mariadb: MariaDB) -> None:
    """Flushed at every commit, strict as MySQL 8, no port, and a password that only this user can read."""
    names = "@@innodb_flush_log_at_trx_commit, @@skip_networking, @@character_set_server, @@local_infile"
    assert query(mariadb, f"SELECT {names}") == [(1, 1, "utf8mb4", 1)]
    assert "STRICT_TRANS_TABLES" in query(mariadb, "SELECT @@GLOBAL.sql_mode")[0][0]
    for name in ("password", "init.sql"):
        assert (mariadb.directory / name).stat().st_mode & 0o077 == 0
    assert mariadb.directory.stat().st_mode & 0o077 == 0


async def test_other_databases_of_ours_may_be_made(mariadb: MariaDB) -> None:
    """`message_system_…` belongs to the broker's user; other names do not."""
    query(mariadb, "CREATE DATABASE IF NOT EXISTS message_system_other")
    query(mariadb, "DROP DATABASE message_system_other")
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        query(mariadb, "CREATE DATABASE somebody_elses")


async def test_an_interrupted_first_start_is_begun_again(tmp_path: Path) -> None:
    """Half a data directory is never used: cancelled in the middle, the next start makes a whole one."""
    server = MariaDB(tmp_path / "white space")
    task = asyncio.create_task(server.start())
    while not (server.directory / "data.new").exists():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not server.data.exists()
    assert (server.directory / "data.new").exists()
    await server.start()
    assert query(server, "SELECT 1") == [(1,)]
    assert not (server.directory / "data.new").exists()
    await server.stop()
    assert server.returncode == 0


async def test_a_lost_password_file_is_made_again(tmp_path: Path) -> None:
    """The account follows the file, so that a restored data directory is never locked out."""
    server = MariaDB(tmp_path)
    await server.start()
    await server.stop()
    before = server.password
    (tmp_path / "password").unlink()
    await server.start()
    assert server.password != before
    assert query(server, "SELECT 1") == [(1,)]
    await server.stop()


async def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    """The error carries the end of the server's log."""
    server = MariaDB(tmp_path, extra=("--no-such-option",))
    with pytest.raises(EmbeddedError, match="no-such-option"):
        await server.start()
    assert server.pid is None


def test_without_programs_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who may not install is told the exact command and the setting."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "EXTRA_PATH", ())
    with pytest.raises(EmbeddedError) as caught:
        install.ensure_mariadb()
    assert "BROKER_MYSQL_URL" in str(caught.value)


def test_installing_refreshes_the_lists_when_the_first_try_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a bare machine apt-get knows no package until its lists are fetched; progress says what goes on."""
    tools = tmp_path / "bin"
    tools.mkdir()
    script = tools / "apt-get"
    script.write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/calls
if [ "$1" = update ]; then /usr/bin/touch {tmp_path}/updated; exit 0; fi
[ -e {tmp_path}/updated ] || exit 100
for name in mariadbd mariadb-install-db; do
    printf '#!/bin/sh\\n' > {tools}/$name; /bin/chmod +x {tools}/$name
done
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(install, "EXTRA_PATH", ())
    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    said: list[str] = []
    install.ensure_mariadb(said.append)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["install", "update", "install"]
    assert "mariadb-server-core" in calls[0]
    assert len(said) == 3
    assert install.mariadb_programs() == (tools / "mariadbd", tools / "mariadb-install-db")


def test_helpers_that_cannot_be_installed_are_said_and_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The exact command where one may not install, the tool's words where it fails; the tests go on."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "EXTRA_PATH", ())
    script = tmp_path / "apt-get"
    script.write_text("#!/bin/sh\necho no such package; exit 100\n")
    script.chmod(0o755)
    command = "Run `sudo apt-get install -y --no-install-recommends {}`"
    for user, words in ((1000, command), (0, "no such package")):
        monkeypatch.setattr(install.os, "geteuid", lambda user=user: user)
        said: list[str] = []
        install.ensure_helpers(said.append)
        for package in ("systemd", "nodejs"):
            assert any(words.format(package) in line for line in said), said
    assert all(line.startswith("not shown: ") for line in helpers.not_shown())
    assert len(helpers.not_shown()) == 2


async def test_too_small_a_disk_is_refused_before_first_use(tmp_path, monkeypatch):
    """One sentence with both sizes, instead of the words of a set-up that failed in the middle."""
    monkeypatch.setattr("broker.embedded.mariadb.FIRST_USE_MB", 2**40)
    with pytest.raises(EmbeddedError, match=r"MariaDB needs \d+ MB .* has \d+ free. Make room"):
        await MariaDB(tmp_path / "mariadb").start()
