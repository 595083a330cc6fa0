"""How pages look whatever they show: in both colour schemes, with long words, foreign scripts, a thousand rows."""

from __future__ import annotations

import asyncio
import re

import pytest

from broker.projections.timeline import Step
from broker.services.portal import pages
from support import browsing

pytestmark = pytest.mark.asyncio(loop_scope="session")

# How bright the brightest and the darkest of what the chart has drawn are.
DRAWN = """() => {
  const drawn = document.querySelector(".chart canvas");
  const canvas = new OffscreenCanvas(drawn.width, drawn.height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(drawn, 0, 0);
  const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
  let least = 255, most = 0;
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] < 200) continue;
    const bright = (data[at] + data[at + 1] + data[at + 2]) / 3;
    least = Math.min(least, bright);
    most = Math.max(most, bright);
  }
  return [least, most];
}"""


async def test_the_chart_follows_the_colour_scheme(reader):
    """Its axes are dark on light and light on dark, also where the scheme changes while it is shown."""
    await reader.page.emulate_media(color_scheme="light")
    await reader.go("/")
    await reader.page.wait_for_selector(".chart canvas")
    await reader.page.wait_for_function(f"() => ({DRAWN})()[0] < 100")
    await reader.page.emulate_media(color_scheme="dark")
    await reader.page.wait_for_function(f"() => {{ const [least, most] = ({DRAWN})(); return most > 170; }}")
    assert await reader.page.locator(".chart canvas").count() == 1
    await reader.page.emulate_media(color_scheme="light")
    await reader.page.wait_for_function(f"() => ({DRAWN})()[0] < 100")


async def test_a_list_says_that_it_is_being_asked_for(admin):
    """While a filter's answer is on its way the list is marked as busy, and not any more once it is there."""
    await admin.go("/admin/messages")
    let = asyncio.Event()

    async def late(route) -> None:
        await let.wait()
        await route.continue_()

    await admin.page.route("**/admin/messages?**", late)
    await admin.page.select_option("#status", "delivered")
    await admin.page.wait_for_selector("#list[aria-busy=true]")
    let.set()
    await admin.page.wait_for_selector("#list:not([aria-busy])")
    assert set(await admin.page.locator("#list .state").all_inner_texts()) == {"delivered"}


MANY = 1000


@pytest.fixture
def crowd(system):
    """A thousand messages of a client, long ago, so that nobody else's page shows them."""
    (one,) = system.query("SELECT * FROM messages WHERE client_id='demo' LIMIT 1")
    one |= {"client_id": "crowd", "queued_at": "2020-01-01 00:00:00"}
    columns = ",".join(one)
    with system.mysql() as link, link.cursor() as cursor:
        ids = [f"016f5e66-e800-7000-8000-{number:010x}00" for number in range(MANY)]
        rows = [tuple((one | {"message_id": each}).values()) for each in ids]
        cursor.executemany(f"INSERT INTO messages ({columns}) VALUES ({','.join(['%s'] * len(one))})", rows)
        try:
            yield set(ids)
        finally:
            cursor.execute("DELETE FROM messages WHERE client_id='crowd'")


async def test_a_thousand_messages_are_paged_through(system, tickets, crowd):
    """Every one once, fifty a page, though all came at the same moment; the last page leads no further."""
    seen: list[str] = []
    path = "/admin/messages?client_id=crowd"
    with browsing.visiting(system, tickets("boss@example.com")) as http:
        while path:
            page = http.get(path)
            assert page.status_code == 200
            found = re.findall(r'<code title="([0-9a-f-]{36})"', page.text)
            assert len(found) == 50
            seen += found
            following = re.search(r'rel="next" href="([^"]+)"', page.text)
            path = following and following[1].replace("&amp;", "&")
    assert (len(seen), set(seen)) == (MANY, crowd)


@pytest.mark.parametrize(("count", "left_out"), [(0, None), (100, None), (101, "1"), (3000, "2,900")])
async def test_a_long_timeline_is_shown_in_part(count, left_out):
    """Of very many steps the first and the last ones; who may see the history is led to the others."""
    steps = [Step("DeliveryAttempted", f"0:1-{n}", n, "worker:w", cycle=1, attempt=n) for n in range(count)]
    for history in (None, "/audit?subject=x"):
        text = pages.fragment("timeline.html", steps=steps, history=history)
        assert text.count("<strong>") == min(count, 100)
        assert ('href="/audit?subject=x"' in text) == bool(history and left_out)
        said = re.search(r"([\d,]+) steps between are not shown", text)
        assert (said and said[1]) == left_out
        if count:
            assert f"Attempt {count - 1}</strong>" in text
