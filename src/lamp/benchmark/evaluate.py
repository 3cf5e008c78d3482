"""`lamp evaluate`: policies and controls on the same episodes, each done exactly once, however often the run is interrupted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lamp.benchmark import episodes as episode_lines
from lamp.benchmark.baselines import Checkpoint, Condition, PolicyCondition, PriorBank, Replay, Zero, bank_tasks
from lamp.benchmark.episodes import EpisodeRecord, EvaluationEpisode
from lamp.benchmark.launchers import LocalLauncher, RayLauncher
from lamp.benchmark.perturbed import described, perturbed
from lamp.benchmark.policies import BatchPolicy, Policies, PolicyOpener, PolicyRunSettings
from lamp.benchmark.run_manifest import Manifest, Run, parse_shard
from lamp.benchmark.sim_worker import Artist, EpisodeOutcome, EpisodeTask, WorkerSetup, default_workers, plain
from lamp.benchmark.suites import EvaluationPlan, LiberoSimulators, Simulators, SuitePlan, parse_states
from lamp.benchmark.summary import Summary, summarise
from lamp.benchmark.worker_pool import EpisodeProgress, WorkerPool
from lamp.configuration import to_json as config_to_json
from lamp.errors import ConfigError, MismatchError, unknown
from lamp.files import atomic_path
from lamp.model.prior_interventions import PriorKind, Shuffled
from lamp.model.prior_interventions import parse as parse_interventions
from lamp.progress import say
from lamp.version import code_version, package_versions

WITHOUT_EFFECT = (
    *("out", "workers", "videos", "gather_ms", "checkpoint", "against", "data", "device", "threads", "deadline_s"),
    *("plus_root", "plus_assets", "leave_out_missing", "ray", "shortcut", "shortcut_steps"),
)
"""Settings that change no result, or (paths) whose content is compared instead."""


@dataclass(frozen=True, kw_only=True)
class RunSettings(PolicyRunSettings):
    """Settings of evaluations in LIBERO's simulators: also which controls act, and how the motion prior is looked at."""

    out: Path = Path("outputs/evaluation")
    """Output folder; one that holds an unfinished run with the same settings is continued."""
    controls: tuple[Literal["expert", "replay", "zero", "wrong_instruction", "blank"], ...] = ()
    """What else acts on the same episodes."""
    intervene: tuple[str, ...] = ()
    """Changes of the policy's motion prior, each on the same episodes: `prior_zeroed`, `prior_shuffled`, `prior_told_wrong`,
    `prior_redrawn`, `gate=0.5`, `denoised=3`, `action_steps=1`, or `all`."""
    prior: PriorKind = "predicted"
    """`oracle`: the motion prior is the TRUE motion to come, which the scripted expert would make from the present state. That
    is a ceiling and no result, and every table calls it an oracle."""
    against_prior: PriorKind | None = None
    """The same for `against`; None: as `prior`."""
    flow_errors: bool = False
    """Also measure, in every episode of policies with a motion prior, how far what they foresaw is from what then happened."""
    data: Path | None = None
    """Dataset whose expert episodes the control replay repeats, and whose observations `prior_shuffled` gives to other tasks."""
    render: Literal["exact", "fast"] = "exact"
    """`exact` is the protocol; `fast` renders without multisampling and reflections."""
    execute: int | None = None
    """Actions executed of each chunk before replanning; None takes the checkpoint's."""
    workers: int = field(default_factory=default_workers)
    """Simulator processes; by default one more than there are cores, so that none is idle while one waits for the policy."""
    ray: str | None = None
    """Runs the simulators on the machines of a Ray cluster: its address, or `auto` for the one that this machine belongs to."""
    shortcut: Path | None = None
    """A shortcut policy, the folder `shortcut` of an evaluation with --audit: it acts on the same episodes as a control."""
    seed: int = 0
    """Varies the placements of objects and what perturbations draw; policy noise follows the protocol's formula."""

    def __post_init__(self) -> None:
        self._check_counts("workers", "threads")
        if self.execute is not None and self.execute < 1:
            raise ConfigError(f"execute is {self.execute}; expected at least 1, or nothing for the checkpoint's own")
        if self.deadline_s <= 0:
            raise ConfigError(f"deadline_s is {self.deadline_s}; expected more than 0")
        parse_shard(self.shard)
        if self.checkpoint is None and (self.against is not None or not self.controls):
            raise ConfigError("nothing to evaluate: expected --checkpoint, or --controls with expert, replay or zero")
        if self.against_prior is not None and self.against is None:
            raise ConfigError(f"against_prior is {self.against_prior!r} and there is no --against; expected both")
        if self.prior == "oracle":
            if self.checkpoint is None:
                raise ConfigError("--prior oracle needs --checkpoint: a policy that is told the true motion")
            asked = [name for name in self.controls if name in ("wrong_instruction", "blank")]
            for name, given in (("intervene", self.intervene), ("controls", asked), ("flow_errors", self.flow_errors)):
                if given:
                    what = "" if isinstance(given, bool) else f" {', '.join(given)}"
                    raise ConfigError(
                        f"{name}{what} asks how the PREDICTED prior is used, and --prior oracle has none; expected one of the two"
                    )

    def _check_counts(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")

    def evaluation_plan(self, simulators: Simulators | None = None) -> EvaluationPlan:
        """The suites, tasks and initial states to run; `simulators` takes the place of the benchmark's own.

        Raises:
            ConfigError: A setting names what does not exist.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunSettings):
    """Runs policies and controls on LIBERO, as it is or perturbed. Other benchmarks: `lamp evaluate libero_plus --help`."""

    suite: str = "libero_object"
    """LIBERO suite."""
    task: tuple[int, ...] = ()
    """Task numbers; empty for all of the suite."""
    states: str = "0:50"
    """Stored initial states: `30:50`, `0:50:5` or `0,3,40:50`."""
    episodes_per_state: int = 1
    """Episodes of each initial state, with different placements and noise."""
    placement_shift: float = 0.0
    """Largest displacement of an object along x and y [m]; 0 is the protocol."""
    perturb: tuple[str, ...] = ()
    """Plus-style perturbations, each on the same episodes: `camera=3`, `light.tint=5`, both at once `camera=3+light=5`, `all=3`,
    a file with one in JSON, or `none` for the standard scenes (docs/benchmarks.md)."""
    audit: bool = False
    """Also audit the policy: a shortcut policy without words (trained on --data), no vision, chance and the best published rate,
    shifted scenes (docs/benchmarks.md)."""
    audit_shift: float = 0.04
    """With --audit: largest displacement of an object in the shifted scenes, along x and y [m]."""
    shortcut_steps: int = 4000
    """With --audit: training steps of the shortcut policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("episodes_per_state", "shortcut_steps")
        if not self.audit:
            return
        if self.checkpoint is None or self.prior == "oracle":
            raise ConfigError(
                "--audit needs --checkpoint, a policy that is told nothing but what it sees (no --prior oracle)"
            )
        if self.audit_shift <= 0 or self.placement_shift:
            raise ConfigError(
                f"placement_shift is {self.placement_shift:g} and audit_shift {self.audit_shift:g}; expected 0 and more than 0: "
                "--audit compares the stored scenes with shifted ones"
            )

    def evaluation_plan(self, simulators: Simulators | None = None) -> EvaluationPlan:
        """One suite, under each perturbation; by default once, under none."""
        standard = simulators or LiberoSimulators(
            suite=self.suite, render=self.render, placement_shift=self.placement_shift
        )
        instructions = standard.instructions()
        tasks = _tasks(self, len(instructions))
        variants = perturbed(standard, self.perturb)
        shifts = dict.fromkeys((variant.suite for variant in variants), self.placement_shift)
        if self.audit:
            moved = standard.shifted(self.audit_shift)
            variants = (standard, moved, *(variant for variant in variants if variant.suite != standard.suite))
            shifts |= {standard.suite: 0.0, moved.suite: self.audit_shift}
        states, repeats = parse_states(self.states), self.episodes_per_state
        return EvaluationPlan(
            suites=tuple(
                SuitePlan(
                    simulators=one, tasks=tasks, states=states, repeats=repeats, placement_shift=shifts[one.suite]
                )
                for one in variants
            ),
            settings={"perturbations": described(variants)} if self.perturb else {},
            instructions=instructions,
        )


def evaluate(
    config: RunSettings,
    *,
    artist: Artist = plain,
    load: Callable[[Path, str, int], BatchPolicy] | None = None,
    simulators: Simulators | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Runs, or continues, an evaluation.

    Args:
        artist: Draws the policy's foresight over film frames.
        load: Opens the policy of (a checkpoint folder, a device, a number of threads); None takes LaMP's.
        simulators: Where the tasks come from; None takes LIBERO's.
        settings: What else changes results, in plain values: a folder belongs to one set of them.

    Raises:
        ConfigError: The folder holds an evaluation with other settings, or a setting does not fit.
        SimulationStoppedError: An episode raised, or killed its simulator again and again.
    """
    started = time.monotonic()
    evaluation_plan = config.evaluation_plan(simulators)
    open_policy = load or PolicyOpener(config.execute, fast=config.fast)
    policies = Policies(lambda path: open_policy(path, config.device, config.threads))
    checkpoints = ((config.checkpoint, config.label), (config.against, config.against_label))
    conditions = policies.conditions(
        checkpoints,
        config.controls,
        config.data,
        evaluation_plan.tasks,
        parse_interventions(config.intervene),
        (config.prior, config.against_prior or config.prior),
        config.shortcut,
    )
    oracles = policies.oracles()
    if oracles:
        for suite_plan in evaluation_plan.suites:
            for task in suite_plan.tasks:
                suite_plan.simulators.check_oracle(task)
    elif "oracle" in (config.prior, config.against_prior):
        raise MismatchError("--prior oracle, and none of the policies has a motion prior; expected one that has")
    shuffled = [name for name, one in conditions.items() if isinstance(one, PolicyCondition) and one.shuffles]
    if shuffled:
        policies.banks = _banks_of_data(config, evaluation_plan)
    hashes = policies.hashes(conditions)
    plan = [
        episode
        for suite_plan in evaluation_plan.suites
        for episode in episode_lines.plan(
            conditions=list(hashes.items()),
            suite=suite_plan.simulators.suite,
            tasks=suite_plan.tasks,
            states=suite_plan.states,
            repeats=suite_plan.repeats,
            seed=config.seed,
        )
    ]
    plan = parse_shard(config.shard).of(plan)
    manifest = _manifest(config, hashes, evaluation_plan, len(plan), settings or {}, policies.kinds())
    with Run(config.out, manifest) as run:
        pending = run.pending(plan)
        if run.records:
            say(f"{len(run.records)} of {len(plan)} episodes are done already")
        try:
            if pending:
                run.begin_session(started)
                launcher = LocalLauncher() if config.ray is None else RayLauncher.at(config.ray, config.workers)
                if not policies.banks and any(episode.condition in shuffled for episode in pending):
                    policies.banks = {
                        suite_plan.simulators.suite: PriorBank.of_simulators(
                            suite_plan.simulators, suite_plan.tasks, suite_plan.states, seed=config.seed
                        )
                        for suite_plan in evaluation_plan.suites
                    }
                setup = WorkerSetup(
                    simulators={
                        suite_plan.simulators.suite: suite_plan.simulators for suite_plan in evaluation_plan.suites
                    },
                    conditions=conditions,
                    instructions={
                        suite_plan.simulators.suite: suite_plan.simulators.instructions()
                        for suite_plan in evaluation_plan.suites
                    },
                    execute=policies.execute(config.execute),
                    folder=config.out if isinstance(launcher, LocalLauncher) else None,
                    artist=artist,
                    policies=policies.metadata(),
                    probes=policies.probes() if config.flow_errors else {},
                    oracles=oracles,
                )
                pool = WorkerPool(
                    size=config.workers,
                    setup=setup,
                    answer=policies.answer,
                    gather_s=config.gather_ms / 1000,
                    deadline_s=config.deadline_s,
                    launcher=launcher,
                )
                filmed = _filmed(plan, conditions, config.videos)
                tasks = _episode_tasks(pending, conditions, evaluation_plan.tasks, filmed, set(setup.probes))
                shifts = {
                    suite_plan.simulators.suite: suite_plan.placement_shift for suite_plan in evaluation_plan.suites
                }
                _collect(run, pool, tasks, config, shifts, len(plan))
        finally:
            run.note_session()
            summary = summarise(config.out, run.records, planned=len(plan))
            summary.write()
    return summary


def _banks_of_data(config: RunSettings, evaluation_plan: EvaluationPlan) -> dict[str, PriorBank]:
    """What shuffled priors are of, where a dataset is named; nothing where the simulators are to show it.

    Raises:
        ConfigError: There is nothing of other tasks.
    """
    if config.data is None:
        if config.ray is not None:
            raise ConfigError(
                "prior_shuffled with --ray needs --data: a dataset whose observations are given to other tasks"
            )
        for suite_plan in evaluation_plan.suites:
            bank_tasks(suite_plan.simulators.instructions(), suite_plan.tasks)
        return {}
    banks = {
        suite_plan.simulators.suite: PriorBank.of_data(
            config.data, suite_plan.simulators.instructions(), seed=config.seed
        )
        for suite_plan in evaluation_plan.suites
    }
    for suite_plan in evaluation_plan.suites:
        banks[suite_plan.simulators.suite].check(suite_plan.tasks)
    return banks


def _tasks(config: EvaluateConfig, available: int) -> tuple[int, ...]:
    for task in config.task:
        if not 0 <= task < available:
            raise unknown(f"task of {config.suite}", task, range(available))
    if len(set(config.task)) != len(config.task):
        raise ConfigError(f"tasks {config.task}: expected none twice")
    return config.task or tuple(range(available))


def _manifest(
    config: RunSettings,
    hashes: Mapping[str, str],
    evaluation_plan: EvaluationPlan,
    planned: int,
    settings: Mapping[str, Any],
    models: Mapping[str, Any],
) -> Manifest:
    plain_config: dict[str, Any] = config_to_json(config)
    decisive = {key: value for key, value in plain_config.items() if key not in (*WITHOUT_EFFECT, "list", "json")}
    # What is not asked for is not named, so that folders from before the setting existed go on.
    if not decisive.get("audit"):
        decisive.pop("audit_shift", None)
    for name in ("perturb", "intervene", "flow_errors", "shard", "audit"):
        if not decisive.get(name):
            decisive.pop(name, None)
    decisive |= {**evaluation_plan.settings, **settings}
    for name, usual in (("prior", "predicted"), ("against_prior", None)):
        if decisive.get(name) == usual:
            decisive.pop(name, None)
    shuffled = any(one.name == Shuffled.name for one in parse_interventions(config.intervene))
    if shuffled:
        decisive["prior_bank"] = "data" if config.data is not None else "simulators"
    if "replay" in config.controls or (shuffled and config.data is not None):
        decisive["data"] = plain_config["data"]
    facts = {key: plain_config[key] for key in WITHOUT_EFFECT if key in plain_config}
    facts |= {"models": models, "code": code_version(), "packages": package_versions(), **evaluation_plan.facts}
    return Manifest(
        config=decisive, conditions=hashes, instructions=evaluation_plan.instructions, planned=planned, facts=facts
    )


def _episode_tasks(
    pending: Sequence[EvaluationEpisode],
    conditions: Mapping[str, Condition],
    tasks: Sequence[int],
    filmed: set[str],
    probed: set[str],
) -> list[EpisodeTask]:
    recorded = {
        (name, task): condition.actions(task)
        for name, condition in conditions.items()
        if isinstance(condition, Replay | Zero)
        for task in tasks
    }
    return [
        EpisodeTask(
            episode=episode,
            actions=recorded.get((episode.condition, episode.task)),
            filmed=episode.name in filmed,
            probed=episode.condition in probed,
        )
        for episode in pending
    ]


def _filmed(plan: Sequence[EvaluationEpisode], conditions: Mapping[str, Condition], count: int) -> set[str]:
    """Chooses episodes of the first policy, the first of every task before the second of any."""
    policy = next((name for name, condition in conditions.items() if isinstance(condition, Checkpoint)), None)
    seen: dict[tuple[str, int], int] = {}
    ranked = []
    for episode in plan:
        if episode.condition == policy:
            ranked.append((seen.setdefault(episode.simulator_key, 0), episode.task, episode.name))
            seen[episode.simulator_key] += 1
    return {name for _, _, name in sorted(ranked)[:count]}


def _collect(
    run: Run,
    pool: WorkerPool,
    tasks: Sequence[EpisodeTask],
    config: RunSettings,
    shifts: Mapping[str, float],
    planned: int,
) -> None:
    code, packages = code_version(), package_versions()
    progress = EpisodeProgress(run.records, planned)
    try:
        for outcome in pool.run(tasks):
            attempt = 1 + pool.deaths[outcome.episode.name]
            if outcome.film is not None and outcome.video is not None:
                with atomic_path(run.folder / outcome.video) as staged:
                    staged.write_bytes(outcome.film)
            shift = shifts[outcome.episode.suite]
            record = _record(outcome, config.render, shift, attempt=attempt, code=code, packages=packages)
            run.add(record)
            progress.tell(record)
    except KeyboardInterrupt:
        say(f"stopped with {len(run.records)} of {planned} episodes done; the same command goes on")
        raise
    finally:
        progress.close()


def _record(
    outcome: EpisodeOutcome, render: str, shift: float, *, attempt: int, code: str, packages: Mapping[str, str]
) -> EpisodeRecord:
    kept = [item.name for item in dataclasses.fields(outcome) if item.name not in ("episode", "film")]
    fields = {name: getattr(outcome, name) for name in kept}
    return EpisodeRecord(
        **dataclasses.asdict(outcome.episode),
        **fields,
        placement_shift=shift,
        render=render,
        attempt=attempt,
        code=code,
        packages=dict(packages),
    )
