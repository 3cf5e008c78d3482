"""Commands that run policies: in simulators, and as a server for robots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamp.commands.command import Command, find_checkpoint
from lamp.errors import unknown
from lamp.flags import parse

if TYPE_CHECKING:
    from lamp.benchmark.evaluate import EvaluateConfig, RunSettings
    from lamp.benchmark.policies import PolicyRunSettings


def _evaluate(arguments: Sequence[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        benchmarks = [name.split()[1] for name in COMMANDS if name.startswith("evaluate ")]
        raise unknown("benchmark", arguments[0], benchmarks)
    _evaluate_libero(arguments)


def _evaluate_libero(arguments: Sequence[str]) -> None:
    from lamp.benchmark.evaluate import EvaluateConfig

    config = parse(EvaluateConfig, arguments, "evaluate libero")
    if config.audit:
        _audit(config)
    else:
        _run_evaluation(config)


def _audit(config: EvaluateConfig) -> None:
    from lamp.benchmark.audit import run_audit
    from lamp.view.overlay import ForesightArtist
    from lamp.view.paper_tables import best_published

    config = replace(config, **_checkpoints(config))
    print(run_audit(config, published=best_published(config.suite), artist=ForesightArtist()).text)


def _evaluate_plus(arguments: Sequence[str]) -> None:
    from lamp.benchmark.libero_plus import PlusConfig, listing, listing_text

    config = parse(PlusConfig, arguments, "evaluate libero_plus")
    if config.list:
        tasks = listing(config)
        print(json.dumps(tasks, indent=2) if config.json else listing_text(tasks))
    else:
        _run_evaluation(config)


def _evaluate_pro(arguments: Sequence[str]) -> None:
    from lamp.benchmark.libero_pro import ProConfig

    _run_evaluation(parse(ProConfig, arguments, "evaluate libero_pro"))


def _checkpoints(config: PolicyRunSettings) -> dict[str, Path]:
    """The folders of the checkpoints that a configuration names, which may be hub ids."""
    return {name: find_checkpoint(path) for name in ("checkpoint", "against") if (path := getattr(config, name))}


def _run_evaluation(config: RunSettings) -> None:
    from lamp.benchmark.evaluate import evaluate
    from lamp.view.overlay import ForesightArtist

    print(evaluate(replace(config, **_checkpoints(config)), artist=ForesightArtist()).text)


def _evaluate_simpler(arguments: Sequence[str]) -> None:
    from lamp.benchmark.simpler import SimplerConfig, evaluate_simpler
    from lamp.view.overlay import ForesightArtist

    config = parse(SimplerConfig, arguments, "evaluate simpler")
    print(evaluate_simpler(replace(config, **_checkpoints(config)), artist=ForesightArtist()).text)


def _merge_evaluations(arguments: Sequence[str]) -> None:
    from lamp.benchmark.run_manifest import MergeConfig, merge

    config = parse(MergeConfig, arguments, "merge-evaluations")
    print(f"{merge(config)} episodes in {config.out}")


def _serve(arguments: Sequence[str]) -> None:
    from lamp.serve.config import ServeConfig
    from lamp.serve.server import serve
    from lamp.view.overlay import ForesightArtist

    config = parse(ServeConfig, arguments, "serve")
    serve(replace(config, checkpoint=find_checkpoint(config.checkpoint)), artist=ForesightArtist())


USUAL = (
    *(
        "--checkpoint",
        "--against",
        "--out",
        "--suite",
        "--task",
        "--states",
        "--controls",
        "--perturb",
        "--placement-shift",
    ),
    *(
        "--audit",
        "--data",
        "--intervene",
        "--execute",
        "--videos",
        "--workers",
        "--device",
        "--seed",
        "--episodes-per-state",
    ),
)
"""What one usually changes of an evaluation on LIBERO."""
USUAL_PLUS = (
    *(
        "--checkpoint",
        "--against",
        "--out",
        "--plus-root",
        "--plus-assets",
        "--category",
        "--level",
        "--suite",
        "--ids",
    ),
    *("--every", "--leave-out-missing", "--list", "--controls", "--workers", "--device", "--seed"),
)
USUAL_PRO = (
    *("--checkpoint", "--against", "--out", "--perturbation", "--suite", "--task", "--states", "--controls", "--data"),
    *("--execute", "--videos", "--workers", "--device", "--seed"),
)


COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        summary="run a policy in the simulator and count successes: `evaluate libero`", run=_evaluate, usual=USUAL
    ),
    "evaluate libero": Command(
        summary="run a policy on LIBERO, as it is or perturbed, or audit it", run=_evaluate_libero, usual=USUAL
    ),
    "evaluate libero_plus": Command(
        summary="run a policy on LIBERO-Plus, or list its tasks", run=_evaluate_plus, usual=USUAL_PLUS
    ),
    "evaluate libero_pro": Command(
        summary="run a policy on LIBERO-Pro's perturbations", run=_evaluate_pro, usual=USUAL_PRO
    ),
    "evaluate simpler": Command(summary="run a policy on SimplerEnv's WidowX tasks", run=_evaluate_simpler),
    "merge-evaluations": Command(summary="join the shards of an evaluation", run=_merge_evaluations),
    "serve": Command(summary="answer robots and simulators over the network", run=_serve, waits=True),
}
