"""The pages of events, errors and metrics are whole: nothing in the code is missing, nothing in them is made up."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.cli import reference
from broker.events import types
from broker.web import problems, tls
from support import docs
from support.installation import Installation


def page(name: str) -> str:
    return (docs.ROOT / "docs" / name).read_text("utf-8")


def test_the_pages_are_those_of_the_code() -> None:
    """Otherwise: a meaning in reference.py where a code is new, then python -m broker.cli.reference."""
    # In a process of its own: metrics that tests made are nobody's.
    done = subprocess.run(
        [sys.executable, "-m", "broker.cli.reference", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
    assert reference.undescribed() == set()


def test_every_event_and_code_is_on_its_page() -> None:
    """By name, in a row of its own."""
    assert set(re.findall(r"^\| `(\w+)` \| \d", page("events.md"), re.MULTILINE)) == set(types.ALL)
    answers = page("errors.md").partition("## Logs")[0]
    assert set(re.findall(r"^\| `(\w+)` \| \d", answers, re.MULTILINE)) == set(problems.STATUS)


def test_every_metric_that_the_source_names_is_on_the_page() -> None:
    """Also those that only come to be when something happens."""
    known = set(docs.metric_rows())
    source = {
        name
        for path in (docs.ROOT / "src").rglob("*.py")
        for name in re.findall(r'"(broker_[a-z_]*[a-z])"', path.read_text("utf-8"))
    }
    assert source - known == set()


def exposed(installation: Installation, role: str) -> str:
    ports = installation.ports
    if role in {"worker", "projector"}:
        return httpx.get(f"http://127.0.0.1:{ports[f'{role}_metrics_port']}/metrics").text
    client = installation.certs / "clients" / "demo"
    context = tls.client_context(installation.certs / "ca.crt", client / "client.crt", client / "client.key")
    return httpx.get(f"https://localhost:{ports[f'{role}_port']}/metrics", verify=context).text


@pytest.mark.parametrize("role", ["gateway", "server", "worker", "projector"])
def test_what_a_process_shows_is_what_the_page_says(installation: Installation, role: str) -> None:
    """Every metric of ours that a running process exposes is there with its type and labels."""
    rows = docs.metric_rows()
    seen = 0
    for family in text_string_to_metric_families(exposed(installation, role)):
        # The times at which counters were made are of the client library, for every one.
        if not family.name.startswith("broker_") or family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        kind, labels = rows[name]
        assert kind == family.type, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, name
            seen += 1
    assert seen > 5
