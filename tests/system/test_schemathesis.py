"""Every operation of both OpenAPI documents, called with what their schemas allow and with what they do not.

Schemathesis makes the requests, against a system as its users run it; the same ones each time. An operation
without a place in CALLERS fails.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.services.gateway import api as gateway_api
from broker.services.server import api as server_api
from support import system as systems
from support.system import System

# What an answer must be; not that every document that fits its schema is taken (some rules no schema says).
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "missing_required_header",
)  # fmt: skip
CONFIG = """
# A batch is taken by the message: what is wrong with one is told in its place.
[checks.negative_data_rejection]
expected-statuses = [207, 400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 429, 431, "5xx"]
"""
EXAMPLES = 30
"""Of each operation with `--full`, beside the boundaries of its schema, which are always tried."""
# Who calls what: certificate, whether with an admin's token, and the operations' paths.
CALLERS = {
    "producer": ("gateway_port", "clients/demo/client", False, r"^/(api/|metrics|openapi)"),
    "service": (
        "server_port",
        "services/internal",
        False,
        r"^/(internal/|metrics|health|openapi|docs|crl|$)",
    ),
    "admin": ("server_port", None, True, r"^/(portal|admin|audit)/(?!auth/logout)"),
    "leaver": ("server_port", None, True, r"^/portal/auth/logout"),
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One of its own: it is left with whatever an admin could do to it."""
    with systems.running(tmp_path_factory.mktemp("fuzzed"), login_attempts="1000") as running:
        yield running


async def sign_in(system: System) -> str:
    password = (system.data / "admin-password").read_text().strip()
    async with system.client(None, "server_port") as client:
        answer = await client.post(
            "/portal/auth/login", json={"email": "admin@example.com", "password": password}
        )
    assert answer.status_code == 200, answer.text
    return answer.json()["access_token"]


async def arguments(system: System, who: str, *, full: bool) -> list[str]:
    """Of a run as one caller."""
    port, certificate, signed_in, paths = CALLERS[who]
    base = f"https://localhost:{system.overrides[port]}"
    args = ["--config-file", "schemathesis.toml", "run", f"{base}/openapi.json", "--no-color", "--seed", "1"]
    args += ["--tls-verify", str(system.certs / "ca.crt"), "--include-path-regex", paths]
    args += ["--phases", "coverage,fuzzing" if full else "coverage", "--max-examples", str(EXAMPLES)]
    args += ["--generation-database", "none", "--checks", ",".join(CHECKS), "--warnings", "off"]
    if certificate:
        args += ["--request-cert", str(system.certs / f"{certificate}.crt")]
        args += ["--request-cert-key", str(system.certs / f"{certificate}.key")]
    if signed_in:
        args += ["--header", f"Authorization: Bearer {await sign_in(system)}"]
    return args


# It takes longer to import than to run: once, for all callers.
PROGRAM = """
import json, os, sys
from schemathesis.cli import schemathesis

runs = {}
for who, args in json.load(sys.stdin).items():
    pid = os.fork()
    if pid == 0:
        os.chdir(who)
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        sys.argv[1:] = args
        schemathesis()
    runs[who] = pid
print(json.dumps({who: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for who, pid in runs.items()}))
"""


async def schemathesis(system: System, directory: Path, *, full: bool) -> dict[str, tuple[int, str]]:
    """A run as each caller: its exit code, 0 where it found nothing, and what it printed."""
    for who in CALLERS:
        (directory / who).mkdir()
        (directory / who / "schemathesis.toml").write_text(CONFIG, "utf-8")
    runs = {who: await arguments(system, who, full=full) for who in CALLERS}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        cwd=directory,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    codes = json.loads((await process.communicate(json.dumps(runs).encode()))[0])
    return {who: (code, (directory / who / "said").read_text("utf-8")) for who, code in codes.items()}


def test_every_operation_has_a_caller() -> None:
    """None is left out of both documents, and each is called by one."""
    for port, operations in (
        ("gateway_port", gateway_api.OPERATIONS),
        ("server_port", server_api.OPERATIONS),
    ):
        patterns = [paths for at, _, _, paths in CALLERS.values() if at == port]
        for operation in operations:
            callers = [pattern for pattern in patterns if re.search(pattern, operation.path)]
            assert len(callers) == 1, f"{operation.method} {operation.path}: {callers}"


async def answered(system: System, port: str) -> dict[str, set[str]]:
    """Statuses by route, as the process itself counted them."""
    async with system.client("services/internal", port) as client:
        text = (await client.get("/metrics")).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "broker_http_requests_total":
                found.setdefault(sample.labels["route"], set()).add(sample.labels["status"])
    return found


async def test_nothing_undocumented_and_no_500(
    system: System, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As producer, service, admin: every status, code, header, type and body is as described; none is a 500."""
    full = request.config.getoption("--full")
    for who, (code, said) in (await schemathesis(system, tmp_path, full=full)).items():
        assert code == 0, f"as {who}:\n{said}"
        assert int(re.search(r"(\d+) generated", said)[1]) > 0, said
    for port in ("gateway_port", "server_port"):
        counted = await answered(system, port)
        assert "500" not in set().union(*counted.values())
        # Past the door: bodies and parameters were judged, and some of them were good.
        reached = {route for route, statuses in counted.items() if statuses & {"200", "201", "202", "204"}}
        assert len(reached) >= 5, counted
    assert (await answered(system, "gateway_port"))["/api/v1/messages"] >= {"202", "400"}


async def test_the_system_is_well_after_it(system: System) -> None:
    """No process fell over, none is unhealthy, and a message still goes through."""
    await system.healthy()
    async with system.client() as client:
        answer = await client.post(
            "/api/v1/messages", json={"sender_number": "+4915200000000", "message_body": "after"}
        )
        assert answer.status_code == 202

        async def delivered() -> bool:
            found = await client.get(f"/api/v1/messages/{answer.json()['message_id']}")
            return found.json()["status"] == "delivered"

        await systems.wait_until(delivered)
    for line in (system.data / "log").glob("*.log"):
        assert "Traceback" not in line.read_text("utf-8", "replace"), line
