"""How pages look whatever they show: in both colour schemes, with long words, foreign scripts, a thousand rows."""

from __future__ import annotations

import pytest

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
