"""What `up` prints once everything runs: where things are and what to try first."""

from __future__ import annotations

from broker.directories import near
from broker.embedded.state import Member
from broker.settings import Settings

INSPECTION = "For inspection: nothing is accepted, delivered or sent; what was open stays open."

WORDS = {
    "gateway": "producers submit here (client certificate)",
    "server": "internal and JSON APIs, /docs",
    "portal": "sign in here with a browser",
    "worker": "/metrics, /health",
    "projector": "/metrics, /health",
}


def summary(settings: Settings, members: list[Member]) -> list[str]:
    """Lines for people: addresses, files, the admin's password file, a first command."""
    lines = [INSPECTION] if settings.inspection else []
    seen = set()
    for member in members:
        if member.url is not None and member.url not in seen:
            seen.add(member.url)
            count = sum(other.url == member.url for other in members)
            name = member.role if count > 1 else member.name
            lines.append(
                f"{name:<12} {member.url}  {WORDS.get(member.role, '')}{f' ×{count}' if count > 1 else ''}"
            )
    data, certs = settings.data_dir, settings.certs_dir
    lines += [
        f"{'data':<12} {near(data)}  (logs in {near(data / 'log')})",
        f"{'certificates':<12} {near(certs / 'ca.crt')}, demo client in {near(certs / 'clients/demo')}",
        f"{'admin':<12} admin@example.com, password in {near(data / 'admin-password')}",
    ]
    return lines
