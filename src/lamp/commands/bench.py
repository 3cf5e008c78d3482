"""Commands that measure speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp.commands.command import Command, training_named
from lamp.flags import parse, parse_beside


def _print(figures: Mapping[str, Any], to_text: Callable[[Any], str], *, as_json: bool, indent: int | None = 2) -> None:
    print(json.dumps(figures, indent=indent, ensure_ascii=False) if as_json else to_text(figures))


def _bench_infer(arguments: Sequence[str]) -> None:
    from lamp.bench.infer import InferConfig, bench_infer, to_text

    config = parse(InferConfig, arguments, "bench infer")
    _print(bench_infer(config), to_text, as_json=config.json)


def _bench_evaluate(arguments: Sequence[str]) -> None:
    from lamp.bench.evaluate import EvaluationBench, bench_evaluate, to_text

    config = parse(EvaluationBench, arguments, "bench evaluate")
    _print(bench_evaluate(config), to_text, as_json=config.json)


def _bench_train_step(arguments: Sequence[str]) -> None:
    from lamp.bench.train_step import TrainStepConfig, bench_train_step, to_text

    config = parse(TrainStepConfig, arguments, "bench train-step")
    _print(bench_train_step(config), to_text, as_json=config.json)


@dataclass(frozen=True, kw_only=True)
class ServeBenchFlags:
    """Measures the policy server under many clients on loopback; every reply is checked against its request."""

    json: bool = False
    """Print JSON."""


def _bench_serve(arguments: Sequence[str]) -> None:
    from lamp.bench.serve import ServeBench, bench_serving, summary

    flags, bench = parse_beside(ServeBenchFlags, ServeBench, arguments, "bench serve")
    figures = bench_serving(bench)
    _print(figures, summary, as_json=flags.json)
    if figures["wrong_replies"] or figures["lost_replies"] or figures["errors"]:
        raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class DataBenchFlags:
    """Measures how many samples a second the loader gives: from videos, from decoded frames, from cached features."""

    data: Path | None = None
    """The dataset; by default a small one is made up."""
    recipe: str = "demo"
    """The recipe whose backbone encodes."""
    workers: int = 2
    """Processes that load."""
    batch_size: int = 16
    """Samples a batch."""
    seconds: float = 10.0
    """How long to measure each way. [s]"""
    synthetic_episodes: int | None = None
    """Measure instead what it takes to open a made-up dataset of so many episodes, of numbers only, and to begin training on it:
    time until the first shuffled batch, and memory."""
    json: bool = False
    """Print JSON."""


def _bench_data(arguments: Sequence[str]) -> None:
    flags = parse(DataBenchFlags, arguments, "bench data")
    from lamp.bench.data import measure_loading, measure_opening
    from lamp.description_text import to_text

    if flags.synthetic_episodes is not None:
        _print(measure_opening(flags.synthetic_episodes), to_text, as_json=flags.json, indent=None)
        return
    figures = measure_loading(
        training_named(flags.recipe).backbone,
        flags.data,
        workers=flags.workers,
        batch_size=flags.batch_size,
        seconds=flags.seconds,
    )
    _print(figures, to_text, as_json=flags.json, indent=None)


def _bench_learn(arguments: Sequence[str]) -> None:
    from lamp.bench.learn import LearnBench, bench_learn, to_text

    bench = parse(LearnBench, arguments, "bench learn")
    _print(bench_learn(bench), to_text, as_json=bench.json)


def _bench_realtime(arguments: Sequence[str]) -> None:
    from lamp.bench.realtime import RealTimeBench, bench_realtime, to_text

    bench = parse(RealTimeBench, arguments, "bench realtime")
    _print(bench_realtime(bench), to_text, as_json=bench.json)


COMMANDS: dict[str, Command] = {
    "bench data": Command(summary="measure the loader: videos, decoded frames, cached features", run=_bench_data),
    "bench serve": Command(summary="measure the policy server under many clients", run=_bench_serve),
    "bench infer": Command(summary="measure what a chunk of actions costs, stage by stage", run=_bench_infer),
    "bench evaluate": Command(summary="measure the evaluation's runner: episodes an hour", run=_bench_evaluate),
    "bench train-step": Command(summary="measure what a training step costs, part by part", run=_bench_train_step),
    "bench realtime": Command(summary="measure jumps from chunk to chunk, by delay and method", run=_bench_realtime),
    "bench learn": Command(summary="measure how soon an Action Expert reaches a held-out error", run=_bench_learn),
}
