"""The image and the compose file, as far as they can be held without a container engine: form, names, settings."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
import yaml

from broker.bootstrap import ROLES
from broker.events import durability
from broker.settings import Settings, load
from support import commands, docs
from support.installation import Installation

KIT = docs.ROOT / "ops" / "containers"
INSTRUCTIONS = {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "STOPSIGNAL", "ENTRYPOINT"}
OTHERS = {"redis", "mysql", "prepare"}


def instructions() -> list[tuple[str, str]]:
    """Name and rest of every instruction of the Containerfile, continuations joined."""
    text = re.sub(r"\\\n\s*", " ", (KIT / "Containerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def compose() -> dict[str, Any]:
    return yaml.safe_load((KIT / "compose.yaml").read_text("utf-8"))


def ours() -> dict[str, dict[str, Any]]:
    """The services that run our image."""
    return {name: one for name, one in compose()["services"].items() if one["image"] == "message-broker"}


def environment() -> dict[str, str]:
    """Of our processes, as it is with both passwords set."""
    given = ours()["gateway"]["environment"]
    return {name: re.sub(r"\$\{\w+:\?[^}]*\}", "s3cret", value) for name, value in given.items()}


def test_the_image_is_made_of_what_is_there() -> None:
    """Known instructions, bases of a fixed version, copied files that exist, no root at the end, the locked packages."""
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    for name, rest in found:
        if name == "FROM":
            assert re.match(r"python:3\.\d+-\w+-\w+( AS \w+)?$", rest)
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _ = shlex.split(rest)
            assert all((docs.ROOT / source).exists() for source in sources), rest
    assert [rest for name, rest in found if name == "USER"] == ["10001"]
    assert json.loads(next(rest for name, rest in found if name == "ENTRYPOINT")) == ["broker"]
    assert any("--require-hashes -r requirements.lock" in rest for name, rest in found if name == "RUN")


def test_the_context_holds_what_is_copied_and_no_secret() -> None:
    """Everything is left out but what the image is made of."""
    first, *rest = (KIT / "Containerfile.dockerignore").read_text("utf-8").split()
    assert first == "*"
    kept = {line[1:] for line in rest if line.startswith("!")}
    copied = {
        source
        for name, words in instructions()
        if name == "COPY" and not words.startswith("--from")
        for source in shlex.split(words)[:-1]
    }
    assert kept == copied


def test_every_role_has_a_container_that_prepare_comes_before() -> None:
    """Each runs its command, waits for the set-up, is asked for its health, may write its volume only."""
    assert set(ours()) == {*ROLES, "prepare"}
    for name, service in ours().items():
        assert service["command"] == [name]
        assert docs.problem(service["command"]) is None
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert int(service["stop_grace_period"].rstrip("s")) > Settings().grace_period
        if name != "prepare":
            assert service["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
            assert service["healthcheck"]["test"][-2:] == ["/opt/broker/healthy.py", name]
            assert service["restart"] == "unless-stopped"
    assert set(compose()["services"]) == {*ROLES, *OTHERS}
    assert set(ours()["prepare"]["depends_on"]) == {"redis", "mysql"}


def test_settings_of_the_containers_are_valid() -> None:
    """Every variable is a setting; servers are reached by their services' names; no password is in the file."""
    settings = load(environ=environment())
    services = compose()["services"]
    for url in (settings.redis_url, settings.mysql_url, settings.server_url):
        assert re.search(r"(?:@|//)(\w+):\d+", str(url))[1] in services
    assert settings.mysql_url.endswith(f"/{services['mysql']['environment']['MYSQL_DATABASE']}")
    # Certificates are for the name of the host that makes them: the one that workers call.
    assert services["prepare"]["hostname"] == services["server"]["hostname"] == "server"
    assert settings.server_url == f"https://server:{settings.server_port}"
    text = (KIT / "compose.yaml").read_text("utf-8")
    assert len(re.findall(r"\$\{MYSQL_PASSWORD:\?", text)) == 2
    assert not re.findall(r"(?i)(?:password|passphrase): [^$\s]", text.replace('ROOT_PASSWORD: "yes"', ""))


def test_published_ports_are_the_settings() -> None:
    """Producers reach the gateway from everywhere, the rest is this machine's."""
    settings = load(environ=environment())
    published = {name: one["ports"] for name, one in ours().items() if "ports" in one}
    assert published == {
        "gateway": [f"{settings.gateway_port}:{settings.gateway_port}"],
        "server": [f"127.0.0.1:{settings.server_port}:{settings.server_port}"],
        "portal": [f"127.0.0.1:{settings.portal_port}:{settings.portal_port}"],
    }


def test_volumes_are_declared_and_kept() -> None:
    """What must outlive a container lies in a named volume."""
    declared = set(compose()["volumes"])
    used = {volume.partition(":")[0] for one in compose()["services"].values() for volume in one["volumes"]}
    assert used == declared


def test_valkey_keeps_what_it_acknowledged() -> None:
    """Its options are those that the gateway asks for before it starts."""
    words = compose()["services"]["redis"]["command"]
    given = dict(zip((word.removeprefix("--") for word in words[1::2]), words[2::2], strict=True))
    for name in ("appendonly", "appendfsync", "maxmemory-policy"):
        assert given[name] == durability.REQUIRED[name]
    assert given["maxmemory"] != "0"


@pytest.mark.parametrize("role", sorted(ROLES))
def test_the_health_check_asks_the_role(installation: Installation, role: str) -> None:
    """The image's own script, against a running process and against a port where nothing answers."""
    script = KIT / "healthy.py"
    done = commands.run(role, script=script, env=installation.surroundings())
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
    field = f"{role}_metrics_port" if role in {"worker", "projector"} else f"{role}_port"
    changes = {f"BROKER_{field.upper()}": "1"}
    done = commands.run(role, script=script, env=installation.surroundings(**changes))
    assert (done.stdout, done.returncode) == ("not listening\n", 1), done.stderr


def test_the_page_names_the_services() -> None:
    """Every service that a command of docs/operations-containers.md names is one."""
    page = (docs.ROOT / "docs" / "operations-containers.md").read_text("utf-8")
    named = set(re.findall(r"(?:exec|cp|--scale) (\w+)", page))
    assert named <= set(compose()["services"])
    for words in re.findall(r"exec \w+ broker ([^`]+)`", page):
        assert docs.problem(words.split()) is None
    # What `run` is given follows the image's entry point, which is the program itself.
    assert 'ENTRYPOINT ["broker"]' in (docs.ROOT / "ops" / "containers" / "Containerfile").read_text("utf-8")
    run = re.findall(r"compose run .*--volume \S+ (\w+) (.+)", page)
    assert {service for service, _ in run} == {"server"}
    for _, words in run:
        assert docs.problem(words.split()) is None
