"""What an installation remembers of its backups, and what its projector and `doctor` make of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from broker import clock
from broker.cli import backup_common, checks
from broker.events import log_identity
from broker.events.backup import record
from broker.events.backup.layout import BackupError
from broker.events.backup.record import Remembered
from broker.events.backup.repository import Repository
from broker.services.projector.backups import Backups
from broker.settings import Settings
from support import backups, docs


@pytest.fixture(autouse=True)
def forgotten(installation: Settings) -> None:
    """Nothing is remembered yet."""
    record.file_path(installation).unlink(missing_ok=True)


def verified(
    settings: Settings, target: Path, name: str | None = None, word: str | None = backups.PASSPHRASE
) -> bool:
    """Verify as the command does; whether all is well."""
    repository = Repository(target)
    trusted = backup_common.trusted(settings, (), repository)
    report = backup_common.verified(repository, name, word, trusted)
    backup_common.remember_verified(settings, repository, report)
    return report.ok


async def shown(settings: Settings) -> tuple[float, float]:
    """What the projector's metrics say of the last backup made, the last verified."""
    await Backups(settings).look()
    names = ("broker_backup_last_success_timestamp_seconds", "broker_backup_last_verified_timestamp_seconds")
    made, read = (REGISTRY.get_sample_value(name) for name in names)
    assert made is not None
    assert read is not None
    return made, read


async def test_backups_made_and_verified_are_remembered(source, target: Path, installation: Settings) -> None:
    """Whoever makes one and however it ends: only what was finished, or found whole, is shown; 0 before that."""
    assert await shown(installation) == (0, 0)
    assert checks.backups(installation).status == "skipped"
    first = (await backups.create(source, target)).snapshot
    assert await shown(installation) == (clock.parse_iso(first.began_at) / 1000, 0)
    second = (await backups.create(source, target)).snapshot
    made = clock.parse_iso(second.began_at) / 1000
    assert verified(installation, target, first.name)
    # An older one alone says nothing of what a restore would take.
    assert await shown(installation) == (made, 0)
    before = clock.now_ms()
    assert verified(installation, target, word=None)
    found = record.read(installation)
    assert found.made == Remembered(second.name, str(target), clock.parse_iso(second.began_at))
    assert found.verified is not None
    assert (found.verified.name, found.verified.target) == (second.name, str(target))
    assert before <= found.verified.at_ms <= clock.now_ms()
    assert await shown(installation) == (made, found.verified.at_ms / 1000)
    told = checks.backups(installation)
    assert (told.status, told.fix) == ("ok", "")
    assert second.name in told.detail
    next(target.rglob("tail/*")).unlink()
    assert not verified(installation, target)
    assert record.read(installation) == found


async def test_another_installation_remembers_nothing(
    source, target: Path, installation: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who verifies another log's backups, or is no installation, writes nothing."""
    await backups.create(source, target)
    other = Settings(data_dir=tmp_path / "other", certs_dir=tmp_path / "other" / "certs")
    assert verified(other, target)
    assert not other.data_dir.exists()
    assert "not of the installation that was backed up" in capsys.readouterr().err
    own = log_identity.read_file(installation)
    assert own is not None
    log_identity.remember(other, type(own)("another", own.partitions, own.incarnations))
    assert verified(other, target)
    assert record.read(other) == record.Record()


async def test_a_late_one_is_told_by_doctor(installation: Settings) -> None:
    """After the hours that the alert waits, too."""
    late = clock.now_ms() - (record.LATE_HOURS + 1) * 3_600_000
    record.remember(installation, made=Remembered("000001-20260101T000000Z", "/mnt/backup", late))
    told = checks.backups(installation)
    assert told.status == "warning"
    assert f"{record.LATE_HOURS + 1} hours ago" in told.detail
    assert "never verified" in told.detail
    rules = yaml.safe_load((docs.ROOT / "ops" / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"]
    (rule,) = (one for group in rules for one in group["rules"] if one["alert"] == "BrokerNoBackup")
    assert re.findall(r"> (\d+) \* 3600", rule["expr"]) == [str(record.LATE_HOURS)]


async def test_a_record_that_cannot_be_used(
    source, target: Path, installation: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unreadable it counts as none and is written again; unwritable, who makes a backup hears that it is there."""
    path = record.file_path(installation)
    path.write_bytes(b"{]")
    assert await shown(installation) == (0, 0)
    assert "cannot be read" in checks.backups(installation).detail
    made = await backups.create(source, target)
    assert await shown(installation) == (clock.parse_iso(made.snapshot.began_at) / 1000, 0)
    path.unlink()
    path.mkdir()
    try:
        assert await shown(installation) == (0, 0)
        with pytest.raises(BackupError, match=r"is made and whole, but .*backups\.json"):
            await backups.create(source, target)
        assert len(Repository(target).names()) == 2
        assert verified(installation, target)
        assert "the metrics do not show it" in capsys.readouterr().err
    finally:
        shutil.rmtree(path)
