"""The pieces of a self-contained HTML page: sections, tables, figures with their data inside, the page around them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lamp.view.stylesheet import STYLE

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".mp4": "video/mp4", ".svg": "image/svg+xml"}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of the page; `body` is HTML."""

    anchor: str
    title: str
    body: str
    about: str = ""
    """A sentence in plain text below the title."""


def page(*, title: str, lead: str, cards: str, sections: Sequence[Section], footer: str) -> str:
    """Builds the whole page."""
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    parts = [
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>'
        f"{paragraph(section.about, 'about') if section.about else ''}{section.body}</section>"
        for section in sections
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1>{paragraph(lead, 'lead')}<nav>{links}</nav>{cards}</header>"
        f"{''.join(parts)}<footer>{escape(footer)}</footer></main></body></html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def absent(what: str) -> str:
    """Says that the run does not have something."""
    return paragraph(what, "absent")


def cards(items: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: (what, value, remark) each."""
    if not items:
        return ""
    made = "".join(
        f"<div class=card><span>{escape(what)}</span><b>{escape(value)}</b><em>{escape(remark)}</em></div>"
        for what, value, remark in items
    )
    return f'<div class="cards">{made}</div>'


def panel(body: str, title: str = "") -> str:
    """A framed piece; nothing if it is empty."""
    if not body:
        return ""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="panel">{head}{body}</div>'


def panels(items: Sequence[str]) -> str:
    """Framed pieces beside each other where there is room."""
    return f'<div class="panels">{"".join(items)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, best: int | None = None) -> str:
    """A table of plain text; numbers to the right, the first column to the left."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=best' if index == best else ''}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for index, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(items: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    made = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(said(value))}</dd>" for name, value in items.items())
    return f"<dl>{made}</dl>"


def said(value: Any) -> str:
    """A value in words: lists joined, numbers with separators."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(said(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {said(item)}" for name, item in value.items()) or "none"
    return "none" if value is None else str(value)


def notes(items: Sequence[str]) -> str:
    """A list of sentences."""
    return f'<ul class="notes">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>'


def code(title: str, value: Any) -> str:
    """A folded piece of JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def data_uri(content: bytes, suffix: str) -> str:
    """A file's content as part of the page."""
    return f"data:{MEDIA[suffix]};base64,{base64.b64encode(content).decode()}"


def jpeg(image: np.ndarray, quality: int = 86) -> bytes:
    """Encodes an image (H, W, 3) uint8 as JPEG, which keeps pages of photographs small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def figure(media: str, caption: str, kind: str = "") -> str:
    """A picture or a film with its caption, both HTML."""
    return f'<figure class="{kind}">{media}<figcaption>{caption}</figcaption></figure>'


def picture(path: Path, alt: str) -> str:
    """A picture with its data inside; photographs are stored as JPEG."""
    with Image.open(path) as image:
        content = jpeg(np.asarray(image.convert("RGB")), quality=90)
    return f'<img alt="{escape(alt)}" src="{data_uri(content, ".jpg")}">'


def film(path: Path, poster: np.ndarray | None) -> str:
    """A film with its data inside, and a picture to show before it plays."""
    still = f' poster="{data_uri(jpeg(poster), ".jpg")}"' if poster is not None else ""
    source = data_uri(path.read_bytes(), path.suffix.lower())
    return f'<video controls loop muted playsinline preload="metadata"{still} src="{source}"></video>'


def gallery(figures: Sequence[str], *, broad: bool = False) -> str:
    """Figures in a grid."""
    return f'<div class="gallery{" broad" if broad else ""}">{"".join(figures)}</div>'
