"""The API's documentation in a browser: our own files under a strict policy, and no other host."""

from __future__ import annotations

import re

import pytest

from broker.services.server import docs
from support import vendored
from support.calling import Caller

VENDORED = docs.STATIC / "swagger-ui"


@pytest.fixture
def anonymous(world, server) -> Caller:
    return Caller(server.port, world.pki.client_context())


def test_the_files_are_those_of_their_package():
    """Name, version and licence are on record, and every file, none more and none less, has the hash noted."""
    manifest = vendored.check(VENDORED)
    assert (manifest.package, manifest.license) == ("swagger-ui-dist", "Apache-2.0")
    assert {"LICENSE", "NOTICE"} <= manifest.files.keys()


async def test_the_page_and_all_it_names_come_from_here(anonymous):
    """Nothing inline, nothing of another host; each script and style is served with its type."""
    page = await anonymous.get("/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = page.body.decode()
    assert not re.search(r"<style|style=|<script>|\son\w+=|https?:|//", text)
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    kinds = {}
    for path in named:
        answer = await anonymous.get(path)
        assert answer.status == 200, path
        kinds[path] = answer.headers["content-type"].partition(";")[0]
    assert kinds.pop("/openapi.json") == "application/json"
    assert set(kinds.values()) == {"text/css", "text/javascript", "image/png"}
    ours = (await anonymous.get("/docs/docs.js")).body.decode()
    assert "validatorUrl: null" in ours
    assert not re.search(r"https?:", ours)


async def test_the_policy_lets_in_nothing_else(anonymous):
    """No inline script or style, no other host, no frame, no sniffing of types; on the page and its files."""
    for path in ("/docs", "/docs/docs.js", "/docs/swagger-ui.css"):
        headers = (await anonymous.get(path)).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


async def test_files_are_sent_once(anonymous):
    """The ETag of what one has gives a 304 without a body; another one, the file."""
    first = await anonymous.get("/docs/swagger-ui.css")
    again = await anonymous.get("/docs/swagger-ui.css", headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    other = await anonymous.get("/docs/swagger-ui.css", headers={"if-none-match": '"another"'})
    assert (other.status, other.body) == (200, first.body)


@pytest.mark.parametrize(
    "name", ["manifest.json", "docs.html", "%2e%2e%2fdocs.py", "..%2fapp.py", "%00", "swagger-ui", "x" * 500]
)
async def test_no_other_file_is_served(anonymous, name):
    """What is not named by the page is a 404, wherever it would lie."""
    answer = await anonymous.get(f"/docs/{name}")
    assert (answer.status, answer.json["error"]) == (404, "not_found")
