"""The private CA, checked by the openssl command line as a second opinion."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker import clock
from broker.domain.certificates import CertificateEntry
from broker.errors import Conflict, NotFound, ValidationError
from broker.services.ca import authority as ca
from broker.services.ca import files, profiles, sealing
from broker.services.ca.authority import Authority

DAY_MS = ca.DAY_MS


def openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def request_pem(key, *, corrupt: bool = False) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone-else")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = builder.sign(key, digest)
    if not corrupt:
        return request.public_bytes(Encoding.PEM).decode()
    der = bytearray(request.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("role", "purposes"),
    [
        ("producer", ["sslclient"]),
        ("worker", ["sslclient"]),
        ("internal", ["sslclient"]),
        ("gateway", ["sslclient", "sslserver"]),
        ("server", ["sslclient", "sslserver"]),
    ],
)
def test_openssl_accepts_every_role_in_strict_mode(tmp_path: Path, role: str, purposes: list[str]):
    """`openssl verify -x509_strict` finds the chain right, for the purposes of the role."""
    issued = Authority.create(tmp_path).issue("demo", role)
    leaf = tmp_path / "leaf.crt"
    leaf.write_text(issued.certificate_pem)
    for purpose in purposes:
        arguments = ["-x509_strict", "-purpose", purpose, "-CAfile", str(tmp_path / "ca.crt"), str(leaf)]
        assert "OK" in openssl("verify", *arguments)


def test_a_client_certificate_is_no_server_certificate(tmp_path: Path):
    """A producer cannot pass for our gateway towards its peers."""
    issued = Authority.create(tmp_path).issue("demo", "producer")
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_certificate_says_who_and_what_and_how_long(tmp_path: Path):
    """CN is the name, OU the role; the values beside the PEM are those inside it."""
    issued = Authority.create(tmp_path).issue("demo", "producer", validity_days=30)
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    assert certificate.subject.rfc4514_string() == "CN=demo,OU=producer,O=Message Broker"
    assert issued.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert int(issued.serial, 16) == certificate.serial_number
    assert issued.not_before_ms < clock.now_ms()
    assert abs(issued.not_after_ms - clock.now_ms() - 30 * DAY_MS) < 60_000
    key = load_pem_private_key(issued.private_key_pem.encode(), None)
    assert key.public_key() == certificate.public_key()


def test_servers_carry_the_local_names_or_those_asked_for(tmp_path: Path):
    """Without names a service certificate is good for this machine; with names for exactly these."""
    authority = Authority.create(tmp_path)

    def names(issued: ca.Issued) -> list[str]:
        certificate = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(name.value) for name in found]

    assert {"localhost", "127.0.0.1", "::1"} <= set(names(authority.issue("gateway", "gateway")))
    asked = authority.issue("server", "server", dns=["Broker.example", "*.b.example"], ips=["10.0.0.7"])
    assert names(asked) == ["broker.example", "*.b.example", "10.0.0.7"]


@pytest.mark.parametrize(
    ("host", "named"), [("Box", True), ("my_box", False), ("10.0.0.7", False), ("", False)]
)
def test_this_machine_s_name(monkeypatch, host: str, named: bool):
    """It is among a service's names where it can be one; where it cannot, the others do."""
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert profiles.local_names() == (["localhost", *([host.lower()] if named else [])], ["127.0.0.1", "::1"])


def test_a_request_gives_its_key_and_nothing_else(tmp_path: Path):
    """Subject and extensions of a CSR are ignored: it asked to be a CA named someone-else."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = Authority.create(tmp_path).issue("demo", "producer", csr_pem=request_pem(key))
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    assert issued.private_key_pem is None
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "CN=demo,OU=producer,O=Message Broker"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "p384", "rsa2048"],
)
def test_strong_keys_of_other_kinds_are_signed(tmp_path: Path, key):
    """A requester may bring Ed25519, a larger curve or RSA."""
    issued = Authority.create(tmp_path).issue("demo", "producer", csr_pem=request_pem(key))
    leaf = tmp_path / "leaf.crt"
    leaf.write_text(issued.certificate_pem)
    assert "OK" in openssl("verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.crt"), str(leaf))


@pytest.mark.parametrize(
    "csr",
    [
        "",
        "rubbish",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "x" * (ca.MAX_CSR_BYTES + 1),
        "\udc80",
        request_pem(ec.generate_private_key(ec.SECP256R1()), corrupt=True),
        request_pem(ec.generate_private_key(ec.SECP256K1())),
        request_pem(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - it is to be refused
    ],
    ids=["empty", "text", "not-der", "huge", "surrogate", "bad-signature", "odd-curve", "short-rsa"],
)
def test_a_bad_request_is_refused_by_name(tmp_path: Path, csr: str):
    """Whatever is wrong with a CSR, the error names the field csr_pem."""
    with pytest.raises(ValidationError) as caught:
        Authority.create(tmp_path).issue("demo", "producer", csr_pem=csr)
    assert caught.value.field == "csr_pem"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("client_name", {"name": "../etc"}),
        ("client_name", {"name": "Demo"}),
        ("client_name", {"name": "demo\n"}),
        ("role", {"role": "admin"}),
        ("validity_days", {"validity_days": 0}),
        ("validity_days", {"validity_days": 826}),
        *(
            ("dns", {"role": "server", "dns": [name]})
            for name in (
                "bücher.example",
                "",
                "a b",
                ".x",
                "x..y",
                "http://x",
                "-x",
                "x-",
                "a.*",
                "x\n",
                "x" * 64,
            )
        ),
        ("dns", {"role": "gateway", "dns": ["10.0.0.7"]}),
        ("ips", {"role": "gateway", "ips": ["300.1.1.1"]}),
        ("dns", {"dns": ["shop.example"]}),
        ("ips", {"role": "worker", "ips": ["10.0.0.7"]}),
    ],
)
def test_bad_values_are_refused_by_name(tmp_path: Path, field: str, values: dict):
    """Names, roles, validity and addresses are checked before anything is signed."""
    with pytest.raises(ValidationError) as caught:
        Authority.create(tmp_path).issue(**({"name": "demo", "role": "producer"} | values))
    assert caught.value.field == field


def test_only_the_owner_reads_the_key(tmp_path: Path):
    """ca.key has mode 0600, ca.crt can be handed out, and no draft is left behind."""
    Authority.create(tmp_path / "certs")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "certs").iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    """A writer that cannot finish changes nothing and removes its draft."""
    path = tmp_path / "file"
    files.write_file(path, b"old")
    with pytest.raises(TypeError):
        files.write_file(path, "text")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_authority_is_made_once_and_loaded_again(tmp_path: Path):
    """A second create is refused; load gives the same authority, whose certificates verify as before."""
    made = Authority.create(tmp_path)
    with pytest.raises(Conflict):
        Authority.create(tmp_path)
    assert Authority.load(tmp_path).certificate_pem == made.certificate_pem


def test_a_missing_or_foreign_key_is_named(tmp_path: Path):
    """Files that are absent, rubbish or of two authorities give errors that say which."""
    with pytest.raises(NotFound):
        Authority.load(tmp_path)
    Authority.create(tmp_path / "one")
    Authority.create(tmp_path / "two")
    (tmp_path / "one" / "ca.key").write_bytes((tmp_path / "two" / "ca.key").read_bytes())
    with pytest.raises(ca.BrokenAuthority):
        Authority.load(tmp_path / "one")
    (tmp_path / "one" / "ca.crt").write_text("rubbish")
    with pytest.raises(ca.BrokenAuthority):
        Authority.load(tmp_path / "one")


def test_a_passphrase_seals_the_key(tmp_path: Path):
    """A sealed key opens with its passphrase only, and nothing of it lies in the file in the clear."""
    Authority.create(tmp_path, "correct horse")
    assert b"argon2id" in (tmp_path / "ca.key").read_bytes()
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in (tmp_path / "ca.key").read_bytes()
    Authority.load(tmp_path, "correct horse").issue("demo", "producer")
    for wrong in ("battery staple", "", None):
        with pytest.raises(sealing.SealedKey):
            Authority.load(tmp_path, wrong)


def test_a_hostile_cost_is_refused(tmp_path: Path):
    """A key file cannot make us derive for hours or take all memory."""
    Authority.create(tmp_path, "p")
    path = tmp_path / "ca.key"
    for cost in (b"m=99999999,t=3,p=4", b"m=65536,t=9999,p=4", b"m=65536,t=0,p=4", b"m=1,t=1,p=4"):
        path.write_bytes(path.read_bytes().replace(b"m=65536,t=3,p=4", cost))
        with pytest.raises(sealing.SealedKey):
            Authority.load(tmp_path, "p")
        path.write_bytes(path.read_bytes().replace(cost, b"m=65536,t=3,p=4"))


def test_the_revocation_list_is_one_that_openssl_obeys(tmp_path: Path):
    """The tool rejects the revoked certificate and accepts the others; PEM and DER are the same list."""
    authority = Authority.create(tmp_path)
    now = clock.now_ms()
    good, bad = authority.issue("good", "producer"), authority.issue("bad", "producer")
    entries = [
        good.entry("good", "producer", issued_at_ms=now),
        _revoked(bad.entry("bad", "producer", issued_at_ms=now), "key_compromise", now),
    ]
    crl = authority.crl(entries, now_ms=now, next_update_ms=now + DAY_MS)
    (tmp_path / "crl.pem").write_bytes(crl.pem)
    assert x509.load_der_x509_crl(crl.der) == x509.load_pem_x509_crl(crl.pem)
    listed = x509.load_der_x509_crl(crl.der)
    assert [line.serial_number for line in listed] == [int(bad.serial, 16)]
    reason = next(iter(listed)).extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason == x509.ReasonFlags.key_compromise
    check = [
        "-x509_strict",
        "-crl_check",
        "-CAfile",
        str(tmp_path / "ca.crt"),
        "-CRLfile",
        str(tmp_path / "crl.pem"),
    ]
    for issued, name in ((good, "good.crt"), (bad, "bad.crt")):
        (tmp_path / name).write_text(issued.certificate_pem)
    assert "OK" in openssl("verify", *check, str(tmp_path / "good.crt"))
    refused = subprocess.run(
        ["openssl", "verify", *check, str(tmp_path / "bad.crt")], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "certificate revoked" in refused.stderr + refused.stdout


def test_whom_the_revocation_list_names(tmp_path: Path):
    """Who was taken back, by any spelling of the reason; expired ones once more after their end, then no longer."""
    authority = Authority.create(tmp_path)
    now = clock.now_ms()

    def entry(serial: int, **changes) -> CertificateEntry:
        made = CertificateEntry(
            fingerprint=f"{serial:064x}", serial=f"{serial:x}", client_id="demo", role="producer",
            not_before_ms=0, not_after_ms=now + DAY_MS, issued_at_ms=0,
        )  # fmt: skip
        return msgspec.structs.replace(made, **changes)

    gone = {"status": "revoked", "revoked_at_ms": now - 5000}
    entries = [
        entry(1),
        entry(2, **gone, reason="cessation of operation"),
        entry(3, **gone, reason="unspecified"),
        entry(4, **gone, reason="a free text of old"),
        entry(5, **gone, not_after_ms=now - 1000),
        entry(6, **gone, not_after_ms=now - 2 * DAY_MS),
        entry(7, status="superseded", reason="superseded", revoked_at_ms=now - 1000),
        entry(8, status="superseded", reason="superseded", revoked_at_ms=now + 60_000),
    ]
    crl = x509.load_pem_x509_crl(authority.crl(entries, now_ms=now, next_update_ms=now + DAY_MS).pem)
    reasons = {
        line.serial_number: [extension.value.reason.value for extension in line.extensions] for line in crl
    }
    assert reasons == {2: ["cessationOfOperation"], 3: [], 4: [], 5: [], 7: ["superseded"]}
    assert crl.is_signature_valid(authority.certificate.public_key())
    assert (crl.next_update_utc - crl.last_update_utc).total_seconds() == DAY_MS // 1000
    number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert number == now


def test_renewal_is_due_before_the_end(tmp_path: Path):
    """expires_within looks at the file's own end date."""
    issued = Authority.create(tmp_path).issue("gateway", "gateway", validity_days=30)
    path = tmp_path / "gateway.crt"
    files.write_pair(
        path,
        tmp_path / "gateway.key",
        certificate_pem=issued.certificate_pem.encode(),
        key_pem=issued.private_key_pem.encode(),
    )
    assert not ca.expires_within(path, 29)
    assert ca.expires_within(path, 31)
    assert ca.expires_within(path, 0, now_ms=issued.not_after_ms)


def _revoked(entry, reason: str, now: int):
    from broker.domain import certificates

    return certificates.decide_revoke([entry], reason=reason, now_ms=now).closed[0]
