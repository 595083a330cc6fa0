"""Times and shares, as the report says them."""

from __future__ import annotations

import time


def when(seconds: float) -> str:
    """Seconds since the epoch, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def lasted(seconds: float) -> str:
    """HH:MM:SS."""
    whole = round(seconds)
    return f"{whole // 3600:02}:{whole % 3600 // 60:02}:{whole % 60:02}"


def counted(number: int, of: int) -> str:
    """A number and its share."""
    return f"{number} ({number / of:.0%})" if of else str(number)
