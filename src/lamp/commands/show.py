"""Commands that show what is there: reports, pictures, trials on a robot, what is in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from lamp.commands.command import Command, found_checkpoint
from lamp.flags import parse


def _view(arguments: Sequence[str]) -> None:
    from lamp.view.foresight import ViewConfig, view

    config = parse(ViewConfig, arguments, "view", leading="--data")
    view(replace(config, checkpoint=found_checkpoint(config.checkpoint)) if config.checkpoint else config)


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
    json: bool = False
    """Print JSON."""
    verify: bool = False
    """Read everything and compare it with the checksums that were kept when it was written; exit code 1 where a file differs."""
    write_checksums: bool = False
    """Keep the checksums of a folder that has none, such as a dataset of others, for a later --verify."""


def _info(arguments: Sequence[str]) -> None:
    flags = parse(InfoFlags, arguments, "info")
    from lamp.info import describe, to_text, update_checksums

    if flags.verify or flags.write_checksums:
        if flags.write_checksums:
            print(f"checksums: {update_checksums(flags.path)}", file=sys.stderr)
        if flags.verify:
            _verify(flags)
        return
    description = describe(flags.path)
    print(json.dumps(description, indent=2, ensure_ascii=False) if flags.json else to_text(description))


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
        for fault in verification.faults[:_NAMED]:
            print(f"fault: {fault}")
        for each in verification.unchecked[:_NAMED]:
            print(f"note: {each}")
        more = max(len(verification.faults) - _NAMED, 0) + max(len(verification.unchecked) - _NAMED, 0)
        print(*([f"... and {more} more"] if more else []), sep="\n", end="\n" if more else "")
        result = f"{len(verification.faults)} faults" if verification.faults else "no fault"
        print(f"{result} in {verification.files} files, {verification.bytes / 1e6:,.1f} MB ({flags.path})")
    if verification.faults:
        raise SystemExit(1)


_NAMED = 20
"""At most so many faults are printed."""


COMMANDS: dict[str, Command] = {
    "view": Command(summary="draw predicted beside true scene flow", run=_view, elsewhere="--out FILE"),
    "show perturbations": Command(
        summary="draw what plus-style perturbations do to a scene", run=_show_perturbations, elsewhere="--out FILE"
    ),
    "score": Command(summary="write down how far a trial on a real robot came", run=_score, waits=True),
    "report": Command(summary="write the HTML report of a run", run=_report, elsewhere="--out FILE"),
    "info": Command(summary="say what a folder is and what is in it", run=_info),
}
