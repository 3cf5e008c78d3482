"""Descriptions, as `lamp info` and others print them: nested JSON values in lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LINES, WIDTH, ENTRIES = 40, 120, 4
"""Of a description in brief: lines, letters of a line, and entries of a list."""


def brief_lines(description: Mapping[str, Any]) -> Iterator[str]:
    """A line for each entry; lists of objects take a few lines more."""
    for key, item in description.items():
        match item:
            case [*entries] if _nested(item):
                yield f"{key}:"
                yield from (f"  - {_compact(entry)}" for entry in entries[:ENTRIES])
                if len(entries) > ENTRIES:
                    yield f"  ... and {len(entries) - ENTRIES} more"
            case _:
                yield f"{key}: {_compact(item)}"


def _compact(item: Any, depth: int = 0) -> str:
    """A value on one line, what is nested in parentheses."""
    match item:
        case {} if item:
            text = ", ".join(f"{key} {_compact(entry, depth + 1)}" for key, entry in item.items())
            return f"({text})" if depth else text
        case [*entries] if _nested(item):
            return "; ".join(_compact(entry, depth + 1) for entry in entries)
    return " ".join(_shortened(item).split())


def cut(line: str, width: int = WIDTH) -> str:
    """A line that is not longer than so many letters."""
    return line if len(line) <= width else f"{line[: width - 3]}..."


def to_text(value: Mapping[str, Any]) -> str:
    """Lays a description out for a terminal: one entry a line, nested entries indented."""
    return "\n".join(_lines(value, ""))


def _lines(value: Mapping[str, Any], indent: str) -> Iterator[str]:
    width = max((len(str(key)) for key, item in value.items() if not _nested(item)), default=0)
    for key, item in value.items():
        if not _nested(item):
            yield f"{indent}{str(key) + ':':<{width + 1}} {_shortened(item)}"
            continue
        yield f"{indent}{key}:"
        match item:
            case {}:
                yield from _lines(item, indent + "  ")
            case [*entries]:
                for entry in entries:
                    lines = list(_lines(entry, indent + "    "))
                    yield from [f"{indent}  - {lines[0].lstrip()}", *lines[1:]]


def _nested(item: Any) -> bool:
    """Whether it takes lines of its own: an object, or a list of objects."""
    match item:
        case {}:
            return bool(item)
        case [*entries]:
            return any(type(entry) is not list and _nested(entry) for entry in entries)
    return False


def _shortened(item: Any) -> str:
    match item:
        case None | {} | []:
            return "-"
        case bool():
            return "yes" if item else "no"
        case float():
            return f"{item:.6g}"
        case [*entries]:
            return ", ".join(map(_shortened, entries))
    return str(item)
