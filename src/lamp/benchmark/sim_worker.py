"""Simulator processes: each owns one simulator, takes episodes, asks the main process for action chunks, and films."""

from __future__ import annotations

import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from av.video.stream import VideoStream

from lamp.benchmark.baselines import Condition, PolicyCondition, Scripted
from lamp.benchmark.episodes import EvaluationEpisode
from lamp.benchmark.flow_errors import FlowProbe, FlowRecorder
from lamp.benchmark.suites import Simulators
from lamp.data.lerobot.video import encoder
from lamp.errors import system_error
from lamp.files import atomic_path
from lamp_client.child_processes import available_cores
from lamp_client.chunks import Executor
from lamp_client.envs import Simulator
from lamp_client.rollout import Frame, run_episode
from lamp_client.types import ActionChunk, Observation

if TYPE_CHECKING:
    from lamp.benchmark.oracle import FollowedSimulator, Lookahead


def default_workers() -> int:
    """Simulator processes: one more than there are cores, so that none is idle while one waits for the policy."""
    return available_cores() + 1


@dataclass(frozen=True, kw_only=True)
class EpisodeTask:
    """Main process to worker: an episode to run."""

    episode: EvaluationEpisode
    actions: np.ndarray | None
    """(n, 7) recorded actions in dataset units of a control that does not look; the last one is repeated."""
    filmed: bool
    probed: bool = False
    """Whether to measure how good the foresight was."""


@dataclass(frozen=True, kw_only=True)
class ActionRequest:
    """Worker to main process: an observation. The reply is an `ActionChunk`."""

    episode: EvaluationEpisode
    observation: Observation
    noise_seed: tuple[int, ...]
    foresight: bool
    prior_instruction: str | None = None
    """What the Motion Expert is told in place of the observation's instruction."""
    true_motion: np.ndarray | None = None
    """(k, t, 3) increments of the true scene flow to come, NaN where not known, for an oracle."""


@dataclass(frozen=True, kw_only=True)
class EpisodeOutcome:
    """Worker to main process: the episode is over."""

    episode: EvaluationEpisode
    success: bool
    success_last: bool
    steps: int
    instruction: str
    placement: dict[str, list[float]]
    wall_s: float
    policy_calls: int
    policy_ms: float
    video: str | None
    variation: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    film: bytes | None = None
    """The video's file, where the worker is on another machine."""


@dataclass(frozen=True, kw_only=True)
class EpisodeFailure:
    """Worker to main process: the episode raised; an error in the code, so that it is not tried again."""

    episode: EvaluationEpisode
    error: str
    trace: str
    cause: OSError | None = None
    """What went wrong with files and the like, if that is it: nobody's mistake in the code."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What a worker needs to run episodes, sent at its start."""

    simulators: Mapping[str, Simulators]
    """Suite -> its simulators."""
    conditions: Mapping[str, Condition]
    instructions: Mapping[str, tuple[str, ...]]
    """Suite -> the instruction of every task."""
    execute: Mapping[str, int]
    """Condition -> number of actions executed of each chunk."""
    folder: Path | None
    """Where films go; None: they travel to the main process."""
    artist: Artist
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Condition -> what its policy says about itself, such as the units of its gripper."""
    probes: Mapping[str, FlowProbe] = field(default_factory=dict)
    """Condition -> the scene flow that it foresees."""
    oracles: Mapping[str, FlowProbe] = field(default_factory=dict)
    """Condition -> the true scene flow that it is told."""


class RemotePolicy:
    """A policy that answers from the main process, shown what the condition lets it see."""

    def __init__(self, connection: Connection, setup: WorkerSetup, task: EpisodeTask) -> None:
        self._connection = connection
        self._setup = setup
        self._task = task
        self.calls = 0
        self.waited_s = 0.0
        self.foresight: np.ndarray | None = None
        self.instruction: str | None = None
        self.recorder: FlowRecorder | None = None
        self.followed: FollowedSimulator | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What the condition's policy says about itself. Actions of controls have the gripper 1 = open."""
        return dict(self._setup.policies.get(self._task.episode.condition, {}))

    def act(self, observation: Observation, *, noise_seed: tuple[int, ...] | None = None) -> ActionChunk:
        """Sends the observation and waits for the chunk."""
        condition = self._setup.conditions[self._task.episode.condition]
        if not isinstance(condition, PolicyCondition):
            raise TypeError(f"the condition {condition.name} does not look, so it cannot ask a policy")
        episode = self._task.episode
        where = {"task": episode.task, "instructions": self._setup.instructions[episode.suite]}
        visible = condition.altered(observation, **where)
        self.instruction = visible.instruction
        seeds = noise_seed if noise_seed is not None else (*self._task.episode.noise_seed, self.calls)
        true_motion = None if self.followed is None else self.followed.flow()
        started = time.perf_counter()
        self._connection.send(
            ActionRequest(
                episode=self._task.episode,
                observation=visible,
                noise_seed=seeds,
                foresight=self._task.filmed or self._task.probed,
                prior_instruction=condition.prior_instruction(observation, **where),
                true_motion=true_motion,
            )
        )
        chunk: ActionChunk = self._connection.recv()
        self.waited_s += time.perf_counter() - started
        self.calls += 1
        self.foresight = chunk.foresight
        if self.recorder is not None:
            self.recorder.note(chunk.foresight)
        return chunk


def work(connection: Connection, setup: WorkerSetup) -> None:
    """A worker process: runs tasks until told to stop (None) or until the main process is gone."""
    # On other machines too (here it has been from the start): only the main process decides what Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    simulator: Simulator | None = None
    lookaheads: dict[FlowProbe, Lookahead] = {}
    opened: tuple[str, int] | None = None
    try:
        while True:
            task: EpisodeTask | None = connection.recv()
            if task is None:
                return
            try:
                if simulator is None or opened != task.episode.simulator_key:
                    while lookaheads:
                        lookaheads.popitem()[1].close()
                    if simulator is not None:
                        simulator.close()
                    opened = task.episode.simulator_key
                    simulator = setup.simulators[task.episode.suite].make(task.episode.task)
                lookahead = _lookahead(setup, task.episode, lookaheads)
                outcome = play(simulator, task, RemotePolicy(connection, setup, task), setup, lookahead)
            except (EOFError, ConnectionError):
                raise
            except Exception as error:
                text, cause = f"{type(error).__name__}: {error}", system_error(error)
                connection.send(
                    EpisodeFailure(episode=task.episode, error=text, trace=traceback.format_exc(), cause=cause)
                )
                simulator = None
            else:
                connection.send(outcome)
    except (EOFError, ConnectionError):
        # The main process is gone. Leave without the interpreter's clean-up, which may wait for graphics libraries.
        os._exit(1)


def _lookahead(setup: WorkerSetup, episode: EvaluationEpisode, opened: dict[FlowProbe, Lookahead]) -> Lookahead | None:
    """What tells an oracle the motion to come, with a second simulator of the task; None where the condition is no oracle."""
    probe = setup.oracles.get(episode.condition)
    if probe is not None and probe not in opened:
        opened[probe] = setup.simulators[episode.suite].lookahead(episode.task, probe)
    return None if probe is None else opened[probe]


class ReplayExecutor:
    """An executor that sends recorded actions without ever looking; the last one is repeated."""

    chunk: ActionChunk | None = None
    calls: int = 0

    def __init__(self, actions: np.ndarray) -> None:
        self._actions = actions
        self._step = 0

    def reset(self) -> None:
        """Starts again from the first action."""
        self._step = 0

    def next_action(self, observe: Callable[[], Observation], policy: Any, noise_seed: tuple[int, ...]) -> np.ndarray:
        """Returns the next recorded action."""
        action = self._actions[min(self._step, len(self._actions) - 1)]
        self._step += 1
        return action


class ExpertExecutor(ReplayExecutor):
    """An executor that asks a scripted expert; the expert sees the simulator itself."""

    def __init__(self, expert: Callable[[], np.ndarray]) -> None:
        self._expert = expert

    def reset(self) -> None:
        """Nothing: an expert is made for each episode."""

    def next_action(self, observe: Callable[[], Observation], policy: Any, noise_seed: tuple[int, ...]) -> np.ndarray:
        """Returns the expert's next action."""
        return self._expert()


def _executor(simulator: Simulator, task: EpisodeTask, setup: WorkerSetup) -> Executor:
    if task.actions is not None:
        return ReplayExecutor(task.actions)
    simulators = setup.simulators[task.episode.suite]
    if not isinstance(setup.conditions[task.episode.condition], Scripted):
        return simulators.executor(setup.execute[task.episode.condition])
    return ExpertExecutor(simulators.expert(simulator))


def play(
    simulator: Simulator,
    task: EpisodeTask,
    policy: RemotePolicy,
    setup: WorkerSetup,
    lookahead: Lookahead | None = None,
) -> EpisodeOutcome:
    """Runs one episode: at most `step_limit` actions after settling; the first success ends it, if the suite's rules are so.

    `lookahead` tells an oracle the motion to come.
    """
    simulators = setup.simulators[task.episode.suite]
    started = time.perf_counter()
    episode = task.episode
    simulator.reset(episode.state, episode.placement_seed)
    film = Film(setup.artist) if task.filmed else None
    policy.recorder = recorder = FlowRecorder(simulator) if task.probed else None
    if lookahead is not None:
        policy.followed = lookahead.follow(simulator, episode.state, episode.placement_seed)
    result = run_episode(
        cast(Simulator, policy.followed or recorder or simulator),
        policy,
        _executor(simulator, task, setup),
        noise_seed=episode.noise_seed,
        stop_on_success=simulators.stop_on_success,
        on_frame=film.add_frame if film else None,
        frame_every=simulators.film_every,
    )
    video = f"videos/{episode.name}.mp4" if film else None
    filmed = _film(film, setup.folder / video if setup.folder and video else None)
    extra: dict[str, Any] = {"flow": recorder.errors(setup.probes[episode.condition])} if recorder else {}
    if simulator.facts:
        extra["simulator"] = dict(simulator.facts)
    return EpisodeOutcome(
        episode=episode,
        success=result.success,
        success_last=result.success_last,
        steps=result.steps,
        instruction=policy.instruction or simulator.instruction,
        placement={name: [float(value) for value in offset] for name, offset in simulator.placement.items()},
        wall_s=round(time.perf_counter() - started, 3),
        policy_calls=policy.calls,
        policy_ms=round(1000 * policy.waited_s / policy.calls, 2) if policy.calls else 0.0,
        video=video,
        variation=dict(simulator.variation),
        extra=extra,
        film=filmed,
    )


def _film(film: Film | None, path: Path | None) -> bytes | None:
    """Writes a film where it belongs; returns it where that is on another machine."""
    if film is None:
        return None
    if path is not None:
        write_film(path, film.frames)
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "film.mp4"
        write_film(file, film.frames)
        return file.read_bytes()


Artist = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Draws foresight (k, t + 1, 3), None where there is none, over an image (H, W, 3) and returns the picture; must pickle."""

FILM_FPS = 10
"""Frames per second of the film: at 20 steps a second and `Simulators.film_every` 4, twice real time."""


def plain(image: np.ndarray, foresight: np.ndarray | None) -> np.ndarray:
    """The artist that draws nothing."""
    return image


class Film:
    """Collects pictures of an episode while it runs."""

    def __init__(self, artist: Artist) -> None:
        self.frames: list[np.ndarray] = []
        self._artist = artist

    def add_frame(self, frame: Frame) -> None:
        """Takes a picture of a moment; to be passed to `run_episode`."""
        image = next(iter(frame.observation.images.values()))
        foresight = frame.chunk.foresight if frame.chunk is not None and not frame.success else None
        self.frames.append(self._artist(image, foresight))


def write_film(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Encodes frames as an mp4 that browsers play, atomically."""
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])
    name = encoder()
    options = {"crf": "25", "preset": "medium"} if name == "libx264" else {}
    with (
        atomic_path(path) as staged,
        av.open(str(staged), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = cast(VideoStream, container.add_stream(name, rate=FILM_FPS, options={**options, "threads": "1"}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FILM_FPS)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FILM_FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
