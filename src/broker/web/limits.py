"""What a listener allows its clients. Times in seconds, sizes in bytes."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one listener, per process."""

    header_bytes: int = 32 * 1024
    url_bytes: int = 8 * 1024
    # From the connection, or from the first byte of a request, to the end of its headers.
    header_timeout: float = 10.0
    # Without a single byte of an unfinished body arriving, or of a response being taken.
    body_timeout: float = 20.0
    # From a request's headers to the end of its body, but for the time in which nobody here reads it.
    body_total: float = 120.0
    idle_timeout: float = 75.0
    handshake_timeout: float = 10.0
    # How long a closing connection still takes in, unread, what the client was sending.
    linger_timeout: float = 2.0
    linger_bytes: int = 32 * 1024 * 1024
    # Requests being served at once; more get a 503.
    in_flight: int = 4096
    # Requests that wait behind the one being served on their connection; past these it ends after them.
    pipelined: int = 32
    # Connections at once; more wait in the kernel's queue.
    connections: int = 16_384

    @property
    def tick(self) -> float:
        """How often the timers are looked at."""
        shortest = min(self.header_timeout, self.body_timeout, self.idle_timeout, self.linger_timeout)
        return min(1.0, max(0.02, shortest / 4))


DEFAULT = Limits()
