"""`lamp bench evaluate`: episodes an hour of the batched runner against one process, on the same episodes in the same run.

The parts of an episode are measured too, and give a plan for a larger machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lamp.bench.timing import describe_machine
from lamp.benchmark import episodes as episode_lines
from lamp.benchmark.episodes import EvaluationEpisode
from lamp.benchmark.policies import Policies, PolicyOpener
from lamp.benchmark.sim_worker import EpisodeTask, WorkerSetup, default_workers, plain
from lamp.benchmark.suites import LiberoSimulators, Simulators, parse_states
from lamp.benchmark.worker_pool import WorkerPool
from lamp.errors import ConfigError
from lamp_client.chunks import OpenLoop
from lamp_client.envs import Simulator
from lamp_client.rollout import run_episode
from lamp_client.types import ActionChunk, Observation


@dataclass(frozen=True, kw_only=True)
class EvaluationBench:
    """Measures the evaluation's runner against one process that simulates and acts in turn."""

    checkpoint: Path
    """The policy."""
    suite: str = "libero_object"
    task: int = 0
    states: str = "30:50"
    """Stored initial states; each is an episode."""
    render: Literal["exact", "fast"] = "exact"
    placement_shift: float = 0.0
    workers: int = field(default_factory=default_workers)
    """Simulator processes of the batched runner."""
    plan_episodes: int = 2000
    """Number of episodes to plan for ..."""
    plan_cores: int = 16
    """... on a machine with this many cores ..."""
    plan_policy_ms: float | None = None
    """... where a chunk of actions takes this time [ms], as `lamp bench infer` measures it; None: as long as here."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.plan_cores < 2 or self.plan_episodes < 1:
            given = f"workers {self.workers}, plan_cores {self.plan_cores}, plan_episodes {self.plan_episodes}"
            raise ConfigError(f"{given}; expected at least 1, 2 and 1")


class TimedSimulator:
    """A simulator and a policy in one process, with the time and number of their calls."""

    def __init__(self, simulator: Simulator, policy: Any) -> None:
        self._simulator, self._policy = simulator, policy
        self.seconds = {"reset": 0.0, "render": 0.0, "step": 0.0, "policy": 0.0}
        self.calls = dict.fromkeys(self.seconds, 0)
        self.metadata: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)

    def reset(self, initial_state: int, placement_seed: int | None = None) -> None:
        self._timed("reset", lambda: self._simulator.reset(initial_state, placement_seed))

    def observe(self) -> Observation:
        return self._timed("render", self._simulator.observe)

    def step(self, action: np.ndarray) -> Any:
        return self._timed("step", lambda: self._simulator.step(action))

    def act(self, observation: Observation, *, noise_seed: tuple[int, ...] | None = None) -> ActionChunk:
        return self._timed("policy", lambda: self._policy.act_batch([observation], [noise_seed])[0])

    def _timed(self, part: str, call: Any) -> Any:
        started = time.perf_counter()
        result = call()
        self.seconds[part] += time.perf_counter() - started
        self.calls[part] += 1
        return result


def bench_evaluate(
    config: EvaluationBench, *, simulators: Simulators | None = None, load: Any = None
) -> dict[str, Any]:
    """Runs the episodes one after another, then batched, and compares those that ran while all workers were busy.

    Raises:
        ConfigError: There are too few episodes for that.
    """
    torch.set_num_threads(1)
    simulators = simulators or LiberoSimulators(
        suite=config.suite, render=config.render, placement_shift=config.placement_shift
    )
    opener = load or PolicyOpener()
    policies = Policies(lambda path: opener(path, "cpu", 1))
    conditions = policies.conditions([(config.checkpoint, "policy")], (), None)
    plan = episode_lines.plan(
        conditions=policies.hashes(conditions).items(),
        suite=simulators.suite,
        tasks=(config.task,),
        states=parse_states(config.states),
        repeats=1,
        seed=0,
    )
    if len(plan) < 3 * config.workers:
        expected = f"at least {3 * config.workers} states for {config.workers} workers"
        raise ConfigError(f"{len(plan)} episodes; expected {expected}: the first and the last of each do not count")
    execute = policies.execute(None)["policy"]
    alone, timed = _one_by_one(plan, simulators, opener(config.checkpoint, "cpu", 1), execute)
    with tempfile.TemporaryDirectory() as folder:
        setup = WorkerSetup(
            simulators={simulators.suite: simulators},
            conditions=conditions,
            instructions={simulators.suite: simulators.instructions()},
            execute={"policy": execute},
            folder=Path(folder),
            artist=plain,
        )
        ended, batch_sizes = _batched(plan, setup, policies, config.workers)
    counted = [name for name, _ in ended[config.workers : len(ended) - config.workers + 1]]
    elapsed = ended[len(ended) - config.workers][1] - ended[config.workers - 1][1]
    sequential = sum(alone[name] for name in counted)
    calls = max(1, timed.calls["policy"])
    parts = {name: 1000 * timed.seconds[name] / max(1, timed.calls[name]) for name in timed.seconds}
    return {
        "benchmark": "evaluate",
        "ratio": sequential / elapsed,
        "ratio_is": "time of the same episodes one after another in one process / time of the batched runner",
        "target": 1.7,
        "episodes_per_hour": {
            "one process": 3600 * len(counted) / sequential,
            "batched": 3600 * len(counted) / elapsed,
        },
        "counted": len(counted),
        "episodes": len(plan),
        "workers": config.workers,
        "mean_batch": sum(batch_sizes) / max(1, len(batch_sizes)),
        "parts_ms": parts,
        "per_episode": {name: timed.calls[name] / len(plan) for name in timed.calls},
        "plan": _plan(
            config, timed, len(plan), parts["policy"] if config.plan_policy_ms is None else config.plan_policy_ms
        ),
        "policy_calls": calls,
        "suite": simulators.suite,
        "render": config.render,
        "machine": asdict(describe_machine(torch.device("cpu"), torch.float32)),
    }


def _one_by_one(
    plan: Sequence[EvaluationEpisode], simulators: Simulators, policy: Any, execute: int
) -> tuple[dict[str, float], TimedSimulator]:
    """Seconds of each episode, and the parts of all, without opening the simulator and the first chunk."""
    simulator = simulators.make(plan[0].task)
    seconds = {}
    try:
        simulator.reset(plan[0].state, plan[0].placement_seed)
        policy.act_batch([simulator.observe()], [(0,)])
        timed = TimedSimulator(simulator, policy)
        for episode in plan:
            started = time.perf_counter()
            timed.reset(episode.state, episode.placement_seed)
            run_episode(timed, timed, OpenLoop(execute=execute), noise_seed=episode.noise_seed)  # pyright: ignore[reportArgumentType]
            seconds[episode.name] = time.perf_counter() - started
    finally:
        simulator.close()
    return seconds, timed


def _batched(
    plan: Sequence[EvaluationEpisode], setup: WorkerSetup, policies: Policies, workers: int
) -> tuple[list[tuple[str, float]], list[int]]:
    """The time at which each episode ended, and the sizes of the policy's batches."""
    batch_sizes: list[int] = []

    def answer(requests: Any) -> list[ActionChunk]:
        batch_sizes.append(len(requests))
        return policies.answer(requests)

    pool = WorkerPool(size=workers, setup=setup, answer=answer, gather_s=0.002)
    tasks = [EpisodeTask(episode=episode, actions=None, filmed=False) for episode in plan]
    return [(outcome.episode.name, time.perf_counter()) for outcome in pool.run(tasks)], batch_sizes


def _plan(config: EvaluationBench, timed: TimedSimulator, episodes: int, policy_ms: float) -> dict[str, Any]:
    """The time of many episodes where one core runs the policy and the others simulate, with more simulators than cores."""
    simulation = sum(timed.seconds[name] for name in ("reset", "render", "step")) / episodes
    policy = timed.calls["policy"] / episodes * policy_ms / 1000
    simulated_s = simulation / (config.plan_cores - 1)
    return {
        "episodes": config.plan_episodes,
        "cores": config.plan_cores,
        "policy_ms": policy_ms,
        "simulation_core_seconds_per_episode": simulation,
        "policy_seconds_per_episode": policy,
        "bound_by": "simulation" if simulated_s > policy else "policy",
        "minutes": config.plan_episodes * max(simulated_s, policy) / 60,
    }


def to_text(result: dict[str, Any]) -> str:
    """The figures for a terminal."""
    pace, plan, parts = result["episodes_per_hour"], result["plan"], result["parts_ms"]
    return "\n".join(
        [
            f"batched runner, {result['workers']} simulators: {pace['batched']:.0f} episodes/h; one process: "
            f"{pace['one process']:.0f}; ratio {result['ratio']:.2f} (target {result['target']}), {result['counted']} episodes",
            "parts, mean: " + ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items()),
            f"plan: {plan['episodes']} episodes on {plan['cores']} cores, {plan['policy_ms']:.0f} ms a chunk (unbatched): "
            f"{plan['minutes']:.0f} minutes, bound by the {plan['bound_by']}",
        ]
    )
