"""`cert`: certificates of the private CA, from a shell on the machine that holds its key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.common import UserPath, json_option, print_json, with_settings
from broker.cli.following import changing, no_wait_option
from broker.directories import near
from broker.errors import NotFound, ValidationError
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.cli.issuing import Written
    from broker.domain.certificates import CertificateEntry, Crl

ROLES = ("producer", "gateway", "server", "worker", "internal")


class Reason(click.ParamType[str]):
    """A reason of RFC 5280, in its spelling or with underscores, or words."""

    name = "reason"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The reason as it is recorded."""
        from broker.domain import certificates

        try:
            return certificates.check_reason(value)
        except ValidationError as error:
            self.fail(f"{value!r}: {error.reason}.", param, ctx)


_days = click.option("--days", type=int, default=365, show_default=True, help="Good for so long, 1 to 825.")
_csr = click.option(
    "--csr",
    type=UserPath(exists=True, dir_okay=False),
    help="A PEM signing request: its key stays with its owner. The certificate is written beside it.",
)
_out = click.option(
    "--out",
    type=UserPath(file_okay=False),
    help="Write NAME.crt and NAME.key here. Default: certs/clients/NAME/client.*, services certs/services/.",
)
_dns = click.option(
    "--dns",
    multiple=True,
    metavar="NAME",
    help="Of a gateway or server: reached by this name, besides localhost; may be given again.",
)
_ip = click.option(
    "--ip", "ips", multiple=True, metavar="ADDRESS", help="Of a gateway or server: reached at this address."
)


@click.group()
def cert() -> None:
    """Certificates: who may speak to the gateway and the server.

    A certificate works as long as the registry says so: a revocation bites within a second, on open
    connections too. The key of the CA lies in certs/ca.key.
    """


@cert.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="producer", show_default=True, help="Whose it is.")
@_days
@_csr
@_out
@_dns
@_ip
@json_option
@no_wait_option
@with_settings
def issue(settings: Settings, *, as_json: bool, **options: Any) -> None:
    """A certificate for NAME: a registered client, or a process of a service.

    \b
      broker client register shop
      broker cert issue shop
      broker send --client shop --from +4915200000000 --body "Hello"

    A client has one active certificate; `cert renew` replaces it without a gap. It works everywhere when this
    returns. A gateway or server reached under other names than this machine's takes --dns and --ip.
    """  # noqa: D301 - click's mark
    _tell(asyncio.run(_issue(settings, options)), as_json=as_json)


@cert.command()
@click.argument("name")
@click.option("--fingerprint", help="Which one is replaced; needed only where a service has several.")
@_days
@_csr
@_out
@_dns
@_ip
@json_option
@no_wait_option
@with_settings
def renew(settings: Settings, *, as_json: bool, fingerprint: str | None, **options: Any) -> None:
    """Replace NAME's certificate; the old one works for another day.

    A gateway's or server's keeps the names of the file that lies there, and gets those of --dns and --ip
    besides. To take a name away, revoke it and issue another.
    """
    _tell(asyncio.run(_renew(settings, fingerprint, options)), as_json=as_json)


@cert.command()
@click.argument("name", required=False)
@click.option("--serial", help="This certificate only; hex.")
@click.option("--fingerprint", help="This certificate only; SHA-256 in hex.")
@click.option(
    "--reason",
    type=Reason(),
    default="unspecified",
    show_default=True,
    help="Recorded; of RFC 5280, such as keyCompromise or superseded, also in the revocation list.",
)
@json_option
@no_wait_option
@with_settings
def revoke(
    settings: Settings,
    *,
    name: str | None,
    serial: str | None,
    fingerprint: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Refuse all certificates of NAME from now on, or one of them. Again changes nothing."""
    if sum(given is not None for given in (name, serial, fingerprint)) != 1:
        raise click.UsageError("Give exactly one of NAME, --serial and --fingerprint.")
    which = {"client_id": name, "serial": _hex(serial, "serial"), "fingerprint": _hex(fingerprint)}
    closed = asyncio.run(_revoke(settings, which, reason))
    if as_json:
        from broker.cli.issuing import plain

        print_json([plain(entry) for entry in closed])
        return
    for entry in closed:
        click.echo(f"Revoked {entry.client_id}, serial {entry.serial}: {reason}.")
    if not closed:
        click.echo("Revoked already.")


@cert.command("list")
@click.option("--client", "name", metavar="NAME", help="Those of this client or service only.")
@click.option("--active", is_flag=True, help="Without those that are revoked, superseded or expired.")
@click.option("--expiring", is_flag=True, help="Active ones that end within certificate_warning_days.")
@json_option
@with_settings
def list_(settings: Settings, *, name: str | None, active: bool, expiring: bool, as_json: bool) -> None:
    """Every certificate that was issued, and whether it works."""
    from broker import clock
    from broker.cli.issuing import plain

    last = clock.now_ms() + settings.certificate_warning_days * 86_400_000
    found = [
        plain(entry)
        for entry in asyncio.run(_list(settings))
        if name in {None, entry.client_id} and (not expiring or entry.not_after_ms <= last)
    ]
    found = [one for one in found if not (active or expiring) or one["status"] == "active"]
    if as_json:
        print_json(found)
    else:
        _table(found)


@cert.command()
@click.option("--out", type=UserPath(dir_okay=False), help="Write it here. Default: print it (PEM).")
@click.option("--der", is_flag=True, help="DER instead of PEM; takes --out.")
@with_settings
def crl(settings: Settings, *, out: Path | None, der: bool) -> None:
    """The revocation list, signed now: what was taken back before its date.

    The server serves the same at /crl.pem and /crl.der, where it has the authority's key.
    """
    if der and out is None:
        raise click.UsageError("--der takes --out FILE.")
    signed = asyncio.run(_crl(settings))
    if out is None:
        click.echo(signed.pem, nl=False)
        return
    from broker.services.ca import files

    files.write_file(out, signed.der if der else signed.pem, mode=files.PUBLIC)
    click.echo(f"Wrote {near(out)}, good for {settings.crl_hours} hours.")


async def _issue(settings: Settings, options: dict[str, Any]) -> Written:
    from broker.cli import issuing

    request = issuing.Request(**options)
    async with changing(settings) as tools:
        try:
            return await issuing.issue(tools, request)
        except NotFound as error:
            if request.role == "producer" and "client" in error.detail:
                raise NotFound(f"{error.detail} `broker client register {request.name}` makes it.") from error
            raise


async def _renew(settings: Settings, fingerprint: str | None, options: dict[str, Any]) -> Written:
    from broker.cli import issuing
    from broker.events import directory

    async with changing(settings) as tools:
        known = await directory.certificates(tools.redis, tools.keys.control)
        roles = {one.role for one in known if one.client_id == options["name"] and one.status == "active"}
        if not roles:
            raise NotFound(f"{options['name']} has no certificate to renew; `broker cert issue` makes one.")
        request = issuing.Request(**options, role=roles.pop())
        return await issuing.issue(tools, request, renew=True, replaces=_hex(fingerprint))


async def _revoke(
    settings: Settings, which: dict[str, str | None], reason: str
) -> tuple[CertificateEntry, ...]:
    from broker.cli import opening

    async with changing(settings) as tools:
        done = await tools.certificates.revoke_certificate(**which, reason=reason, actor=opening.ACTOR)
        return done.value


async def _list(settings: Settings) -> list[CertificateEntry]:
    from broker.cli import opening
    from broker.events import directory

    async with opening.log(settings) as (redis, keys):
        return await directory.certificates(redis, keys.control)


async def _crl(settings: Settings) -> Crl:
    from broker import clock
    from broker.cli import issuing

    authority = issuing.authority(settings)
    known = await _list(settings)
    now = clock.now_ms()
    return authority.crl(known, now_ms=now, next_update_ms=now + settings.crl_hours * 3_600_000)


def _hex(value: str | None, field: str = "fingerprint") -> str | None:
    """Hex as tools print it (`AB:CD`) in the registry's spelling."""
    from broker.domain import certificates

    return None if value is None else certificates.check_hex(value, field)


def _tell(written: Written, *, as_json: bool) -> None:
    if as_json:
        print_json(written)
        return
    click.echo(f"Issued for {written.client_id} as {written.role}, good until {written.expires_at}.")
    rows = {"certificate": written.certificate, "key": written.private_key, "ca": written.ca}
    rows |= {"serial": written.serial, "fingerprint": written.fingerprint}
    rows |= {"names": ", ".join(written.names) or None}
    for name, value in rows.items():
        if value is not None:
            click.echo(f"  {name:<12} {near(value) if '/' in value else value}")


def _table(found: list[dict[str, Any]]) -> None:
    from broker.cli import tables

    colours = {"active": "green", "revoked": "red", "expired": "red"}
    rows = [
        (
            one["name"],
            one["role"],
            click.style(one["status"], fg=colours.get(one["status"], "yellow")),
            one["expires_at"][:10],
            one["serial"],
            one["reason"] or "",
        )
        for one in found
    ]
    tables.show(("name", "role", "status", "expires", "serial", "reason"), rows)
