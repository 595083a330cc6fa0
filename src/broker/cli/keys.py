"""`keys`: what seals messages and signs tokens, rotated without a gap. No key is ever shown."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli.common import confirm, json_option, print_json, with_settings, yes_option
from broker.cli.following import changing
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.key_rotation import KeyRotation
    from broker.preparation import Tools

PATIENCE: Final = 60.0
"""Longer than what a process said counts after it was killed."""


@click.group()
def keys() -> None:
    """Keys: those of each client, the master key that wraps them, those that sign access tokens.

    They lie beside the history, never in it; `broker backup create` takes them along in one sealed file.
    """


@keys.command("list")
@json_option
@with_settings
def list_(settings: Settings, *, as_json: bool) -> None:
    """Which keys there are, and which are in use."""
    found = asyncio.run(_listed(settings))
    if as_json:
        print_json(found)
        return
    from broker.cli import tables

    rows = [("master", key, state) for key, state in found["master"].items()]
    rows += [
        ("client", name, f"number {one['active']} of {len(one['numbers'])}")
        for name, one in found["clients"].items()
    ]
    rows += [("signing", key, state) for key, state in found["signing"].items()]
    tables.show(("kind", "key", "state"), rows)
    for name, held in found["processes"].items():
        click.echo(f"{name} has loaded {', '.join(held)}.")


@keys.command()
@click.option("--client", "names", metavar="NAME", multiple=True, help="Of this client; may be given again.")
@click.option("--clients", "all_clients", is_flag=True, help="Of every client.")
@click.option("--signing", is_flag=True, help="The key that signs access tokens; nobody is signed out.")
@click.option("--master", is_flag=True, help="The master key; every client's keys are wrapped anew.")
@click.option(
    "--drop",
    is_flag=True,
    help="With --signing, after a theft: tokens signed before are refused at once.",
)
@click.option(
    "--wait",
    "patience",
    type=click.FloatRange(0, 3600),
    default=PATIENCE,
    show_default=True,
    help="With --master: seconds for every process to load the new key.",
)
@json_option
@with_settings
def rotate(settings: Settings, *, as_json: bool, **options: Any) -> None:
    """Use new keys from now on. Whatever older ones sealed stays readable, and its numbers are still found.

    \b
      broker keys rotate --client shop
      broker keys rotate --clients --signing --master

    A new key is added first, then loaded by every process, then used.
    """  # noqa: D301 - click's mark
    if not (options["names"] or options["all_clients"] or options["signing"] or options["master"]):
        raise click.UsageError("Say which: --client NAME, --clients, --signing or --master.")
    if options["names"] and options["all_clients"]:
        raise click.UsageError("Give --client or --clients, not both.")
    if options["drop"] and not options["signing"]:
        raise click.UsageError("--drop goes with --signing.")
    done = asyncio.run(_rotate(settings, **options))
    if as_json:
        print_json(done)
        return
    for name, number in done.get("clients", {}).items():
        click.echo(f"Messages of {name} are sealed with key number {number}.")
    if (master := done.get("master")) is not None:
        click.echo(f"Master key {master['key_id']} wraps the keys of {master['rewrapped']} clients.")
        for key in master["retired"]:
            click.echo(f"Retired: {key}. Backups from before need it; `broker keys remove {key}` forgets it.")
    if "signing" in done:
        click.echo(f"Access tokens are signed with {done['signing']}.")


@keys.command()
@click.argument("key_id")
@yes_option
@with_settings
def remove(settings: Settings, *, key_id: str, yes: bool) -> None:
    """Forget a retired master key for ever; refused while it is needed here."""
    confirm("What only this key opens, in old backups too, is lost for ever. Remove it?", yes=yes)
    asyncio.run(_remove(settings, key_id))
    click.echo(f"Removed {key_id}. Back up {settings.keyring_path} now.")


def _rotation(settings: Settings, tools: Tools) -> KeyRotation:
    from broker.events import key_copies
    from broker.events.key_rotation import KeyRotation

    # So long a proof counts that began just before a key was added.
    proof = settings.trust_max_age + settings.trust_poll
    return KeyRotation(
        tools.redis,
        tools.keys.control,
        tools.registry,
        tools.keyring,
        proof_seconds=proof,
        copies=key_copies.opened(settings, tools.identity.log_id),
    )


async def _listed(settings: Settings) -> dict[str, Any]:
    from broker.cli import opening
    from broker.events import key_holders
    from broker.services.server.token_keys import TokenKeys

    async with opening.administration(settings) as tools:
        numbers = await _rotation(settings, tools).numbers()
        holders = await key_holders.holders(tools.redis, tools.keys.control)
        signing = TokenKeys.open(settings.token_keys_path, tools.keyring)
        return {
            "master": tools.keyring.states(),
            "clients": {name: {"active": one, "numbers": every} for name, (one, every) in numbers.items()},
            "signing": signing.states(),
            "processes": {name: sorted(held) for name, held in sorted(holders.items())},
        }


async def _rotate(
    settings: Settings,
    *,
    names: tuple[str, ...],
    all_clients: bool,
    signing: bool,
    master: bool,
    drop: bool,
    patience: float,
) -> dict[str, Any]:
    import msgspec

    from broker.cli import opening
    from broker.events import directory
    from broker.events.digests_key import DigestKey
    from broker.events.key_commands import KeyCommands
    from broker.services.server.token_keys import TokenKeys

    done: dict[str, Any] = {}
    async with changing(settings) as tools:
        rotation = _rotation(settings, tools)
        if all_clients:
            clients = await directory.clients(tools.redis, tools.keys.control)
            names = tuple(one.client_id for one in clients if one.status == "active")
        if master:
            rotated = await rotation.master(patience=patience, actor=opening.ACTOR)
            done["master"] = msgspec.to_builtins(rotated)
        # Opened after that: opening seals the file anew by the active master key.
        token_keys = TokenKeys.open(settings.token_keys_path, tools.keyring)
        DigestKey.open(settings, tools.keyring)
        if names:
            committed = await rotation.clients(list(dict.fromkeys(names)), actor=opening.ACTOR)
            done["clients"] = {name: one.value for name, one in committed.items()}
        if signing:
            done["signing"] = token_keys.rotate(drop=drop)
            commands = KeyCommands(tools.registry, tools.keyring)
            await commands.record("signing", done["signing"], "active", actor=opening.ACTOR)
    return done


async def _remove(settings: Settings, key_id: str) -> None:
    from broker.cli import opening
    from broker.events.digests_key import DigestKey
    from broker.services.server.token_keys import TokenKeys

    async with opening.administration(settings) as tools:
        TokenKeys.open(settings.token_keys_path, tools.keyring)
        DigestKey.open(settings, tools.keyring)
        await _rotation(settings, tools).forget(key_id, actor=opening.ACTOR)
