"""What a page says after something was done: a closed set, so that no link can put words in our mouth."""

from __future__ import annotations

from typing import Final

PARAMETER: Final = "done"
TEXTS: Final = {
    "password": "Your password was changed. Every other session of yours has ended.",
    "password-later": "Your password was changed. Every other session of yours has ended; "
    "lists show it in a moment.",
}
