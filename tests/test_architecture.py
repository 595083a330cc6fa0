"""The layout is the architecture: who may import whom, and who may speak to which server."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "broker"

# Each part may import itself and what is named here; what everybody may import stands in BASE.
BASE = {"errors", "clock", "directories", "settings", "lifecycle", "telemetry", "tracing", ""}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "directories": set(),
    "settings": set(),
    "lifecycle": set(),
    "telemetry": set(),
    "tracing": set(),
    "domain": set(),
    "events": {"domain"},
    "projections": {"events", "domain"},
    "web": {"domain"},
    "client": {"domain", "web"},
    "services": {"projections", "events", "domain", "web"},
    "preparation": {"services", "events", "domain"},
    "bootstrap": {"preparation", "services", "projections", "events", "domain", "web"},
    # The supervisor sets up and starts the roles; nothing but the CLI stands above it.
    "embedded": {"bootstrap", "projections"},
    "cli": {
        "bootstrap",
        "preparation",
        "services",
        "projections",
        "events",
        "domain",
        "web",
        "embedded",
        "client",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
# Drivers, and the only parts that may import them.
DRIVERS = {
    "redis": {"events"},
    "fsspec": {"events"},
    "aiomysql": {"projections"},
    "pymysql": {"projections"},
    "sqlalchemy": {"projections"},
    "alembic": {"projections"},
    "starlette": {"web", "services"},
    "uvicorn": {"web"},
    "click": {"cli", "embedded"},
    "rich": {"cli", "embedded"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield (
            str(path.relative_to(SOURCE).with_suffix("")).replace("/", "."),
            ast.parse(path.read_text("utf-8")),
        )


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("module", "tree"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_imports_follow_the_layers(module: str, tree: ast.Module) -> None:
    """`events` ← `projections` ← `services` ← `bootstrap`; services never import each other; drivers stay put."""
    part = module.split(".", maxsplit=1)[0]
    for name in imports(tree):
        if name.startswith("broker"):
            target = ([*name.split("."), ""])[1]
            if not (SOURCE / target).exists() and not (SOURCE / f"{target}.py").exists():
                target = ""  # a name of the package itself
            assert target == part or target in ALLOWED[part] | BASE, f"{module} imports {name}"
            if part == target == "services":
                own, other = module.split(".")[1], name.split(".")[2]
                assert own == other, f"{module} imports another service: {name}"
        driver = name.split(".")[0]
        assert part in DRIVERS.get(driver, {part}), f"{module} imports {driver}"


@pytest.mark.parametrize("module", ["domain", "events.types"])
def test_the_core_imports_nothing_of_ours_but_the_base(module: str) -> None:
    """What is decided and what happened know nothing of how they are stored."""
    for name, tree in modules():
        if name == module or name.startswith(f"{module}."):
            ours = {i for i in imports(tree) if i.startswith("broker.")}
            assert all(i.split(".")[1] in {"errors", "clock", "domain"} for i in ours), name


def test_importing_does_nothing() -> None:
    """No I/O at import: every module can be imported without a socket, a file written or a process started."""
    names = [m for m, _ in modules() if not m.endswith("__main__")]
    program = f"""
import sys
def refuse(event, args):
    if event in {{"socket.connect", "subprocess.Popen", "os.system", "os.mkdir", "os.remove", "os.rename"}}:
        raise SystemExit(f"{{event}} at import: {{args}}")
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        raise SystemExit(f"writes {{args[0]}} at import")
sys.dont_write_bytecode = True
import importlib
sys.addaudithook(refuse)
for name in {names!r}:
    importlib.import_module("broker." + name.removesuffix(".__init__").replace("__init__", "settings"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or done.stdout
