"""What `preflight` and `smoke` say of an installation, as the commands say it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CHECK_SECONDS = 120


def ask(
    command: str, root: Path, data: Path | None, environ: Mapping[str, str] | None
) -> tuple[list[tuple[str, str, str]] | None, str]:
    """Each check's name, status and detail; None and the reason where there was no answer."""
    where = () if data is None else ("--data", str(data))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "broker", command, "--json", *where],
            cwd=root,
            env=environ,
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
        said = json.loads(done.stdout)["checks"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        return None, f"`broker {command} --json` gave no answer ({type(error).__name__})"
    return [(one["name"], one["status"], one["detail"]) for one in said], ""
