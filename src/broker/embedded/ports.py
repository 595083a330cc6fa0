"""Ports: whether they are free, and if not, who has them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import NamedTuple

from broker.embedded.process import EmbeddedError
from broker.settings import variable


class Claim(NamedTuple):
    """A port that a setting asks for on a host."""

    setting: str
    host: str
    port: int


def check(claims: Iterable[Claim]) -> None:
    """Raise EmbeddedError that names every taken port, its setting and, if known, its process."""
    busy = []
    seen: dict[int, str] = {}
    for claim in claims:
        if claim.port == 0:
            continue
        if claim.port in seen and seen[claim.port] != claim.setting:
            busy.append(f"port {claim.port} is asked for twice: by {seen[claim.port]} and {claim.setting}")
        elif claim.port not in seen and (problem := problem_with(claim)) is not None:
            busy.append(problem)
        seen[claim.port] = claim.setting
    if busy:
        raise EmbeddedError("; ".join(busy) + ".")


def problem_with(claim: Claim) -> str | None:
    """Why the port cannot be listened on, None when it can."""
    what = f"port {claim.port} ({claim.setting}, {variable(claim.setting)})"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            claim.host, claim.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        return f"{what} cannot be used: {claim.host!r} is not a host that this machine knows"
    with socket.socket(family, kind, proto) as probe:
        if os.name == "posix":
            # As servers do: connections that linger after a stop are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except PermissionError:
            return f"{what} may not be used by this user"
        except OSError as error:
            holder = _holder(claim.port)
            return (
                f"{what} is in use{holder}"
                if holder
                else f"{what} cannot be used on {claim.host}: {error.strerror}"
            )
    return None


def _holder(port: int) -> str:
    """` by PID 123 (nginx)`; ` by another process` when the system does not say."""
    import psutil

    try:
        found = [
            one.pid
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
        ]
    except psutil.AccessDenied:
        return " by another process"
    if not found:
        return ""
    pid = found[0]
    if pid is None:
        return " by another user's process"
    try:
        return f" by PID {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f" by PID {pid}"
