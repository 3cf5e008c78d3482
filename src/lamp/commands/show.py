"""Commands that show what is there: reports, pictures, trials on a robot, what is in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from lamp.commands.command import Command, SelectionFlags, embodiment, find_checkpoint
from lamp.errors import unknown
from lamp.flags import flags_of, parse, parse_beside


def _view(arguments: Sequence[str]) -> None:
    from lamp.view.foresight import ViewConfig, view

    config = parse(ViewConfig, arguments, "view", leading="--data")
    config = replace(config, checkpoint=find_checkpoint(config.checkpoint)) if config.checkpoint else config
    print(f"{config.out}: {view(config)}")


def _view_flow(arguments: Sequence[str]) -> None:
    from lamp.view.flow_scene import FlowViewConfig, view_flow

    print(view_flow(parse(FlowViewConfig, arguments, "view flow", leading="--clip")))


@dataclass(frozen=True, kw_only=True)
class ReplayFlags(SelectionFlags):
    """A dry run: gives a policy the observations of recorded episodes, and compares its actions with the recorded ones, value by
    value, in numbers and a picture. Nothing moves."""

    embodiment: str | None = None
    """How the dataset records its robot: lamp, libero ..., or a JSON file; by default, as the policy's own did."""
    json: bool = False
    """Print the errors as one JSON object."""


def _replay(arguments: Sequence[str]) -> None:
    from lamp.view.replay import ReplayConfig, replay

    flags, config = parse_beside(ReplayFlags, ReplayConfig, arguments, "replay", leading="--data")
    config = replace(
        config,
        selection=flags.selection,
        embodiment=None if flags.embodiment is None else embodiment(flags.embodiment),
        checkpoint=None if config.checkpoint is None else find_checkpoint(config.checkpoint),
    )
    report = replay(config)
    print(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if flags.json else report)
    print(f"picture: {config.out}", file=sys.stderr if flags.json else sys.stdout)


def _show_perturbations(arguments: Sequence[str]) -> None:
    from lamp.view.perturbations import SheetConfig, sheet

    print(sheet(parse(SheetConfig, arguments, "show perturbations")))


def _score(arguments: Sequence[str]) -> None:
    from lamp.benchmark.trials import ScoreConfig, score

    print(score(parse(ScoreConfig, arguments, "score", leading="--out")))


def _report(arguments: Sequence[str]) -> None:
    from lamp.view.report import ReportConfig, report

    print(report(parse(ReportConfig, arguments, "report", leading="--run")))


@dataclass(frozen=True, kw_only=True)
class InfoFlags:
    """Says what a folder is: dataset, scene-flow store, feature cache, training run, checkpoint, evaluation, an experiment or a
    recording; with --verify, whether it is as it was written."""

    path: tyro.conf.Positional[Path]
    """The folder, or a checkpoint's id on the hub, OWNER/NAME or OWNER/NAME@REVISION: its weights are not fetched."""
    all: bool = False
    """Everything; otherwise at most 40 lines, results first."""
    json: bool = False
    """Print everything as JSON."""
    verify: bool = False
    """Read everything and compare it with the checksums that were kept when it was written; exit code 1 where a file differs."""
    write_checksums: bool = False
    """Keep the checksums of a folder that has none, such as a dataset of others, for a later --verify."""


def _info(arguments: Sequence[str]) -> None:
    flags = parse(InfoFlags, arguments, "info")
    from lamp.description_text import to_text
    from lamp.info import describe, to_brief, update_checksums

    if flags.verify or flags.write_checksums:
        if flags.write_checksums:
            print(f"checksums: {update_checksums(flags.path)}", file=sys.stderr)
        if flags.verify:
            _verify(flags)
        return
    description = describe(flags.path)
    if flags.json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        print(to_text(description) if flags.all else to_brief(flags.path, description))


def _verify(flags: InfoFlags) -> None:
    from lamp.info import verify

    verification = verify(flags.path)
    if flags.json:
        faults = [{"file": str(fault.file), "problem": fault.problem} for fault in verification.faults]
        content = {
            "ok": not faults,
            "files": verification.files,
            "bytes": verification.bytes,
            "faults": faults,
            "unchecked": verification.unchecked,
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        lines = [f"fault: {fault}" for fault in verification.faults[:_NAMED]]
        lines += [f"note: {text}" for text in verification.unchecked[:_NAMED]]
        if more := len(verification.faults) + len(verification.unchecked) - len(lines):
            lines.append(f"... and {more} more")
        for line in lines:
            print(line)
        result = f"{len(verification.faults)} faults" if verification.faults else "no fault"
        print(f"{result} in {verification.files} files, {verification.bytes / 1e6:,.1f} MB ({flags.path})")
    if verification.faults:
        raise SystemExit(1)


_NAMED = 20
"""At most so many faults are printed."""


@dataclass(frozen=True, kw_only=True)
class CompletionFlags:
    """Prints what makes a shell complete `lamp`'s commands and flags:
    `source <(lamp completion bash)`; in ~/.bashrc, to keep it."""

    shell: tyro.conf.Positional[str]
    """bash, zsh or fish; fish reads it from ~/.config/fish/completions/lamp.fish."""


def completion(arguments: Sequence[str], known: Mapping[str, Command]) -> None:
    flags = parse(CompletionFlags, arguments, "completion")
    if flags.shell not in _SHELLS:
        raise unknown("shell", flags.shell, _SHELLS)
    from lamp.recipes import RECIPES

    words = {name: flags_of(command.run) for name, command in known.items()}
    print(_SHELLS[flags.shell](words, tuple(RECIPES)))


def _bash(words: Mapping[str, Sequence[str]], recipes: Sequence[str]) -> str:
    following: dict[str, list[str]] = {"": list(dict.fromkeys(name.split()[0] for name in words))}
    for first, _, second in (name.partition(" ") for name in words):
        if second:
            following.setdefault(first, []).append(second)
    # Two words before one: `train motion` is not `train`.
    flagged = sorted(words.items(), key=lambda item: -len(item[0].split()))
    lines = [
        "_lamp() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[*]:1:COMP_CWORD-1}" words=""',
        '  if [[ "${COMP_WORDS[COMP_CWORD-1]}" == --recipe ]]; then',
        f'    words="{" ".join(recipes)}"',
        '  elif [[ "$current" == -* ]]; then',
        '    case "$before " in',
        *(f'      "{name} "*) words="{" ".join(flags)}" ;;' for name, flags in flagged),
        "    esac",
        "  else",
        '    case "$before" in',
        *(f'      "{name}") words="{" ".join(names)}" ;;' for name, names in following.items()),
        "    esac",
        "  fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        "complete -o default -o bashdefault -F _lamp lamp",
    ]
    return "\n".join(lines)


def _zsh(words: Mapping[str, Sequence[str]], recipes: Sequence[str]) -> str:
    return f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{_bash(words, recipes)}"


def _fish(words: Mapping[str, Sequence[str]], recipes: Sequence[str]) -> str:
    firsts = dict.fromkeys(name.split()[0] for name in words)
    lines = [f"complete -c lamp -n __fish_use_subcommand -f -a {first}" for first in firsts]
    for name, flags in words.items():
        first, _, second = name.partition(" ")
        seen = f"__fish_seen_subcommand_from {first}"
        if second:
            lines.append(f"complete -c lamp -n '{seen}' -f -a {second}")
            seen += f"; and __fish_seen_subcommand_from {second}"
        for flag in flags:
            values = f" -x -a '{' '.join(recipes)}'" if flag == "--recipe" else ""
            lines.append(f"complete -c lamp -n '{seen}' -l {flag.removeprefix('--')}{values}")
    return "\n".join(lines)


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}


COMMANDS: dict[str, Command] = {
    "view": Command(summary="draw predicted beside true scene flow", run=_view, elsewhere="--out FILE"),
    "view flow": Command(
        summary="show scene flow in 3-D over time, true beside estimated (rerun)",
        run=_view_flow,
        waits=True,
        elsewhere="--save FILE.rrd",
    ),
    "replay": Command(
        summary="compare a policy's actions with recorded ones: a dry run", run=_replay, elsewhere="--out FILE"
    ),
    "show perturbations": Command(
        summary="draw what plus-style perturbations do to a scene", run=_show_perturbations, elsewhere="--out FILE"
    ),
    "score": Command(summary="write down how far a trial on a real robot came", run=_score, waits=True),
    "report": Command(summary="write the HTML report of a run", run=_report, elsewhere="--out FILE"),
    "info": Command(summary="describe a folder: what it is and what is in it", run=_info),
}
