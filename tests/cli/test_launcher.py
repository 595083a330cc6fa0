"""`./broker`, the launcher, run by the system's sh with a Python that only records what it is asked to do."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "dirname", "readlink", "cat", "cmp", "mkdir", "rm", "mv", "id", "sleep", "grep", "touch")

FAKE_PYTHON = """#!/bin/sh
# What the launcher asks of Python, recorded in $CALLS.
case "$*" in
    "-c "*) exit 0 ;;
    "--version") echo "Python 3.11.0"; exit 0 ;;
    "-m venv "*) echo "venv" >> "$CALLS"; mkdir -p "$3/bin"; cat "$FAKE" > "$3/bin/python"; chmod +x "$3/bin/python" ;;
    "-m pip --version") exit 0 ;;
    "-m pip install "*) echo "install $*" >> "$CALLS"
        while [ -e "$HOLD" ]; do touch "$CALLS.held"; sleep 0.05; done ;;
    *) echo "ran in $PWD from $BROKER_CALLER_DIR: $*" ;;
esac
"""


class Checkout:
    """A checkout with the real launcher and small locks."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "check out"
        self.path.mkdir(parents=True)
        shutil.copy(ROOT / "broker", self.path / "broker")
        (self.path / "requirements.lock").write_text("one==1 --hash=sha256:0\n")
        (self.path / "requirements-dev.lock").write_text("one==1 --hash=sha256:0\ntwo==2 --hash=sha256:1\n")
        self.fake = directory / "python"
        self.fake.write_text(FAKE_PYTHON)
        self.fake.chmod(0o755)
        self.recorded = directory / "calls"
        self.hold = directory / "hold"
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHON": str(self.fake),
            "FAKE": str(self.fake),
            "CALLS": str(self.recorded),
            "HOLD": str(self.hold),
        }

    def run(self, *args: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.path / "broker"), *args],
            cwd=cwd or self.path,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.path / "broker"), *args],
            cwd=self.path,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def held(self) -> None:
        """Wait until an installation is in the middle."""
        asyncio.run(wait_until(self.recorded.with_name("calls.held").exists))

    @property
    def calls(self) -> list[str]:
        return self.recorded.read_text().splitlines() if self.recorded.exists() else []


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A run in the background ignores SIGINT, its children inherit that, and no shell can trap it then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_first_use_installs_and_the_next_only_runs(checkout: Checkout) -> None:
    """Locked by hash first, then the package alone; stdout stays the command's own."""
    done = checkout.run("status", "--json")
    assert done.returncode == 0
    assert done.stdout.strip().endswith(": -P -m broker status --json")
    assert "making .venv" in done.stderr
    assert [call.split(" ", 1)[0] for call in checkout.calls] == ["venv", "install", "install"]
    assert "--require-hashes -r requirements.lock" in checkout.calls[1]
    assert "--no-deps --no-build-isolation -e ." in checkout.calls[2]
    again = checkout.run("status")
    assert (again.returncode, again.stderr, len(checkout.calls)) == (0, "", 3)


def test_a_changed_lock_is_installed(checkout: Checkout) -> None:
    """At the next use, into the same .venv."""
    checkout.run("status")
    (checkout.path / "requirements.lock").write_text("one==2 --hash=sha256:2\n")
    assert checkout.run("status").returncode == 0
    assert [call.split(" ", 1)[0] for call in checkout.calls] == ["venv", *["install"] * 4]


def test_tests_bring_their_own_requirements(checkout: Checkout) -> None:
    """`./broker test` installs the second lock, other commands do not."""
    checkout.run("status")
    assert not any("requirements-dev.lock" in call for call in checkout.calls)
    checkout.run("test")
    assert sum("--require-hashes -r requirements-dev.lock" in call for call in checkout.calls) == 1


def test_a_moved_checkout_is_installed_again(checkout: Checkout) -> None:
    """A .venv knows its own place; the copy's would run the original's code."""
    checkout.run("status")
    moved = checkout.path.with_name("moved")
    checkout.path.rename(moved)
    checkout.path = moved
    assert checkout.run("status").returncode == 0
    assert len(checkout.calls) > 3


def test_it_runs_in_the_checkout_for_a_caller_elsewhere(checkout: Checkout, tmp_path: Path) -> None:
    """Through a symbolic link too: data lies in the checkout, the caller's directory is passed on."""
    (tmp_path / "bin").mkdir()
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    link = tmp_path / "bin" / "broker"
    link.symlink_to("../check out/broker")
    done = subprocess.run(
        [link, "x"], cwd=elsewhere, env=checkout.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ran in {checkout.path} from {elsewhere}: -P -m broker x\n"


def test_two_at_once_install_once(checkout: Checkout) -> None:
    """The second waits for the first, says so, and then just runs."""
    checkout.hold.touch()
    first = checkout.start("first")
    checkout.held()
    second = checkout.start("second")
    assert second.stderr is not None
    assert "another ./broker is setting up" in second.stderr.readline()
    checkout.hold.unlink()
    assert "broker first" in first.communicate()[0]
    assert "broker second" in second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert sum(call == "venv" for call in checkout.calls) == 1
    assert not (checkout.path / ".venv.lock").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_installation_is_started_over(checkout: Checkout, how: signal.Signals) -> None:
    """Half an environment is never used, and its guard stops nobody."""
    checkout.hold.touch()
    first = checkout.start("first")
    checkout.held()
    os.killpg(first.pid, how)
    first.communicate()
    assert first.returncode != 0
    checkout.hold.unlink()
    done = checkout.run("second")
    assert done.returncode == 0
    assert "starting over" in done.stderr
    assert sum(call == "venv" for call in checkout.calls) == 2


def test_without_python_it_says_what_to_install(checkout: Checkout, tmp_path: Path) -> None:
    """One clear line that names the version, the command and the way to name a Python."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    done = checkout.run("status", PATH=str(tools), PYTHON="")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "PYTHON=/path/to/python" in done.stderr


def test_without_venv_it_names_the_package(checkout: Checkout, tmp_path: Path) -> None:
    """Debian's Python comes without ensurepip; who may not install is told the exact command."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    bare = tmp_path / "bare-python"
    bare.write_text(
        '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; *print*) echo python3.11-venv ;; esac\nexit 0\n'
    )
    bare.chmod(0o755)
    done = checkout.run("status", PATH=str(tools), PYTHON=str(bare))
    assert done.returncode == 1
    assert "sudo apt-get install -y python3.11-venv" in done.stderr


def test_locks_name_no_registry_and_pin_by_hash() -> None:
    """Every requirement of both locks carries a hash, and nothing in them says where to fetch it."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert not re.search(r"://|--(index|extra-index|find-links|trusted-host)", text)
        for requirement in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[a-z0-9._-]+==\S+", requirement)
            assert "--hash=sha256:" in requirement


def test_the_dev_lock_holds_the_runtime_lock() -> None:
    """Tests run on the very versions that are installed for use."""
    pins = [
        set(re.findall(r"^([a-z0-9._-]+==[^\s;]+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    ]
    assert pins[0] <= pins[1]
