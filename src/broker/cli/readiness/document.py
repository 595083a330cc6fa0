"""A report as a list of blocks, and its two forms: Markdown and HTML. HTML needs nothing but the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 480, 150
WORD = 14
"""Cells up to so many characters stay on one line."""
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1e21;
background:#fff}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}
td,th{border:1px solid #ccd;padding:.25rem .5rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{background:#f2f4f8}
.s{white-space:nowrap}code{font-size:.9em}
.verdict{font-size:1.4rem;padding:.5rem 1rem;border-left:.5rem solid}
.yes{border-color:#1a7f37}.no{border-color:#b3261e}
figure{display:inline-block;width:48%;margin:.5rem 1% .5rem 0}svg{width:100%;height:auto}
figcaption{font-size:.9em}polyline{fill:none;stroke:#0b57d0;stroke-width:1.5}
line{stroke:#99a;stroke-width:1}text{font:11px system-ui;fill:#555}
@media(max-width:40rem){figure{width:100%}}
@media(prefers-color-scheme:dark){body{background:#15181c;color:#e6e6e6}th{background:#23272e}
td,th{border-color:#3a3f47}polyline{stroke:#8ab4f8}line{stroke:#667}text{fill:#aaa}}
"""


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    level: int
    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Points(NamedTuple):
    """A list of points."""

    texts: Sequence[str]


class Table(NamedTuple):
    """A table; every cell is shown as text."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


class Verdict(NamedTuple):
    """The production gate's word."""

    deploy: bool


class Graph(NamedTuple):
    """One series over time; x in seconds."""

    title: str
    points: Sequence[tuple[float, float]]


Block = Heading | Text | Points | Table | Verdict | Graph


def word(verdict: Verdict) -> str:
    """DEPLOY or DO NOT DEPLOY."""
    return "DEPLOY" if verdict.deploy else "DO NOT DEPLOY"


def markdown(blocks: Iterable[Block]) -> str:
    """The report in Markdown; graphs are named by their extremes."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Points(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *rows]
            return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
        case Verdict():
            return f"**{word(block)}**"
        case Graph(title, points):
            values = [value for _, value in points]
            low, high, seconds = min(values), max(values), points[-1][0]
            return f"{title}: from {low:g} to {high:g} in {seconds:g} s (graph in the HTML form)."


def _cell(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def html(blocks: Iterable[Block], title: str) -> str:
    """The report as one HTML file, without anything from elsewhere."""
    body = "\n".join(_html(block) for block in blocks)
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"<head>{meta}<title>{escape(title)}</title><style>{STYLE}</style></head>"
    return f'<!doctype html><html lang="en">{head}<body>\n{body}\n</body></html>\n'


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{_words(text)}</p>"
        case Points(texts):
            return "<ul>" + "".join(f"<li>{_words(text)}</li>" for text in texts) + "</ul>"
        case Table(header, rows):
            head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
            lines = ("".join(_td(str(cell)) for cell in row) for row in rows)
            return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
        case Verdict(deploy):
            return f'<p class="verdict {"yes" if deploy else "no"}"><strong>{word(block)}</strong></p>'
        case Graph(title, points):
            return _svg(title, points)


def _words(text: str) -> str:
    """Text, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _td(cell: str) -> str:
    return f'<td class="s">{escape(cell)}</td>' if len(cell) <= WORD else f"<td>{_words(cell)}</td>"


def _svg(title: str, points: Sequence[tuple[float, float]]) -> str:
    last = max(points[-1][0], 1e-9)
    top = max(1e-9, *(value for _, value in points))
    floor = HEIGHT - 18
    line = " ".join(f"{x / last * WIDTH:.1f},{floor - y / top * (floor - 18):.1f}" for x, y in points)
    below = HEIGHT - 4
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, at most {top:g}"><text x="2" y="12">{top:g}</text>'
        f'<text x="2" y="{below}">0</text>'
        f'<text x="{WIDTH}" y="{below}" text-anchor="end">{last:g} s</text>'
        f'<line x1="0" y1="{floor}" x2="{WIDTH}" y2="{floor}"/><polyline points="{line}"/></svg></figure>'
    )
