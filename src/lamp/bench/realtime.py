"""`lamp bench realtime`: how chunks go on from one another when the robot moves while the next is computed.

On recorded episodes: how far the command jumps where a chunk takes over. In the twin, where a rig is given: how far trials come.

Two moments of an episode are `every` steps apart, or more where the delay is longer. The policy is asked at both; until `delay`
steps after the second one the first chunk is executed, then the second takes over. How far the command jumps there is measured in
steps: 1 is the root mean square of what the recorded actions change by from one step to the next, in each value but grippers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lamp.errors import ConfigError, DataError
from lamp.policy import LaMPPolicy
from lamp_client.rig.cli import parser
from lamp_client.rig.commands.score import score
from lamp_client.rig.trials import made_trials, wilson
from lamp_client.types import Committed, Observation

METHODS = ("naive", "ensemble", "identity", "guided", "trained")
DECAY = 0.01
"""Of the temporal ensemble's weights."""
CONDITION = "unseen_layout"
FIRST_TRIAL = 1000
"""Seed of the first trial's layout; demonstrations begin at 0."""


@dataclass(frozen=True, kw_only=True)
class RealTimeBench:
    """Measures jumps at the hand-over from chunk to chunk on recorded episodes, for each way to go on and each delay."""

    checkpoint: Path
    """The policy."""
    data: str
    """The dataset: a folder, or a hub id."""
    trained: Path | None = None
    """Another policy, trained for delays (`model.real_time`), for the method `trained`; by default the same one, if it was."""
    delays: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """Steps from asking to hand-over."""
    every: int = 5
    """Steps between two questions, or the delay where that is longer."""
    moments: int = 64
    """Hand-overs, evenly over the episodes that the training held out, or over all where it held out none."""
    rig: Path | None = None
    """The twin that the policy was trained on, as `lamp-rig describe twin` or `lamp twin-demo` writes it, for trials in it."""
    out: Path | None = None
    """The folder of these trials; what is there already is not made again."""
    trials: int = 20
    """Of each method at each delay."""
    seed: int = 0
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if min(self.every, self.moments) < 1 or not self.delays or min(self.delays) < 0:
            raise ConfigError(
                f"every {self.every}, moments {self.moments}, delays {self.delays}: expected at least one of each, and no delay "
                "below 0."
            )
        if (self.rig is None) != (self.out is None) or self.trials < 1:
            raise ConfigError(
                f"rig {self.rig}, out {self.out}, trials {self.trials}: expected a rig and a folder for its trials, at least one "
                "each, or neither."
            )


@dataclass(frozen=True, kw_only=True)
class Handover:
    """Two observations of an episode, and what was recorded."""

    seen: tuple[Observation, Observation]
    recorded: Float[np.ndarray, "n a"]
    """From the second observation on."""


def bench_realtime(bench: RealTimeBench) -> dict[str, Any]:
    """Measures all methods.

    Raises:
        ConfigError: A delay is too long for the policy's chunks.
        DataError: No episode is long enough.
        LampClientError: The policy is not of the rig.
    """
    policy = LaMPPolicy.from_checkpoint(bench.checkpoint)
    trained = policy if bench.trained is None else LaMPPolicy.from_checkpoint(bench.trained)
    if bench.trained is not None or trained.model.config.real_time is not None:
        trained.real_time = "trained"
    policies = {"naive": policy, "ensemble": policy, "identity": policy, "guided": policy, "trained": trained}
    if max(bench.delays) > policy.chunk - max(bench.every, *bench.delays):
        raise ConfigError(
            f"a delay of {max(bench.delays)} steps, asked for every {bench.every}: chunks of {policy.chunk} actions end too "
            "soon; expected delay <= every <= chunk - delay."
        )
    dataset = policy.record.embodiment.open(bench.data)
    held_out = policy.description.data.validation_episodes
    episodes = [episode for episode in held_out if episode < len(dataset)] or list(range(len(dataset)))
    recorded = [policy.record.embodiment.recorded_actions(dataset, episode) for episode in episodes]
    values = [at for at in range(recorded[0].shape[1]) if at not in _grippers(policy, recorded[0].shape[1])]
    steps = np.concatenate([np.diff(actions[:, values], axis=0) for actions in recorded])
    unit = np.maximum(np.sqrt((steps**2).mean(axis=0)), 1e-9)
    rows, count = [], 0
    for delay in bench.delays:
        every = max(bench.every, delay)
        handovers = _handovers(policy, dataset, episodes, recorded, every, bench.moments)
        count = len(handovers)
        first = _act([one.seen[0] for one in handovers], policy, bench.seed, 0)
        for name in METHODS:
            if name == "trained" and trained.model.config.real_time is None:
                continue
            old = (
                first if policies[name] is policy else _act([one.seen[0] for one in handovers], trained, bench.seed, 0)
            )
            new = _second(name, policies[name], handovers, old, every, delay, bench.seed)
            figures = _figures(old, new, handovers, every, delay, values, unit)
            trials = _trials(bench, name, policies[name], delay)
            rows.append({"method": name, "delay": delay, **figures, **trials})
    shown = np.sqrt(((steps / unit) ** 2).mean(axis=1))
    return {
        "checkpoint": str(bench.checkpoint), "episodes": len(episodes), "handovers": count, "every": bench.every,
        "recorded_step_p95": round(float(np.quantile(shown, 0.95)), 3), "rows": rows,
    }  # fmt: skip


def _grippers(policy: LaMPPolicy, width: int) -> set[int]:
    return {gripper.dim % width for gripper in policy.record.embodiment.grippers}


def _handovers(
    policy: LaMPPolicy, dataset: Any, episodes: Sequence[int], recorded: Sequence[np.ndarray], every: int, count: int
) -> list[Handover]:
    places = [
        (row, frame) for row, actions in enumerate(recorded) for frame in range(every, len(actions) - policy.chunk)
    ]
    if not places:
        raise DataError(
            f"no episode of {dataset.root} is longer than {every} + {policy.chunk} frames; expected longer ones"
        )
    chosen = [places[at] for at in np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))]

    def seen(row: int, frame: int) -> Observation:
        return Observation(
            images={
                camera.name: dataset.frames(camera.name, episodes[row], [frame])[0]
                for camera in policy.description.backbone.cameras
            },
            state=policy.record.embodiment.states(dataset, episodes[row])[frame],
            instruction=dataset.instruction(episodes[row], frame),
        )

    return [
        Handover(seen=(seen(row, frame - every), seen(row, frame)), recorded=recorded[row][frame:])
        for row, frame in chosen
    ]


def _act(seen: Sequence[Observation], policy: LaMPPolicy, seed: int, call: int) -> Float[np.ndarray, "n h a"]:
    chunks = policy.act_batch(seen, [(seed, number, call) for number in range(len(seen))])
    return np.stack([chunk.actions for chunk in chunks])


def _second(
    name: str,
    policy: LaMPPolicy,
    handovers: Sequence[Handover],
    old: Float[np.ndarray, "n h a"],
    every: int,
    delay: int,
    seed: int,
) -> Float[np.ndarray, "n h a"]:
    """The chunks of the second moment, as they are executed from the hand-over on."""
    seen = [one.seen[1] for one in handovers]
    left = old[:, every:]
    if name in ("identity", "guided", "trained"):
        policy.real_time = name  # pyright: ignore[reportAttributeAccessIssue]
        seen = [
            Observation(
                images=one.images, state=one.state, instruction=one.instruction,
                committed=Committed(actions=actions, delay=delay),
            )
            for one, actions in zip(seen, left, strict=True)
        ]  # fmt: skip
    new = _act(seen, policy, seed, 1)
    if name == "ensemble":
        share = np.exp(-DECAY)  # the older chunk weighs more, as in ACT
        both = (left + share * new[:, : left.shape[1]]) / (1 + share)
        new = np.concatenate([both, new[:, left.shape[1] :]], axis=1)
    return new


def _figures(
    old: np.ndarray,
    new: np.ndarray,
    handovers: Sequence[Handover],
    every: int,
    delay: int,
    values: list[int],
    unit: np.ndarray,
) -> dict[str, float]:
    before, after = old[:, every + delay - 1, values], new[:, delay, values]
    jump = np.sqrt((((after - before) / unit) ** 2).mean(axis=1))
    until = min(delay + every, new.shape[1])
    true = np.stack([one.recorded[delay:until] for one in handovers])[..., values]
    error = np.abs((new[:, delay:until, values] - true) / unit).mean()
    within = np.sqrt(((np.diff(new[:, delay:until, values], axis=1) / unit) ** 2).mean(axis=2))
    return {
        "jump_median": round(float(np.median(jump)), 3),
        "jump_p95": round(float(np.quantile(jump, 0.95)), 3),
        "step_median": round(float(np.median(within)), 3),
        "error": round(float(error), 3),
    }


def _trials(bench: RealTimeBench, name: str, policy: LaMPPolicy, delay: int) -> dict[str, Any]:
    """Trials in the twin on layouts that were not demonstrated, as `lamp-rig score` makes them."""
    if bench.rig is None or bench.out is None:
        return {}
    # Without a delay, every method begins anew, with the same chunks.
    out = bench.out / (f"{name}-{delay}" if delay else "no-delay")
    # A chunk lasts `every` steps from where it takes over, after one delay, and one delay more until the next is there.
    every = max(1, min(bench.every, policy.chunk - 2 * delay))
    words = ["score", str(bench.rig), "--out", str(out), "--method", f"{'any' if not delay else name}=here"]
    words += ["--conditions", CONDITION, "--trials", str(bench.trials), "--seed", str(FIRST_TRIAL)]
    if not delay:
        words += ["--executor", "open_loop", "--execute", str(every)]
    elif name in ("naive", "ensemble"):
        blend = every if name == "ensemble" else 0
        words += ["--executor", "asynchronous", "--every", str(every), "--delay", str(delay), "--blend", str(blend)]
    else:
        words += ["--executor", "real_time", "--every", str(every), "--delay", str(delay)]
        policy.real_time = name  # pyright: ignore[reportAttributeAccessIssue]
    with contextlib.redirect_stdout(sys.stderr):
        score(parser().parse_args(words), connect=lambda address: policy)
    shares = [trial["stages"] / trial["of"] for trial in made_trials(out)]
    low, high = wilson(sum(shares), len(shares))
    return {
        "trials": len(shares), "progress": round(sum(shares) / len(shares), 4), "low": round(low, 4), "high": round(high, 4)
    }  # fmt: skip


def to_text(figures: Mapping[str, Any]) -> str:
    """The figures as a table, a row for each delay."""
    lines = [
        f"{figures['checkpoint']}: {figures['handovers']} hand-overs in {figures['episodes']} episodes, asked every "
        f"{figures['every']} steps or more; jumps in steps of the demonstrations (95% of these are up to "
        f"{figures['recorded_step_p95']:g}), median / p95, and in brackets the error of what is then executed",
        "delay  " + "  ".join(f"{name:>22}" for name in METHODS),
    ]

    def table(cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
        found = {(row["method"], row["delay"]): cell(row) for row in figures["rows"]}
        delays = dict.fromkeys(row["delay"] for row in figures["rows"])
        return [
            f"{delay:5}  " + "  ".join(f"{found.get((name, delay), '-'):>22}" for name in METHODS) for delay in delays
        ]

    lines += table(lambda row: f"{row['jump_median']:.2f} / {row['jump_p95']:.2f} ({row['error']:.1f})")
    if counts := {row["trials"] for row in figures["rows"] if "trials" in row}:
        lines += [
            f"progress in the twin, {CONDITION}, {' or '.join(map(str, sorted(counts)))} trials each, with 95% intervals; at "
            "delay 0 every chunk begins anew",
            *table(lambda row: f"{row['progress']:.0%} ({row['low']:.0%} to {row['high']:.0%})"),
        ]
    return "\n".join(lines)
