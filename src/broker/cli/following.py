"""What a command changed is known everywhere when it returns: it waits for the processes that run."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from broker.errors import BrokerError
from broker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.preparation import Tools

PATIENCE: Final = 5.0
"""Seconds. Processes look five times a second; one that takes longer hangs, or its machine does."""
LOOK_SECONDS: Final = 0.02
ROLES: Final = frozenset({"gateway", "server", "worker", "portal"})
"""Those that hold the registry in memory."""
_NO_WAIT: Final = f"{__name__}.no_wait"


def _chosen(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's
    ctx.meta[_NO_WAIT] = value


no_wait_option: Callable[[Any], Any] = click.option(
    "--no-wait",
    is_flag=True,
    expose_value=False,
    callback=_chosen,
    help="Return once it is recorded. Running processes go by it within a second.",
)
"""For commands that change something within `changing`."""


@asynccontextmanager
async def changing(settings: Settings) -> AsyncIterator[Tools]:
    """As `opening.administration`; ends when every process that runs goes by what was changed.

    Those that do not in time are named on stderr: the change is recorded all the same.
    """
    from broker.cli import opening

    async with opening.administration(settings) as tools:
        yield tools
        ctx = click.get_current_context(silent=True)
        if ctx is None or not ctx.meta.get(_NO_WAIT):
            await _settle(tools)


async def _settle(tools: Tools) -> None:
    try:
        late = await behind(tools, PATIENCE)
    except asyncio.CancelledError:
        # Ctrl-C ends the wait, not the command: what it shows only once must not be lost.
        click.echo("Recorded; not waited until every process goes by it.", err=True)
        return
    except BrokerError as error:
        click.echo(f"Recorded. Whether every process goes by it could not be asked: {error}", err=True)
        return
    if late:
        click.echo(
            f"Recorded, but {PATIENCE:.0f} seconds later not every process goes by it: {', '.join(late)}. "
            "One that hangs or has lost Redis catches up as soon as it can.",
            err=True,
        )


async def behind(tools: Tools, patience: float) -> list[str]:
    """Wait until every process goes by what is recorded now; those that do not after so many seconds.

    Those of an older version do not say it: they are given the time after which one that has not heard of it
    serves nobody. Raises LogUnavailable.
    """
    from broker import clock
    from broker.events import feed, key_holders, positions

    control, settings = tools.keys.control, tools.settings
    newest = (await feed.ahead(tools.redis, control, positions.start(control.stream))).last
    began = clock.monotonic()
    proved = began + settings.trust_max_age + settings.trust_poll
    while True:
        now, said = clock.monotonic(), await key_holders.applied(tools.redis, control)
        here = {name: event for name, event in said.items() if not _ended(name)}
        late = [_shown(name) for name, event in here.items() if event is not None and event < newest]
        late += _silent(settings, said)
        older = None in here.values()
        if (not late or now > began + patience) and (not older or now > proved):
            return sorted(late)
        await asyncio.sleep(LOOK_SECONDS)


def _ended(name: str) -> bool:
    """Whether the process is gone, as far as is seen here: what it said counts for a while yet."""
    from broker.embedded.state import created

    host, pid = _place(name)
    return host == socket.gethostname() and created(pid) is None


def _silent(settings: Settings, said: Iterable[str]) -> list[str]:
    """Processes of the `up` that runs here which say nothing: they hang, or have only just been started."""
    from broker.embedded.state import alive, running

    state = running(settings.data_dir)
    if state is None or state.phase != "running":
        return []
    # By the number alone: the machine may have got another name since they began.
    here = {pid for _, pid in map(_place, said)}
    return [
        f"{one.role} (PID {one.pid})"
        for one in state.members
        if one.role in ROLES
        and one.state == "running"
        and one.pid not in here
        and alive(one.pid, one.created)
    ]


def _place(name: str) -> tuple[str, int]:
    """Machine and PID out of what a process calls itself: `role@host:pid:…`."""
    host, pid, _ = name.rpartition("@")[2].rsplit(":", 2)
    return host, int(pid)


def _shown(name: str) -> str:
    host, pid = _place(name)
    where = "" if host == socket.gethostname() else f" on {host}"
    return f"{name.partition('@')[0] if '@' in name else 'a process'} (PID {pid}{where})"
