"""The embedded MariaDB: a private data directory, flushed at every commit, reachable by this user alone."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import quote

from broker.embedded.install import mariadb_programs
from broker.embedded.process import EmbeddedError, ServerProcess, socket_path
from broker.embedded.valkey import free_port

DATABASE = "message_system"
# An empty data directory has 146 MB, most of it InnoDB's log.
FIRST_USE_MB = 256
USER = "broker"
# What MySQL 8 does by default, so that no SQL passes here that fails there.
SQL_MODE = (
    "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,"
    "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
)


class MariaDB(ServerProcess):
    """A MariaDB with the database `message_system` and a user `broker`, who may also use `message_system_…`.

    `port`: None for a unix socket only, 0 for a free loopback port, kept over restarts.
    `extra`: further command-line options of mariadbd; they win over ours.
    """

    name = "mariadb"

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        buffer_pool_mb: int = 256,
        extra: tuple[str, ...] = (),
    ) -> None:
        super().__init__(directory)
        self.port = port
        self.buffer_pool_mb = buffer_pool_mb
        self.extra = extra

    @property
    def socket(self) -> Path:
        return socket_path(self.directory, "mariadb.sock")

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def password(self) -> str:
        """The password of `broker`, made on first use and kept with mode 0600."""
        path = self.directory / "password"
        try:
            return path.read_text("ascii").strip()
        except FileNotFoundError:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_private(path, secrets.token_hex(16) + "\n")
            return path.read_text("ascii").strip()

    @property
    def url(self) -> str:
        """`mysql://broker:…@localhost/message_system?unix_socket=…`, or with `127.0.0.1:port` alone."""
        if self.port is None:
            place = f"localhost/{DATABASE}?unix_socket={quote(str(self.socket), safe='/')}"
        else:
            place = f"127.0.0.1:{self.port}/{DATABASE}"
        return f"mysql://{USER}:{self.password}@{place}"

    async def start(self, timeout: float = 120.0) -> None:
        """Initialise on first use, start, and return once it serves; `timeout` seconds cover crash recovery.

        Raises EmbeddedError with the end of the log.
        """
        if self.pid is not None:
            return
        server, install_db = mariadb_programs()
        self._prepare_directory()
        if self.port == 0:
            self.port = free_port()
        with await self._locked() as lock:
            if not self.data.exists():
                await self._initialise(install_db)
            self.socket.unlink(missing_ok=True)
            _write_private(self.directory / "init.sql", self.init_sql())
            self._spawn([str(server), *self.options()], lock)
        try:
            await self._ready(timeout)
        except BaseException:
            await self.kill()
            raise

    def options(self) -> list[str]:
        """The command line of mariadbd, without the program."""
        network = ["--skip-networking"]
        if self.port is not None:
            network = ["--bind-address=127.0.0.1", f"--port={self.port}"]
        return [
            "--no-defaults",
            f"--datadir={self.data}",
            f"--socket={self.socket}",
            f"--pid-file={self.directory / 'mariadbd.pid'}",
            f"--tmpdir={self._temporary()}",
            f"--init-file={self.directory / 'init.sql'}",
            *network,
            *_run_as(),
            "--skip-log-bin",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=1",
            f"--innodb-buffer-pool-size={self.buffer_pool_mb}M",
            "--innodb-log-file-size=128M",
            "--character-set-server=utf8mb4",
            "--collation-server=utf8mb4_unicode_520_ci",
            "--default-time-zone=+00:00",
            f"--sql-mode={SQL_MODE}",
            "--local-infile=1",
            "--max-connections=256",
            "--max-allowed-packet=64M",
            # At 2, the default, every health probe would be a line.
            "--log-warnings=1",
            *self.extra,
        ]

    def init_sql(self) -> str:
        """Run by the server at every start, before it takes connections: the database and its user."""
        account = f"'{USER}'@'{'localhost' if self.port is None else '127.0.0.1'}'"
        grant = DATABASE.replace("_", "\\_") + "%"
        return "\n".join(
            [
                f"CREATE DATABASE IF NOT EXISTS {DATABASE} CHARACTER SET utf8mb4;",
                f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{self.password}';",
                f"ALTER USER {account} IDENTIFIED BY '{self.password}';",
                f"GRANT ALL PRIVILEGES ON `{grant}`.* TO {account};",
                "",
            ]
        )

    async def healthy(self) -> bool:
        """Whether it greets a new connection within two seconds."""
        try:
            async with asyncio.timeout(2):
                return await self._greets()
        except (OSError, TimeoutError):
            return False

    async def _initialise(self, install_db: Path) -> None:
        """Make the data directory beside its place, then rename it: an interrupted run leaves nothing."""
        for leftover in self.directory.glob("data.new*"):
            shutil.rmtree(leftover)
        free = shutil.disk_usage(self.directory).free // 2**20
        if free < FIRST_USE_MB:
            raise EmbeddedError(
                f"MariaDB needs {FIRST_USE_MB} MB at first, and the disk that holds {self.directory} has "
                f"{free} free. Make room, or choose another place with --data or data_dir (BROKER_DATA_DIR)."
            )
        fresh = self.directory / "data.new"
        with self.log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                str(install_db),
                "--no-defaults",
                # Relative: the script trips over white space in a path.
                f"--datadir=./{fresh.name}",
                *_run_as(),
                "--auth-root-authentication-method=socket",
                "--skip-test-db",
                "--skip-name-resolve",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self.directory,
                env=os.environ | {"TMPDIR": str(self._temporary())},
                start_new_session=True,
            )
            try:
                code = await process.wait()
            except BaseException:
                _kill_group(process.pid)
                await process.wait()
                raise
        if code != 0:
            raise EmbeddedError(
                f"mariadb-install-db failed (exit code {code}). "
                + ("The disk is full. " if self.disk_full() else "")
                + f"The end of {self.log_path}:\n  "
                + "\n  ".join(self.tail(20))
            )
        fresh.rename(self.data)

    def _temporary(self) -> Path:
        """A directory for temporary tables: in a shared one, another server's start deletes them."""
        directory = self.directory / "tmp"
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    async def _greets(self) -> bool:
        """Whether a connection is met with a protocol greeting (version 10) rather than an error packet."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            head = await reader.readexactly(5)
        except asyncio.IncompleteReadError:
            return False
        finally:
            writer.close()
        return head[4] == 10

    async def _ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.returncode is not None:
                raise EmbeddedError(self.why())
            if await self.healthy():
                return
            await asyncio.sleep(0.02)
        raise EmbeddedError(f"mariadb did not answer within {timeout:.0f} s. {self.why()}")


def _run_as() -> list[str]:
    """Mariadbd refuses to run as root unless told to."""
    return ["--user=root"] if sys.platform != "win32" and os.geteuid() == 0 else []


def _write_private(path: Path, text: str) -> None:
    """Write whole or not at all, readable by the owner only from the first moment."""
    partial = path.with_name(path.name + ".new")
    partial.unlink(missing_ok=True)
    with os.fdopen(
        os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii"
    ) as file:
        file.write(text)
    partial.replace(path)


def _kill_group(pid: int) -> None:
    import signal

    if sys.platform != "win32":
        os.killpg(pid, signal.SIGKILL)
