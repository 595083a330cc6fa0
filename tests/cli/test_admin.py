"""`client`, `cert` and `user` against a running system, and what they open and close at the gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from support.system import System, eventually

NUMBER = "+4915200000000"


def send(system: System, client: str):
    return system.run("send", "--client", client, "--from", NUMBER, "--body", "Hello", "--wait")


def listed(system: System, *command: str) -> list[dict]:
    done = system.run(*command, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_a_client_from_its_registration_to_its_revocation(system: System) -> None:
    """register, issue: it may send; again: a conflict; revoke: the gateway refuses it and says why."""
    assert system.run("client", "register", "shop", "--domain", "shop.example").returncode == 0
    again = system.run("client", "register", "shop")
    assert again.returncode == 1
    assert "The client shop exists." in again.stderr

    done = system.run("cert", "issue", "shop", "--days", "60", "--json")
    assert done.returncode == 0, done.stderr
    issued = json.loads(done.stdout)
    assert Path(issued["private_key"]).stat().st_mode & 0o777 == 0o600
    await eventually(lambda: send(system, "shop").returncode == 0, what="the gateway knows it")
    conflict = system.run("cert", "issue", "shop")
    assert conflict.returncode == 1
    assert "broker cert renew shop" in conflict.stderr

    done = system.run("cert", "revoke", "shop", "--reason", "key_compromise")
    assert done.returncode == 0, done.stderr
    await eventually(
        lambda: "certificate_revoked" in send(system, "shop").stderr, what="the gateway refuses it"
    )
    own = [one for one in listed(system, "cert", "list") if one["name"] == "shop"]
    assert [(one["status"], one["reason"]) for one in own] == [("revoked", "keyCompromise")]
    assert "Revoked already" in system.run("cert", "revoke", "shop", "--reason", "superseded").stdout


def test_a_renewal_leaves_no_gap(system: System) -> None:
    """The new files work, the old certificate is superseded and still let in."""
    system.run("client", "register", "bank")
    first = json.loads(system.run("cert", "issue", "bank", "--json").stdout)
    second = json.loads(system.run("cert", "renew", "bank", "--json").stdout)
    assert second["certificate"] == first["certificate"]
    found = {one["fingerprint"]: one for one in listed(system, "cert", "list")}
    assert found[first["fingerprint"]]["status"] == "superseded"
    assert found[second["fingerprint"]]["status"] == "active"
    serial = second["serial"].upper()
    assert system.run("cert", "revoke", "--serial", serial, "--reason", "superseded").returncode == 0


def test_other_names_of_a_service(system: System, tmp_path: Path) -> None:
    """A gateway's certificate is good for the names and addresses given, and keeps them; others have none."""
    place = ("--out", str(tmp_path), "--json")
    given = ("--dns", "Broker.example", "--dns", "*.b.example", "--ip", "10.0.0.7", "--ip", "fd00::7")
    issued = json.loads(system.run("cert", "issue", "edge", "--role", "gateway", *given, *place).stdout)
    names = ["localhost", "broker.example", "*.b.example", "127.0.0.1", "::1", "10.0.0.7", "fd00::7"]
    assert issued["names"] == names
    assert json.loads(system.run("cert", "renew", "edge", *place).stdout)["names"] == names
    moved = json.loads(system.run("cert", "renew", "edge", "--dns", "new.example", *place).stdout)
    assert moved["names"] == [*names[:3], "new.example", *names[3:]], "who knows it by the others goes on"
    for wrong, says in (
        (("gateway", "--dns", "10.0.0.7"), "10.0.0.7 is an address"),
        (("gateway", "--ip", "300.1.1.1"), "300.1.1.1"),
        (("worker", "--dns", "broker.example"), "are for gateways and servers"),
    ):
        done = system.run("cert", "issue", "other", "--role", *wrong, "--out", str(tmp_path))
        assert done.returncode == 1
        assert says in done.stderr
    # What a renewal finds damaged it mends, for this machine at least.
    (tmp_path / "edge.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    mended = json.loads(system.run("cert", "renew", "edge", "--ip", "FD00::7", *place).stdout)
    assert {"localhost", "127.0.0.1", "::1", "fd00::7"} <= set(mended["names"])
    assert "unspecified" in system.run("cert", "revoke", "edge").stdout
    assert not (tmp_path / "other.crt").exists()


def test_a_request_keeps_its_key_to_itself(system: System, tmp_path: Path) -> None:
    """With --csr only a certificate comes back, beside the request, for the requested key."""
    system.run("client", "register", "agency")
    key, csr = tmp_path / "agency.key", tmp_path / "agency.csr"
    subprocess.run(
        ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", str(key), "-out", str(csr), "-subj", "/CN=whatever"],
        check=True, capture_output=True,
    )  # fmt: skip
    before = key.read_bytes()
    issued = json.loads(system.run("cert", "issue", "agency", "--csr", str(csr), "--json").stdout)
    assert issued["private_key"] is None
    assert Path(issued["certificate"]) == tmp_path / "agency.crt"
    assert key.read_bytes() == before
    subject = subprocess.run(
        ["openssl", "x509", "-in", issued["certificate"], "-noout", "-subject"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "agency" in subject
    assert "whatever" not in subject


def test_routes(system: System, tmp_path: Path) -> None:
    """Each channel with what it takes; a target that the channel would not understand is refused now."""
    system.run("client", "register", "routed")
    assert system.run("client", "route", "routed", "simulated", "success=0.5,delay=1ms").returncode == 0
    wrong = system.run("client", "route", "routed", "simulated", "success=often")
    assert wrong.returncode == 1
    assert "success=often" in wrong.stderr
    made = system.run("client", "route", "routed", "webhook", "https://example.com/hook")
    assert made.returncode == 0, made.stderr
    assert "whsec_" in made.stdout
    secret = tmp_path / "secret"
    secret.write_text("a secret of their own\n")
    url = "https://example.com/hook"
    assert (
        system.run("client", "route", "routed", "webhook", url, "--secret-file", str(secret)).returncode == 0
    )
    found = {one["client_id"]: one for one in listed(system, "client", "list")}
    assert (found["routed"]["channel"], found["routed"]["target"]) == ("webhook", url)
    assert "secret" not in json.dumps(found)
    for wrong_use in (("webhook",), ("inbox", "somewhere"), ("inbox", "--secret", "x"), ("pigeon",)):
        assert system.run("client", "route", "routed", *wrong_use).returncode == 2
    assert system.run("client", "route", "stranger", "inbox").returncode == 1


def test_the_revocation_list(system: System, tmp_path: Path) -> None:
    """Printed or written, it verifies against the authority and names who was revoked."""
    system.run("client", "register", "leaver")
    issued = json.loads(system.run("cert", "issue", "leaver", "--json").stdout)
    assert system.run("cert", "revoke", "leaver", "--reason", "cessationOfOperation").returncode == 0
    written = tmp_path / "crl.der"
    done = system.run("cert", "crl", "--der", "--out", str(written))
    assert done.returncode == 0, done.stderr
    printed = tmp_path / "crl.pem"
    printed.write_text(system.run("cert", "crl").stdout)
    for path, form in ((printed, "PEM"), (written, "DER")):
        told = subprocess.run(
            ["openssl", "crl", "-in", str(path), "-inform", form, "-noout", "-text",
             "-CAfile", str(system.certs / "ca.crt")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert "verify OK" in told.stdout + told.stderr
        assert issued["serial"].upper() in told.stdout
        assert "Cessation Of Operation" in told.stdout
    assert system.run("cert", "crl", "--der").returncode == 2


def test_what_expires_is_listed(system: System) -> None:
    """`--expiring` shows active certificates near their end, and no others."""
    for name, days in (("brief", "5"), ("long", "300")):
        system.run("client", "register", name)
        assert system.run("cert", "issue", name, "--days", days).returncode == 0
    names = [one["name"] for one in listed(system, "cert", "list", "--expiring")]
    assert "brief" in names
    assert not {"long", "demo"} & set(names)
    # `preflight` looks at every certificate that lies there.
    shutil.rmtree(system.certs / "clients" / "brief")


def test_unknown_names_and_wrong_use(system: System) -> None:
    """A certificate for nobody says how to make somebody; two selectors at once are wrong use."""
    done = system.run("cert", "issue", "ghost")
    assert done.returncode == 1
    assert "broker client register ghost" in done.stderr
    assert system.run("cert", "renew", "ghost").returncode == 1
    assert system.run("cert", "revoke", "demo", "--serial", "1", "--reason", "superseded").returncode == 2
    assert system.run("cert", "revoke", "--serial", "abc", "--reason", "superseded").returncode == 1
    assert system.run("cert", "revoke", "--serial", "no hex", "--reason", "superseded").returncode == 1
    assert system.run("cert", "revoke", "demo", "--reason", "certificateHold").returncode == 2
    assert system.run("client", "register", "Not A Name").returncode == 1


def test_users(system: System) -> None:
    """Create with a new or a given password, list, change, disable; the address once; the last admin stays."""
    made = json.loads(system.run("user", "create", "Ann@Example.com", "--clients", "demo", "--json").stdout)
    assert (made["email"], made["role"], made["client_ids"]) == ("ann@example.com", "user", ["demo"])
    assert len(made["password"]) >= 16
    given = system.run("user", "create", "bob@example.com", "--password-stdin", input="correct horse\n")
    assert given.returncode == 0, given.stderr
    assert "correct horse" not in given.stdout
    assert system.run("user", "create", "ann@example.com").returncode == 1
    short = system.run("user", "create", "c@example.com", "--password-stdin", input="short\n")
    assert short.returncode == 1
    assert "at least 8 characters" in short.stderr
    assert system.run("user", "create", "d@example.com", "--role", "king").returncode == 2
    assert system.run("user", "clients", "ann@example.com", "").returncode == 0
    assert system.run("user", "clients", "ann@example.com", "nobody-at-all").returncode == 1
    assert system.run("user", "role", "ann@example.com", "auditor").returncode == 0
    assert system.run("user", "password", "ann@example.com").returncode == 0
    assert system.run("user", "disable", "ann@example.com").returncode == 0
    last = system.run("user", "disable", "admin@example.com")
    assert last.returncode == 1
    assert "last admin" in last.stderr
    found = {one["email"]: one for one in listed(system, "user", "list")}
    ann = found["ann@example.com"]
    assert (ann["role"], ann["client_ids"], ann["disabled"]) == ("auditor", [], True)
    assert "$2b$" not in json.dumps(found)


def test_administration_needs_redis(tmp_path: Path) -> None:
    """Nothing runs: what to run, no traceback."""
    for command in (("client", "list"), ("cert", "list"), ("user", "list"), ("client", "register", "x")):
        done = System(tmp_path).run(*command)
        assert done.returncode == 1
        assert "is `broker up` running?" in done.stderr
        assert "Traceback" not in done.stderr
