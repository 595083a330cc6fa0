"""Screenshots of the portal that its tests took of the source as it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

COMMAND: Final = "./broker test portal -- -k width --screenshots var/screens"
SHOWN: Final = {
    "1440-boss-light": "The dashboard, 1440 pixels wide",
    "1440-boss-admin-light": "The administrator's overview, 1440 pixels wide",
    "1440-reader-messages-light": "A reader's messages, 1440 pixels wide",
    "360-reader-messages-light": "A reader's messages, 360 pixels wide",
    "1440-boss-admin-certificates-light": "Certificates, 1440 pixels wide",
    "1440-boss-audit-light": "The history, 1440 pixels wide",
    "1440-reader-admin-light": "What a reader sees of the administration, 1440 pixels wide",
    "1440-login-why-expired-light": "After a session has ended, 1440 pixels wide",
}
"""Those that the report shows, of all that are taken."""


def directory(root: Path) -> Path:
    """Where the report looks for them."""
    return root / "var" / "screens"


def taken(root: Path, sources: Iterable[Path]) -> list[Path]:
    """Pictures no older than any of these files: an older one may show what is not there any more."""
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    return sorted(path for path in directory(root).glob("*.png") if path.stat().st_mtime >= newest)
