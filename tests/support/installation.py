"""The broker installed as in production: servers of one's own, `prepare`, each role a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker.bootstrap import ROLES
from broker.embedded.valkey import free_port
from support import commands

PORTS = ("gateway_port", "server_port", "portal_port", "worker_metrics_port", "projector_metrics_port")


class Installation:
    """Nothing runs until it is told to; `environ` is what an operator would set."""

    def __init__(self, data: Path, *, redis_url: str, mysql_url: str, log_name: str) -> None:
        self.data = data
        self.certs = data / "certs"
        self.ports = {name: free_port() for name in PORTS}
        self.environ = {
            "BROKER_DATA_DIR": str(data),
            "BROKER_CERTS_DIR": str(self.certs),
            "BROKER_REDIS_URL": redis_url,
            "BROKER_MYSQL_URL": mysql_url,
            "BROKER_LOG_NAME": log_name,
            "BROKER_RETRY_INTERVAL": "1",
        } | {f"BROKER_{name.upper()}": str(port) for name, port in self.ports.items()}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def surroundings(self, **changes: str) -> dict[str, str]:
        """The environment of a command; nothing that happens to be set outside."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        return clean | self.environ | changes

    def broker(self, *args: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """A command, with changes to its environment."""
        return commands.run(*args, env=self.surroundings(**changes), timeout=120)

    def checked(self, command: str, **changes: str) -> dict[str, dict[str, Any]]:
        """What `preflight --json` or `smoke --json` found, by the checks' names; its exit code agrees."""
        done = self.broker(command, "--json", **changes)
        found = json.loads(done.stdout)
        checks = {one["name"]: one for one in found["checks"]}
        assert found["ok"] == all(one["status"] != "failed" for one in checks.values())
        assert done.returncode == (0 if found["ok"] else 1), done.stderr
        return checks

    def failed(self, command: str, **changes: str) -> dict[str, str]:
        """What failed, each with what is said of it."""
        found = self.checked(command, **changes)
        return {name: one["detail"] for name, one in found.items() if one["status"] == "failed"}

    def well(self) -> bool:
        """Whether `smoke` finds nothing; it is asked once everything listens."""
        return all(listens(port) for port in self.ports.values()) and not self.failed("smoke")

    def start(self, role: str) -> None:
        """As a service manager would."""
        with (self.data / "log" / f"{role}.log").open("ab") as log:
            self.running[role] = subprocess.Popen(
                [sys.executable, "-m", "broker", role], env=self.surroundings(), stderr=log, stdout=log
            )

    def stop(self, role: str) -> None:
        """Stop it in order, and wait."""
        process = self.running.pop(role)
        process.terminate()
        process.wait(60)


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def installed(data: Path, *, redis_url: str, mysql_url: str, log_name: str) -> Iterator[Installation]:
    """Prepared, every role started; all stopped at the end."""
    made = Installation(data, redis_url=redis_url, mysql_url=mysql_url, log_name=log_name)
    done = made.broker("prepare")
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        for role in ROLES:
            made.start(role)
        yield made
    finally:
        for role in list(made.running):
            made.stop(role)
