"""The authority in a process that serves: opened late and once, off the loop, and clear where there is none."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from cryptography import x509

from broker import clock
from broker.errors import AuthorityUnavailable, ValidationError
from broker.services.ca.authority import Authority
from broker.services.ca.signer import Signer
from support.waiting import wait_until


def signer(directory: Path, passphrase: str | None = None, key: Path | None = None) -> Signer:
    return Signer(directory, key or directory / "ca.key", passphrase)


async def test_it_issues_and_signs_lists(tmp_path: Path):
    """What comes out is the authority's; what is wrong with a request is told as by the authority itself."""
    made = Authority.create(tmp_path / "certs", None, tmp_path / "vault" / "ca.key")
    assert not (tmp_path / "certs" / "ca.key").exists()
    own = signer(tmp_path / "certs", key=tmp_path / "vault" / "ca.key")
    issued = await own.issue("demo", "producer", validity_days=1)
    leaf = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    leaf.verify_directly_issued_by(made.certificate)
    now = clock.now_ms()
    crl = x509.load_der_x509_crl((await own.crl([], now_ms=now, next_update_ms=now + 60_000)).der)
    assert crl.is_signature_valid(made.certificate.public_key())
    assert await own.certificate_pem() == made.certificate_pem
    with pytest.raises(ValidationError):
        await own.issue("demo", "producer", validity_days=0)


async def test_without_a_key_it_says_so_until_there_is_one(tmp_path: Path):
    """A key that comes later is found; nobody restarts anything."""
    Authority.create(tmp_path)
    kept = (tmp_path / "ca.key").read_bytes()
    (tmp_path / "ca.key").unlink()
    own = signer(tmp_path)
    for _ in range(2):
        with pytest.raises(AuthorityUnavailable):
            await own.issue("demo", "producer", validity_days=1)
    (tmp_path / "ca.key").write_bytes(kept)
    assert (await own.issue("demo", "producer", validity_days=1)).serial


async def test_a_sealed_key_is_derived_once(tmp_path: Path, monkeypatch):
    """Right or wrong the passphrase: argon2id runs once for the files as they are, however many ask."""
    Authority.create(tmp_path, "correct horse")
    loads: list[object] = []
    load = Authority.load.__func__

    def counted(cls, *args):
        loads.append(args)
        return load(cls, *args)

    monkeypatch.setattr(Authority, "load", classmethod(counted))
    right, wrong = signer(tmp_path, "correct horse"), signer(tmp_path, "battery staple")
    await asyncio.gather(*(right.certificate_pem() for _ in range(5)))
    assert len(loads) == 1
    refused = await asyncio.gather(*(wrong.certificate_pem() for _ in range(5)), return_exceptions=True)
    assert {type(error) for error in refused} == {AuthorityUnavailable}
    assert len(loads) == 2


async def test_signing_does_not_hold_up_the_loop(tmp_path: Path, monkeypatch):
    """While a signature takes its time, everything else in the process goes on."""
    Authority.create(tmp_path)
    started, released = threading.Event(), threading.Event()
    issue = Authority.issue

    def slow(self, *args, **options):
        started.set()
        assert released.wait(30), "nobody else ran meanwhile"
        return issue(self, *args, **options)

    monkeypatch.setattr(Authority, "issue", slow)
    signing = asyncio.create_task(signer(tmp_path).issue("demo", "producer", validity_days=1))
    await wait_until(started.is_set)
    released.set()
    assert (await signing).serial


async def test_files_that_do_not_belong_together(tmp_path: Path):
    """Another authority's key signs nothing."""
    Authority.create(tmp_path / "one")
    Authority.create(tmp_path / "two")
    with pytest.raises(AuthorityUnavailable):
        await signer(tmp_path / "one", key=tmp_path / "two" / "ca.key").certificate_pem()
