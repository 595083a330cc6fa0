"""Graphs as SVG: inside a page, or as files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 480, 150
SPACE = "http://www.w3.org/2000/svg"
ALONE = (
    "svg{background:#fff}polyline{fill:none;stroke:#0b57d0;stroke-width:1.5}"
    "line{stroke:#99a;stroke-width:1}text{font:11px system-ui,sans-serif;fill:#555}"
)
"""The style of a graph that stands in no page."""

Points = Sequence[tuple[float, float]]


def inside(title: str, points: Points) -> str:
    """For an HTML page, which has the style."""
    return _svg(title, points, "", "")


def alone(title: str, points: Points) -> str:
    """A whole file."""
    caption = f'<style>{ALONE}</style><text x="{WIDTH}" y="12" text-anchor="end">{escape(title)}</text>'
    return _svg(title, points, f' xmlns="{SPACE}" width="{WIDTH}" height="{HEIGHT}"', caption) + "\n"


def _svg(title: str, points: Points, attributes: str, first: str) -> str:
    last = max(points[-1][0], 1e-9)
    top = max(1e-9, *(value for _, value in points))
    floor = HEIGHT - 18
    line = " ".join(f"{x / last * WIDTH:.1f},{floor - y / top * (floor - 18):.1f}" for x, y in points)
    below = HEIGHT - 4
    return (
        f'<svg{attributes} viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, at most {top:g}">{first}<text x="2" y="12">{top:g}</text>'
        f'<text x="2" y="{below}">0</text>'
        f'<text x="{WIDTH}" y="{below}" text-anchor="end">{last:g} s</text>'
        f'<line x1="0" y1="{floor}" x2="{WIDTH}" y2="{floor}"/><polyline points="{line}"/></svg>'
    )
