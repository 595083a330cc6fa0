"""The shapes of stored events, on record since they were first written: `tests/upgrade/shapes.json`.

Run as a program, it records what is new, and refuses what would change a shape on record.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from msgspec import structs

from broker.events import types, upcasting

FILE = Path(__file__).parents[1] / "upgrade" / "shapes.json"
Shape = list[dict[str, Any]]


def shape(kind: type[types.Event]) -> Shape:
    """Name, type and duty of each field, in the order in which they are stored."""
    return [
        {"name": field.name, "takes": _takes(field.type), "required": field.required}
        for field in structs.fields(kind)
    ]


def _takes(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)


def current() -> dict[str, Shape]:
    """Every type's current version, by the tag under which it is stored, and those of old versions on record."""
    old = {tag: found for tag, found in read().items() if tag in upcasting.UPCASTERS}
    return old | {upcasting.tag(name): shape(kind) for name, kind in types.ALL.items()}


def read() -> dict[str, Shape]:
    """What is on record."""
    found: dict[str, Shape] = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    return found


def differences(released: dict[str, Shape], now: dict[str, Shape]) -> list[str]:
    """What changed of what was released, beside fields with defaults at the end."""
    found = []
    for tag, fields in released.items():
        if tag not in now:
            found.append(f"{tag} is not read any more")
            continue
        for index, field in enumerate(fields):
            found += [f"{tag}: {text}" for text in _field(field, now[tag][index : index + 1])]
        appended = now[tag][len(fields) :]
        found += [
            f"{tag}: {one['name']} was appended without a default" for one in appended if one["required"]
        ]
    return found


def _field(field: dict[str, Any], now: Shape) -> list[str]:
    if not now:
        return [f"{field['name']} is gone"]
    [other] = now
    if other["name"] != field["name"]:
        return [f"{field['name']} is {other['name']} now"]
    found = []
    if other["takes"] != field["takes"]:
        found.append(f"{field['name']} takes {other['takes']} instead of {field['takes']}")
    if other["required"] and not field["required"]:
        found.append(f"{field['name']} has no default any more")
    return found


def main() -> int:
    """Record what is new; the exit code."""
    now = current()
    lines = differences(read(), now)
    for line in lines:
        sys.stderr.write(f"{line}: make it a new version with an upcaster\n")
    if not lines:
        FILE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", "utf-8")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
