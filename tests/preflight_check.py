"""The seven checks of `broker preflight`, under the name that the requirements give them.

    cd tests
    python preflight_check.py

Written for any Python 3: where this one has no broker, the installation's or the checkout's own is used.
"""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
INSTALLED = r"C:\MessageBroker"


def has_broker():
    """Whether this Python can run the broker."""
    try:
        import broker.cli  # noqa: F401
    except (ImportError, SyntaxError):
        return False
    return sys.version_info >= (3, 11)


def program(environ):
    """The command that is the broker, as a list, or none; settings of an installation go into `environ`."""
    if has_broker():
        return [sys.executable, "-m", "broker"]
    if os.name == "posix":
        # It finds a Python, and makes .venv where there is none.
        return [os.path.join(ROOT, "broker")]  # noqa: PTH118
    # As ops/windows/common.ps1.
    python = os.path.join(INSTALLED, "venv", "Scripts", "python.exe")  # noqa: PTH118
    if os.path.exists(python):  # noqa: PTH110
        environ.setdefault("BROKER_CONFIG", os.path.join(INSTALLED, "broker.toml"))  # noqa: PTH118
        return [python, "-m", "broker"]
    return None


def broker(*words):
    """A command of the broker with what follows on the command line; its exit code."""
    environ = dict(os.environ, BROKER_CALLER_DIR=os.getcwd())  # noqa: PTH109
    found = program(environ)
    if found is None:
        print("The broker is not installed here: run ops\\windows\\install.ps1 first.")  # noqa: T201
        return 1
    return subprocess.call(found + list(words) + sys.argv[1:], env=environ, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(broker("preflight"))
