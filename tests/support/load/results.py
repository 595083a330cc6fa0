"""Where a load case's figures go, for the readiness report: one JSON file a case under `var/load/`.

What was measured in full length stays, for the same source, when the short form is run after it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from broker.cli.readiness import evidence

ROOT = Path(__file__).resolve().parents[3]


def record(case: str, *, full: bool, form: str, figures: dict[str, Any], root: Path = ROOT) -> Path:
    """Write what was measured; `form` says in words how long and how much it was, `full` whether as asked for."""
    path = evidence.load_directory(root) / f"{case}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    source = evidence.source_digest(root)
    if not full and _in_full(path, source):
        return path
    content = {
        "case": case,
        "full": full,
        "form": form,
        "measured_at": round(time.time()),
        "source": source,
        **figures,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return path


def _in_full(path: Path, source: str) -> bool:
    if not path.exists():
        return False
    there = json.loads(path.read_bytes())
    return bool(there["full"]) and there["source"] == source
