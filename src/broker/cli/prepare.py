"""`prepare`: the set-up that `up` does, for those who run the roles themselves."""

from __future__ import annotations

import asyncio

import click

from broker import directories
from broker.cli.common import with_settings
from broker.settings import Settings


@click.command()
@with_settings
def prepare(settings: Settings) -> None:
    """Set up what the roles need: schema, log, keys, certificates, first admin.

    For Redis and MySQL servers of your own (BROKER_REDIS_URL, BROKER_MYSQL_URL); `broker up` does the same by
    itself. Safe to call again, after an upgrade for one: it makes only what is missing.
    """
    from broker.bootstrap import check_redis
    from broker.bootstrap import prepare as make
    from broker.cli.opening import resolved
    from broker.projections import schema

    settings = resolved(settings)

    async def run() -> list[str]:
        await check_redis(settings)
        await asyncio.to_thread(schema.migrate, str(settings.mysql_url))
        return await make(settings)

    lines = asyncio.run(run())
    for line in lines:
        click.echo(line)
    (settings.data_dir / "log").mkdir(mode=directories.mode(), parents=True, exist_ok=True)
    if not lines:
        click.echo("Everything is there.")
