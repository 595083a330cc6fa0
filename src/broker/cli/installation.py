"""What `preflight` and `smoke` share. A check answers one finding; what it could not see has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from broker.cli import checks
from broker.cli.checks import Finding
from broker.embedded.state import running
from broker.errors import BrokerError
from broker.settings import Settings

PATIENCE = 20.0
"""Seconds until a check that gets no answer has failed."""

MAKE = "run `broker up`, or `broker prepare` where you run the roles yourself"

Check = Callable[[], Awaitable[Finding]]


async def judge(named: dict[str, Check]) -> list[Finding]:
    """Run the checks one after the other; each answers under its name, whatever it meets."""
    return [await _judged(name, check) for name, check in named.items()]


async def _judged(name: str, check: Check) -> Finding:
    try:
        async with asyncio.timeout(PATIENCE):
            found = await check()
    except TimeoutError:
        return Finding(name, "failed", f"no answer within {PATIENCE:.0f} s")
    except (BrokerError, OSError) as error:
        return Finding(name, "failed", str(error))
    # Where `doctor` may leave something out, these checks have to see it.
    status = "failed" if found.status == "skipped" else found.status
    return Finding(name, status, found.detail, found.fix)


async def mysql(settings: Settings) -> Finding:
    """The database answers to the credentials of the settings."""
    from broker.projections import address

    found, *_ = await checks.mysql(settings, embedded_down=_down(settings, settings.mysql_url))
    if found.status != "ok":
        return found
    from broker.embedded.urls import resolve

    database = address.parse(str(resolve(settings).mysql_url)).database
    return found._replace(detail=f"database {database}, {found.detail}")


async def redis(settings: Settings) -> Finding:
    """Redis answers to PING and keeps what it acknowledges."""
    return await checks.redis(settings, embedded_down=_down(settings, settings.redis_url))


def _down(settings: Settings, url: str | None) -> bool:
    return url is None and running(settings.data_dir) is None


async def certificates(settings: Settings) -> Finding:
    """The CA's, every service's, at least one client's: there, valid now, of this CA, with their keys."""
    from broker.services.ca import authority, health

    directory = settings.certs_dir
    ca = directory / authority.CERTIFICATE_FILE
    wrong = [health.problem(ca, None, ca)]
    pairs = list(_pairs(directory))
    if wrong == [None]:
        wrong = [health.problem(certificate, key, ca) for certificate, key in pairs]
        if not any(certificate.parent.parent.name == "clients" for certificate, _ in pairs):
            wrong.append(f"no client has a certificate in {directory / 'clients'}")
    problems = [one for one in wrong if one is not None]
    if problems:
        return Finding("", "failed", "; ".join(problems), f"{MAKE}; a client's: `broker cert renew NAME`")
    soon = [str(one) for one, _ in pairs if authority.expires_within(one, settings.certificate_warning_days)]
    if soon:
        return Finding(
            "",
            "warning",
            f"{', '.join(soon)} end within {settings.certificate_warning_days} days",
            f"{MAKE}; a client's: `broker cert renew NAME`",
        )
    return Finding("", "ok", f"the CA's, {len(pairs)} others, all valid")


def _pairs(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Certificate and key of each service, and of each client whose files lie here."""
    from broker.preparation import SERVICES

    for name in SERVICES:
        yield directory / "services" / f"{name}.crt", directory / "services" / f"{name}.key"
    for certificate in sorted((directory / "clients").glob("*/*.crt")):
        yield certificate, certificate.with_suffix(".key")
