"""Flags of the command line, read from dataclasses, with a recipe's values as their defaults."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
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
            parsed = tyro.cli(kind, prog=f"lamp {command}", args=arguments, **named)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        message = _one_line(complaint.getvalue())
        mistyped = re.search(r"Unrecognized options: (--[\w.-]+)", message)
        if (
            mistyped and "did you mean" not in message
        ):  # where something is missing too, tyro does not look for what is near
            known = flags_of(lambda flags: tyro.cli(kind, args=flags, **named))
            near = difflib.get_close_matches(mistyped[1], known, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{message} (lamp {command} --help lists the flags)") from None
    _check_seeds(parsed)
    return parsed


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
    """Of a list of missing flags and arguments, or of those that may have been meant, only these themselves are kept."""
    words = [line.strip() for line in section]
    if words[0].startswith("Perhaps you meant"):
        near = [word.split()[0].rstrip(",") for word in words[1:] if word.startswith("--")]
        return [f"did you mean {' or '.join(near)}?"]
    if not words[0].startswith("Missing from"):
        return words
    depths = [len(line) - len(line.lstrip()) for line in section[1:]]
    named = [word for word, depth in zip(words[1:], depths, strict=True) if depth == min(depths)]
    return [words[0], ", ".join(named)]


_ENTRY = re.compile(r"(?m)^[│ ] (--?[a-zA-Z][\w.-]*)(?:, (--[\w.-]+))?")
"""A flag's line in a help text, with its opposite; those of its description are indented further."""


def usual_help(text: str, usual: Collection[str]) -> str:
    """A help text with the usual flags only, and how many others there are; groups in which none is left go.

    A group is a frame with a title or, where the terminal knows ASCII only, a title over a rule, up to an empty line.
    """
    kept: list[str] = []
    group: list[str] = []
    inside = shown = False
    left_out = 0
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not inside:
            inside, shown, group = line.startswith("╭") or (_is_title(line) and _is_rule(following)), False, [line]
            kept += [] if inside else [line]
        elif line.startswith("╰") or (not line.strip() and (_is_title(following) or not following)):
            kept += [*group, line] if any(map(_ENTRY.match, group)) else []
            inside = False
        elif len(group) == 1 and _is_rule(line):
            group.append(line)
        else:
            if entry := _ENTRY.match(line):
                shown = entry[1] in usual or entry[1] == "-h"
                left_out += not shown
            group += [line] if shown else []
    return "\n".join([*kept, f"'--help-all' lists {left_out} more flags."])


def _is_title(line: str) -> bool:
    """Of a group, where the terminal knows ASCII only: whatever is inside is indented further."""
    return line[:1] == " " and line[1:2] not in ("", " ")


def _is_rule(line: str) -> bool:
    return len(line.strip()) > 3 and not line.strip().strip("-")


def help_text(run: Callable[[Sequence[str]], object], flags: Sequence[str]) -> str:
    """What a command prints where its flags ask for help, in the letters that the terminal knows."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding=getattr(sys.stdout, "encoding", None) or "utf-8")
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        run(flags)
    shown.seek(0)
    return shown.read()


def flags_of(run: Callable[[Sequence[str]], object]) -> tuple[str, ...]:
    """The flags of a command, as its help text lists them.

    Args:
        run: What runs it.
    """
    flags = [flag for pair in _ENTRY.findall(help_text(run, ["--help"])) for flag in pair]
    return tuple(dict.fromkeys(flag for flag in flags if flag.startswith("--")))


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
    parsed: Any = parse(flags, arguments, command, default, leading=leading)
    return parsed, parsed.settings
