"""Flags of the command line, read from dataclasses, with a recipe's values as their defaults."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, TypeVar

import tyro
from tyro import _strings

from lamp.errors import ConfigError

T = TypeVar("T")
Own = TypeVar("Own")
SEEDS = 1 << 63
"""Seeds are from 0 up to this."""


def parse(
    kind: type[T], arguments: Sequence[str], command: str, default: T | None = None, *, leading: str | None = None
) -> T:
    """Reads flags into a dataclass; a mistake becomes a `ConfigError` in place of tyro's box of text.

    `leading` is a flag whose value may come first without the flag, which the help text then says: `lamp flow build DIR`.
    """
    complaint = io.StringIO()
    named: dict[str, Any] = {} if default is None else {"default": default}
    if leading is not None:
        arguments = with_flag(arguments, leading)
        short = f"`lamp {command} DIR` is short for `lamp {command} {leading} DIR`."
        named["description"] = f"{' '.join((kind.__doc__ or '').split())} {short}"
    try:
        with contextlib.redirect_stderr(complaint), _paragraphs():
            found = tyro.cli(kind, prog=f"lamp {command}", args=arguments, **named)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise ConfigError(f"{_one_line(complaint.getvalue())} (lamp {command} --help lists the flags)") from None
    _check_seeds(found)
    return found


@contextlib.contextmanager
def _paragraphs() -> Iterator[None]:
    """Lets tyro wrap each paragraph of a field's docstring anew: it keeps the line breaks of a source that is indented."""
    original = getattr(_strings, "remove_single_line_breaks", None)
    if original is None:  # another version of tyro: the text is right, if ragged
        yield
        return
    _strings.remove_single_line_breaks = lambda text: "\n\n".join(  # pyright: ignore[reportPrivateUsage]
        " ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip())
    )
    try:
        yield
    finally:
        _strings.remove_single_line_breaks = original


def _check_seeds(values: Any) -> None:
    """
    Raises:
        ConfigError: A seed, however deep in the values, is none that all generators of random numbers take.
    """
    for field in fields(values) if is_dataclass(values) else ():
        value = getattr(values, field.name)
        if is_dataclass(value):
            _check_seeds(value)
        elif f"_{field.name}".endswith("_seed") and isinstance(value, int) and not 0 <= value < SEEDS:
            raise ConfigError(f"{field.name} {value} is no seed; expected a whole number from 0 to {SEEDS - 1}")


def _one_line(box: str) -> str:
    """Condenses tyro's framed message: the frame, its title and the hints below the message go."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        # A rule, the title's too; drawn in ASCII where the terminal knows no more.
        if "──" in line or "-----" in line:
            sections.append([])
        elif line.strip("│╭╮╰╯─|+ \t"):
            # How far it is indented tells a flag from its description.
            sections[-1].append(line.strip("│╭╮╰╯─|+").rstrip())
    messages = [" ".join(_without_descriptions(section)) for section in sections if section]
    messages = [text for text in messages if not text.startswith(("For full helptext", "Argument helptext"))]
    return "; ".join(messages) or "the flags could not be read"


def _without_descriptions(section: list[str]) -> list[str]:
    """Of a list of missing flags and arguments only these themselves are kept."""
    words = [line.strip() for line in section]
    if not words[0].startswith("Missing from"):
        return words
    depths = [len(line) - len(line.lstrip()) for line in section[1:]]
    named = [word for word, depth in zip(words[1:], depths, strict=True) if depth == min(depths)]
    return [words[0], ", ".join(named)]


def with_flag(arguments: Sequence[str], flag: str) -> Sequence[str]:
    """Puts a flag before a first argument that stands without one."""
    return [flag, *arguments] if arguments and not arguments[0].startswith("-") else arguments


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value given for a flag, before the flags are parsed: it decides what the others' defaults are."""
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None


def parse_beside(
    own: type[Own],
    kind: type[T],
    arguments: Sequence[str],
    command: str,
    settings: T | None = None,
    *,
    leading: str | None = None,
) -> tuple[Own, T]:
    """Reads a command's own flags and, beside them, those of a configuration, such as `--loop.steps`.

    `settings` holds the configuration's defaults; if None, its class does. See `parse` for `leading`.
    """
    beside = Annotated[tyro.conf.AvoidSubcommands[kind], tyro.conf.arg(name="")]
    flags = make_dataclass("Flags", [("settings", beside)], bases=(own,), frozen=True, kw_only=True)
    flags.__doc__ = own.__doc__
    default: Any = None
    if settings is not None:
        mine = {field.name: tyro.MISSING if field.default is MISSING else field.default for field in fields(own)}  # pyright: ignore[reportArgumentType]
        default = flags(settings=settings, **mine)
    found: Any = parse(flags, arguments, command, default, leading=leading)
    return found, found.settings
