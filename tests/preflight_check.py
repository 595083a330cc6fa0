"""The seven checks of `broker preflight`, under the name that the requirements give them.

    cd tests
    python preflight_check.py

Written for any Python 3, so that one that is too old is told so in words.
"""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def broker(*words):
    """A command of the broker with what follows on the command line; its exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this is where it is said
        print("Python 3.11 or newer is needed; this is %d.%d." % sys.version_info[:2])  # noqa: T201, UP031
        return 1
    command = [sys.executable, "-m", "broker", *words] + sys.argv[1:]  # noqa: RUF005
    return subprocess.call(command, env=dict(os.environ, BROKER_CALLER_DIR=os.getcwd()), cwd=ROOT)  # noqa: PTH109


if __name__ == "__main__":
    sys.exit(broker("preflight"))
