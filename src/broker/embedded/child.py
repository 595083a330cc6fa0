"""Start a program that dies with the process that started it.

Run as a script it asks the kernel for a signal at its parent's death and then becomes the program: the
same PID, and nothing of ours runs between fork and exec, where a process with threads must not run Python.
Linux ties that signal to the *thread* that started the child, so start children from one that lives on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def command(argv: Sequence[str], death_signal: signal.Signals) -> list[str]:
    """`argv`, wrapped so that it gets `death_signal` when this process dies (Linux; elsewhere unchanged)."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), *argv]


def _become(parent: int, death_signal: int, argv: list[str]) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # A parent that died before the call above would never be noticed.
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(argv[0], argv)  # noqa: S606


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
