"""The command line as its users call it: exit codes, errors, help, settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.cli.registry import COMMANDS
from broker.directories import near
from support import commands

HEAVY = ("redis", "sqlalchemy", "pymysql", "aiomysql", "cryptography", "rich", "asyncio", "psutil", "alembic")


def broker(*args: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return commands.run(*args, cwd=cwd, env=clean | environ)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """`--help` is quick because no command's module is imported for it."""
    code = (
        "import sys\nfrom broker.cli import main\n"
        "try:\n    sys.argv = ['broker', '--help']; main()\n"
        f"except SystemExit:\n    print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "up" in done.stdout


def test_every_command_has_help(tmp_path: Path) -> None:
    """Each offered command can be imported and explains itself."""
    listed = broker("--help", cwd=tmp_path).stdout.partition("Commands:")[2].split("\n")
    offered = [line.split()[0] for line in listed if line.startswith("  ") and line.split()]
    offered = [name for name in offered if name in COMMANDS]
    assert {"up", "down", "status", "config", "migrate", "doctor", "gateway", "worker"} <= set(offered)
    for name in offered:
        done = broker(name, "--help", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), name
        assert f"Usage: broker {name}" in done.stdout


@pytest.mark.parametrize(
    ("args", "environ", "code", "says"),
    [
        (["nothing"], {}, 2, "No such command 'nothing'"),
        (["config", "--nothing"], {}, 2, "No such option"),
        (
            ["config"],
            {"BROKER_GATEWAY_PORT": "high"},
            2,
            "gateway_port (BROKER_GATEWAY_PORT) is 'high'; it takes a TCP",
        ),
        (["config"], {"BROKER_GATEWAY_PROT": "1"}, 2, "Did you mean gateway_port"),
        (["config"], {"BROKER_CONFIG": "absent.toml"}, 2, "absent.toml does not exist"),
        (["worker", "--concurrency", "0"], {}, 2, "an integer from 1 to 10000"),
        (
            ["migrate"],
            {"BROKER_MYSQL_URL": "mysql://u:hidden@127.0.0.1:1/x"},
            1,
            "The database cannot be reached",
        ),
    ],
)
def test_failures_are_one_clear_line(
    tmp_path: Path, args: list[str], environ: dict[str, str], code: int, says: str
) -> None:
    """2 for wrong use or settings, 1 for failures; no traceback, no password."""
    done = broker(*args, cwd=tmp_path, **environ)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr + done.stdout


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """BROKER_DEBUG is for whoever looks for the cause."""
    done = broker("config", cwd=tmp_path, BROKER_WORKERS="0", BROKER_DEBUG="1")
    assert "Traceback" in done.stderr


def test_config_shows_effective_settings_without_secrets(tmp_path: Path) -> None:
    """The file is read, the environment wins, and passwords are hidden in every form."""
    (tmp_path / "broker.toml").write_text('workers = 2\n[gateway]\nport = 7001\nhost = "::1"\n')
    environ = {
        "BROKER_GATEWAY_PORT": "7002",
        "BROKER_MYSQL_URL": "mysql://me:s3cret@db/message_system",
        "BROKER_KEY_PASSPHRASE": "s3cret",
        "BROKER_METRICS_PUBLIC": "true",
    }
    shown = json.loads(broker("config", "--json", cwd=tmp_path, **environ).stdout)
    assert (shown["workers"], shown["gateway_port"], shown["gateway_host"]) == (2, 7002, "::1")
    assert shown["metrics_public"] is True
    for done in (
        broker("config", cwd=tmp_path, **environ),
        broker("config", "--json", cwd=tmp_path, **environ),
    ):
        assert "s3cret" not in done.stdout
        assert "mysql://me:***@db/message_system" in done.stdout


def test_paths_are_the_callers(tmp_path: Path) -> None:
    """The launcher changes directory; `--data x` and `--config y` still mean the caller's."""
    (tmp_path / "checkout").mkdir()
    (tmp_path / "caller").mkdir()
    (tmp_path / "caller" / "mine.toml").write_text("workers = 5\n")
    done = broker(
        "--config",
        "mine.toml",
        "config",
        "--json",
        "--data",
        "here",
        cwd=tmp_path / "checkout",
        BROKER_CALLER_DIR=str(tmp_path / "caller"),
    )
    shown = json.loads(done.stdout)
    assert shown["workers"] == 5
    assert shown["data_dir"] == str(tmp_path / "caller" / "here")
    assert shown["certs_dir"] == str(tmp_path / "caller" / "here" / "certs")


def test_places_are_told_as_the_caller_can_use_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to where they called from if they lie there, whatever the launcher changed to; else in full."""
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    place = tmp_path / "checkout" / "var" / "admin-password"
    for caller, told in (
        (tmp_path / "checkout", "var/admin-password"),
        (tmp_path, "checkout/var/admin-password"),
        (tmp_path / "elsewhere", str(place)),
        (Path("/"), str(place)),
    ):
        monkeypatch.setenv("BROKER_CALLER_DIR", str(caller))
        assert near("var/admin-password") == near(place) == told
    monkeypatch.delenv("BROKER_CALLER_DIR")
    assert near("var/admin-password") == str(place)


def test_doctor_without_anything_running(tmp_path: Path) -> None:
    """It says what is there and how to start; it makes nothing."""
    done = broker("doctor", "--json", "--data", str(tmp_path / "data"), cwd=tmp_path, **_free_ports())
    found = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert found["redis"]["status"] == "skipped"
    assert "broker up" in found["redis"]["detail"]
    assert found["dependencies"]["status"] == "ok"
    assert not (tmp_path / "data").exists()


def test_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    """An unreachable Redis, a busy port and a readable key each fail with a way out."""
    (tmp_path / "data" / "certs").mkdir(parents=True)
    (tmp_path / "data" / "certs" / "ca.key").write_text("")
    (tmp_path / "data" / "certs" / "ca.key").chmod(0o644)
    done = broker(
        "doctor",
        "--data",
        str(tmp_path / "data"),
        cwd=tmp_path,
        BROKER_REDIS_URL="redis://127.0.0.1:1",
        **_free_ports(),
    )
    assert done.returncode == 1
    assert "✗ redis" in done.stdout
    assert "✗ private files" in done.stdout
    assert f"chmod 600 {tmp_path}/data/certs/ca.key" in done.stdout


async def test_doctor_on_an_unsafe_redis(tmp_path: Path) -> None:
    """A Redis that could lose acknowledged messages is named as such."""
    from broker.embedded.valkey import Valkey

    server = Valkey(tmp_path / "valkey", extra={"appendfsync": "everysec"})
    await server.start()
    done = broker("doctor", cwd=tmp_path, BROKER_REDIS_URL=server.url, **_free_ports())
    await server.stop()
    assert done.returncode == 1
    assert "appendfsync" in done.stdout


def _free_ports() -> dict[str, str]:
    from broker.embedded.valkey import free_port

    names = ("GATEWAY_PORT", "SERVER_PORT", "WORKER_METRICS_PORT", "PROJECTOR_METRICS_PORT")
    return {f"BROKER_{name}": str(free_port()) for name in names}
