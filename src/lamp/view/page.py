"""The page of a report: its building blocks as plain data, turned into one self-contained HTML file by `templates/`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str
    style: str = ""
    """A class of the style sheet: `about` or `found` (a result in words)."""


@dataclass(frozen=True)
class Notes:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values in two columns."""

    items: Mapping[str, Any]


@dataclass(frozen=True)
class Code:
    """A folded JSON value."""

    title: str
    value: Any


@dataclass(frozen=True)
class Shell:
    """A command line to copy."""

    command: str


@dataclass(frozen=True)
class Table:
    """Plain text in cells: numbers to the right, the first column to the left."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: int | None = None
    """Row to emphasise."""


@dataclass(frozen=True)
class LegendEntry:
    """A series' name and mark."""

    name: str
    colour: int
    mark: str
    """`dash`, `dot` or `dot hollow`."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing and its legend."""

    svg: Markup
    legend: Sequence[LegendEntry] = ()
    wide: bool = False


@dataclass(frozen=True)
class TimeBar:
    """Where the time went: one bar of parts, and each part's time and share."""

    seconds: Mapping[str, float | int]

    @property
    def parts(self) -> list[tuple[str, str, float]]:
        """Name, duration and share of each part; none without any time."""
        total = sum(self.seconds.values())
        return [(name, duration(value), value / total) for name, value in self.seconds.items()] if total > 0 else []


@dataclass(frozen=True)
class PathColours:
    """The legend of pictures with predicted paths."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture or a film, its data inside, with a caption."""

    source: str
    """Data URI; nothing is shown above the caption if empty."""
    caption: str
    alt: str = ""
    film: bool = False
    poster: str = ""
    """Data URI of the picture before a film plays."""
    remark: str = ""
    """Smaller, after the caption."""
    success: bool | None = None
    """Shown as a badge before the caption."""
    full: bool = False
    """Takes the page's whole width."""


@dataclass(frozen=True)
class Gallery:
    """Figures in a grid."""

    figures: Sequence[Figure]
    broad: bool = False


@dataclass(frozen=True)
class Panel:
    """Framed blocks; nothing where there are none."""

    blocks: Sequence[Block | None]
    title: str = ""


@dataclass(frozen=True)
class Columns:
    """Panels beside each other where there is room."""

    panels: Sequence[Panel]


Block = Paragraph | Notes | Facts | Code | Shell | Table | Chart | TimeBar | PathColours | Gallery | Panel | Columns


@dataclass(frozen=True)
class Card:
    """A large number at the top."""

    name: str
    value: str
    remark: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    about: str = ""
    """A sentence below the title."""


def printable(text: str) -> str:
    """Text as a page and a picture can hold it: on one line, with a mark for what is no letter, such as a control character."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]")


def duration(seconds: float | int) -> str:
    """Formats a duration for people."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def value_text(value: Any) -> str:
    """A value in words: lists joined, numbers with separators."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(value_text, value)) or "none"
        case dict():
            return ", ".join(f"{name} {value_text(item)}" for name, item in value.items()) or "none"
    return str(value)


def render_page(
    *, title: str, lead: str, cards: Sequence[Card], sections: Sequence[Section], footer: str, warning: str = ""
) -> str:
    template = _environment().get_template("report.html")
    return (
        template.render(title=title, lead=lead, warning=warning, cards=cards, sections=sections, footer=footer) + "\n"
    )


def render_section(section: Section) -> str:
    return _environment().get_template("section.html").render(section=section)


@cache
def _environment() -> Environment:
    """Everything is escaped but charts, which are drawn and escaped by Matplotlib."""
    environment = Environment(
        loader=PackageLoader("lamp.view"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters["value_text"] = value_text
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str)
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.tests["shown"] = _is_shown
    return environment


def _is_shown(block: Block | None) -> bool:
    match block:
        case None:
            return False
        case Panel():
            return any(map(_is_shown, block.blocks))
        case Columns():
            return any(map(_is_shown, block.panels))
        case TimeBar():
            return bool(block.parts)
    return True


def shown(blocks: Iterable[Block | None]) -> list[Block]:
    """The blocks that have something to show."""
    return [block for block in blocks if block is not None and _is_shown(block)]
