"""Lists on a phone: nothing of a row is out of sight, whatever it shows, and to who hears it a list stays a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from broker import clock
from support import browsing, looking
from support.browsing import Person
from support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLIENT = "crowd-" + "w" * 58
# The pages with lists, and how many each has at least.
LISTS = {"/": 2, "/admin": 1, f"/admin/messages?client_id={CLIENT}": 1, f"/admin/parked?client_id={CLIENT}": 2,
         "/admin/users": 1, "/admin/clients": 1, "/admin/certificates": 1, "/admin/projections": 5,
         "/admin/streams": 3, "/audit": 1}  # fmt: skip
LONG = "\u202eمرحبا بالعالم " * 10 + "🎉" * 40 + "W" * 200

# How many lists there are, and what is wrong with them.
LOOK = """() => {
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  const tables = [...document.querySelectorAll(".scroll table")];
  const wrong = [];
  for (const table of tables) {
    const frame = table.closest(".scroll");
    if (frame.scrollWidth > frame.clientWidth) wrong.push(`${frame.ariaLabel} is ${frame.scrollWidth} wide`);
    const names = [...table.tHead.rows[0].cells].map((each) => each.textContent);
    for (const row of table.tBodies[0].rows) {
      const cells = [...row.cells].filter((each) => each.hasChildNodes());
      const boxes = cells.map((each) => each.getBoundingClientRect());
      const says = (what) => wrong.push(`${frame.ariaLabel}, ${what}: ${row.textContent.slice(0, 200)}`);
      cells.forEach((cell, at) => {
        const { left, right, height } = boxes[at];
        const name = names[cell.cellIndex];
        if (left < 0 || right > innerWidth || !height) says(`${name} is at ${left} to ${right}`);
        if ((cell.dataset.label ?? name) !== name) says(`${name} is called ${cell.dataset.label}`);
        const first = boxes.every((each) => each.left > left || each.top > boxes[at].top || each === boxes[at]);
        if (name.startsWith("Stat") && !first) says("its status is not first");
      });
    }
  }
  return [tables.length, wrong];
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def crowd(system: System) -> AsyncIterator[None]:
    """A hundred messages, half of them parked, of a client with a long name, for reasons that are hard to show."""
    await browsing.settled(system, "demo", 1, "delivered")
    (one,) = system.query("SELECT * FROM messages WHERE client_id='demo' LIMIT 1")
    one |= {
        "client_id": CLIENT,
        "queued_at": clock.iso(clock.now_ms())[:19],
        "reason": LONG,
        "last_error": LONG,
    }
    rows = [
        one | {"message_id": f"016f5e66-e800-7000-8000-{number:010x}00", "parked": number % 2,
               "status": "queued" if number % 2 else "failed"}
        for number in range(100)
    ]  # fmt: skip
    with system.mysql() as link, link.cursor() as cursor:
        places = ",".join(["%s"] * len(one))
        cursor.executemany(
            f"INSERT INTO messages ({','.join(one)}) VALUES ({places})", [tuple(row.values()) for row in rows]
        )
        try:
            yield
        finally:
            cursor.execute("DELETE FROM messages WHERE client_id=%s", CLIENT)


async def heard(somebody: Person) -> Counter[str]:
    """How many parts of tables somebody hears of."""
    session = await somebody.page.context.new_cdp_session(somebody.page)
    answer = await session.send("Accessibility.getFullAXTree")
    await session.detach()
    roles = Counter(each["role"]["value"] for each in answer["nodes"] if not each["ignored"])
    return Counter({role: roles[role] for role in ("table", "row", "columnheader", "cell")})


async def test_lists_are_read_on_a_phone(admin: Person, crowd: None, pictures: Path | None) -> None:
    """On 360 pixels all of each row is in sight, its status first; what is heard of it is what is heard elsewhere."""
    for path, lists in LISTS.items():
        await admin.page.set_viewport_size({"width": 360, "height": 800})
        await admin.go(path)
        found, wrong = await admin.page.evaluate(LOOK)
        assert (found >= lists, wrong) == (True, []), path
        assert await admin.page.evaluate(looking.WIDE) <= 360, path
        if pictures is not None:
            await looking.photograph(admin, pictures, f"360-crowd{path}")
        if path.startswith("/admin/parked"):
            on_phone = await heard(admin)
            await admin.page.set_viewport_size({"width": 1440, "height": 800})
            assert on_phone == await heard(admin)
            assert on_phone["row"] > 50
            await admin.page.set_viewport_size({"width": 360, "height": 800})
            await looking.accessible(admin)
