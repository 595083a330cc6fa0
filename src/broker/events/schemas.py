"""JSON Schemas (2020-12) of every event in its exported form, of an exported line, and of one with its proof.

`python -m broker.events.schemas` writes them to `schemas/`; with `--check` it compares and exits 1 when they
differ. In the exported form fields have names, bytes are lower-case hex, and what is withheld is replaced by
the SHA-256 of its bytes: a commitment that whoever holds the original can check.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, structs

from broker.events import types, upcasting
from broker.events.exported import ExportedLine, ProvedLine, Withheld

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
LINE: Final = "exported-line"
PROVED: Final = "proved-line"

Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2})*$", description="bytes in lower-case hex")]


def exported_type(kind: type[types.Event]) -> type[msgspec.Struct]:
    """The struct whose JSON is the exported `data` of events of this type."""
    fields = []
    for field in structs.fields(kind):
        shown = _shown(field.type, withheld=(kind.__name__, field.name) in types.WITHHELD)
        # Every field is always there in an export, null where the event has none.
        fields.append((field.name, shown))
    built = msgspec.defstruct(kind.__name__, fields, frozen=True, forbid_unknown_fields=True)
    built.__doc__ = kind.__doc__
    return built


def _shown(kind: Any, *, withheld: bool) -> Any:
    """The exported type of a field of type `kind`."""
    shown: Any = Withheld if withheld else Hex
    if withheld:
        return shown | None if _optional(kind) else shown
    if kind is bytes:
        return shown
    if kind == bytes | None:
        return shown | None
    return kind


def _optional(kind: Any) -> bool:
    return type(None) in getattr(kind, "__args__", ())


def schema(kind: type[msgspec.Struct], title: str, address: str) -> dict[str, Any]:
    """The JSON Schema of a struct, self-contained."""
    (reference,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    root = components.pop(reference["$ref"].removeprefix("#/$defs/"))
    document = {"$schema": DIALECT, "$id": address, **root, "title": title}
    if components:
        document["$defs"] = components
    return document


def documents() -> dict[str, bytes]:
    """Every schema file by its name."""
    files = {}
    for name, kind in types.ALL.items():
        address = f"{name}.{upcasting.VERSIONS.get(name, 1)}.json"
        files[address] = _rendered(schema(exported_type(kind), name, address))
    files[f"{LINE}.json"] = _rendered(schema(ExportedLine, "Exported event", f"{LINE}.json"))
    files[f"{PROVED}.json"] = _rendered(schema(ProvedLine, "Line of an export", f"{PROVED}.json"))
    return files


def _rendered(document: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def differences(directory: Path) -> list[str]:
    """What `directory` would have to change to be right: one line a file. Old versions' files may stay."""
    wanted = documents()
    # The services' own documents lie beside the events'.
    files = [path for path in directory.glob("*.json") if not path.name.startswith("openapi-")]
    found = {path.name: path.read_bytes() for path in files}
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    lines += [
        f"{name} differs" for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]
    ]
    lines += [f"{name} is of no event" for name in sorted(found.keys() - wanted.keys()) if _stray(name)]
    return lines


def _stray(name: str) -> bool:
    """Whether the file looks like an event's, but no type or upcaster is of that version."""
    kind, _, version = name.removesuffix(".json").rpartition(".")
    return version.isdigit() and (kind if version == "1" else f"{kind}.{version}") not in upcasting.UPCASTERS


def write(directory: Path) -> None:
    """Write every schema file."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in documents().items():
        (directory / name).write_bytes(content)


def main(arguments: list[str]) -> int:
    """Write `schemas/` of the working directory, or compare with `--check`; the exit code."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m broker.events.schemas [--check]\n")
        return 2
    directory = Path("schemas")
    if not arguments:
        write(directory)
        return 0
    lines = differences(directory)
    for line in lines:
        sys.stderr.write(f"schemas: {line}; run python -m broker.events.schemas\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
