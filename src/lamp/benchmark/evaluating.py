"""`lamp evaluate`: policies and controls on the same episodes, each done exactly once, however often the run is interrupted."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lamp.benchmark import episodes as episode_lines
from lamp.benchmark.controls import Checkpoint, Condition, Replay, Zero
from lamp.benchmark.crew import Crew
from lamp.benchmark.episodes import Episode, EpisodeRecord
from lamp.benchmark.films import Artist, plain
from lamp.benchmark.policies import BatchPolicy, Policies, PolicyOpener
from lamp.benchmark.progress import Progress
from lamp.benchmark.runs import Manifest, Run
from lamp.benchmark.sharding import parse_shard
from lamp.benchmark.suites import LiberoSimulators, Simulators, parse_states
from lamp.benchmark.tables import SuccessTable, tabulate, to_json, to_markdown, to_text
from lamp.benchmark.workers import Duty, Outcome, Post
from lamp.configuration import to_json as config_to_json
from lamp.errors import ConfigError, unknown
from lamp.files import atomic_write_text, write_json
from lamp.model.interventions import parse as parse_interventions
from lamp.version import code_version, package_versions

WITHOUT_EFFECT = (
    "out",
    "workers",
    "videos",
    "gather_ms",
    "checkpoint",
    "against",
    "data",
    "device",
    "threads",
    "deadline_s",
)
"""Settings that change no result, or (paths) whose content is compared instead."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `lamp evaluate` does."""

    checkpoint: Path | None = None
    """The policy's checkpoint folder; None evaluates controls only."""
    against: Path | None = None
    """A second checkpoint on the same episodes, such as the one trained without the motion prior."""
    suite: str = "libero_object"
    """LIBERO suite."""
    task: tuple[int, ...] = ()
    """Task numbers; empty for all of the suite."""
    states: str = "0:50"
    """Stored initial states: `30:50`, `0:50:5` or `0,3,40:50`."""
    out: Path = Path("outputs/evaluation")
    """Output folder; one that holds an unfinished run with the same settings is continued."""
    episodes_per_state: int = 1
    """Episodes of each initial state, with different placements and noise."""
    placement_shift: float = 0.0
    """Largest displacement of an object along x and y [m]; 0 is the protocol."""
    controls: tuple[Literal["expert", "replay", "zero", "wrong_instruction", "blank"], ...] = ()
    """What else acts on the same episodes."""
    intervene: tuple[str, ...] = ()
    """Changes of the policy's motion prior, each on the same episodes: `prior_zeroed`, `prior_shuffled`, `prior_told_wrong`,
    `prior_redrawn`, `gate=0.5`, `denoised=3`, `action_steps=1`, or `all`."""
    flow_errors: bool = False
    """Also measure, in every episode of policies with a motion prior, how far what they foresaw is from what then happened."""
    data: Path | None = None
    """Dataset whose expert episodes the control replay repeats."""
    render: Literal["exact", "fast"] = "exact"
    """`exact` is the protocol; `fast` renders without multisampling and reflections."""
    execute: int | None = None
    """Actions executed of each chunk before replanning; None takes the checkpoint's."""
    videos: int = 0
    """Policy episodes to film, spread over the tasks."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Simulator processes."""
    fast: bool = True
    """Take the policy's fast path: the same actions within rounding (docs/speed.md). False: the plain arithmetic."""
    gather_ms: float = 2.0
    """How long the policy waits for further observations to batch, beyond those that came while it was busy [ms]."""
    deadline_s: float = 1800.0
    """An episode that takes longer is stopped with its simulator, counted, and tried again [s]."""
    shard: str = ""
    """Part of the evaluation to do, such as `0/4` on the first of four machines; `lamp merge-evaluations` joins the folders."""
    label: str | None = None
    """Name of `checkpoint` in tables; None says with_motion or without_motion."""
    against_label: str | None = None
    """Name of `against` in tables."""
    seed: int = 0
    """Varies the placements of objects; policy noise follows the protocol's formula."""
    device: str = "cpu"
    """Where the policy computes."""
    threads: int = 1
    """CPU threads of the policy; the simulators need the other cores."""

    def __post_init__(self) -> None:
        for name in ("episodes_per_state", "workers", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.execute is not None and self.execute < 1:
            raise ConfigError(f"execute is {self.execute}; expected at least 1, or nothing for the checkpoint's own")
        if self.deadline_s <= 0:
            raise ConfigError(f"deadline_s is {self.deadline_s}; expected more than 0")
        parse_shard(self.shard)
        if self.checkpoint is None and (self.against is not None or not self.controls):
            raise ConfigError("nothing to evaluate: expected --checkpoint, or --controls with expert, replay or zero")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an evaluation found."""

    folder: Path
    tables: tuple[SuccessTable, ...]
    records: tuple[EpisodeRecord, ...]
    planned: int
    seconds: float
    """Wall time of this session."""

    @property
    def complete(self) -> bool:
        """Whether every planned episode is done."""
        return len(self.records) == self.planned

    @property
    def text(self) -> str:
        """The tables for a terminal."""
        return to_text(self.tables)

    def write(self) -> None:
        """Writes summary.json, tables.md and tables.txt, computed from the episode lines only."""
        facts = {
            "complete": self.complete,
            "planned": self.planned,
            "done": len(self.records),
            "episode_seconds": round(sum(record.wall_s for record in self.records), 1),
            "session_seconds": round(self.seconds, 1),
            "render": sorted({record.render for record in self.records}),
            "placement_shift": sorted({record.placement_shift for record in self.records}),
            "states": sorted({record.state for record in self.records}),
            "code": sorted({record.code for record in self.records}),
        }
        write_json(self.folder / "summary.json", {**facts, "tables": to_json(self.tables)})
        atomic_write_text(self.folder / "tables.md", to_markdown(self.tables))
        atomic_write_text(self.folder / "tables.txt", to_text(self.tables))


def evaluate(
    config: EvaluateConfig,
    *,
    artist: Artist = plain,
    load: Callable[[Path, str, int], BatchPolicy] | None = None,
    simulators: Simulators | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Runs, or continues, an evaluation.

    Args:
        config: What to evaluate.
        artist: Draws the policy's foresight over film frames.
        load: Opens the policy of (a checkpoint folder, a device, a number of threads); None takes LaMP's.
        simulators: Where the tasks come from; None takes LIBERO's.
        settings: What else changes results, in plain values: a folder belongs to one set of them.

    Raises:
        ConfigError: The folder holds an evaluation with other settings, or a setting does not fit.
        SimulationStoppedError: An episode raised, or killed its simulator again and again.
    """
    started = time.monotonic()
    simulators = simulators or LiberoSimulators(
        suite=config.suite, render=config.render, placement_shift=config.placement_shift
    )
    instructions = simulators.instructions()
    tasks = _tasks(config, len(instructions))
    opened = load or PolicyOpener(config.execute, fast=config.fast)
    policies = Policies(lambda path: opened(path, config.device, config.threads))
    checkpoints = ((config.checkpoint, config.label), (config.against, config.against_label))
    conditions = policies.conditions(
        checkpoints, config.controls, config.data, tasks, parse_interventions(config.intervene)
    )
    hashes = policies.hashes(conditions)
    plan = episode_lines.plan(
        conditions=hashes.items(),
        suite=simulators.suite,
        tasks=tasks,
        states=parse_states(config.states),
        repeats=config.episodes_per_state,
        seed=config.seed,
    )
    plan = parse_shard(config.shard).of(plan)
    manifest = _manifest(config, hashes, instructions, len(plan), settings or {})
    with Run(config.out, manifest) as run:
        pending = run.pending(plan)
        if run.records:
            print(f"{len(run.records)} of {len(plan)} episodes are done already", file=sys.stderr)
        try:
            if pending:
                post = Post(
                    simulators=simulators,
                    conditions=conditions,
                    instructions=instructions,
                    execute=policies.execute(config.execute),
                    folder=config.out,
                    artist=artist,
                    probes=policies.probes() if config.flow_errors else {},
                )
                crew = Crew(
                    size=config.workers,
                    post=post,
                    answer=policies.answer,
                    gather_s=config.gather_ms / 1000,
                    deadline_s=config.deadline_s,
                )
                filmed = _filmed(plan, conditions, config.videos)
                duties = _duties(pending, conditions, tasks, filmed, set(post.probes))
                _collect(run, crew, duties, config, len(plan))
        finally:
            summary = Summary(
                folder=config.out,
                tables=tuple(tabulate(run.records)),
                records=tuple(run.records),
                planned=len(plan),
                seconds=time.monotonic() - started,
            )
            summary.write()
    return summary


def _tasks(config: EvaluateConfig, available: int) -> tuple[int, ...]:
    for task in config.task:
        if not 0 <= task < available:
            raise unknown(f"task of {config.suite}", task, range(available))
    if len(set(config.task)) != len(config.task):
        raise ConfigError(f"tasks {config.task}: expected none twice")
    return config.task or tuple(range(available))


def _manifest(
    config: EvaluateConfig,
    hashes: Mapping[str, str],
    instructions: Sequence[str],
    planned: int,
    settings: Mapping[str, Any],
) -> Manifest:
    plain_config: dict[str, Any] = config_to_json(config)
    decisive = {key: value for key, value in plain_config.items() if key not in WITHOUT_EFFECT} | dict(settings)
    # What is not asked for is not named, so that folders from before these settings existed go on.
    for name in ("intervene", "flow_errors", "shard"):
        if not decisive[name]:
            del decisive[name]
    if "replay" in config.controls:
        decisive["data"] = plain_config["data"]
    facts = {key: plain_config[key] for key in WITHOUT_EFFECT}
    facts |= {"code": code_version(), "packages": package_versions()}
    return Manifest(config=decisive, conditions=hashes, instructions=instructions, planned=planned, facts=facts)


def _duties(
    pending: Sequence[Episode],
    conditions: Mapping[str, Condition],
    tasks: Sequence[int],
    filmed: set[str],
    probed: set[str],
) -> list[Duty]:
    recorded = {
        (name, task): condition.actions(task)
        for name, condition in conditions.items()
        if isinstance(condition, Replay | Zero)
        for task in tasks
    }
    return [
        Duty(
            episode=episode,
            actions=recorded.get((episode.condition, episode.task)),
            filmed=episode.name in filmed,
            probed=episode.condition in probed,
        )
        for episode in pending
    ]


def _filmed(plan: Sequence[Episode], conditions: Mapping[str, Condition], count: int) -> set[str]:
    """Chooses episodes of the first policy, the first of every task before the second of any."""
    policy = next((name for name, condition in conditions.items() if isinstance(condition, Checkpoint)), None)
    seen: dict[int, int] = {}
    ranked = []
    for episode in plan:
        if episode.condition == policy:
            ranked.append((seen.setdefault(episode.task, 0), episode.task, episode.name))
            seen[episode.task] += 1
    return {name for _, _, name in sorted(ranked)[:count]}


def _collect(run: Run, crew: Crew, duties: Sequence[Duty], config: EvaluateConfig, planned: int) -> None:
    code, packages = code_version(), package_versions()
    progress = Progress(run.records, planned)
    try:
        for outcome in crew.run(duties):
            attempt = 1 + crew.deaths[outcome.episode.name]
            record = _record(outcome, config, attempt=attempt, code=code, packages=packages)
            run.add(record)
            progress.tell(record)
    except KeyboardInterrupt:
        print(f"stopped with {len(run.records)} of {planned} episodes done; the same command goes on", file=sys.stderr)
        raise


def _record(
    outcome: Outcome, config: EvaluateConfig, *, attempt: int, code: str, packages: Mapping[str, str]
) -> EpisodeRecord:
    fields = {item.name: getattr(outcome, item.name) for item in dataclasses.fields(outcome) if item.name != "episode"}
    return EpisodeRecord(
        **dataclasses.asdict(outcome.episode),
        **fields,
        placement_shift=config.placement_shift,
        render=config.render,
        attempt=attempt,
        code=code,
        packages=dict(packages),
    )
