"""Pages of messages: against a reference filter, stable under inserts, and by index alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.domain import ids
from broker.errors import ValidationError
from broker.projections import listing, sql
from broker.projections.listing import Cursor, Filter
from broker.projections.store import Store
from support.examples import examples

START = 1_795_311_000_000
CLIENTS = ("acme", "demo", "globex")
NUMBERS = ("+491", "+492", "+493", "+494")


def hashed(client: str, number: str, key: int = 1) -> bytes:
    """A stand-in for the keyed hash: another one for each client and key."""
    return hashlib.sha256(f"{client} {number} {key}".encode()).digest()


def message(rng: random.Random, at: int | None = None) -> tuple:
    """A row as the tests see it: id, client, number, hash, status, time."""
    client, number = rng.choice(CLIENTS), rng.choice(NUMBERS)
    # Few different times, so that many messages share one.
    when = START + rng.randrange(40) * 500 if at is None else at
    return (
        ids.text(ids.new(rng.randrange(4))),
        client,
        number,
        hashed(client, number, rng.choice((1, 2))),
        rng.choice(listing.STATUSES),
        when,
    )


async def put(store: Store, rows: Iterable[tuple]) -> None:
    """Rows of the table `messages`."""
    columns = ("message_id", "client_id", "sender_number_hashed", "encrypted_body", "status", "queued_at",
               "stream", "submitted_ms", "submitted_seq", "changed_ms", "changed_seq")  # fmt: skip
    literals = [
        f"('{key}','{client}','{digest.hex()}',x'00{key.replace('-', '')}','{status}',{sql.stamp(at)},'0',1,0,1,0)"
        for key, client, _, digest, status, at in rows
    ]
    async with store.transaction() as transaction:
        await transaction.apply([sql.Insert("messages", columns, literals)])


def expected(rows: list[tuple], wanted: Filter) -> list[str]:
    """The ids that the filter should find, in order."""
    found = [
        row
        for row in rows
        if (wanted.clients is None or row[1] in wanted.clients)
        and (wanted.status is None or row[4] == wanted.status)
        and (wanted.since is None or row[5] >= wanted.since)
        and (wanted.until is None or row[5] < wanted.until)
        and (wanted.number_hashes is None or row[3] in wanted.number_hashes)
    ]
    return [row[0] for row in sorted(found, key=lambda row: (row[5], row[0]), reverse=True)]


async def walk(store: Store, wanted: Filter, per_page: int, at: int | Cursor = 1) -> list[listing.Page]:
    """Every page from `at` on, by cursor."""
    pages = [await listing.page(store, wanted, per_page=per_page, at=at)]
    while (following := pages[-1].next) is not None:
        again = listing.cursor(following.text())
        assert again == following
        pages.append(await listing.page(store, wanted, per_page=per_page, at=again))
    return pages


def found(pages: Iterable[listing.Page]) -> list[str]:
    return [each.message_id for page in pages for each in page.messages]


times = st.none() | st.integers(START - 500, START + 20_500)
subsets = st.sets(st.sampled_from([*CLIENTS, "nobody"])).map(lambda chosen: tuple(sorted(chosen)))


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    clients = draw(st.none() | subsets)
    number = draw(st.none() | st.sampled_from(NUMBERS))
    hashes = None
    if number is not None:
        hashes = tuple(hashed(each, number, key) for each in clients or CLIENTS for key in (1, 2, 3))
    status = draw(st.none() | st.sampled_from(listing.STATUSES))
    return Filter(clients, status, draw(times), draw(times), hashes)


@pytest.fixture
async def rows(store) -> list[tuple]:
    """300 messages of three clients."""
    rng = random.Random(7)
    made = [message(rng) for _ in range(300)]
    await put(store, made)
    return made


async def test_as_the_reference(store, rows):
    """Any filter finds what a plain loop finds: page by page by cursor, and by number."""

    async def check(wanted: Filter, per_page: int) -> None:
        want = expected(rows, wanted)
        pages = await walk(store, wanted, per_page)
        assert found(pages) == want
        assert {(page.total, page.total_exact) for page in pages} == {(len(want), True)}
        assert [page.page for page in pages] == list(range(1, len(pages) + 1))
        for number in range(1, pages[0].pages + 2):
            by_number = await listing.page(store, wanted, per_page=per_page, at=number)
            assert found([by_number]) == want[(number - 1) * per_page : number * per_page]

    drawn: list[tuple[Filter, int]] = []

    @settings(max_examples=examples(40, 120), suppress_health_check=list(HealthCheck), database=None)
    @given(filters(), st.sampled_from((1, 7, 50, 200)))
    def draw(wanted: Filter, per_page: int) -> None:
        # One message a page takes long where there are many.
        drawn.append((wanted, per_page if per_page > 1 or len(expected(rows, wanted)) < 30 else 7))

    draw()
    for wanted, per_page in drawn:
        await check(wanted, per_page)
    assert len(drawn) >= examples(30, 100)


async def test_inserts_do_not_move_pages(store, rows):
    """What arrives while somebody pages neither repeats a message nor hides one."""
    rng = random.Random(8)
    wanted = Filter(("demo", "acme"))
    want = expected(rows, wanted)
    pages = [await listing.page(store, wanted, per_page=20)]
    while (following := pages[-1].next) is not None:
        await put(store, [message(rng, START + 60_000 + len(pages)) for _ in range(25)])
        pages.append(await listing.page(store, wanted, per_page=20, at=following))
    assert found(pages) == want


async def test_status_changes_do_not_hide_messages(store, rows):
    """Messages that leave the filter while somebody pages do not make others slip by."""
    wanted = Filter(None, "queued")
    want = expected(rows, wanted)
    first = await listing.page(store, wanted, per_page=30)
    gone = [each.message_id for each in first.messages]
    await store.execute(
        f"UPDATE messages SET status='delivered' WHERE message_id IN ({','.join(['%s'] * 30)})", gone
    )
    assert found([first, *await walk(store, wanted, 30, first.next)]) == want


async def test_what_a_page_shows(store):
    """A page holds no body; the ciphertexts are asked for by id."""
    rng = random.Random(9)
    made = [message(rng) for _ in range(3)]
    await put(store, made)
    page = await listing.page(store, Filter(None), per_page=2)
    assert not {"encrypted_body", "sender_number_hashed"} & set(listing.Listed.__struct_fields__)
    assert (page.total, page.pages, page.per_page) == (3, 2, 2)
    shown = await listing.sealed(store, found([page]))
    assert shown == {key: b"\0" + bytes.fromhex(key.replace("-", "")) for key in found([page])}
    assert await listing.sealed(store, []) == {}


async def test_depth_is_bounded(store, monkeypatch):
    """Counting and page numbers end at the bound; the cursor goes on to the last message."""
    monkeypatch.setattr(listing, "BOUND", 50)
    rng = random.Random(10)
    made = [message(rng) for _ in range(120)]
    await put(store, made)
    wanted = Filter(CLIENTS)
    first = await listing.page(store, wanted, per_page=20)
    assert (first.total, first.total_exact, first.pages) == (50, False, 2)
    await listing.page(store, wanted, per_page=20, at=2)
    with pytest.raises(ValidationError, match="page"):
        await listing.page(store, wanted, per_page=20, at=3)
    assert found(await walk(store, wanted, 20)) == expected(made, wanted)


@pytest.mark.parametrize("value", ["", "x", "~~~~", "kw", "AAAA", "wA", "é"])
def test_foreign_cursors(value):
    """What no page handed out is refused."""
    with pytest.raises(ValidationError, match="cursor"):
        listing.cursor(value)


DEEP = Cursor(START + 10_000, ids.new(0), 50, 7)
HASHES = tuple(hashed(client, "+491", key) for client in CLIENTS for key in (1, 2))


FILTERS = [
    Filter(clients, status, since, START + 15_000, hashes)
    for clients in (None, ("demo",), CLIENTS)
    for status in (None, "failed")
    for since in (None, START + 5_000)
    for hashes in (None, HASHES)
]


@pytest.mark.parametrize("at", [1, 40, DEEP], ids=["first", "number", "cursor"])
async def test_every_filter_uses_an_index(store, many, at):
    """No filter scans the table, sorts more than a page's keys, or reads rows that it passes over."""
    for wanted in FILTERS:
        branches = listing._branches(wanted)
        for statement, args in (
            listing.page_query(wanted, branches, at, 51),
            listing.count_query(wanted, branches),
        ):
            plan = await store.select(f"EXPLAIN {statement}", args)
            reads = [row for row in plan if row["table"] == "messages"]
            assert len(reads) == len(branches)
            assert {row["key"] for row in reads} == {branches[0].index}
            assert {row["type"] for row in reads} <= {"range", "ref"}
            assert not any("filesort" in (row["Extra"] or "") for row in reads)
            guarded = wanted.number_hashes is not None and wanted.clients is not None
            if not guarded or statement.startswith("SELECT COUNT"):
                assert all("Using index" in row["Extra"] for row in reads)
                assert not any("Using index condition" in row["Extra"] for row in reads)
            assert [row["type"] for row in plan if row["table"] == "m"] in ([], ["eq_ref"])


@pytest.fixture(scope="module")
def made_many() -> list[tuple]:
    rng = random.Random(11)
    return [message(rng, START + n * 10) for n in range(3000)]


@pytest.fixture
async def many(store, made_many):
    """Enough messages for the optimizer to prefer what it would prefer of a million."""
    await put(store, made_many)
    await store.select("ANALYZE TABLE messages")
