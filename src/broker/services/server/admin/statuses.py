"""The errors that operations of the admin API have in common, for its document."""

from __future__ import annotations

from typing import Final

READ: Final = (400, 401, 403, 503)
"""Of any request that reads."""
WRITE: Final = (400, 401, 403, 409, 413, 415, 503)
"""Of one that has a body and changes something."""
