"""First set-up: keyring, log, certificate authority, service and demo certificates, first admin. Idempotent.

A set-up that was interrupted between a registry entry and the file it names is completed by the next one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from broker import clock
from broker.directories import near
from broker.domain.certificates import CertificateEntry, Issued
from broker.domain.clients import ClientEntry
from broker.errors import BrokerError, Conflict, LogUnavailable, UnsafeRedis
from broker.events import connection, durability, log_identity
from broker.events.certificate_commands import CertificateCommands
from broker.events.client_commands import ClientCommands
from broker.events.connection import Redis
from broker.events.control import Registry, certificate_field, client_field
from broker.events.keyring import Keyring, KeyringError
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.reopening import Reopening
from broker.events.user_commands import ADMINS, UserCommands
from broker.services.ca import authority, files, profiles
from broker.services.ca.authority import Authority, BrokenAuthority
from broker.settings import Settings, safe_url

SERVICES: Final = ("gateway", "server", "worker", "internal")
DEMO_CLIENT: Final = "demo"
FIRST_ADMIN: Final = "admin@example.com"
RENEW_DAYS: Final = 30
ACTOR: Final = "system"


class SetupError(BrokerError):
    """It could not be set up."""

    code = "setup_failed"

    def __str__(self) -> str:
        return self.detail


class Tools(msgspec.Struct, frozen=True):
    """What set-up and administration work with: the log, its keys and the registry."""

    settings: Settings
    redis: Redis
    keys: LogKeys
    identity: LogIdentity
    keyring: Keyring
    registry: Registry

    @property
    def clients(self) -> ClientCommands:
        return ClientCommands(self.registry, self.keyring)

    @property
    def certificates(self) -> CertificateCommands:
        return CertificateCommands(self.registry)

    @property
    def users(self) -> UserCommands:
        return UserCommands(self.registry)

    @property
    def reopening(self) -> Reopening:
        """What is done by hand to messages."""
        kept = self.settings.outcomes_kept_ms
        return Reopening(self.redis, self.keys, self.identity, outcomes_kept_ms=kept)


@asynccontextmanager
async def opened(settings: Settings, *, create: bool = False) -> AsyncIterator[Tools]:
    """The log of `settings` (addresses resolved), opened for administration; `create` makes what is missing.

    Raises LogUnavailable, LogRefused, UnsafeRedis, KeyringError, SettingsError.
    """
    redis = connection.connect(settings.redis_url or "", timeout=settings.redis_timeout)
    try:
        if create:
            await durability.check(redis, settings)
            keyring = await _keyring(redis, settings)
            identity = await log_identity.create(redis, settings)
        else:
            identity = await log_identity.load(redis, settings)
            keyring = Keyring.load(settings.keyring_path, settings.key_passphrase)
        keys = LogKeys(settings.log_name, identity.partitions)
        registry = Registry(redis, keys.control, identity.incarnations[keys.control.stream])
        yield Tools(settings, redis, keys, identity, keyring, registry)
    finally:
        await redis.aclose()


async def check_redis(settings: Settings) -> None:
    """Look at a Redis of the user's own before anything is started. Raises SetupError, UnsafeRedis."""
    shown = safe_url(settings.redis_url or "")
    remedy = "Start it, or correct redis_url (BROKER_REDIS_URL)."
    try:
        redis = connection.connect(settings.redis_url or "", timeout=settings.redis_timeout)
    except ValueError as error:
        raise SetupError(f"redis_url ({shown}) is not an address: {error}.") from error
    try:
        await durability.check(redis, settings)
    except UnsafeRedis as error:
        raise UnsafeRedis(f"{error.detail} It is {shown}.") from None
    except LogUnavailable as error:
        raise SetupError(f"Redis at {shown} cannot be used: {error.detail.rstrip('.')}. {remedy}") from error
    finally:
        await redis.aclose()


def check_restored(settings: Settings) -> None:
    """Raises SetupError where a restore was not finished: a new log must not be begun beside it."""
    from broker.events.backup import restoring

    if restoring.interrupted(settings):
        raise SetupError(
            f"A restore into {settings.data_dir} was interrupted: run `broker backup restore` again; or, to "
            f"begin a new log there, remove {settings.data_dir / restoring.FOLDER}."
        )


async def prepare(settings: Settings) -> list[str]:
    """Make what is missing; a line for people for each thing that was made."""
    check_restored(settings)
    async with opened(settings, create=True) as tools:
        ca, lines = _authority(settings)
        for role in SERVICES:
            pair = _pair(settings.certs_dir / "services", role)
            lines += await _certificate(tools, ca, name=role, role=role, pair=pair)
        if await tools.registry.read(client_field(DEMO_CLIENT), ClientEntry) is None:
            await tools.clients.register_client(DEMO_CLIENT, actor=ACTOR)
            lines.append(f"Registered the client {DEMO_CLIENT}.")
        pair = _pair(settings.certs_dir / "clients" / DEMO_CLIENT, "client")
        lines += await _certificate(tools, ca, name=DEMO_CLIENT, role="producer", pair=pair)
        lines += await _first_admin(tools)
        return lines


async def _keyring(redis: Redis, settings: Settings) -> Keyring:
    path = settings.keyring_path
    if path.exists():
        return Keyring.load(path, settings.key_passphrase)
    if await log_identity.exists(redis, settings):
        # A new keyring could open nothing of what this log holds, and would hide the loss.
        raise KeyringError(f"{path} is missing, but the log exists; restore the file from its backup.")
    return Keyring.create(path, settings.key_passphrase)


def _authority(settings: Settings) -> tuple[Authority, list[str]]:
    directory = settings.certs_dir
    certificate, key = directory / authority.CERTIFICATE_FILE, settings.ca_key_path
    if certificate.exists() and key.exists():
        return Authority.load(directory, settings.key_passphrase, key), []
    for there, missing in ((certificate, key), (key, certificate)):
        if there.exists():
            # Made anew, it would void every client's certificate without a word.
            raise BrokenAuthority(
                f"{missing} is missing; restore it from a backup. To begin a new authority instead, remove "
                f"{there}, too: every client then needs a new certificate."
            )
    made = Authority.create(directory, settings.key_passphrase, key)
    return made, [f"Made the certificate authority {near(directory / authority.CERTIFICATE_FILE)}."]


def _pair(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.crt", directory / f"{name}.key"


async def _certificate(
    tools: Tools, ca: Authority, *, name: str, role: str, pair: tuple[Path, Path]
) -> list[str]:
    certificate, key = pair
    known = None
    # This machine's names; and those that somebody gave the one that has to be replaced.
    names = profiles.local_names() if role in profiles.SERVER_ROLES else ([], [])
    if certificate.exists() and key.exists():
        current = _readable(certificate)
        if ca.issued(certificate):
            dns, ips = authority.names_of(certificate)
            names = [*names[0], *dns], [*names[1], *ips]
        known = await tools.registry.read(certificate_field(current.fingerprint), CertificateEntry)
        # A producer that was revoked stays out; a service could not work.
        welcome = known is None or known.status == "active" or role == "producer"
        if welcome and ca.issued(certificate) and not authority.expires_within(certificate, RENEW_DAYS):
            if known is not None:
                return []
            await _record(tools, current, name, role)
            return [f"Registered {certificate}."]
    issued = ca.issue(name, role, dns=names[0], ips=names[1])
    if known is not None and known.status == "active":
        entry = issued.entry(name, role, issued_at_ms=clock.now_ms())
        await tools.certificates.renew_certificate(entry, actor=ACTOR, replaces=known.fingerprint)
    else:
        await _record(tools, issued, name, role)
    files.write_pair(
        certificate,
        key,
        certificate_pem=issued.certificate_pem.encode(),
        key_pem=(issued.private_key_pem or "").encode(),
    )
    return [f"Issued {near(certificate)}."]


def _readable(certificate: Path) -> Issued:
    try:
        return authority.read_certificate(certificate)
    except BrokenAuthority as error:
        raise BrokenAuthority(f"{error.detail} Remove it; the next `broker up` makes another.") from error


async def _record(tools: Tools, issued: Issued, name: str, role: str) -> None:
    """Let a certificate in; one that nobody holds any more (its files were lost) gives way to it."""
    entry = issued.entry(name, role, issued_at_ms=clock.now_ms())
    try:
        await tools.certificates.record_certificate(entry, actor=ACTOR)
    except Conflict:
        await tools.certificates.revoke_certificate(client_id=name, reason="superseded", actor=ACTOR)
        await tools.certificates.record_certificate(entry, actor=ACTOR)


async def _first_admin(tools: Tools) -> list[str]:
    path = tools.settings.data_dir / "admin-password"
    if await tools.registry.read(ADMINS, list):
        return []
    password = path.read_text("utf-8").strip() if path.exists() else secrets.token_urlsafe(15)
    files.write_file(path, f"{password}{os.linesep}".encode())
    await tools.users.create_user(FIRST_ADMIN, password, "admin", [], actor=ACTOR)
    return [f"Created the admin {FIRST_ADMIN}; the password is in {near(path)}."]
