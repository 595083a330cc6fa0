"""A report as a list of blocks, and its two forms: Markdown and HTML. HTML needs nothing but the file."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from broker.cli.readiness import drawing

WORD = 20
"""Cells up to so many characters stay on one line."""
BLANK = "_" * 21
"""A field that people fill in."""
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1e21;
background:#fff;overflow-wrap:anywhere}
div.t{overflow-x:auto;margin:.5rem 0 1rem}table{border-collapse:collapse;width:100%}
td,th{border:1px solid #ccd;padding:.25rem .5rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{background:#f2f4f8;overflow-wrap:normal}td.l{min-width:9rem}
.s{white-space:nowrap}code{font-size:.9em}
.verdict{font-size:1.4rem;padding:.5rem 1rem;border-left:.5rem solid}
.yes{border-color:#1a7f37}.no{border-color:#b3261e}
ul.f{list-style:none;padding:0}
figure{display:inline-block;width:48%;margin:.5rem 1% .5rem 0;vertical-align:top}svg{width:100%;height:auto}
img{max-width:100%;max-height:40rem;border:1px solid #ccd}ul.a{margin:0}
figcaption{font-size:.9em}polyline{fill:none;stroke:#0b57d0;stroke-width:1.5}
line{stroke:#99a;stroke-width:1}text{font:11px system-ui;fill:#555}
@media(max-width:40rem){figure{width:100%}}
@media(prefers-color-scheme:dark){body{background:#15181c;color:#e6e6e6}th{background:#23272e}
a{color:#8ab4f8}td,th{border-color:#3a3f47}polyline{stroke:#8ab4f8}line{stroke:#667}text{fill:#aaa}}
"""


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    level: int
    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Points(NamedTuple):
    """A list of points; `numbered` where their order matters."""

    texts: Sequence[str]
    numbered: bool = False


class Fields(NamedTuple):
    """Names and values; an empty value is a line to be filled in by hand."""

    pairs: Sequence[tuple[str, object]]


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

    @property
    def file(self) -> str:
        """Where it lies beside the Markdown."""
        return f"graphs/{re.sub('[^a-z0-9]+', '-', self.title.lower()).strip('-')}.svg"


class Picture(NamedTuple):
    """A picture that lies at `path`; PNG."""

    title: str
    path: Path

    @property
    def file(self) -> str:
        """Where it lies beside the Markdown."""
        return f"screens/{self.path.name}"


class Attached(NamedTuple):
    """A text of its own beside the report; `file` is relative to it."""

    title: str
    file: str
    content: str


Block = Heading | Text | Points | Fields | Table | Verdict | Graph | Picture | Attached


def word(verdict: Verdict) -> str:
    """DEPLOY or DO NOT DEPLOY."""
    return "DEPLOY" if verdict.deploy else "DO NOT DEPLOY"


def save(directory: Path, blocks: Sequence[Block], title: str) -> None:
    """`report.html`, `report.md`, and beside them what the Markdown shows and both name."""
    for block in blocks:
        if not isinstance(block, Graph | Picture | Attached):
            continue
        path = directory / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        match block:
            case Graph():
                path.write_text(drawing.alone(block.title, block.points), "utf-8")
            case Picture():
                path.write_bytes(block.path.read_bytes())
            case Attached():
                path.write_text(block.content, "utf-8")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.md").write_text(markdown(blocks), "utf-8")
    (directory / "report.html").write_text(html(blocks, title), "utf-8")


def markdown(blocks: Iterable[Block]) -> str:
    """The report in Markdown; graphs and pictures are files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    found = ""
    match block:
        case Heading(level, text):
            found = f"{'#' * level} {text}"
        case Text(text):
            found = text
        case Points(texts, numbered):
            found = "\n".join(f"{f'{n}.' if numbered else '-'} {text}" for n, text in enumerate(texts, 1))
        case Fields(pairs):
            found = "\n".join(f"- **{name}**: {_tame(value) or BLANK}" for name, value in pairs)
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *rows]
            found = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
        case Verdict():
            found = f"**{word(block)}**"
        case Graph(title, points):
            values = [value for _, value in points]
            low, high, seconds = min(values), max(values), points[-1][0]
            found = f"{title}: from {low:g} to {high:g} in {seconds:g} s.\n\n![{title}]({block.file})"
        case Picture(title):
            found = f"![{title}]({block.file})"
        case Attached(title, file):
            found = f"- {title}: [{file}]({file})"
    return found


def _tame(value: object) -> str:
    """On one line; no markup of HTML comes from it."""
    return str(value).replace("\\", "\\\\").replace("<", "\\<").replace("\n", " ")


def _cell(value: object) -> str:
    return _tame(value).replace("|", "\\|")


def html(blocks: Iterable[Block], title: str) -> str:
    """The report as one HTML file, without anything from elsewhere."""
    body = "\n".join(_html(block) for block in blocks)
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"<head>{meta}<title>{escape(title)}</title><style>{STYLE}</style></head>"
    return f'<!doctype html><html lang="en">{head}<body>\n{body}\n</body></html>\n'


def _html(block: Block) -> str:
    found = ""
    match block:
        case Heading(level, text):
            found = f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            found = f"<p>{_words(text)}</p>"
        case Points(texts, numbered):
            kind = "ol" if numbered else "ul"
            found = f"<{kind}>" + "".join(f"<li>{_words(text)}</li>" for text in texts) + f"</{kind}>"
        case Fields(pairs):
            lines = (f"<li><strong>{escape(k)}</strong>: {_words(str(v)) or BLANK}</li>" for k, v in pairs)
            found = f'<ul class="f">{"".join(lines)}</ul>'
        case Table(header, rows):
            head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
            body = "".join(f"<tr>{''.join(_td(str(cell)) for cell in row)}</tr>" for row in rows)
            found = f'<div class="t"><table><tr>{head}</tr>{body}</table></div>'
        case Verdict(deploy):
            found = f'<p class="verdict {"yes" if deploy else "no"}"><strong>{word(block)}</strong></p>'
        case Graph(title, points):
            found = _figure(title, drawing.inside(title, points))
        case Picture(title, path):
            data = base64.b64encode(path.read_bytes()).decode()
            found = _figure(title, f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">')
        case Attached(title, file):
            found = (
                f'<ul class="a"><li>{escape(title)}: <a href="{escape(file)}">{escape(file)}</a></li></ul>'
            )
    return found


def _figure(title: str, inside: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{inside}</figure>"


def _words(text: str) -> str:
    """Text, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _td(cell: str) -> str:
    if len(cell) <= WORD:
        return f'<td class="s">{escape(cell)}</td>'
    return f'<td class="l">{_words(cell)}</td>' if len(cell) > 2 * WORD else f"<td>{_words(cell)}</td>"
