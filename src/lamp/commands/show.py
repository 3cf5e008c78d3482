"""Commands that show what is there: reports, pictures, trials on a robot, what is in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lamp.commands.command import Command, found_checkpoint, with_flag
from lamp.flags import parse

if TYPE_CHECKING:
    pass


def _view(arguments: Sequence[str]) -> None:
    from lamp.view.foresight import ViewConfig, view

    config = parse(ViewConfig, with_flag(arguments, "--data"), "view")
    view(replace(config, checkpoint=found_checkpoint(config.checkpoint)) if config.checkpoint else config)


def _show_perturbations(arguments: Sequence[str]) -> None:
    from lamp.view.perturbations import SheetConfig, sheet

    print(sheet(parse(SheetConfig, arguments, "show perturbations")))


def _score(arguments: Sequence[str]) -> None:
    from lamp.benchmark.trials import ScoreConfig, score

    print(score(parse(ScoreConfig, with_flag(arguments, "--out"), "score")))


def _report(arguments: Sequence[str]) -> None:
    from lamp.view.report import ReportConfig, report

    print(report(parse(ReportConfig, with_flag(arguments, "--run"), "report")))


@dataclass(frozen=True, kw_only=True)
class InfoFlags:
    """Says what a folder is: dataset, scene-flow store, feature cache, training run, checkpoint or evaluation."""

    path: tyro.conf.Positional[Path]
    """The folder, or a checkpoint's id on the hub, OWNER/NAME or OWNER/NAME@REVISION: its weights are not fetched."""
    json: bool = False
    """Print JSON."""


def _info(arguments: Sequence[str]) -> None:
    flags = parse(InfoFlags, arguments, "info")
    from lamp.info import describe, to_text

    description = describe(flags.path)
    print(json.dumps(description, indent=2, ensure_ascii=False) if flags.json else to_text(description))


COMMANDS: dict[str, Command] = {
    "view": Command(summary="draw predicted beside true scene flow", run=_view),
    "show perturbations": Command(summary="draw what plus-style perturbations do to a scene", run=_show_perturbations),
    "score": Command(summary="write down how far a trial on a real robot came", run=_score),
    "report": Command(summary="write the HTML report of a run", run=_report),
    "info": Command(summary="say what a folder is and what is in it", run=_info),
}
