"""Runs a recipe from nothing to a report, stage by stage; an interrupted run goes on where it stopped.

out/data/              demonstrations, scene flow, features
out/motion/            Stage 1
out/policy_with/       Stage 2
out/policy_without/    Stage 2 without the motion prior
out/evaluation*/       episodes, tables, films
out/pictures/          foresight beside the truth
out/summary.json       the figures
out/report.html        the report
"""

from __future__ import annotations

import math
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from lamp.benchmark.evaluate import Summary, evaluate
from lamp.collect.collect import collect
from lamp.data.feature_cache.shards import picture_hashes
from lamp.files import locked
from lamp.json_files import read_json_as, write_json
from lamp.progress import clock as elapsed
from lamp.progress import say
from lamp.recipes import Recipe, experiment
from lamp.sceneflow.build import build
from lamp.train.backbones import ensure_features
from lamp.train.flow_metrics import read_flow_errors
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.version import code_version, package_versions
from lamp.view.foresight import ViewConfig, view
from lamp.view.overlay import ForesightArtist
from lamp.view.report import ReportConfig, report
from lamp_client.child_processes import ProcessPool, available_cores

Work = ParamSpec("Work")
Result = TypeVar("Result")

NOTE_EVERY_S = 2.0
"""How often the time of the present stage is noted: all that a killed run loses. [s]"""
DEMO_S = {
    "collect": 78,
    "flow": 37,
    "features": 21,
    "train_motion": 158,
    "train_policy": 270,
    "evaluate": 207,
    "report": 20,
}
"""What the stages of the recipe `demo` took on two cores with little beside it. [s]"""
STAGES = ("collect", "flow", "features", "train_motion", "train_policy", "evaluate", "report")


class Clock:
    """Wall time of each stage over all sessions of a run, kept in a file so that an interruption loses none of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds = read_json_as(path, dict[str, float], "stage times") if path.is_file() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, and says on the terminal where the run is. The file follows while it runs, for who is killed."""
        say(f"== {name.replace('_', ' ')} ({STAGES.index(name) + 1} of {len(STAGES)})")
        started, before, over = time.monotonic(), self.seconds.get(name, 0.0), threading.Event()

        def now() -> dict[str, float]:
            return {**self.seconds, name: before + time.monotonic() - started}

        def follow() -> None:
            while not over.wait(NOTE_EVERY_S):
                with suppress(OSError):  # a full disk is for the stage to tell
                    write_json(self._path, now())

        thread = threading.Thread(target=follow, name="lamp-clock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.seconds = now()
            write_json(self._path, self.seconds)

    def rounded(self) -> dict[str, float]:
        """Seconds of each stage, in order, and in total."""
        done = {name: round(float(self.seconds[name]), 1) for name in STAGES if name in self.seconds}
        return {**done, "total": round(sum(self.seconds.values(), start=0.0), 1)}


def run(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Runs a recipe in a folder and returns what summary.json says.

    Raises:
        DataError: Another process is at work in the folder.
    """
    with locked(out / ".lock", f"a run is at work in {out} already; wait for it, or choose another --out"):
        for folder in ("motion", "policy_with", "policy_without", *(planned.out for planned in recipe.evaluations)):
            if (out / folder / ".lock").exists():
                with locked(out / folder / ".lock", f"another process is at work in {out / folder}; wait for it"):
                    pass
        return _run(recipe, out)


def _run(recipe: Recipe, out: Path) -> dict[str, Any]:
    clock = Clock(out / "seconds.json")
    say(plan(recipe, out, clock.seconds))
    data = out / "data"
    with clock.stage("collect"):
        collect(replace(recipe.collect, out=data))
    with clock.stage("flow"):
        build(replace(recipe.flow, data=data), pictures=picture_hashes(data, recipe.flow.cameras))
    with clock.stage("features"):
        ensure_features(data, recipe.backbone, augmentation=recipe.policy.augmentation)
    with _in_another_process(train_policy, recipe.without_motion, data, out / "policy_without", None) as plain_policy:
        with clock.stage("train_motion"):
            train_motion(recipe.motion, data, out / "motion")
        if plain_policy.done():
            plain_policy.result()  # what has failed is told before more is trained
        with clock.stage("train_policy"):
            train_policy(recipe.policy, data, out / "policy_with", out / "motion" / "checkpoint")
            plain_policy.result()
    with clock.stage("evaluate"):
        summaries = [_evaluate(recipe, index, out) for index in range(len(recipe.evaluations))]
    with clock.stage("report"):
        _pictures(recipe, out)
        summary = _summary(recipe, out, clock, summaries)
        write_json(out / "summary.json", summary)
        report(ReportConfig(run=(out,)))
    summary["seconds"] = clock.rounded()
    write_json(out / "summary.json", summary)
    print(
        f"done in {elapsed(summary['seconds']['total'])}; next: open {out / 'report.html'}, or lamp info {out}",
        flush=True,
    )
    return summary


def plan(recipe: Recipe, out: Path, spent: Mapping[str, float]) -> str:
    """What a run is going to do, and about how long it will take: from the demo's times and how much more there is to do.

    Args:
        spent: Time that stages have taken already, where the run is continued. [s]
    """
    demo = experiment("demo")
    frames = recipe.collect.episodes * len(recipe.collect.tasks) / (demo.collect.episodes * len(demo.collect.tasks))
    cores = min(2, available_cores()) / 2
    more = {
        **dict.fromkeys(("collect", "flow", "features"), frames),
        "train_motion": recipe.motion.loop.steps / demo.motion.loop.steps,
        "train_policy": recipe.policy.loop.steps / demo.policy.loop.steps,
        "evaluate": len(recipe.evaluations) / len(demo.evaluations),
    }
    seconds = {name: DEMO_S[name] * more.get(name, 1.0) / cores for name in STAGES}
    stages = [
        f"{name.replace('_', ' ')} {elapsed(seconds[name])}"
        + (f" ({elapsed(spent[name])} spent)" if name in spent else "")
        for name in STAGES
    ]
    return (
        f"{recipe.name} into {out}, about {elapsed(sum(seconds.values()))} with little beside it: {', '.join(stages)}"
    )


@contextmanager
def _in_another_process(
    work: Callable[Work, Result], *args: Work.args, **named: Work.kwargs
) -> Iterator[Future[Result]]:
    """Works beside the block, which should ask for the result: on few cores, two processes of one thread each train faster
    than one of two threads after another. Where the block fails, the work beside it is stopped, and goes on another time."""
    # A training that is asked to end writes a checkpoint first.
    with ProcessPool(1, single_threaded=False, patience_s=math.inf) as pool:
        yield pool.submit(work, *args, **named)


def _evaluate(recipe: Recipe, index: int, out: Path) -> Summary:
    planned = recipe.evaluations[index]
    config = replace(
        planned,
        checkpoint=out / "policy_with" / "checkpoint",
        against=out / "policy_without" / "checkpoint",
        data=out / "data",
        out=out / planned.out,
    )
    summary = evaluate(config, artist=ForesightArtist())
    print(summary.text, flush=True)
    return summary


def _pictures(recipe: Recipe, out: Path) -> None:
    """Draws predicted beside true flow for frames of held-out episodes."""
    for episode in read_flow_errors(out / "motion" / "flow.json").get("episodes", [])[:3]:
        view(
            ViewConfig(
                data=out / "data",
                checkpoint=out / "motion" / "checkpoint",
                episode=episode,
                out=out / "pictures" / f"episode-{episode:03d}.png",
            )
        )


def _summary(recipe: Recipe, out: Path, clock: Clock, summaries: list[Summary]) -> dict[str, Any]:
    flow = read_flow_errors(out / "motion" / "flow.json")
    moving, static = flow["moving"], flow["static"]
    one_sample = moving.get("one_sample", {})
    return {
        "title": f"LaMP: {recipe.name}",
        "lead": recipe.summary,
        "seconds": clock.rounded(),
        "success": _counts(summaries[-1]),
        "evaluations": {summary.folder.name: _counts(summary) for summary in summaries},
        "flow": {
            "moving": {
                "ade_px": one_sample.get("ade_px"),
                "fde_px": one_sample.get("fde_px"),
                "zero_motion_ade_px": moving.get("zero_motion", {}).get("ade_px"),
                "constant_velocity_ade_px": moving.get("constant_velocity", {}).get("ade_px"),
                "mean_of_4_ade_px": moving.get("mean_of_4", {}).get("ade_px"),
            },
            "static": {"ade_px": static.get("one_sample", {}).get("ade_px")},
            "image_px": flow.get("image_px"),
            "samples": flow.get("samples"),
        },
        "facts": {
            "machine": f"{available_cores()} cores, {platform.machine()}, {platform.system()}",
            "python": platform.python_version(),
            "code": code_version(),
            "packages": package_versions(),
        },
    }


def _counts(summary: Summary) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for record in summary.records:
        entry = counts.setdefault(record.condition, {"successes": 0, "episodes": 0})
        entry["successes"] += record.success
        entry["episodes"] += 1
    return counts
