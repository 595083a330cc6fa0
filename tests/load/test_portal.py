"""Many people at the portal at once: each page of each role, how long it takes, and that nobody sees another's."""

from __future__ import annotations

import asyncio

import pytest

from broker.events import user_commands
from broker.preparation import opened
from support.browsing import PASSWORD
from support.load.clicking import PAGES, Account, click
from support.system import System, eventually
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(0)
READERS, ADMINS, AUDITORS = 8, 2, 2
MESSAGES = 3
"""Of each reader."""


@pytest.mark.case("TC-L-010")
async def test_a_dozen_people_click_through_the_portal(
    system: System, full, record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight readers, two admins, two auditors: all their pages, each their own, 95 % of them within the limits."""
    seconds, pause = (60, 0.5) if full else (4, 0.25)
    if full:
        monkeypatch.setattr(user_commands, "BCRYPT_COST", 12)
    accounts, own = await _people(system)
    clicked, people = await click(system, accounts, seconds, pause)
    form = f"{READERS} readers, {ADMINS} admins, {AUDITORS} auditors for {seconds} s, a click every {pause} s each"
    record("TC-L-010", form, **clicked.figures())
    for person in people:
        match person.account.role:
            case "user":
                assert person.shown == own[person.account.email]
            case "admin":
                assert person.shown >= set().union(*own.values())
            case "auditor":
                assert person.shown == set()
    looked = {click.page for click in clicked.clicks}
    assert looked >= {page for pages in PAGES.values() for page in pages}
    assert looked >= {"one message", "one event", "another's message"}
    assert clicked.success_rate >= 0.95, [click for click in clicked.clicks if not click.good]
    denied = [click.status for click in clicked.clicks if click.page == "another's message"]
    assert not {200, 303} & set(denied)


async def _people(system: System) -> tuple[list[Account], dict[str, set[str]]]:
    """Accounts, each reader's with a client of its own; the messages of each reader, delivered."""
    readers = [f"reader-{number}" for number in range(READERS)]
    others = [("admin", f"admin-{number}") for number in range(ADMINS)]
    others += [("auditor", f"auditor-{number}") for number in range(AUDITORS)]
    async with opened(system.settings) as tools:
        for name in readers:
            await tools.clients.register_client(name, None, actor="system")
            await tools.users.create_user(_email(name), PASSWORD, "user", [name], actor="system")
        for role, name in others:
            await tools.users.create_user(_email(name), PASSWORD, role, [], actor="system")
    sent = await asyncio.gather(*(_sent(system, name) for name in readers))
    for messages in sent:
        await _delivered(system, messages)
    accounts = [Account(_email(name), "user", sent[number - 1][0]) for number, name in enumerate(readers)]
    accounts += [Account(_email(name), role) for role, name in others]
    return accounts, {_email(name): set(messages) for name, messages in zip(readers, sent, strict=True)}


def _email(name: str) -> str:
    return f"{name}@example.com"


async def _sent(system: System, client: str) -> list[str]:
    """Messages of a client, as soon as the server has heard of it; their ids."""
    async with system.client("services/internal", "server_port") as http:

        async def send() -> str | None:
            given = {"client_id": client, "sender_number": "+4915200000000", "message_body": "for one reader"}
            answer = await http.post("/internal/messages/register", json=given)
            return answer.json()["message_id"] if answer.status_code == 200 else None

        return [await wait_until(send, what=f"a message of {client}") for _ in range(MESSAGES)]


async def _delivered(system: System, messages: list[str]) -> None:
    wanted = "SELECT message_id FROM messages WHERE status='delivered' AND message_id IN %s"
    await eventually(lambda: len(system.query(wanted, messages)) == len(messages), what="their messages")
