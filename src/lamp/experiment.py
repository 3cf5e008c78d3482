"""Runs a recipe from nothing to a report, stage by stage; an interrupted run goes on where it stopped.

out/data/              demonstrations, scene flow, features
out/motion/            Stage 1
out/policy_with/       Stage 2
out/policy_without/    Stage 2 without the motion prior
out/evaluation*/       episodes, tables, films
out/pictures/          foresight beside the truth
out/experiment.json    the command that made it
out/summary.json       the figures
out/report.html        the report
"""

from __future__ import annotations

import math
import platform
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from lamp.benchmark.evaluate import EvaluateConfig, Summary, evaluate
from lamp.benchmark.suites import parse_states
from lamp.collect.collect import collect
from lamp.data.feature_cache.shards import picture_hashes
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import ConfigError
from lamp.files import locked
from lamp.json_files import read_json_as, write_json
from lamp.progress import clock as elapsed
from lamp.progress import say
from lamp.recipes import Recipe, experiment
from lamp.sceneflow.build import build
from lamp.train.backbones import ensure_features
from lamp.train.config import LoopConfig
from lamp.train.flow_metrics import FILE_NAME as FLOW_ERRORS
from lamp.train.flow_metrics import read_flow_errors
from lamp.train.publishing import pull
from lamp.train.run_folder import CHECKPOINT
from lamp.train.train_motion import evaluate_flow, train_motion
from lamp.train.train_policy import train_policy
from lamp.version import code_version, package_versions
from lamp.view.foresight import ViewConfig, view
from lamp.view.overlay import ForesightArtist
from lamp.view.report import EXPERIMENT, ReportConfig, StoredExperiment, report
from lamp_client.child_processes import ProcessPool, available_cores

Work = ParamSpec("Work")
Result = TypeVar("Result")

NOTE_EVERY_S = 2.0
"""How often the time of the present stage is noted: all that a killed run loses. [s]"""
DEMO_S = {
    "collect": 135,
    "flow": 63,
    "features": 31,
    "train_motion": 22,
    "train_policy": 190,
    "evaluate": 320,
    "report": 6,
}
"""What the stages of the recipe `demo` took on two cores with little beside it. [s]"""
START_S = {"collect": 8, "flow": 4, "features": 5, "train_motion": 6, "train_policy": 5, "evaluate": 12, "report": 3}
"""Of that, what passes before the first episode or step, however little there is to do. [s]"""
STAGES = ("collect", "flow", "features", "train_motion", "train_policy", "evaluate", "report")
SUITE_TASKS = 10
"""Of a suite of LIBERO, where an evaluation names none."""
QUICK = (
    "A quick run, TOO SMALL TO MEAN ANYTHING: it shows that every stage works here. So few demonstrations, training steps and "
    "episodes say nothing about the method; `lamp demo` without --quick is the smallest run that is worth reading."
)


def quick(recipe: Recipe) -> Recipe:
    """The same experiment with every count so small that two cores do it in a few minutes; its figures mean nothing."""

    def short(loop: LoopConfig, steps: int) -> LoopConfig:
        steps = min(loop.steps, steps)
        return replace(
            loop,
            steps=steps,
            batch_size=min(loop.batch_size, 16),
            log_every=5,
            validate_every=steps,
            checkpoint_every=steps,
        )

    tasks = recipe.collect.tasks[:2]

    def brief(evaluation: EvaluateConfig) -> EvaluateConfig:
        states = parse_states(evaluation.states)[0]
        known = tuple(task for task in evaluation.task if task in tasks or task not in recipe.collect.tasks)
        return replace(
            evaluation,
            task=known or tasks,
            states=str(states),
            episodes_per_state=1,
            videos=min(evaluation.videos, 2),
        )

    return replace(
        recipe,
        name=f"{recipe.name}_quick",
        collect=replace(recipe.collect, task=tasks, episodes=min(recipe.collect.episodes, 4)),
        flow=replace(recipe.flow, every=2 * recipe.flow.every),
        motion=replace(recipe.motion, loop=short(recipe.motion.loop, 30), validation_samples=4, final_samples=8),
        policy=replace(recipe.policy, loop=short(recipe.policy.loop, 60)),
        without_motion=replace(recipe.without_motion, loop=short(recipe.without_motion.loop, 60)),
        evaluations=tuple(map(brief, recipe.evaluations[-1:])),
    )


class Clock:
    """Wall time of each stage over all sessions of a run, kept in a file so that an interruption loses none of it."""

    def __init__(self, path: Path, stages: Sequence[str] = STAGES) -> None:
        self._path, self._stages = path, stages
        self.seconds = read_json_as(path, dict[str, float], "stage times") if path.is_file() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, and says on the terminal where the run is. The file follows while it runs, for who is killed."""
        say(f"== {name.replace('_', ' ')} ({self._stages.index(name) + 1} of {len(self._stages)})")
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
        done = {name: round(float(self.seconds[name]), 1) for name in self._stages if name in self.seconds}
        return {**done, "total": round(sum(self.seconds.values(), start=0.0), 1)}


def run(recipe: Recipe, out: Path, *, named: str | None = None, quickly: bool = False) -> dict[str, Any]:
    """Runs a recipe in a folder and returns what summary.json says.

    Args:
        named: How the recipe was asked for, such as its file; None: by its name.
        quickly: Run its `quick` form.

    Raises:
        ConfigError: The folder is another experiment's.
        DataError: Another process is at work in the folder.
    """
    named = named or recipe.name
    words = ["lamp", "demo", *(["--quick"] if quickly else []), *(["--recipe", named] if named != "demo" else [])]
    made = StoredExperiment(command=shlex.join([*words, "--out", str(out)]), recipe=recipe.name, quick=quickly)
    recipe = quick(recipe) if quickly else recipe
    with locked(out / ".lock", f"a run is at work in {out} already; wait for it, or choose another --out"):
        for folder in ("motion", "policy_with", "policy_without", *(planned.out for planned in recipe.evaluations)):
            if (out / folder / ".lock").exists():
                with locked(out / folder / ".lock", f"another process is at work in {out / folder}; wait for it"):
                    pass
        _claim_folder(out, made)
        return _run(recipe, out, made)


def _claim_folder(out: Path, made: StoredExperiment) -> None:
    """
    Raises:
        ConfigError: The folder holds the run of another recipe, or of another form of it.
    """
    path = out / EXPERIMENT
    if path.is_file():
        before = read_json_as(path, StoredExperiment, "record of an experiment")
        if (before["recipe"], before["quick"]) != (made["recipe"], made["quick"]):
            raise ConfigError(
                f"{out} holds the run of `{before['command']}`, and `{made['command']}` was asked for; choose another "
                "--out, or continue that one"
            )
    elif made["quick"] and (out / "seconds.json").is_file():  # of a version that did not note whose it is
        raise ConfigError(f"{out} holds a run that is not of --quick; choose another --out, or continue that one")
    else:
        write_json(path, made)


def _run(recipe: Recipe, out: Path, made: StoredExperiment) -> dict[str, Any]:
    clock, begun = Clock(out / "seconds.json"), time.monotonic()
    before = sum(clock.seconds.values(), start=0.0)
    say(plan(recipe, out, clock.seconds, finished=(out / "summary.json").is_file()))
    if made["quick"]:
        say(QUICK)
    data = out / "data"
    with clock.stage("collect"):
        collect(replace(recipe.collect, out=data))
    with clock.stage("flow"):
        build(replace(recipe.flow, data=data), pictures=picture_hashes(data, recipe.flow.cameras))
    with clock.stage("features"):
        ensure_features(data, recipe.backbone, augmentation=recipe.policy.augmentation)
    with in_another_process(train_policy, recipe.without_motion, data, out / "policy_without", None) as plain_policy:
        with clock.stage("train_motion"):
            if recipe.prior is None:
                train_motion(recipe.motion, data, out / "motion")
            else:
                _use_prior(recipe.prior, data, out / "motion", frames=recipe.motion.final_samples)
        if plain_policy.done():
            plain_policy.result()  # what has failed is told before more is trained
        with clock.stage("train_policy"):
            train_policy(recipe.policy, data, out / "policy_with", out / "motion" / "checkpoint")
            plain_policy.result()
    with clock.stage("evaluate"):
        summaries = [_evaluate(recipe, index, out) for index in range(len(recipe.evaluations))]
    with clock.stage("report"):
        _pictures(recipe, out)
        summary = _summary(recipe, out, clock, summaries, made)
        write_json(out / "summary.json", summary)
        report(ReportConfig(run=(out,)))
    summary["seconds"] = clock.rounded()
    write_json(out / "summary.json", summary)
    print(_result_text(out, made, time.monotonic() - begun, before), flush=True)
    return summary


def _use_prior(prior: str, data: Path, out: Path, *, frames: int) -> None:
    """Puts a motion checkpoint where Stage 1 would have left one, and measures it on demonstrations that it has not seen."""
    if not (out / CHECKPOINT).exists():
        pull(prior, out / CHECKPOINT)
    if not (out / FLOW_ERRORS).exists():
        evaluate_flow(out, data, range(len(LeRobotDataset(data))), frames=frames).write(out / FLOW_ERRORS)


def _result_text(out: Path, made: StoredExperiment, took: float, before: float) -> str:
    """What a run ends with: how long it took, and what to type next.

    Args:
        took: This session. [s]
        before: The sessions before it. [s]
    """
    words = {name: shlex.quote(str(out / name)) for name in ("report.html", "data", "policy_with")}
    following = {
        f"open {words['report.html']}": "what came out, and what may be concluded from it",
        f"lamp info {shlex.quote(str(out))}": "the same in the terminal",
        f"lamp view {words['data']} --checkpoint {words['policy_with']}": "predicted beside true motion, as a picture",
        f"lamp serve {words['policy_with']}": "the policy, for robots and simulators; http://localhost:8000/ shows it",
    }
    width = max(map(len, following))
    earlier = f", after {elapsed(before)} of earlier sessions" if before >= 1 else ""
    lines = [f"done in {elapsed(took)}{earlier}; next:"]
    lines += [f"  {command:<{width}}  # {purpose}" for command, purpose in following.items()]
    return "\n".join([*lines, *([QUICK] if made["quick"] else [])])


def plan(recipe: Recipe, out: Path, spent: Mapping[str, float], *, finished: bool = False) -> str:
    """What a run is going to do, what comes out, and about how long it will take: from the demo's times and how much more, or
    less, there is to do.

    Args:
        spent: Time that stages have taken already, where the run is continued. [s]
        finished: Whether nothing is left to do but to look whether all is there.
    """
    tasks = len(recipe.collect.tasks)
    comes_out = {
        "collect": (f"{recipe.collect.episodes * tasks} demonstrations of {tasks} tasks by a scripted expert", "data"),
        "flow": ("their exact scene flow, from the simulator", "data/sceneflow"),
        "features": ("what the frozen backbone sees in them", "data/features"),
        "train_motion": (
            f"Motion Expert, {recipe.motion.loop.steps} steps; beside it:"
            if recipe.prior is None
            else f"{recipe.prior}, measured on them; beside it:",
            "motion",
        ),
        "train_policy": (f"policies with and without it, {recipe.policy.loop.steps} steps each", "policy_*"),
        "evaluate": (
            f"{sum(map(_episodes, recipe.evaluations))} episodes in the simulator, of both policies and of controls",
            ", ".join(str(planned.out) for planned in recipe.evaluations),
        ),
        "report": ("pictures, films, tables", "report.html"),
    }
    seconds = _expected(recipe)
    # A stage after which another was begun is done.
    last = max((STAGES.index(name) for name in spent if name in STAGES), default=0)
    done = STAGES if finished else STAGES[:last]
    expected = sum(seconds[name] for name in done)
    pace = sum(spent.get(name, 0.0) for name in done) / expected if expected else 1.0
    left = {name: 0.0 if name in done else max(0.0, seconds[name] * pace - spent.get(name, 0.0)) for name in STAGES}
    total = (
        f"about {elapsed(sum(left.values()))} left" if any(spent.values()) else f"about {elapsed(sum(left.values()))}"
    )
    lines = [f"{recipe.name} into {out}: {'all of it is done' if finished else f'{total} with little beside it'}"]
    for name in STAGES:
        text, where = comes_out[name]
        lines.append(
            f"  {name.replace('_', ' '):<12}  {'done' if name in done else elapsed(left[name]):>7}  {text:<66}  {where}"
        )
    return "\n".join(lines)


def _expected(recipe: Recipe) -> dict[str, float]:
    """How long each stage takes from its beginning. [s]"""
    demo = experiment("demo")

    def demonstrations(of: Recipe) -> int:
        return of.collect.episodes * len(of.collect.tasks)

    more = {
        **dict.fromkeys(("collect", "flow", "features"), demonstrations(recipe) / demonstrations(demo)),
        "train_motion": _motion_s(recipe) / _motion_s(demo),
        "train_policy": recipe.policy.loop.steps / demo.policy.loop.steps,
        "evaluate": sum(map(_episodes, recipe.evaluations)) / sum(map(_episodes, demo.evaluations)),
    }
    cores = min(2, available_cores()) / 2
    return {name: (START_S[name] + (DEMO_S[name] - START_S[name]) * more.get(name, 1.0)) / cores for name in STAGES}


def _motion_s(recipe: Recipe) -> float:
    """In proportion, how long Stage 1 takes, or the measurement of one that is there: all solver steps of a frame, four times
    over, are about as half a training step of 32."""
    per_step, per_frame = 1.0, 0.5
    measured = recipe.motion.final_samples * per_frame
    return measured + (recipe.motion.loop.steps * per_step if recipe.prior is None else 0.0)


def _episodes(planned: EvaluateConfig) -> int:
    """Of an evaluation, over both policies and the controls."""
    scenes = len(parse_states(planned.states)) * (len(planned.task) or SUITE_TASKS) * planned.episodes_per_state
    return scenes * (2 + len(planned.controls))


@contextmanager
def in_another_process(
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
    for episode in read_flow_errors(out / "motion" / FLOW_ERRORS).get("episodes", [])[:3]:
        view(
            ViewConfig(
                data=out / "data",
                checkpoint=out / "motion" / "checkpoint",
                episode=episode,
                out=out / "pictures" / f"episode-{episode:03d}.png",
            )
        )


def regime(recipe: Recipe) -> str:
    """What each stage learns from: without that, a difference between the policies means nothing."""
    demonstrations = f"{recipe.collect.episodes} demonstrations of each of {len(recipe.collect.tasks)} tasks"
    put_to = f"; put to {len(recipe.new_tasks)} other tasks, whose actions nobody showed" if recipe.new_tasks else ""
    if recipe.prior is None:
        prior = "Stage 1 learns from the same ones, so that the prior knows nothing that the policy does not"
    else:
        prior = f"the motion prior {recipe.prior} comes from other episodes, without actions"
    return f"{demonstrations}; {prior}{put_to}"


def _summary(
    recipe: Recipe, out: Path, clock: Clock, summaries: list[Summary], made: StoredExperiment
) -> dict[str, Any]:
    flow = read_flow_errors(out / "motion" / FLOW_ERRORS)
    moving, static = flow["moving"], flow["static"]
    one_sample = moving.get("one_sample", {})
    return {
        "title": f"LaMP: {recipe.name}",
        "lead": recipe.summary,
        "regime": regime(recipe),
        "pairs": _counts(summaries[-1])["with_motion"]["episodes"],
        **({"warning": QUICK} if made["quick"] else {}),
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
