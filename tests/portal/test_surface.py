"""What every answer of the portal has and refuses, over plain HTTP."""

from __future__ import annotations

import re

import httpx
import pytest

from broker.projections.rebuild.background import Ended, Standing
from broker.services.portal import assets, faults, pages
from support import browsing, vendored
from support.browsing import HOSTILE, PASSWORD, word

PAGES = ("/login", "/", "/messages", "/nothing", "/static/x/portal.css", "/health", "/logout")


@pytest.fixture
def anonymous(system):
    with browsing.visiting(system) as client:
        yield client


@pytest.fixture
def reader(system, tickets):
    """Signed in without a browser."""
    with browsing.visiting(system, tickets("reader@example.com")) as client:
        yield client


@pytest.mark.parametrize("name", ["htmx", "pico", "uplot"])
def test_others_files_are_those_of_their_packages(name):
    """Name, version and licence are on record, the licence's text lies beside, every file has its hash."""
    manifest = vendored.check(assets.STATIC / name)
    assert {"htmx": "htmx.org", "pico": "@picocss/pico", "uplot": "uplot"}[name] == manifest.package
    assert any(file.startswith("LICENSE") for file in manifest.files)


@pytest.mark.parametrize("path", PAGES)
def test_every_answer_has_the_headers(anonymous, path):
    """Nothing inline, no frame, no sniffing, nothing kept: errors, files and redirects too."""
    headers = anonymous.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["x-correlation-id"]
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")


def test_a_page_names_files_of_its_own_alone_and_they_stay(anonymous):
    """Each with its type; addresses name the content, so browsers ask once. In all no more than 150 KB."""
    page = anonymous.get("/login")
    assert not re.search(r"<style|style=|<script>|\son\w+=", page.text)
    size = len(page.content)
    named = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text))
    named |= {assets.address(name) for name in assets.FILES}
    for path in named:
        answer = anonymous.get(path, headers={"accept-encoding": "gzip"})
        assert answer.status_code == 200, path
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"].partition(";")[0] in {
            "text/css", "text/javascript", "image/svg+xml"
        }  # fmt: skip
        size += answer.num_bytes_downloaded
        again = anonymous.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert size <= 150_000


@pytest.mark.parametrize("name", ["manifest.json", "..%2fapp.py", "%00", "LICENSE", "x" * 500])
def test_no_other_file_is_served(anonymous, name):
    """What no page names is a 404 page."""
    assert anonymous.get(f"/static/x/{name}").status_code == 404


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/profile/password", {"current_password": PASSWORD, "new_password": "another good one"}),
        ("/logout", {"csrf": "1"}),
    ],
)
def test_no_form_works_without_its_word(reader, path, data):
    """A missing, foreign or empty word, another site's origin: 403, and nothing has changed."""
    good = word(reader.get("/profile").text)
    for given, headers in (
        (data, {}),
        (data | {"csrf": ""}, {}),
        (data | {"csrf": "0" * 32}, {}),
        (data | {"csrf": good}, {"origin": "https://evil.example"}),
        (data | {"csrf": good}, {"origin": "null"}),
    ):
        answer = reader.post(path, data=given, headers=headers)
        assert answer.status_code == 403, (given, headers)
    assert reader.get("/profile").status_code == 200


def test_a_login_form_works_for_its_own_browser_alone(anonymous, system):
    """Nobody can sign somebody else in as himself from another site, nor out."""
    given = {"email": "reader@example.com", "password": PASSWORD, "next": "/"}
    with httpx.Client(base_url=anonymous.base_url) as other:
        csrf = word(other.get("/login").text)
    # As from another site: browsers leave the cookie out then, but take one that the answer sets.
    answer = anonymous.post("/login", data=given | {"csrf": csrf})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?why=old")
    assert "set-cookie" not in answer.headers
    anonymous.get("/login")
    assert anonymous.post("/login", data=given | {"csrf": csrf}).status_code == 403
    assert anonymous.get("/messages").headers["location"].startswith("/login")


def test_the_word_changes_with_signing_in(anonymous):
    """A ticket from before is worth nothing after."""
    before = word(anonymous.get("/login").text)
    given = {"email": "reader@example.com", "password": PASSWORD, "csrf": before, "next": "/messages"}
    assert anonymous.post("/login", data=given).headers["location"] == "/messages"
    assert word(anonymous.get("/profile").text) != before


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"email=%ff%fe", {}, 400),
        (b"\xff\xfe\x00", {}, 400),
        (b"a=1&a=2", {}, 400),
        (b"csrf=1&surprise=1", {}, 400),
        (b"email=%00", {}, 400),
        (b"&".join(b"f%d=1" % n for n in range(2000)), {}, 400),
        (b"x=" + b"y" * 70_000, {}, 413),
        (b"{}", {"content-type": "application/json"}, 415),
        (b"", {}, 303),
    ],
    ids=lambda value: str(value)[:24],
)
def test_broken_forms_are_refused(anonymous, data, headers, status):
    """With a page and the right status, or a way to a fresh form; never a 500."""
    kind = {"content-type": "application/x-www-form-urlencoded"}
    answer = anonymous.post("/login", content=data, headers=kind | headers)
    assert answer.status_code == status
    assert status == 303 or answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/login", "", "x",
     "/a\r\nset-cookie: x=1", "/\x00", "/" + "x" * 3000, "/é", "http:/evil.example", "//[", "//[x]"],
)  # fmt: skip
def test_signing_in_leads_nowhere_else(target):
    """Only to a page of ours that one can return to."""
    assert faults.local(target) == "/"


@pytest.mark.parametrize(
    "path", ["/messages", "/messages?status=failed&page=2", "/admin/messages?search=%2B4915200000000"]
)
def test_signing_in_leads_back(anonymous, path):
    """With its parameters."""
    answer = anonymous.get(path)
    assert answer.status_code == 303
    login = httpx.URL(answer.headers["location"])
    assert (login.path, login.params["next"]) == ("/login", path)


def test_a_form_sent_too_late_is_said(anonymous, reader):
    """After the session: on the login page, which leads back to the form's. Of another one: on a page."""
    given = {"csrf": "0" * 32, "current_password": "x", "new_password": "y"}
    where = {"referer": f"{anonymous.base_url}/profile"}
    answer = anonymous.post("/profile/password", data=given, headers=where)
    assert answer.headers["location"] == "/login?next=%2Fprofile&why=unsent"
    assert "what you sent was not done" in anonymous.get(answer.headers["location"]).text
    answer = reader.post("/profile/password", data=given)
    assert answer.status_code == 403
    assert "This page was too old" in answer.text


def test_addresses_that_are_none_are_nobodys_fault(anonymous, reader):
    """⚠ What no address can be split into leads to the dashboard, or counts as another site's; no page breaks."""
    for path in ("/login", "/login/oidc"):
        assert anonymous.get(path, params={"next": "//["}).status_code in {200, 404}
    given = {"csrf": "0" * 32, "current_password": "x", "new_password": "y"}
    broken = "http://["
    answer = anonymous.post("/profile/password", data=given, headers={"referer": broken})
    assert answer.headers["location"] == "/login?next=%2F&why=unsent"
    part = {"hx-request": "true", "hx-current-url": broken}
    assert anonymous.get("/messages", headers=part).headers["hx-redirect"] == "/login"
    for headers in ({"origin": broken}, {"host": "["}):
        assert reader.post("/profile/password", data=given, headers=headers).status_code in {400, 403}
        assert anonymous.get("/messages", headers=headers).status_code in {303, 400}


def test_pages_that_are_not_there(reader):
    """404 for an unknown page, 405 for a wrong method, said by a page, not by JSON."""
    assert (reader.get("/nothing").status_code, reader.delete("/messages").status_code) == (404, 405)
    assert "There is nothing here" in reader.get("/nothing").text
    for hostile in ("/%00", "/%ff%fe", "/messages/%00", "/messages/" + "x" * 3000, "/messages/..%2f..%2fetc"):
        assert reader.get(hostile).status_code == 404


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("search=hello", "Sender number must be"),
        ("from_date=yesterday", "From must be"),
        ("status=lost", "status must be"),
        ("page=0", "page must be"),
        ("cursor=x", "cursor must be"),
        ("client_id=%3Cscript%3E", "Client must"),
        ("surprise=1", "surprise is unknown here"),
        ("status=failed&status=failed", "status must be given once"),
    ],
)
def test_a_wrong_filter_is_said(reader, query, said):
    """On the page, with the field's name and what it takes; the form stays."""
    answer = reader.get(f"/messages?{query}")
    assert answer.status_code == 400
    assert said in answer.text.partition('id="list"')[2]
    assert 'id="status"' in answer.text


def test_scripts_requests_are_led_to_the_login_page(anonymous):
    """A part of a page that a script asks for never holds the login page; the whole window goes there."""
    headers = {"hx-request": "true", "hx-current-url": f"{anonymous.base_url}/messages?page=2"}
    answer = anonymous.get("/messages?page=2&live=1", headers=headers)
    assert answer.headers["hx-redirect"] == "/login?next=%2Fmessages%3Fpage%3D2"
    assert answer.content == b""


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(
    ("state", "last", "said"),
    [
        ("running", None, "being built"),
        ("switching", None, "changing places"),
        ("interrupted", None, "Nobody goes on with it"),
        ("interrupted", Ended("failed", 0, HOSTILE), "It stopped:"),
        ("none", Ended("switched", 1234), "made of 1,234 events"),
        ("none", Ended("cancelled", 0, "x"), "was cancelled"),
        ("none", Ended("failed", 0, HOSTILE), "The present tables serve on."),
    ],
)
def test_how_a_rebuild_is_said(state, last, said, live):
    """In every state, with whatever reason; once it is over, the live part says where to look."""
    now = Standing("messages", state, 5, 10, None, None, last)
    text = pages.fragment("rebuild.html", now=now, live=live)
    assert said in text
    assert "<script>" not in text
    assert ('class="over"' in text) == (live and state not in {"running", "switching"})


def test_health(anonymous):
    """Open to all, with what is checked."""
    answer = anonymous.get("/health")
    assert answer.status_code == 200
    assert answer.json()["checks"] == {"redis": "ok", "log": "ok", "trust": "ok", "mysql": "ok"}
