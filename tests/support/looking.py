"""What every page of the portal must be: readable on every width, in light and dark, by everybody."""

from __future__ import annotations

import re
from pathlib import Path

from axe_playwright_python.async_playwright import Axe

from support.browsing import Person

WIDTHS = (360, 768, 1440)
# Links of the head that are seen but not on the page, whatever its width.
OUTSIDE = """() => [...document.querySelectorAll("header a, header button")].filter((each) => {
  const box = each.getBoundingClientRect();
  return box.width && (box.left < 0 || box.right > innerWidth);
}).map((each) => each.outerHTML)"""
WIDE = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(
  () => done(document.documentElement.scrollWidth))))"""
# In the other colour scheme the same elements stand at the same place: only what is read from can differ.
CONTRAST = "() => axe.run({runOnly: ['color-contrast'], resultTypes: ['violations']})"


# Rows of a list are made by one loop: the first ones, and one of each state, stand for all.
SHORTENED = """() => {
  const seen = new Set();
  for (const body of document.querySelectorAll("tbody")) {
    [...body.rows].forEach((row, number) => {
      const states = [...row.querySelectorAll(".state")].map((each) => each.className);
      if (number >= 3 && states.every((each) => seen.has(each))) row.remove();
      states.forEach((each) => seen.add(each));
    });
  }
}"""


async def fits(somebody: Person, pictures: Path | None = None, name: str = "") -> None:
    """On no width does anything run over the side, or is a link of the head out of reach."""
    for width in WIDTHS:
        await somebody.page.set_viewport_size({"width": width, "height": 800})
        wide = await somebody.page.evaluate(WIDE)
        assert wide <= width, f"{somebody.path} is {wide} wide on {width}"
        assert await somebody.page.evaluate(OUTSIDE) == [], f"{somebody.path} on {width}"
        if pictures is not None:
            await photograph(somebody, pictures, f"{width}-{name}")


async def accessible(somebody: Person) -> None:
    """Axe finds nothing serious or critical, in either colour scheme. Leaves lists shortened."""
    # Without motion colours change at once.
    await somebody.page.emulate_media(color_scheme="light", reduced_motion="reduce")
    await somebody.page.evaluate(SHORTENED)
    answer = (await Axe().run(somebody.page)).response
    assert len(answer["passes"]) > 10
    await somebody.page.emulate_media(color_scheme="dark")
    dark = await somebody.page.evaluate(CONTRAST)
    await somebody.page.emulate_media(color_scheme="light")
    for found in (answer, dark):
        grave = [
            (each["id"], [node["target"] for node in each["nodes"]], each["nodes"][0].get("any"))
            for each in found["violations"]
            if each["impact"] in {"serious", "critical"}
        ]
        assert grave == [], (somebody.path, grave)


async def photograph(person: Person, directory: Path, name: str) -> None:
    """A picture of the whole page in each colour scheme."""
    plain = re.sub(r"[^a-z0-9]+", "-", re.sub(r"[0-9a-f-]{30,}|\d+:\d+-\d+", "one", name.lower())).strip("-")
    for scheme in ("light", "dark"):
        await person.page.emulate_media(color_scheme=scheme)
        await person.page.screenshot(
            path=directory / f"{plain}-{scheme}.png", full_page=True, animations="disabled"
        )
