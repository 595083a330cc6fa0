"""The database or the log away: the portal stays up and says so, and comes back by itself."""

from __future__ import annotations

import ssl

import pytest
from cryptography.hazmat.primitives import serialization

from broker.errors import SettingsError
from broker.projections import schema
from broker.settings import Settings, load
from support import databases
from support.portals import portal
from support.proxy import proxy_to_unix
from support.waiting import wait_until


async def test_without_the_database_people_sign_in_and_are_told(world, mariadb):
    """503 with a page that tries again; what needs no table works; the tables back, so are the pages."""
    url = databases.create(mariadb)
    async with portal(world, url) as client:
        await client.sign_in()
        for path in ("/", "/messages"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "The database is away" in answer.text
            assert 'http-equiv="refresh"' in answer.text
            assert answer.headers["retry-after"]
            assert url.partition("@")[2] not in answer.text
        assert (await client.get("/profile")).status_code == 200
        schema.migrate(url)
        assert (await client.get("/messages")).status_code == 200


async def test_without_the_log_every_page_says_so(valkey, world):
    """503 with a page; health tells what is away; with Redis back the same session goes on."""
    async with proxy_to_unix(str(valkey.socket)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        async with portal(world, "mysql://nobody@127.0.0.1:1/none", url) as client:
            await client.sign_in()
            proxy.mode = "cut"
            proxy.cut()
            answer = await client.get("/profile")
            assert (answer.status_code, "The log is away" in answer.text) == (503, True)
            proxy.mode = "pass"

            async def back() -> bool:
                return (await client.get("/profile")).status_code == 200

            await wait_until(back)


async def test_who_asks_too_often_is_told_by_a_page(world):
    """429 with a page that tries again after the time that the limit names; nothing else is shown meanwhile."""
    async with portal(world, "mysql://nobody@127.0.0.1:1/none", rate_limit_per_address=0.02) as client:
        answers = [await client.get("/login") for _ in range(3)]
    late = answers[-1]
    assert late.status_code == 429
    assert late.headers["content-type"] == "text/html; charset=utf-8"
    assert "Too much at once" in late.text
    assert f'http-equiv="refresh" content="{late.headers["retry-after"]}"' in late.text
    assert late.headers["content-security-policy"] == answers[0].headers["content-security-policy"]


async def test_elsewhere_than_on_loopback_it_speaks_tls(world):
    """The cookie is then for TLS and this host alone, and browsers are told to keep to TLS."""
    async with portal(world, "mysql://nobody@127.0.0.1:1/none", portal_host="0.0.0.0") as client:
        answer = await client.get("/login")
        assert answer.headers["strict-transport-security"]
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-broker=")
        assert "; Secure" in cookie
        await client.sign_in()
        assert (await client.get("/profile")).status_code == 200


async def test_browsers_see_the_certificate_of_the_settings(world):
    """In place of the server's, where the portal speaks TLS; on loopback none is needed."""
    cert, key = world.pki.write("portal", world.pki.authority.issue("portal", "server"))
    own = {"portal_host": "0.0.0.0", "portal_certificate": cert, "portal_key": key}
    async with (
        portal(world, "mysql://nobody@127.0.0.1:1/none", **own) as client,
        client.stream("GET", "/login") as answer,
    ):
        shown = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)
    assert ssl.DER_cert_to_PEM_cert(shown) in cert.read_text()


@pytest.mark.parametrize("wrong", ["missing", "another's", "sealed", "no PEM"])
async def test_a_certificate_that_cannot_be_used_stops_the_start(world, tmp_path, wrong):
    """With a sentence that names the files, and without asking anybody for a passphrase."""
    cert, key = world.pki.server
    given = tmp_path / "key.pem"
    match wrong:
        case "another's":
            given = world.pki.write("another", world.pki.authority.issue("another", "server"))[1]
        case "sealed":
            loaded = serialization.load_pem_private_key(key.read_bytes(), None)
            form = serialization.BestAvailableEncryption(b"x")
            pkcs8 = serialization.PrivateFormat.PKCS8
            given.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, pkcs8, form))
        case "no PEM":
            given.write_text("no key")
    own = {"portal_host": "0.0.0.0", "portal_certificate": cert, "portal_key": given}
    with pytest.raises(SettingsError, match=str(given)):
        async with portal(world, "mysql://nobody@127.0.0.1:1/none", **own):
            pass


def test_certificate_and_key_go_together():
    """One without the other stops the start."""
    with pytest.raises(SettingsError, match="portal_key"):
        load(environ={"BROKER_PORTAL_CERTIFICATE": "x.pem"})


@pytest.mark.parametrize("public", [True, False])
async def test_metrics_are_shown_where_they_may_be(world, public):
    """Browsers have no client certificates: without `metrics_public` there are none to be seen."""
    async with portal(world, "mysql://nobody@127.0.0.1:1/none", metrics_public=public) as client:
        await client.get("/login")
        answer = await client.get("/metrics")
        assert answer.status_code == (200 if public else 404)
        assert ('role="portal",route="/login"' in answer.text) == public


@pytest.mark.parametrize(
    ("host", "plain"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("broker.example", False), ("192.168.1.10", False), ("", False)],
)  # fmt: skip
def test_plain_http_is_for_loopback_alone(host, plain):
    """A name that could be anybody's counts as elsewhere."""
    assert Settings(portal_host=host).portal_plain == plain
