"""Where a load case's figures go, for the readiness report: one JSON file a case under `var/load/`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).resolve().parents[3] / "var" / "load"


def record(case: str, *, full: bool, form: str, figures: dict[str, Any]) -> Path:
    """Write what was measured; `form` says in words how long and how much it was, `full` whether as asked for."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{case}.json"
    content = {"case": case, "full": full, "form": form, "measured_at": round(time.time()), **figures}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return path
