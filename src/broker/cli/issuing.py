"""Certificates from a shell: signed by the CA, let in by the registry, written where they are looked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from broker import clock
from broker.cli.opening import ACTOR
from broker.errors import BrokerError, Conflict, NotFound
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.domain.certificates import CertificateEntry, Issued
    from broker.preparation import Tools
    from broker.services.ca.authority import Authority

MAX_CSR_BYTES = 64 * 1024


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. Without a CSR a key is made."""

    name: str
    role: str = "producer"
    days: int = 365
    csr: Path | None = None
    out: Path | None = None
    """A directory; the files are then NAME.crt and NAME.key in it."""
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()


class Written(msgspec.Struct, frozen=True):
    """A certificate that is let in, and its files."""

    client_id: str
    role: str
    serial: str
    fingerprint: str
    expires_at: str
    certificate: str
    private_key: str | None
    ca: str
    names: list[str]
    """By which a gateway or server is reached."""


def places(settings: Settings, request: Request) -> tuple[Path, Path]:
    """Where the certificate and its key belong: where `send` and the roles look, unless told otherwise."""
    certs, name = settings.certs_dir, request.name
    if request.out is not None:
        folder, stem = request.out, name
    elif request.csr is not None:
        # Its key lies with whoever made the request, most likely beside it.
        folder, stem = request.csr.parent, name
    elif request.role == "producer":
        folder, stem = certs / "clients" / name, "client"
    else:
        folder, stem = certs / "services", name
    return folder / f"{stem}.crt", folder / f"{stem}.key"


def authority(settings: Settings) -> Authority:
    """The CA of the certificates' directory. Raises NotFound with what to do, SealedKey, BrokenAuthority."""
    from broker.services.ca.authority import Authority

    try:
        return Authority.load(settings.certs_dir, settings.key_passphrase, settings.ca_key_path)
    except NotFound as error:
        raise NotFound(f"{error.detail} `broker up` makes the certificate authority.") from error


async def issue(
    tools: Tools, request: Request, *, renew: bool = False, replaces: str | None = None
) -> Written:
    """Sign, let in and write. With `renew` in place of another, which works for a day yet.

    Raises ValidationError, NotFound, Conflict, and BrokerError when the files could not be written.
    """
    from broker.services.ca.authority import names_of

    settings = tools.settings
    certificate, key = places(settings, request)
    if not renew:
        await _free(tools, certificate)
    ca = authority(settings)
    dns, ips = _names(settings, request, renew=renew)
    issued: Issued = ca.issue(
        request.name,
        request.role,
        validity_days=request.days,
        csr_pem=_read(request.csr),
        dns=dns,
        ips=ips,
    )
    entry = issued.entry(request.name, request.role, issued_at_ms=clock.now_ms())
    if renew:
        await tools.certificates.renew_certificate(entry, actor=ACTOR, replaces=replaces)
    else:
        await tools.certificates.record_certificate(entry, actor=ACTOR)
    try:
        _write(issued, certificate, key)
    except OSError as error:
        await tools.certificates.revoke_certificate(
            fingerprint=issued.fingerprint, reason="cessation_of_operation", actor=ACTOR
        )
        raise BrokerError(
            f"{error.filename or certificate}: {error.strerror}. The certificate was revoked."
        ) from error
    return Written(
        request.name,
        request.role,
        issued.serial,
        issued.fingerprint,
        clock.iso(issued.not_after_ms),
        str(certificate),
        None if issued.private_key_pem is None else str(key),
        str(settings.certs_dir / "ca.crt"),
        [name for kind in names_of(certificate) for name in kind],
    )


def _names(settings: Settings, request: Request, *, renew: bool) -> tuple[list[str], list[str]]:
    """DNS names and addresses: what is asked for, besides those of the file that is renewed."""
    from broker.services.ca.profiles import SERVER_ROLES

    dns, ips = list(request.dns), list(request.ips)
    if request.role not in SERVER_ROLES:
        return dns, ips
    before = _present_names(settings, request) if renew else ([], [])
    if not any(before) and (dns or ips):
        # The other processes of its machine, and the checks there, go on reaching it.
        before = ["localhost"], ["127.0.0.1", "::1"]
    return [*before[0], *dns], [*before[1], *ips]


def _present_names(settings: Settings, request: Request) -> tuple[list[str], list[str]]:
    """Those of the file that lies there; this machine's where it cannot be read, none where there is none."""
    from broker.services.ca.authority import BrokenAuthority, names_of
    from broker.services.ca.profiles import local_names

    # With --out the one that works may still lie in its usual place.
    for place in (request, msgspec.structs.replace(request, out=None, csr=None)):
        if (certificate := places(settings, place)[0]).exists():
            try:
                return names_of(certificate)
            except BrokenAuthority:
                # A renewal mends it.
                return local_names()
    return [], []


async def _free(tools: Tools, certificate: Path) -> None:
    """Raises Conflict when the file holds a certificate that works: something may be using it."""
    from broker.domain import certificates
    from broker.domain.certificates import CertificateEntry
    from broker.events.control import certificate_field
    from broker.services.ca.authority import read_certificate

    if not certificate.exists():
        return
    found = read_certificate(certificate)
    known = await tools.registry.read(certificate_field(found.fingerprint), CertificateEntry)
    if known is not None and certificates.works(known, clock.now_ms()):
        raise Conflict(
            f"{certificate} holds a certificate that works until {clock.iso(known.not_after_ms)}. "
            f"`broker cert renew {known.client_id}` replaces it; --out DIR writes elsewhere."
        )


def _read(csr: Path | None) -> bytes | None:
    if csr is None:
        return None
    with csr.open("rb") as file:
        return file.read(MAX_CSR_BYTES)


def _write(issued: Issued, certificate: Path, key: Path) -> None:
    from broker.services.ca import files

    if issued.private_key_pem is None:
        files.write_file(certificate, issued.certificate_pem.encode(), mode=files.PUBLIC)
        return
    files.write_pair(
        certificate,
        key,
        certificate_pem=issued.certificate_pem.encode(),
        key_pem=issued.private_key_pem.encode(),
    )


def shown_status(entry: CertificateEntry) -> str:
    """The status for people: an active one that ran out is expired."""
    if entry.status == "active" and entry.not_after_ms <= clock.now_ms():
        return "expired"
    return entry.status


def plain(entry: CertificateEntry) -> dict[str, Any]:
    """The entry for JSON, times as text."""
    return {
        "name": entry.client_id,
        "role": entry.role,
        "status": shown_status(entry),
        "serial": entry.serial,
        "fingerprint": entry.fingerprint,
        "not_before": clock.iso(entry.not_before_ms),
        "expires_at": clock.iso(entry.not_after_ms),
        "issued_at": clock.iso(entry.issued_at_ms),
        "reason": entry.reason,
        "ends_at": None if entry.revoked_at_ms is None else clock.iso(entry.revoked_at_ms),
    }
