"""The commands `backup create`, `verify` and `restore` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import click.testing
import pytest

from broker import cli
from broker.errors import Conflict, NotFound
from broker.events.backup.repository import Repository
from broker.events.backup.sealing import WrongPassphrase
from broker.settings import Settings, to_environ


@pytest.fixture
def typed(installation: Settings, monkeypatch: pytest.MonkeyPatch):
    """Runs a command on the installation, with a passphrase in the environment."""
    for name, value in to_environ(installation).items():
        monkeypatch.setenv(name, value)

    def run(*words: str, passphrase: str | None = "from the environment", code: int = 0) -> str:
        environ = {"BROKER_BACKUP_PASSPHRASE": passphrase}
        done = click.testing.CliRunner().invoke(cli.cli, ["backup", *words], env=environ)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_created_and_verified(typed, target: Path, installation: Settings, tmp_path: Path) -> None:
    """What was made and written, by lines and as JSON; damage is named and exits 1."""
    told = typed("create", str(target))
    name = Repository(target).chosen(None)
    assert told.startswith(f"{name}: ")
    assert "0 open messages" in told
    made = json.loads(typed("create", str(target), "--json", "--keep", "1"))
    assert made["removed"] == [name]
    assert made["positions"].keys() == {"0", "1", "control", "access"}
    assert "whole" in typed("verify", str(target))
    found = json.loads(typed("verify", str(target), "--json"))
    assert (found["ok"], found["proved"], found["opened"]) == (True, True, True)
    # The public key of this installation proves it too, another installation's is not asked for its word.
    assert "by their own word" not in typed("verify", str(target), passphrase=None)
    other = tmp_path / "other"
    assert "by their own word" in typed("verify", str(target), "--data", str(other), passphrase=None)
    key = installation.certs_dir / "digests.pub"
    told = typed("verify", str(target), "--data", str(other), "--key", str(key), passphrase=None)
    assert "by their own word" not in told
    (target / "segments" / "letter.txt").write_text("Dear")
    victim = next(path for path in Repository(target).files() if path.endswith("ca.crt"))
    (target / victim).unlink()
    told = typed("verify", str(target), code=1)
    assert f"{victim} is missing." in told
    assert "segments/letter.txt belongs to no backup" in told
    with pytest.raises(Conflict, match=r"is damaged: .*ca\.crt is missing\. `broker backup verify`"):
        typed("restore", str(target), "--data", str(other))


def test_a_data_directory_that_is_of_no_use_hides_no_report(
    typed, target: Path, installation: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ Damaged or another log's: with a key given nothing of it is needed. What was found is shown, and why no more."""
    typed("create", str(target))
    damaged = tmp_path / "damaged"
    (damaged / "run").mkdir(parents=True)
    (damaged / "run" / "log-identity.json").write_bytes(b"{]")
    monkeypatch.setenv("BROKER_LOG_NAME", "another")
    alone = ("verify", str(target), "--key", str(installation.certs_dir / "digests.pub"))
    for place, why in ((damaged, "cannot be read"), (installation.data_dir, "log_name is")):
        told = typed(*alone, "--data", str(place), passphrase=None)
        assert ": whole" in told
        assert why in told.partition("Not remembered here")[2]


def test_passphrases(typed, target: Path, tmp_path: Path) -> None:
    """From a file, from the environment; without any and no terminal the command says how to give one."""
    file = tmp_path / "passphrase"
    file.write_text("from a file\n")
    typed("create", str(target), "--passphrase-file", str(file))
    with pytest.raises(WrongPassphrase):
        typed("create", str(target))
    typed("verify", str(target), passphrase="from a file")
    assert "--new-passphrase" in typed("create", "--help")
    typed("create", str(target), "--new-passphrase")
    typed("verify", str(target))
    file.write_text("\n")
    assert "is empty" in typed("create", str(target), "--passphrase-file", str(file), code=2)
    assert "BROKER_BACKUP_PASSPHRASE" in typed("create", str(target), passphrase=None, code=2)


def test_what_there_is_not(typed, target: Path, tmp_path: Path) -> None:
    """No backup, no such backup, no agreement, no empty place: each is said before anything is done."""
    typed("create", str(target))
    with pytest.raises(NotFound, match="There is no backup 000009 in"):
        typed("verify", str(target), "--backup", "000009")
    with pytest.raises(NotFound, match="There is no backup in"):
        typed("restore", str(tmp_path / "nothing"), "--data", str(tmp_path / "x"))
    assert "Restore into" in typed("restore", str(target), code=1)
    # The installation itself is in the way.
    with pytest.raises(Conflict, match="not empty"):
        typed("restore", str(target), "--yes")
