"""`smoke`: nine checks of what runs, each shown to fail when what it looks at is really gone."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from broker.bootstrap import ROLES
from broker.cli import services
from support.installation import Installation
from support.waiting import wait_until

CHECKS = [
    "Services",
    "MySQL",
    "Redis",
    "Server health",
    "Gateway health",
    "Portal health",
    "Worker metrics",
    "Certificates",
    "Logs",
]
HEALTH = {
    "server": "Server health",
    "gateway": "Gateway health",
    "portal": "Portal health",
    "worker": "Worker metrics",
}


async def well(installation: Installation) -> None:
    await wait_until(installation.well, within=90, what="well again")


def test_all_nine_pass_where_all_is_well(installation: Installation) -> None:
    """One line each in the requirement's order, exit 0; the roles run on their own here, without `up`."""
    found = installation.checked("smoke")
    assert list(found) == CHECKS
    assert {one["status"] for one in found.values()} == {"ok"}, found
    lines = installation.broker("smoke").stdout.splitlines()
    assert [line[2:20].strip() for line in lines[:9]] == CHECKS
    assert lines[9:] == ["9 of 9 checks passed."]


@pytest.mark.parametrize("role", sorted(HEALTH))
async def test_a_process_that_is_gone(installation: Installation, role: str) -> None:
    """Its service and its health or metrics fail, each with where it was looked for; the rest passes."""
    installation.stop(role)
    failed = installation.failed("smoke")
    assert set(failed) == {"Services", HEALTH[role]}
    assert failed["Services"] == f"not running: {role}"
    installation.start(role)
    await well(installation)


def test_a_process_that_hangs(installation: Installation) -> None:
    """It takes connections and answers none: both checks fail all the same, within their time."""
    worker = installation.running["worker"]
    worker.send_signal(signal.SIGSTOP)
    try:
        failed = installation.failed("smoke")
    finally:
        worker.send_signal(signal.SIGCONT)
    assert set(failed) == {"Services", "Worker metrics"}
    assert failed["Services"] == "not running: worker"
    assert "no answer" in failed["Worker metrics"]


async def test_a_projector_that_is_gone(installation: Installation) -> None:
    """The list of services names it."""
    installation.stop("projector")
    assert installation.failed("smoke") == {"Services": "not running: projector"}
    installation.start("projector")
    await well(installation)


def test_a_worker_s_port_where_something_else_answers(installation: Installation) -> None:
    """The projector's metrics are not the worker's."""
    port = str(installation.ports["projector_metrics_port"])
    failed = installation.failed("smoke", BROKER_WORKER_METRICS_PORT=port)
    assert "without the worker's metrics" in failed["Worker metrics"]


def test_servers_that_do_not_answer(installation: Installation) -> None:
    """Database and Redis, each by its own check."""
    mysql = "mysql://u:hidden@127.0.0.1:1/message_system"
    assert list(installation.failed("smoke", BROKER_MYSQL_URL=mysql)) == ["MySQL"]
    assert list(installation.failed("smoke", BROKER_REDIS_URL="redis://127.0.0.1:1/0")) == ["Redis"]


def test_a_redis_that_holds_no_such_log(installation: Installation) -> None:
    """It answers, but it is not the one that this installation wrote."""
    failed = installation.failed("smoke", BROKER_LOG_NAME="t-no-such-log")
    assert "no log" in failed["Redis"]


def test_certificates_that_are_gone(installation: Installation, tmp_path: Path) -> None:
    """One that is missing is named; without the CA's nobody can be asked either."""
    certs = shutil.copytree(installation.certs, tmp_path / "certs")
    (certs / "services" / "gateway.crt").unlink()
    failed = installation.failed("smoke", BROKER_CERTS_DIR=str(certs))
    assert list(failed) == ["Certificates"]
    assert "gateway.crt is missing" in failed["Certificates"]
    (certs / "ca.crt").unlink()
    failed = installation.failed("smoke", BROKER_CERTS_DIR=str(certs))
    assert {"Certificates", "Server health", "Gateway health"} <= set(failed)
    assert "ca.crt is missing" in failed["Server health"]


def test_a_log_directory_that_is_gone(installation: Installation, tmp_path: Path) -> None:
    """Missing, and then no directory."""
    place = str(tmp_path)
    assert "log is missing" in installation.failed("smoke", BROKER_DATA_DIR=place)["Logs"]
    (tmp_path / "log").write_text("")
    assert "log is missing" in installation.failed("smoke", BROKER_DATA_DIR=place)["Logs"]
    (tmp_path / "log").unlink()
    (tmp_path / "log").mkdir()
    assert "Logs" not in installation.failed("smoke", BROKER_DATA_DIR=place)


def systemctl(directory: Path, states: dict[str, str]) -> str:
    """A PATH whose systemctl knows these units, in the form that the real one prints."""
    blocks = "\n\n".join(
        f"Id={unit}\nLoadState={'loaded' if unit in states else 'not-found'}\n"
        f"ActiveState={states.get(unit, 'inactive')}"
        for unit in services.UNITS.values()
    )
    program = directory / "systemctl"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{blocks}\nEND\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{directory}{os.pathsep}{os.environ['PATH']}"


def test_systemd_s_word_counts_where_it_runs_the_units(installation: Installation, tmp_path: Path) -> None:
    """A unit that failed and one that is not installed are named; with all of them active it passes."""
    units = services.UNITS
    states = dict.fromkeys(units.values(), "active") | {units["worker"]: "failed"}
    del states[units["projector"]]
    failed = installation.failed("smoke", PATH=systemctl(tmp_path, states))
    assert failed["Services"] == (
        "not running: broker-worker.service (failed), broker-projector.service (not installed)"
    )
    states = dict.fromkeys(units.values(), "active")
    found = installation.checked("smoke", PATH=systemctl(tmp_path, states))
    assert found["Services"]["status"] == "ok"
    assert "are active" in found["Services"]["detail"]


def test_doctor_takes_what_systemd_runs_for_what_it_is(installation: Installation, tmp_path: Path) -> None:
    """The ports of units that run are theirs; another's are still found, and a role that is elsewhere is no fault."""
    units = services.UNITS
    states = dict.fromkeys(units.values(), "active")
    found = installation.checked("doctor", PATH=systemctl(tmp_path, states))
    assert (found["processes"]["status"], "ports" in found) == ("ok", False)
    states[units["gateway"]] = "inactive"
    found = installation.checked("doctor", PATH=systemctl(tmp_path, states))
    assert found["processes"]["status"] == "warning"
    assert "broker-gateway.service (inactive)" in found["processes"]["detail"]
    assert "gateway_port" in found["ports"]["detail"], "whoever has it now, the unit could not start"
    states = dict.fromkeys(units.values(), "inactive")
    assert "not running" in installation.failed("doctor", PATH=systemctl(tmp_path, states))["processes"]


def test_windows_services() -> None:
    """Ours by their names, MySQL and Redis where they are services of the same machine."""
    running = dict.fromkeys((services.WINDOWS[role] for role in ROLES), "running")
    assert services.of_windows(running | {"MySQL80": "running", "Memurai": "running"}).status == "ok"
    assert services.of_windows(running).status == "ok", "servers on another machine"
    stopped = services.of_windows(running | {"MessageBrokerProxy": "stopped", "MySQL80": "stopped"})
    assert stopped.detail == "not running: MessageBrokerProxy (stopped), MySQL (stopped)"
    assert "not installed" in services.of_windows({}).detail
    # For `doctor`, where a role on another machine is no fault.
    assert services.windows_here({"MySQL80": "running"}) == (None, frozenset())
    assert services.windows_here(running)[1] == frozenset(ROLES)
    found, active = services.windows_here(running | {"MessageBrokerProxy": "stopped"})
    assert (found.status, "gateway" in active, len(active)) == ("warning", False, len(ROLES) - 1)
    assert services.windows_here(dict.fromkeys(running, "stopped"))[0].status == "failed"
