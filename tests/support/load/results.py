"""Where a load case's figures go, for the readiness report: one JSON file a case under `var/load/`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from broker.cli.readiness import evidence

ROOT = Path(__file__).resolve().parents[3]


def record(case: str, *, full: bool, form: str, figures: dict[str, Any]) -> Path:
    """Write what was measured; `form` says in words how long and how much it was, `full` whether as asked for."""
    path = evidence.load_directory(ROOT) / f"{case}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "case": case,
        "full": full,
        "form": form,
        "measured_at": round(time.time()),
        "source": evidence.source_digest(ROOT),
        **figures,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return path
