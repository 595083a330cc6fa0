"""Every route of the portal, and who may use it: nobody signed in, readers, auditors, admins."""

from __future__ import annotations

import re

import pytest

from support import browsing
from support.browsing import word
from support.contract import routes
from support.portals import portal

UNKNOWN = "00000000-0000-7000-8000-000000000000"
WHO = ("", "reader@example.com", "auditor@example.com", "boss@example.com")
# What each of WHO is answered: pages that exist, forms that lack what they need, of things that do not exist.
# `in`: led to the login page.
TABLE = """
GET  /                                          in  200 303 200
GET  /messages                                  in  200 403 200
GET  /messages/{message_id}                     in  404 403 404
GET  /profile                                   in  200 200 200
POST /profile/password                          in  400 400 400
GET  /login                                     200 303 303 303
POST /login                                     403 in  in  in
GET  /login/oidc                                404 404 404 404
GET  /login/oidc/callback                       404 404 404 404
GET  /logout                                    in  200 200 200
POST /logout                                    in  403 403 403
GET  /admin                                     in  403 403 200
GET  /admin/live                                200 403 403 -
GET  /admin/messages                            in  403 403 200
POST /admin/messages/{message_id}/decrypt       in  403 403 404
POST /admin/messages/{message_id}/resend        in  403 403 404
GET  /admin/parked                              in  403 403 200
POST /admin/parked                              in  403 403 400
GET  /admin/users                               in  403 403 200
POST /admin/users                               in  403 403 400
GET  /admin/users/{user_id}                     in  403 403 404
POST /admin/users/{user_id}/role                in  403 403 404
POST /admin/users/{user_id}/clients             in  403 403 404
POST /admin/users/{user_id}/password            in  403 403 404
POST /admin/users/{user_id}/disable             in  403 403 404
GET  /admin/clients                             in  403 403 200
POST /admin/clients                             in  403 403 400
GET  /admin/clients/{client_id}                 in  403 403 404
POST /admin/clients/{client_id}/route           in  403 403 404
GET  /admin/certificates                        in  403 403 200
POST /admin/certificates                        in  403 403 400
GET  /admin/certificates/{fingerprint}          in  403 403 404
POST /admin/certificates/{fingerprint}/renew    in  403 403 404
POST /admin/certificates/{fingerprint}/revoke   in  403 403 404
GET  /admin/projections                         in  403 403 200
GET  /admin/projections/{name}                  in  403 403 404
GET  /admin/projections/{name}/live             200 403 403 404
POST /admin/projections/{name}/estimate         in  403 403 404
POST /admin/projections/{name}/rebuild          in  403 403 404
POST /admin/projections/{name}/cancel           in  403 403 404
GET  /admin/streams                             in  403 403 200
GET  /audit                                     in  403 200 200
POST /audit/export                              in  403 400 400
GET  /audit/exports/{export_id}                 in  403 404 404
GET  /audit/exports/{export_id}/file            in  403 404 404
GET  /audit/exports/{export_id}/live            200 403 404 404
POST /audit/exports/{export_id}/cancel          in  403 404 404
POST /audit/verify                              in  403 400 400
GET  /audit/verifications/{verification_id}     in  403 404 404
GET  /audit/verifications/{verification_id}/live 200 403 404 404
POST /audit/verifications/{verification_id}/cancel in 403 404 404
GET  /audit/verify.py                           in  403 200 200
GET  /audit/digests.pub                         in  403 200 200
GET  /audit/digests.jsonl                       in  403 200 200
GET  /audit/{position}                          in  403 404 404
GET  /audit/{position}/proof                    in  403 404 404
GET  /health                                    200 200 200 200
GET  /static/{digest}/{name}                    404 404 404 404
"""
# Fields that are wrong where an empty form would do something, or say that another field is missing.
FORMS = {
    "/profile/password": {"current_password": "x", "new_password": "short"},
    "/admin/certificates": {"client_name": "", "role": "nobody", "validity_days": "1"},
    "/audit/export": {"format": "no such format"},
    "/audit/verify": {"back": "to the beginning of time"},
}
ROWS = {
    (method, path): tuple(answers)
    for method, path, *answers in (line.split() for line in TABLE.strip().splitlines())
}


async def test_every_route_has_a_row(world):
    """Taken from the application itself."""
    async with portal(world, "mysql://nobody@127.0.0.1:1/none") as client:
        assert routes(client.app) == ROWS.keys()


@pytest.mark.case("TC-PT-009", "TC-PT-014")
@pytest.mark.parametrize("number", range(len(WHO)), ids=[who.partition("@")[0] or "nobody" for who in WHO])
def test_everybody_gets_what_the_table_says(system, tickets, number):
    """Every page and form, by a real request; forms bring the word of their session."""
    email = WHO[number]
    found = {}
    with browsing.visiting(system, tickets(email) if email else None) as http:
        csrf = word(http.get("/profile").text) if email else "0" * 32
        for (method, path), answers in ROWS.items():
            if answers[number] == "-":
                continue  # it has no end, and is read elsewhere
            target = re.sub(r"\{[^}]+\}", UNKNOWN, path)
            if method == "GET":
                answer = http.get(target)
            else:
                # Without its word, where it would end the session.
                given = {"csrf": "0" * 32 if path in {"/login", "/logout"} else csrf}
                answer = http.post(target, data=given | FORMS.get(path, {}))
            led = answer.status_code == 303 and answer.headers["location"].startswith("/login")
            found[method, path] = "in" if led else str(answer.status_code)
    assert found == {row: answers[number] for row, answers in ROWS.items() if answers[number] != "-"}
