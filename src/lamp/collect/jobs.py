"""What a collection has to record, and what has been tried so far: a list of jobs that follows from the configuration alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from lamp.data.lerobot.format import ATTEMPTS_PATH
from lamp.errors import ConfigError, unknown
from lamp.json_files import append_line, read_lines_as, to_line
from lamp_client.envs.plus_style import Perturbation, parse

EVALUATION_STATES = range(30, 50)
"""Initial states that no demonstration may start from."""
PERTURBED = ("camera", "light")
"""What may be perturbed in demonstrations."""
MAX_ATTEMPTS = 8
"""Attempts at one episode, each with another initial state and other seeds, before it is given up."""
EXPERT_TASKS: dict[str, tuple[int, ...]] = {
    "libero_object": tuple(range(10)),
    "libero_spatial": tuple(range(10)),
    "libero_goal": (1, 2, 4, 6, 8, 9),
}
"""The tasks that bring one object to one place, by suite."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Demonstrations of a scripted expert in LIBERO, recorded as a LeRobot dataset."""

    suite: str
    """LIBERO suite: libero_object, libero_spatial or libero_goal."""
    task: tuple[int, ...] = ()
    """Task indices; none given: all that the expert can do."""
    episodes: int = 30
    """Episodes a task. A larger number later extends the dataset."""
    out: Path = Path("data")
    """The dataset's folder."""
    states: tuple[int, int] = (0, 30)
    """Initial states to start from: first, and one past the last. 30 to 49 are kept for evaluation."""
    placement_shift: float = 0.0
    """Objects on the table are displaced by up to this much along x and along y [m]."""
    action_noise: float = 0.15
    """Standard deviation of the correlated noise on the executed actions; the recorded action is the clean one."""
    perturbation_probability: float = 0.3
    """Probability that an episode has a push of 1 to 3 cm before the grasp."""
    fumble_probability: float = 0.0
    """Probability that an episode has the gripper close too early and beside the object, and shows how to come back from it."""
    render: Literal["exact", "fast"] = "fast"
    """Multisampled as in LIBERO, or without multisampling at half the time."""
    render_every: int = 1
    """Render every n-th frame; the frames between repeat the image and are marked as not fresh."""
    image_size: int = 256
    """Width and height of the images [px]."""
    motion_only: bool = False
    """Record no actions: data that Stage 1 learns motion from, and no policy can be trained on."""
    perturb: tuple[str, ...] = ()
    """Plus-style perturbations of camera and light, such as `camera=2`, `light=3` or `camera=2+light=3`: one of those
    given, which may be `none`, is drawn for each episode (docs/benchmarks.md)."""
    workers: int = 0
    """Processes; 0: one per processor."""
    seed: int = 0
    """Displacements, noise and pushes follow from it."""

    def __post_init__(self) -> None:
        if self.suite not in EXPERT_TASKS:
            raise unknown("suite for the scripted expert", self.suite, EXPERT_TASKS)
        able = EXPERT_TASKS[self.suite]
        for task in self.task:
            if task not in able:
                raise ConfigError(
                    f"the scripted expert cannot do task {task} of {self.suite}; it can do {', '.join(map(str, able))}."
                )
        self._check_states()
        for name, least in (("episodes", 1), ("render_every", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more.")
        if not 16 <= self.image_size <= 4096:
            raise ConfigError(f"image_size is {self.image_size}; expected 16 to 4096 px.")
        probabilities = (("perturbation_probability", 1.0), ("fumble_probability", 1.0))
        for name, most in (("placement_shift", 0.15), ("action_noise", 1.0), *probabilities):
            if not 0.0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 to {most:g}.")

        self.perturbations()

    def perturbations(self) -> dict[str, Perturbation | None]:
        """The perturbations of `perturb`, by their texts; None stands for the standard scene.

        Raises:
            ConfigError: One is given twice, or perturbs something else than camera and light.
            LampClientError: One does not exist.
        """
        parsed = {text: None if text == "none" else parse(text) for text in self.perturb}
        for text, one in parsed.items():
            if one is not None and not set(one.category.split("+")) <= {*PERTURBED}:
                raise ConfigError(
                    f"perturb {text}: expected perturbations of {' and '.join(PERTURBED)}, such as camera=2"
                )
        if len(parsed) < len(self.perturb):
            raise ConfigError(f"perturb {', '.join(self.perturb)}: expected none twice")
        return parsed

    def _check_states(self) -> None:
        first, end = self.states
        problem = f"states is {first} to {end - 1}"
        if end > EVALUATION_STATES.start:
            raise ConfigError(f"{problem}; 30 to 49 are kept for evaluation, choose within 0 to 29 (--states 0 30).")
        if not 0 <= first < end:
            raise ConfigError(f"{problem}; expected at least one state within 0 to 29 (--states 0 30).")
        varied = self.placement_shift or self.action_noise or self.perturbation_probability
        if not varied and self.episodes > end - first:
            raise ConfigError(
                f"{self.episodes} episodes a task from {end - first} initial states would repeat one another exactly; "
                "ask for fewer, or allow placement_shift, action_noise or perturbation_probability."
            )

    @property
    def tasks(self) -> tuple[int, ...]:
        """The task indices, each once, in order."""
        return tuple(sorted(set(self.task or EXPERT_TASKS[self.suite])))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to record."""

    suite: str
    task: int
    episode: int

    @property
    def name(self) -> str:
        """Unique in a dataset; sorts by task, then episode."""
        return f"{self.suite}-{self.task:02d}-{self.episode:06d}"


@dataclass(frozen=True, kw_only=True)
class Start:
    """How one attempt at a job begins."""

    initial_state: int
    placement_seed: int
    noise_seed: int


def jobs_of(config: CollectConfig) -> list[Job]:
    """All episodes of a configuration, in the order of their names."""
    pairs = [(task, episode) for task in config.tasks for episode in range(config.episodes)]
    return [Job(suite=config.suite, task=task, episode=episode) for task, episode in pairs]


def start_of(config: CollectConfig, job: Job, attempt: int) -> Start:
    """Follows from the configuration's seed, the job and the number of the attempt (from 0), and from nothing else."""
    suite = list(EXPERT_TASKS).index(job.suite)
    entropy = np.random.SeedSequence((config.seed, suite, job.task, job.episode, attempt))
    placement, noise = (int(word) for word in entropy.generate_state(2))
    first, end = config.states
    state = first + (job.episode + attempt) % (end - first)
    return Start(initial_state=state, placement_seed=placement, noise_seed=noise)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One line of the log of attempts."""

    job: str
    attempt: int
    outcome: str
    """`success`, or why it failed."""
    steps: int
    seconds: float


@dataclass(kw_only=True)
class Attempts:
    """What was tried for each job; kept on disk, so that a resumed collection goes on where it stopped."""

    path: Path
    by_job: dict[str, list[Attempt]] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Attempts:
        """Reads the log of the dataset at `root`; there may be none yet."""
        attempts = cls(path=root / ATTEMPTS_PATH)
        for attempt in read_lines_as(attempts.path, Attempt, "log of attempts"):
            attempts.note(attempt)
        return attempts

    def note(self, attempt: Attempt) -> None:
        """Takes an attempt into account that is on disk already."""
        self.by_job.setdefault(attempt.job, []).append(attempt)

    def count(self, names: Iterable[str]) -> int:
        """How many attempts there were at these jobs."""
        return sum(len(self.by_job.get(name, [])) for name in names)

    def next(self, name: str) -> int | None:
        """The number of the job's next attempt, from 0; None if it has used up its attempts."""
        number = max((tried.attempt for tried in self.by_job.get(name, [])), default=-1) + 1
        return number if number < MAX_ATTEMPTS else None

    def failures(self, names: Iterable[str]) -> Counter[str]:
        """How often each reason occurred in these jobs."""
        outcomes = (tried.outcome for name in names for tried in self.by_job.get(name, []))
        return Counter(outcome for outcome in outcomes if outcome != "success")


def log_attempt(root: Path, attempt: Attempt) -> None:
    """Appends an attempt to the log of the dataset at `root`."""
    append_line(root / ATTEMPTS_PATH, to_line(vars(attempt)))
