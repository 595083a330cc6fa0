"""`preflight` and `smoke` of what `up` runs; tests/ops breaks each check."""

from __future__ import annotations

import json

from support.system import System


def test_what_up_runs_passes_every_check(system: System) -> None:
    """Seven and nine, on the ports that `up` chose; its supervisor says that the services run."""
    for command, count in (("preflight", 7), ("smoke", 9)):
        done = system.run(command, "--json")
        found = json.loads(done.stdout)
        assert [one for one in found["checks"] if one["status"] != "ok"] == []
        assert (len(found["checks"]), found["ok"], done.returncode) == (count, True, 0)
    checks = {one["name"]: one["detail"] for one in found["checks"]}
    assert "(`up`, PID" in checks["Services"]
    assert str(system.ports()["gateway_port"]) in checks["Gateway health"]
