"""Where it was measured: the machine, versions and addresses of the servers, checks of the installation."""

from __future__ import annotations

from typing import Final

from broker.cli.readiness.components import MYSQL, NAMES, REDIS, ROLES, Measured
from broker.cli.readiness.document import Block, Fields, Heading, Table, Text
from broker.cli.readiness.evidence import Evidence
from broker.cli.readiness.machine import APPLICATION, HARDWARE, SERVERS

SAID: Final = {"ok": "PASS", "warning": "WARNING", "failed": "FAIL"}
AWAY: Final = "not seen"


def blocks(evidence: Evidence) -> list[Block]:
    """The test environment."""
    known = evidence.environment
    software = [name for name in known if name not in {*HARDWARE, *SERVERS, APPLICATION}]
    return [
        Heading(2, "Test environment"),
        Heading(3, "Hardware"),
        Fields([(name, known[name]) for name in HARDWARE if name in known]),
        Heading(3, "Software"),
        Fields([(name, known[name]) for name in software]),
        Heading(3, "Versions"),
        Text(
            "As each server said itself: those that the suites ran on, and those of the installation that "
            "was asked for the checks below."
        ),
        _versions(evidence),
        Heading(3, "Network"),
        Text("Ports that the suites took were free ones on the loopback address."),
        _network(evidence),
    ]


def _of_suites(measured: list[Measured], pick: str, name: str) -> str:
    """What the suites saw of a component; several answers where they differ."""
    found = (getattr(one.seen, pick).get(name) for one in measured)
    return ", ".join(dict.fromkeys(text for text in found if text)) or AWAY


def _versions(evidence: Evidence) -> Table:
    ours = evidence.environment.get(APPLICATION)
    here = dict.fromkeys(ROLES.values(), ours) | {
        name: evidence.environment.get(key) for key, name in zip(SERVERS, (REDIS, MYSQL), strict=True)
    }
    rows = [
        [
            name,
            _of_suites(evidence.measured, "versions", name),
            evidence.seen.versions.get(name, AWAY),
            here[name] or AWAY,
        ]
        for name in NAMES
    ]
    return Table(["Component", "Measured by the suites", "Installation asked", "On this machine"], rows)


def _network(evidence: Evidence) -> Table:
    load = [one for one in evidence.measured if one.suite == "load"]
    rows = [
        [name, evidence.seen.addresses.get(name, AWAY), _of_suites(load, "addresses", name)] for name in NAMES
    ]
    return Table(["Component", "Installation asked", "Load cases"], rows)


def checks(evidence: Evidence) -> list[Block]:
    """What `preflight` and `smoke` said."""
    found: list[Block] = [Heading(2, "Checks"), *([Text(evidence.asked)] if evidence.asked else [])]
    for one in evidence.checks:
        if one.checks is None:
            found.append(Text(f"{one.name}: not run. {one.problem}."))
            continue
        found.append(Text(f"{one.name}: {one.passed} of {len(one.checks)} passed."))
        rows = [[name, SAID[status], detail] for name, status, detail in one.checks]
        found.append(Table(["Check", "Status", "Detail"], rows))
    return found
