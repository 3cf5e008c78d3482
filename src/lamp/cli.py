"""The `lamp` command: finds the command's words, reads its flags from a dataclass, calls the function that does the work.

Everything heavy is imported inside a command, so that help and mistakes answer at once. A user's mistake is one line on the
error stream and exit code 2.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro

import lamp
from lamp.errors import ConfigError, LampError, unknown
from lamp_client.errors import LampClientError

T = TypeVar("T")
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


def parse(kind: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """Reads flags into a dataclass; a mistake becomes a `ConfigError` in place of tyro's box of text."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            if default is None:
                return tyro.cli(kind, prog=f"lamp {command}", args=arguments)
            return tyro.cli(kind, prog=f"lamp {command}", args=arguments, default=default)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise ConfigError(f"{_one_line(complaint.getvalue())} (lamp {command} --help lists the flags)") from None


def _one_line(box: str) -> str:
    """Condenses tyro's framed message: the frame, its title and the hints below the message go."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯─ \t")
        if text and not line.startswith("╭"):
            sections[-1].append(text)
        elif "──" in line:
            sections.append([])
    told = [" ".join(section) for section in sections if section]
    told = [text for text in told if not text.startswith(("For full helptext", "Argument helptext"))]
    return "; ".join(told) or "the flags could not be read"


def _with_flag(arguments: Sequence[str], flag: str) -> Sequence[str]:
    """Lets the one folder a command is about stand without its flag: `lamp flow build DIR`."""
    if arguments and not arguments[0].startswith("-"):
        return [flag, *arguments]
    return arguments


def _collect(arguments: Sequence[str]) -> None:
    from lamp.collect.collecting import CollectConfig, collect

    collect(parse(CollectConfig, arguments, "collect"))


def _flow_build(arguments: Sequence[str]) -> None:
    from lamp.sceneflow.building import FlowBuildConfig, build

    build(parse(FlowBuildConfig, _with_flag(arguments, "--data"), "flow build"))


def _evaluate(arguments: Sequence[str]) -> None:
    from lamp.benchmark.evaluating import EvaluateConfig, evaluate

    print(evaluate(parse(EvaluateConfig, arguments, "evaluate")).text)


@dataclass(frozen=True, kw_only=True)
class InfoFlags:
    """Says what a folder is: dataset, scene-flow store, feature cache, training run, checkpoint or evaluation."""

    path: tyro.conf.Positional[Path]
    """The folder."""
    json: bool = False
    """Print JSON."""


def _info(arguments: Sequence[str]) -> None:
    from lamp.info import describe, to_text

    flags = parse(InfoFlags, arguments, "info")
    description = describe(flags.path)
    print(json.dumps(description, indent=2, ensure_ascii=False) if flags.json else to_text(description))


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """Lists the recipes, each with what it is for."""


def _recipe_list(arguments: Sequence[str]) -> None:
    from lamp.recipes import RECIPES

    parse(ListFlags, arguments, "recipe list")
    width = max(map(len, RECIPES))
    for name, build in RECIPES.items():
        print(f"{name:<{width}}  {(build.__doc__ or '').strip().splitlines()[0]}")


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Prints a recipe's full configuration as JSON."""

    name: tyro.conf.Positional[str]
    """The recipe."""


def _recipe_show(arguments: Sequence[str]) -> None:
    from lamp.configuration import to_json
    from lamp.recipes import recipe

    chosen = recipe(parse(ShowFlags, arguments, "recipe show").name)
    print(json.dumps(to_json(chosen), indent=2, ensure_ascii=False))


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the line: what it is for, and what runs it."""

    summary: str
    run: Callable[[Sequence[str]], None]


COMMANDS: dict[str, Command] = {
    "collect": Command(summary="record demonstrations of LIBERO tasks with a scripted expert", run=_collect),
    "flow build": Command(summary="compute the 3-D scene flow of a dataset", run=_flow_build),
    "evaluate": Command(summary="run a policy in the simulator and count successes", run=_evaluate),
    "info": Command(summary="say what a folder is and what is in it", run=_info),
    "recipe list": Command(summary="list the recipes: named, complete configurations", run=_recipe_list),
    "recipe show": Command(summary="print a recipe's configuration", run=_recipe_show),
}


def find(words: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """Finds the command that `words` begin with, and returns it with the words that follow.

    Raises:
        ConfigError: The words begin with no command.
    """
    for length in (2, 1):
        command = COMMANDS.get(" ".join(words[:length]))
        if command is not None and len(words) >= length:
            return command, words[length:]
    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    if group and len(words) == 1:
        raise ConfigError(f"'lamp {words[0]}' needs one more word. Known: {', '.join(group)}.")
    if group:
        raise unknown("command", " ".join(words[:2]), group)
    raise unknown("command", words[0], COMMANDS)


def overview(group: str | None = None) -> str:
    """The text of `lamp --help`, or of a group's, such as `lamp train --help`."""
    shown = {name: command for name, command in COMMANDS.items() if group in (None, name.split()[0])}
    width = max(map(len, shown))
    lines = [f"usage: lamp {'COMMAND' if group is None else group + ' ...'} [flags]", ""]
    if group is None:
        lines += [*(lamp.__doc__ or "").splitlines(), ""]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in shown.items()]
    lines += ["", "Every command takes --help."]
    return "\n".join(lines if group else [*lines, "'lamp --version' prints the version."])


@contextlib.contextmanager
def _quiet_end() -> Iterator[None]:
    """Lets `lamp ... | head` end without a word when the reader goes away."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 a user's mistake, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _quiet_end():
            return _dispatch(words)
    except (LampError, LampClientError) as error:
        print(f"lamp: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_MISTAKE
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        print(f"lamp: {error.strerror}: {error.filename}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print("lamp: interrupted; the same command continues where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def _dispatch(words: list[str]) -> int:
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
    elif words[0] == "--version":
        print(f"lamp {lamp.__version__}")
    elif words[0] in groups and words[1:] in (["-h"], ["--help"]):
        print(overview(words[0]))
    else:
        command, flags = find(words)
        try:
            command.run(flags)
        except SystemExit as stop:  # tyro has printed a help text
            return stop.code if isinstance(stop.code, int) else 0
    return 0
