"""Exports that are interrupted from outside: what there is stays, nothing is taken for whole, and they go on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from broker.errors import LogUnavailable
from broker.events import connection, exported_file, exported_formats, exported_verifier
from broker.events.exported_file import ExportFile, Plan, Target
from broker.events.exported_walk import Filter
from support.audits import Audited, shown


async def test_a_log_that_goes_away(own_valkey, log_name: str, tmp_path: Path) -> None:
    """Redis stopped between two streams: said as such; started again, the export ends as if nothing had been."""
    redis = connection.connect(own_valkey.url, timeout=1.0)
    audited = await Audited(redis, log_name, tmp_path).create()
    await audited.lived()
    whole, signed = await audited.export(), await audited.signed()
    target, form = Target(tmp_path / "history.jsonl"), exported_formats.named("jsonl")

    async def write(file, after) -> None:
        with closing(file):
            async for block in (await audited.walk()).lines(after):
                file.write(form.encode(block))
                file.flush()
                if block[0].stream == "1" and after is None:
                    await own_valkey.stop()
            target.finish(file, signed)

    plan = Plan("jsonl", Filter(), len(signed))
    with pytest.raises(LogUnavailable):
        await write(target.begin(plan, form.head()), None)
    assert not target.path.exists()
    assert whole.startswith(target.part.read_bytes())
    with pytest.raises(ExportFile, match="--resume"):
        target.check_new()
    # What did come is right by itself, and lacks what did not.
    digests = [shown(one) for one in signed]
    with pytest.raises(exported_verifier.Bad, match="the newest digest vouches for events after"):
        exported_verifier.verify(str(target.part), digests, [audited.key.public])
    await own_valkey.start()
    assert target.plan() == plan
    await write(*target.resume(form.head()))
    assert target.path.read_bytes() == whole
    kept = exported_file.read_digests(target.digests)
    assert [(one.number, one.body, one.signature) for one in kept] == [
        (one.number, one.body, one.signature) for one in signed
    ]
    assert exported_verifier.verify(str(target.path), digests, [audited.key.public])["complete"]
    await redis.aclose()
