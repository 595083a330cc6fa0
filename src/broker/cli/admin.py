"""`client` and `user`: administration from a shell; it needs Redis and the keyring, nothing else."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path
from typing import Any

import click

from broker.cli.common import UserPath, confirm, json_option, print_json, with_settings, yes_option
from broker.cli.following import changing, no_wait_option
from broker.errors import NotFound
from broker.settings import Settings

CHANNELS = ("inbox", "webhook", "simulated")


@click.group()
def client() -> None:
    """Producers and where their messages go."""


@client.command()
@click.argument("name")
@click.option("--domain", help="A note of whose it is; travels with its messages.")
@json_option
@no_wait_option
@with_settings
def register(settings: Settings, *, name: str, domain: str | None, as_json: bool) -> None:
    """A new producer, with encryption keys of its own. `broker cert issue NAME` then lets it in.

    NAME: 1 to 64 of a-z 0-9 . _ -, the first a letter or digit.
    """
    entry = asyncio.run(_client(settings, "register_client", name, domain))
    if as_json:
        print_json(entry)
    else:
        click.echo(f"Registered {name}. Next: broker cert issue {name}")


@client.command("list")
@json_option
@with_settings
def list_clients(settings: Settings, *, as_json: bool) -> None:
    """Every producer, its route and its certificate."""
    found = asyncio.run(_clients(settings))
    if as_json:
        print_json(found)
        return
    from broker.cli import tables

    header = ("client", "status", "route", "target", "certificate", "domain")
    default = f"{settings.default_channel} (default)"
    tables.show(
        header,
        [
            (
                one["client_id"],
                one["status"],
                one["channel"] or default,
                one["target"] or "",
                (one["active_certificate"] or "none")[:16],
                one["domain"] or "",
            )
            for one in found
        ],
    )


@client.command()
@click.argument("name")
@click.argument("channel", type=click.Choice(CHANNELS))
@click.argument("target", required=False)
@click.option(
    "--secret", help="The webhook's signing secret (whsec_…, or any text). Default: a new one, shown once."
)
@click.option(
    "--secret-file",
    type=UserPath(exists=True, dir_okay=False),
    help="Read it here instead; keeps it off `ps`.",
)
@no_wait_option
@with_settings
def route(
    settings: Settings,
    *,
    name: str,
    channel: str,
    target: str | None,
    secret: str | None,
    secret_file: Path | None,
) -> None:
    """Send the client's messages elsewhere, from the next attempt on.

    \b
      broker client route shop inbox
      broker client route shop webhook https://shop.example/hook --secret-file secret.txt
      broker client route shop simulated success=0.9,permanent=0.02,delay=20ms
    """  # noqa: D301 - click's mark
    if secret is not None and secret_file is not None:
        raise click.UsageError("Give --secret or --secret-file, not both.")
    if channel != "webhook" and (secret is not None or secret_file is not None):
        raise click.UsageError(f"The channel {channel} takes no secret.")
    if channel == "webhook" and target is None:
        raise click.UsageError("A webhook takes its URL.")
    if channel == "inbox" and target is not None:
        raise click.UsageError("The inbox takes no target.")
    from broker.domain import clients

    given = secret_file.read_text("utf-8").strip() if secret_file is not None else secret
    raw = None if given is None else clients.signing_secret(given)
    made = None
    if channel == "webhook" and raw is None:
        raw = secrets.token_bytes(32)
        made = clients.shown_secret(raw)
    asyncio.run(_client(settings, "change_route", name, channel, target, raw))
    click.echo(f"Messages of {name} go to {channel}{f' {target}' if target else ''}.")
    if made is not None:
        click.echo(f"Signing secret, shown only now: {made}")


@client.command()
@click.argument("name")
@click.option("--reason", required=True, help="Recorded in the history, for good.")
@yes_option
@json_option
@no_wait_option
@with_settings
def erase(settings: Settings, *, name: str, reason: str, yes: bool, as_json: bool) -> None:
    """Make everything that a client ever sent unreadable, for good.

    Its keys are destroyed, so that its bodies, numbers and metadata can be read nowhere any more: not in the
    log, the archive, the tables or their backups. Its certificates are revoked, its open messages end as
    discarded. That they were, and when, stays in the history, and every proof goes on to verify. Repeat it if
    it was interrupted. The next `broker backup create` takes its keys out of all backups there. Copies that
    you made yourself (of Redis, of backups) are yours to destroy. On a copy that runs for inspection only
    the copy's own keys are destroyed.
    """
    confirm(f"Nobody will be able to read anything of {name} again. Erase it?", yes=yes)
    done = asyncio.run(_erase(settings, name, reason))
    if as_json:
        print_json(done)
        return
    click.echo(
        f"Erased {name}: {done['discarded']} parked messages discarded, {done['waiting']} end when due."
    )
    if not done["forgotten"]:
        click.echo("Redis' append-only file may still hold the keys: run BGREWRITEAOF on it.", err=True)
    if done["copied"]:
        click.echo(
            "The copies of its keys (client_keys_url) cannot be reached; the projector removes them.",
            err=True,
        )


async def _erase(settings: Settings, name: str, reason: str) -> dict[str, Any]:
    from broker.cli import opening
    from broker.events import key_copies
    from broker.events.erasure import Erasure

    async with changing(settings) as tools:
        inspection = opening.for_inspection(settings)
        copies = key_copies.erasable(settings, tools.identity.log_id, inspection=inspection)
        erasure = Erasure(
            tools.clients, tools.registry, tools.redis, tools.keys, tools.reopening, copies=copies
        )
        done = await erasure.erase(name, reason, actor=opening.ACTOR, within=60.0)
    names = ("client_id", "discarded", "waiting", "forgotten", "copied")
    return {field: getattr(done, field) for field in names}


async def _client(settings: Settings, command: str, *args: Any) -> dict[str, Any]:
    from broker.cli import opening

    async with changing(settings) as tools:
        done = await getattr(tools.clients, command)(*args, actor=opening.ACTOR)
        return _shown_client(done.value)


async def _clients(settings: Settings) -> list[dict[str, Any]]:
    from broker.cli import opening
    from broker.events import directory

    async with opening.log(settings) as (redis, keys):
        return [_shown_client(entry) for entry in await directory.clients(redis, keys.control)]


def _shown_client(entry: Any) -> dict[str, Any]:
    """Without the secret, sealed as it is."""
    names = ("client_id", "domain", "status", "channel", "target", "active_certificate")
    return {name: getattr(entry, name) for name in names}


@click.group()
def user() -> None:
    """People who sign in at the portal and the APIs: user (reads messages of clients), auditor, admin."""


@user.command()
@click.argument("email")
@click.option(
    "--role",
    type=click.Choice(("user", "auditor", "admin")),
    default="user",
    show_default=True,
    help="What the user may do.",
)
@click.option("--clients", default="", metavar="A,B", help="Whose messages the user sees.")
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from stdin. Default: a new one, shown once."
)
@json_option
@no_wait_option
@with_settings
def create(
    settings: Settings, *, email: str, role: str, clients: str, password_stdin: bool, as_json: bool
) -> None:
    """A person who may sign in."""
    password = _password(stdin=password_stdin)
    entry = asyncio.run(_user(settings, "create_user", email, password, role, _names(clients)))
    if as_json:
        print_json(_shown_user(entry) | ({} if password_stdin else {"password": password}))
        return
    click.echo(f"Created {entry.email} as {entry.role}, id {entry.user_id}.")
    if not password_stdin:
        click.echo(f"Password, shown only now: {password}")


@user.command("list")
@json_option
@with_settings
def list_users(settings: Settings, *, as_json: bool) -> None:
    """Everybody who may or might sign in."""
    found = [_shown_user(entry) for entry in asyncio.run(_users(settings))]
    if as_json:
        print_json(found)
        return
    from broker.cli import tables

    rows = [
        (
            one["email"],
            one["role"],
            "disabled" if one["disabled"] else "active",
            ", ".join(one["client_ids"]),
            one["user_id"],
        )
        for one in found
    ]
    tables.show(("e-mail", "role", "status", "clients", "id"), rows)


@user.command("role")
@click.argument("email")
@click.argument("role", type=click.Choice(("user", "auditor", "admin")))
@no_wait_option
@with_settings
def change_role(settings: Settings, *, email: str, role: str) -> None:
    """Give a user another role. The last admin stays one."""
    entry = asyncio.run(_change(settings, "change_role", email, role))
    click.echo(f"{entry.email} is {entry.role}.")


@user.command("clients")
@click.argument("email")
@click.argument("names", metavar="A,B")
@no_wait_option
@with_settings
def change_clients(settings: Settings, *, email: str, names: str) -> None:
    """Say whose messages a user sees, all of them; "" for nobody's."""
    entry = asyncio.run(_change(settings, "change_clients", email, _names(names)))
    click.echo(f"{entry.email} sees {', '.join(entry.client_ids) or 'nobody'}.")


@user.command()
@click.argument("email")
@click.option("--reason", help="Recorded in the history.")
@no_wait_option
@with_settings
def disable(settings: Settings, *, email: str, reason: str | None) -> None:
    """End a user's sessions and let them in no more. The last admin stays."""
    entry = asyncio.run(_change(settings, "disable_user", email, reason))
    click.echo(f"{entry.email} is disabled.")


@user.command("password")
@click.argument("email")
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from stdin. Default: a new one, shown once."
)
@no_wait_option
@with_settings
def change_password(settings: Settings, *, email: str, password_stdin: bool) -> None:
    """Set a user's password."""
    password = _password(stdin=password_stdin)
    entry = asyncio.run(_change(settings, "change_password", email, password))
    click.echo(f"The password of {entry.email} is another.")
    if not password_stdin:
        click.echo(f"Password, shown only now: {password}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _password(*, stdin: bool) -> str:
    return sys.stdin.readline().rstrip("\r\n") if stdin else secrets.token_urlsafe(15)


async def _user(settings: Settings, command: str, *args: Any) -> Any:
    from broker.cli import opening

    async with changing(settings) as tools:
        return (await getattr(tools.users, command)(*args, actor=opening.ACTOR)).value


async def _change(settings: Settings, command: str, email: str, *args: Any) -> Any:
    from broker.cli import opening
    from broker.domain import users
    from broker.events import directory

    address = users.normalised_email(email)
    async with changing(settings) as tools:
        for entry in await directory.users(tools.redis, tools.keys.control):
            if address == entry.email:
                done = await getattr(tools.users, command)(entry.user_id, *args, actor=opening.ACTOR)
                return done.value
    raise NotFound(f"There is no user {address}.")


async def _users(settings: Settings) -> list[Any]:
    from broker.cli import opening
    from broker.events import directory

    async with opening.log(settings) as (redis, keys):
        return list(await directory.users(redis, keys.control))


def _shown_user(entry: Any) -> dict[str, Any]:
    names = ("user_id", "email", "role", "client_ids", "disabled")
    return {name: getattr(entry, name) for name in names}
