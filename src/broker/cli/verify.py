"""`events verify`, `digests`, `proof`, `verifier`: proving that nobody altered the history."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.common import UserPath, json_option, print_json, with_settings
from broker.errors import BrokerError, NotFound
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.events.digests import Digest
    from broker.events.exported_source import Source
    from broker.projections.store import Store


@click.command()
@click.argument("file", required=False, type=UserPath(exists=True, dir_okay=False))
@click.option("--live", is_flag=True, help="Instead of an export: the log, its archive and audit_log.")
@click.option(
    "--digests",
    type=UserPath(exists=True, dir_okay=False),
    help="Default: FILE.digests.jsonl. With --live: those you kept.",
)
@click.option(
    "--key", "keys", multiple=True, type=UserPath(exists=True, dir_okay=False),
    help="The public key, PEM or hex; may be repeated. Default: digests.pub of this installation.",
)  # fmt: skip
@click.option("--filtered", is_flag=True, default=None, help="FILE holds a selection; its lines tell, too.")
@click.option("--unsigned", is_flag=True, help="Allow events after the newest digest.")
@click.option("--processes", type=click.IntRange(0), default=0, help="Of a large FILE; default: one a core.")
@json_option
@with_settings
def verify(
    settings: Settings,
    *,
    file: Path | None,
    live: bool,
    digests: Path | None,
    keys: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Prove that no event was changed, removed, inserted or moved, or name the first that was. Exits 1 then.

    \b
      broker events verify history.jsonl
      broker events verify history.csv --digests digests.jsonl --key digests.pub
      broker events verify --live --digests kept.jsonl

    An export is verified offline, from its file, the signed digests and the public key alone. For somebody
    who need not trust this program, `broker events verifier` writes the same check as one script.
    """  # noqa: D301 - click's mark
    if live == (file is not None):
        raise click.UsageError("Give a FILE, or --live.")
    given = keys or _own_key(settings)
    trusted = [_key(path) for path in given]
    if file is None:
        report = asyncio.run(_live(settings, trusted, digests))
    else:
        report = _of_file(file, digests, trusted, options)
    if as_json:
        print_json(report | {"keys": [str(path) for path in given]})
    else:
        _show(report, given)
    sys.exit(0 if report["ok"] else 1)


@click.command()
@click.option("--make", is_flag=True, help="Sign one now, over everything up to now.")
@click.option("--new-key", is_flag=True, help="With --make: go on with another key, as the old one is lost.")
@json_option
@with_settings
def digests(settings: Settings, *, make: bool, new_key: bool, as_json: bool) -> None:
    """The signed digests, a JSON line each, as `events verify --digests` takes them.

    One is made every hour. Fetch them now and then and keep them elsewhere: against a digest that you hold,
    nobody can alter what came before it, whatever else they have access to.
    """
    from broker.events import exported_file

    if new_key and not make:
        raise click.UsageError("--new-key goes with --make.")
    found = asyncio.run(_digests(settings, make=make, new_key=new_key))
    if as_json:
        import msgspec

        print_json([msgspec.json.decode(exported_file.digest_line(one)) for one in found])
        return
    for one in found:
        click.echo(exported_file.digest_line(one))


@click.command()
@click.argument("position")
@with_settings
def proof(settings: Settings, position: str) -> None:
    """The event at POSITION (0:1795311781303-0) with the proof that a signed digest vouches for it.

    The line verifies like a filtered export, with `broker events digests` and the public key.
    """
    from broker.events import exported, positions

    found = asyncio.run(_proof(settings, positions.parse(position)))
    click.echo(exported.line(found))


@click.command()
def verifier() -> None:
    """Print the verifier: one Python file without any dependency, for an auditor's own machine."""
    from broker.events import exported_verifier

    click.echo(Path(exported_verifier.__file__).read_text("utf-8"), nl=False)


def _own_key(settings: Settings) -> tuple[Path, ...]:
    from broker.events.digests_key import PUBLIC_FILES

    return tuple(sorted(settings.certs_dir.glob(PUBLIC_FILES)))


def _key(path: Path) -> bytes:
    from broker.events import exported_verifier

    try:
        return exported_verifier.public_key(path.read_text("ascii"))
    except ValueError as error:
        raise click.BadParameter(f"{path}: {error}.", param_hint="--key") from None


def _of_file(file: Path, digests: Path | None, keys: list[bytes], options: dict[str, Any]) -> dict[str, Any]:
    from broker.events import exported_verifier

    beside = file.with_name(f"{file.name}.digests.jsonl")
    chosen = digests or (beside if beside.exists() else None)
    try:
        given: list[dict[str, Any]] = []
        if chosen is not None:
            with chosen.open("rb") as lines:
                given = list(exported_verifier.json_lines(lines))
        with _progress() as progress:
            return exported_verifier.verify(str(file), given, keys, progress=progress, **options)
    except exported_verifier.Unreadable as error:
        raise click.ClickException(f"{file}: {error}.") from None
    except exported_verifier.Bad as bad:
        return {"ok": False, "where": bad.where, "what": bad.kind, "detail": bad.detail}


class _progress:  # noqa: N801 - used like a function
    """A count on stderr where that is a terminal."""

    def __enter__(self) -> Any:
        return self._show if sys.stderr.isatty() else lambda _: None

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)

    @staticmethod
    def _show(events: int) -> None:
        click.echo(f"\r{events} events", nl=False, err=True)


async def _live(settings: Settings, keys: list[bytes], kept: Path | None) -> dict[str, Any]:
    from broker.cli import export, opening
    from broker.events import exported_check
    from broker.projections import audit_check

    report: dict[str, Any] = {"ok": True, "streams": {}, "rows": {}, "notes": []}
    try:
        async with export.exports(settings) as begins, opening.store(settings) as store:
            known = await trusted_digests(begins.source, keys)
            if kept is not None:
                check_kept(known, await trusted_digests(begins.source, keys, kept))
            await audit_check.check_streams(store, begins.source.streams)
            for stream in begins.source.streams:
                await _stream(begins.source, store, known, stream, report)
    except BrokerError as error:
        if error.code not in exported_check.FINDINGS | {audit_check.TableAltered.code}:
            raise
        where = str(getattr(error, "where", None) or "")
        return {"ok": False, "where": where, "what": error.code, "detail": str(error)}
    signed = sum(state.events for state in known[-1].streams.values()) if known else 0
    report |= {
        "events": sum(report["streams"].values()),
        "digests": len(known),
        "signed_until": known[-1].at if known else None,
    }
    if behind := report["events"] - sum(report["rows"].values()):
        report["notes"].append(f"audit_log does not hold {behind} events yet; those that it holds are right.")
    if late := report["events"] - signed:
        report["notes"].append(f"{late} events came after the newest digest: chained, not signed for yet.")
    return report


async def trusted_digests(source: Source, keys: list[bytes], kept: Path | None = None) -> list[Digest]:
    """The digests of a history, or those kept in a file: in order, and signed with one of `keys` if any.

    Raises DigestInvalid, and what reading them does.
    """
    from broker.events import digests as signing
    from broker.events import digests_making, exported_file

    signed = await digests_making.recorded(source) if kept is None else exported_file.read_digests(kept)
    known = signing.chained(signed)
    for digest in known:
        if keys and bytes.fromhex(digest.key) not in keys:
            raise signing.DigestInvalid(f"Digest {digest.number} is signed with another key.")
    return known


def check_kept(known: list[Digest], kept: list[Digest]) -> None:
    """Raises DigestInvalid unless the history still has every digest that somebody kept."""
    from broker.events.digests import DigestInvalid

    for place, one in enumerate(kept):
        if known[place : place + 1] != [one]:
            raise DigestInvalid(f"Digest {one.number} of the history is not the one that was kept.")


def own_keys(settings: Settings) -> list[bytes]:
    """The public keys of this installation."""
    return [_key(path) for path in _own_key(settings)]


async def _stream(
    source: Source, store: Store, known: list[Digest], stream: str, report: dict[str, Any]
) -> None:
    from broker.events.exported_check import checked
    from broker.events.exported_walk import HistoryAltered
    from broker.events.positions import start
    from broker.projections import checkpoints
    from broker.projections.audit_check import TableCheck, first_difference

    every = await checkpoints.everything(store)
    own = [one.position for one in every if (one.projection, one.position.stream) == ("audit_log", stream)]
    checkpoint = own[0] if own else start(stream)
    table = TableCheck(store, stream, checkpoint)
    count = 0
    try:
        async for block in checked(source, known, stream):
            await table.compare(block)
            count += len(block)
        await table.finish(source)
    except HistoryAltered as error:
        # A digest tells between which events; the table, where it was not altered with them, tells the first.
        differs = await first_difference(source, store, stream, checkpoint)
        if differs is None:
            raise
        told = f"{error.detail} Seen from audit_log, the first that differs: {differs.detail}"
        raise HistoryAltered(told, str(differs.where)) from None
    report["streams"][stream], report["rows"][stream] = count, table.rows


async def _digests(settings: Settings, *, make: bool, new_key: bool) -> list[Any]:
    from broker.cli import export, opening
    from broker.events import digests_making

    async with export.exports(settings) as begins:
        if make:
            await begins.digester.make(actor=opening.ACTOR, new_key=new_key)
        return await digests_making.recorded(begins.source)


async def _proof(settings: Settings, position: Any) -> Any:
    from broker.cli import export
    from broker.events import digests as signing
    from broker.events import digests_making
    from broker.events.exported_walk import Walk

    async with export.exports(settings) as begins:
        known = signing.chained(await digests_making.recorded(begins.source))
        found = await Walk(begins.source, known).proof(position)
    if found is None:
        raise NotFound(f"No digest covers an event {position}; `broker events digests --make` signs one.")
    return found


def _show(report: dict[str, Any], keys: tuple[Path, ...]) -> None:
    if not report["ok"]:
        where = f"{report['where']}: " if report["where"] else ""
        click.echo(f"{click.style('NOT RIGHT', fg='red')}  {where}{report['what']}: {report['detail']}")
        return
    click.echo(f"{click.style('right', fg='green')}  {report['events']} events, {report['digests']} digests")
    for name, count in report["streams"].items():
        rows = report.get("rows", {}).get(name)
        click.echo(f"  {name}: {count} events" + ("" if rows is None else f", {rows} rows of audit_log"))
    for path in keys:
        click.echo(f"  signed with the key in {path}")
    if report["signed_until"]:
        click.echo(f"  vouched for up to {report['signed_until']}")
    for note in report["notes"]:
        click.echo(f"  note: {note}")


def add_to(group: click.Group) -> None:
    """Give a group these commands."""
    for command in (verify, digests, proof, verifier):
        group.add_command(command)
