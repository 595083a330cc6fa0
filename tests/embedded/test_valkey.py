"""The embedded Valkey, started, stopped and killed for real."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis.asyncio as aioredis

from broker.embedded.keeper import ServerUnit
from broker.embedded.process import EmbeddedError, socket_path
from broker.embedded.valkey import Valkey
from support.programs import gone, long_path
from support.waiting import wait_until

OWNER = """
import asyncio, sys
from pathlib import Path
from broker.embedded.valkey import Valkey
async def main():
    server = Valkey(Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("port", [None, 0], ids=["socket", "port"])
async def test_acknowledged_writes_survive_a_kill(tmp_path: Path, port: int | None) -> None:
    """What was answered is there after SIGKILL and a new start at the same address."""
    server = Valkey(tmp_path / "valkey", port=port)
    await server.start()
    url = server.url
    async with aioredis.from_url(url) as client:
        await client.set("key", "value")
    await server.kill()
    assert server.returncode == -9
    await server.start()
    assert server.url == url
    async with aioredis.from_url(url) as client:
        assert await client.get("key") == b"value"
    await server.stop()
    assert server.returncode == 0


async def test_its_settings_are_durable(valkey: Valkey) -> None:
    """Every write is flushed, nothing is evicted, no snapshot replaces the log of writes."""
    async with aioredis.from_url(valkey.url) as client:
        found = await client.config_get("*")
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "maxmemory-policy": "noeviction",
        "save": "",
        "protected-mode": "yes",
    }
    assert {name: found[name] for name in wanted} == wanted
    assert int(found["maxmemory"]) == 1024 * 1024 * 1024


async def test_the_socket_is_private(valkey: Valkey) -> None:
    """No port is open, and only this user may use the socket."""
    assert valkey.socket is not None
    assert valkey.socket.stat().st_mode & 0o077 == 0
    async with aioredis.from_url(valkey.url) as client:
        assert (await client.config_get("port"))["port"] == "0"


async def test_extra_directives_win(tmp_path: Path) -> None:
    """A test may set any directive, also one that we set."""
    server = Valkey(tmp_path, extra={"maxmemory": "7mb", "hz": "11"})
    await server.start()
    async with aioredis.from_url(server.url) as client:
        found = await client.config_get("*")
    await server.stop()
    assert (found["maxmemory"], found["hz"]) == (str(7 * 1024 * 1024), "11")


async def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    """A deep data directory, with white space too, still gets a private socket, elsewhere."""
    directory = long_path(tmp_path / "white space")
    server = Valkey(directory)
    await server.start()
    async with aioredis.from_url(server.url) as client:
        assert await client.ping()
    place = server.socket
    assert place is not None
    assert not place.is_relative_to(directory)
    assert place.parent.stat().st_mode & 0o077 == 0
    assert Valkey(directory).socket == place
    await server.stop()
    shutil.rmtree(place.parent)


def test_a_short_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    """Somebody who made the directory first could read everything."""
    directory = long_path(tmp_path)
    place = socket_path(directory, "valkey.sock").parent
    place.chmod(0o777)
    with pytest.raises(EmbeddedError, match="not a private directory"):
        socket_path(directory, "valkey.sock")
    place.rmdir()


async def test_a_second_server_on_a_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers would destroy each other's history; the error names the one that runs."""
    monkeypatch.setattr("broker.embedded.process.LOCK_WAIT", 0.0)
    first = Valkey(tmp_path)
    await first.start()
    with pytest.raises(EmbeddedError, match=f"in use by PID {first.pid}"):
        await Valkey(tmp_path).start()
    assert await first.healthy()
    await first.stop()


async def test_it_dies_with_its_owner_and_the_next_starts(tmp_path: Path) -> None:
    """SIGKILL of the owner ends the server, too, and leaves nothing in the way."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(await asyncio.to_thread(owner.stdout.readline))
    owner.kill()
    owner.wait()
    owner.stdout.close()
    await wait_until(lambda: gone(pid), what="the server's end")
    server = Valkey(tmp_path)
    await server.start()
    assert await server.healthy()
    await server.stop()


async def test_a_leftover_is_reaped(tmp_path: Path) -> None:
    """What a killed owner left running is ended by its record; a reused PID is left alone."""
    left = Valkey(tmp_path)
    await left.start()
    pid = left.pid
    other = Valkey(tmp_path)
    assert await other.reap() == pid
    await wait_until(lambda: left.returncode is not None)
    assert await other.reap() is None
    (tmp_path / "valkey.pid").write_text(f"{os.getpid()} 1.0\n")
    assert await other.reap() is None


async def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    """The error carries the end of the server's log."""
    server = Valkey(tmp_path, extra={"appendfsync": "sometimes"})
    with pytest.raises(EmbeddedError, match="appendfsync") as caught:
        await server.start()
    assert "exit code 1" in str(caught.value)
    assert server.pid is None


async def test_loading_is_waited_for(tmp_path: Path) -> None:
    """`start` returns when the history is loaded, not when the socket opens."""
    server = Valkey(tmp_path, extra={"enable-debug-command": "yes"})
    await server.start()
    async with aioredis.from_url(server.url) as client:
        await client.execute_command("DEBUG", "POPULATE", "20000")
        await client.bgrewriteaof()
        await wait_until(lambda: _rewritten(client), what="the rewrite")
    await server.kill()
    slow = Valkey(tmp_path, extra={"key-load-delay": "20", "loading-process-events-interval-bytes": "1024"})
    await slow.start()
    async with aioredis.from_url(slow.url) as client:
        assert await client.dbsize() == 20000
    await slow.stop()


async def fill(client: aioredis.Redis) -> None:
    """Write until an error comes."""
    while True:
        await client.set("more", b"x" * 50_000)


async def _rewritten(client: aioredis.Redis) -> bool:
    info = await client.info("persistence")
    return not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]


async def test_a_write_that_finds_no_room_ends_it_and_says_so(tmp_path: Path) -> None:
    """Under `always` the server ends rather than forget; the reason is in what `why` says, and nothing is lost."""
    server = Valkey(tmp_path)
    await server.start()
    async with aioredis.from_url(server.url, retry=None) as client:
        await client.set("before", "kept")
        psutil.Process(server.pid).rlimit(psutil.RLIMIT_FSIZE, (200_000, 200_000))
        with pytest.raises(aioredis.ConnectionError):
            await fill(client)
    assert await server.wait() != 0
    assert "AOF" in server.why()
    await server.start()
    async with aioredis.from_url(server.url) as client:
        assert await client.get("before") == b"kept"
    await server.stop()


async def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is looked at, too: on a full one the server's last words may not have reached its log."""
    server = Valkey(tmp_path)
    await server.start()
    await server.kill()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=4096))
    assert f"The disk that holds {tmp_path} is full" in server.why()
    assert ServerUnit(server).blocked() is not None
