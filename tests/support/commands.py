"""`broker` commands as processes, without the second that each would take to import everything.

One process of each run has imported the broker and forks a child for each command: arguments, environment,
directory, standard streams and exit code are the command's own, as with `python -m broker`.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

LIMIT = 1 << 17
"""Bytes of arguments and environment together."""

_starter: Starter | None = None


def run(
    *args: str,
    env: Mapping[str, str],
    cwd: str | Path | None = None,
    input: str = "",
    timeout: float = 240,
    script: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `broker args`, or a Python script with them, to its end. Raises TimeoutExpired, after killing it."""
    global _starter
    program = ["-m", "broker"] if script is None else [str(script)]
    if any(name.startswith("PYTHON") and os.environ.get(name) != value for name, value in env.items()):
        # Another Python, as it were: nothing imported so far may count.
        return subprocess.run(
            [sys.executable, *program, *args], env=env, cwd=cwd, input=input, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if _starter is None:
        _starter = Starter()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input.encode())
        given.seek(0)
        request = {
            "args": args,
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "script": script and str(script),
        }
        code = _starter.run(request, (given, out, err), timeout)
        return subprocess.CompletedProcess([*program, *args], code, _text(out), _text(err))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


class Starter:
    """The process that forks; it ends with the one that made it."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LIMIT)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.commands", str(other.fileno())],
            cwd=Path(__file__).parents[1],
            pass_fds=[other.fileno()],
        )
        other.close()
        atexit.register(self.close)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def run(self, request: dict, streams: tuple[IO[bytes], ...], timeout: float) -> int:
        """Its exit code, negative for a signal, as subprocess has it."""
        answer, told = os.pipe()
        fds = [*(stream.fileno() for stream in streams), told]
        with open(answer, "rb", buffering=0) as lines:
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            os.close(told)
            pid = int(lines.readline())
            if not select.select([lines], [], [], timeout)[0]:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(request["args"], timeout)
            return int(lines.readline())


def serve(requests: socket.socket) -> None:
    """Fork for each request, until nobody can make any."""
    while True:
        request, fds, _, _ = socket.recv_fds(requests, LIMIT, 4)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _watched(json.loads(request), fds)
        for fd in fds:
            os.close(fd)


def _watched(request: dict, fds: list[int]) -> None:
    """In a child: the command in a child of its own, whose end is told."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, told = fds
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _command(request, streams)
    os.write(told, b"%d\n" % pid)
    for fd in streams:
        os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(told, b"%d\n" % code)
    os._exit(0)


def _command(request: dict, streams: list[int]) -> None:
    """In the command's own process: what `python -m broker` would do from here on."""
    import runpy
    import threading
    import traceback

    from broker.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = [request["script"] or "broker", *request["args"]]
    code = 1
    try:
        if request["script"]:
            runpy.run_path(request["script"], run_name="__main__")
            code = 0
        else:
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _imported() -> None:
    """Everything that a command may need."""
    import importlib
    import pkgutil

    import broker

    for found in pkgutil.walk_packages(broker.__path__, "broker."):
        if not found.name.endswith(("__main__", ".bench", "cli.test")):
            importlib.import_module(found.name)


if __name__ == "__main__":
    import gc

    # Children are nobody's to wait for; Ctrl-C is the business of who made us.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _imported()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
