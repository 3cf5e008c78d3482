"""`lamp evaluate simpler`: the four WidowX tasks of SimplerEnv, simulated by ManiSkill3 in an environment of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, TimeoutExpired
from typing import Any, Literal, cast

import numpy as np

from lamp.benchmark.evaluate import EvaluateConfig, Summary, evaluate
from lamp.benchmark.policies import BatchPolicy, PolicyRunSettings
from lamp.benchmark.sim_worker import Artist, default_workers, plain
from lamp.benchmark.suites import Simulators, parse_states
from lamp.errors import ConfigError, MismatchError, MissingDependencyError
from lamp.model.prior_interventions import PriorKind
from lamp_client.child_processes import run_program
from lamp_client.chunks import Executor, OpenLoop, SimilarityEnsemble
from lamp_client.envs import Simulator, simpler_tasks
from lamp_client.envs.remote import Launch, RemoteEnv
from lamp_client.envs.simpler_tasks import EPISODES, SIMPLER_TASKS, STATE_WIDTH, SimplerView, action_from_policy

SUITE = "simpler_widowx"
WITH_STAND_INS = "simpler_widowx_stand_ins"
"""The suite's name where files of the scenes are not the original ones: such results are no SimplerEnv results."""

TaskName = Literal["stack_block", "put_carrot", "put_spoon", "put_eggplant"]
NUMBERS: dict[str, int] = {task.name: number for number, task in enumerate(SIMPLER_TASKS)}


@dataclass(frozen=True, kw_only=True)
class SimplerConfig(PolicyRunSettings):
    """Runs policies on SimplerEnv's four WidowX tasks, in ManiSkill3's own environment (docs/simpler.md)."""

    task: tuple[TaskName, ...] = ()
    """Tasks; empty for all four."""
    states: str = f"0:{EPISODES}"
    """Episodes, as SimplerEnv numbers them: `0:24`, `0:24:3` or `0,5,7`."""
    out: Path = Path("outputs/simpler")
    """Output folder; one that holds an unfinished run with the same settings is continued."""
    max_steps: int | None = None
    """Actions of every episode; None is the protocol: 60, and 120 for the eggplant. Some report 120 for all."""
    ensemble: int = 7
    """The policy is asked at every step, and so many of its latest chunks are averaged; 0: chunks are executed as they are."""
    execute: int | None = None
    """Without an ensemble: actions executed of each chunk before replanning; None takes the checkpoint's."""
    controls: tuple[Literal["expert", "zero", "wrong_instruction", "blank"], ...] = ()
    """What else acts on the same episodes."""
    intervene: tuple[str, ...] = ()
    """Changes of the policy's motion prior, each on the same episodes: `prior_zeroed`, `gate=0.5`, ... or `all`."""
    prior: PriorKind = "predicted"
    """`oracle` is refused: SimplerEnv's simulator does not tell the true motion to come."""
    python: Path | None = None
    """ManiSkill3's interpreter; None looks for `.venv-simpler`, which `make simpler-env` builds."""
    assets: Path | None = None
    """The folder that holds ManiSkill's `data`; None: $MS_ASSET_DIR, or `~/.maniskill`."""
    renderer: Literal["cpu", "gpu"] = "cpu"
    """Where Vulkan renders."""
    workers: int = field(default_factory=default_workers)
    """Simulator processes."""

    def __post_init__(self) -> None:
        if self.prior == "oracle":
            raise ConfigError(
                "--prior oracle needs a simulator that tells its state, and SimplerEnv's does not; expected a suite of LIBERO"
            )
        parse_states(self.states, EPISODES)
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps is {self.max_steps}; expected at least 1, or nothing for the protocol's")
        if self.ensemble < 0:
            raise ConfigError(f"ensemble is {self.ensemble}; expected at least 1 chunk, or 0 for none")
        if self.ensemble and self.execute is not None:
            raise ConfigError(
                f"execute is {self.execute}, but an ensemble asks at every step; expected --ensemble 0 with it"
            )
        self.evaluation(SUITE)

    def evaluation(self, suite: str) -> EvaluateConfig:
        """The same in the words of an evaluation of any suite."""
        names = {item.name for item in dataclasses.fields(EvaluateConfig)} - {"task"}
        shared: dict[str, Any] = {
            item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name in names
        }
        return EvaluateConfig(**shared, suite=suite, task=tuple(NUMBERS[name] for name in self.task))

    @property
    def settings(self) -> dict[str, Any]:
        """What changes results here and nowhere else."""
        return {"max_steps": self.max_steps, "ensemble": self.ensemble, "renderer": self.renderer}


@dataclass(frozen=True, kw_only=True)
class SimplerSimulators(Simulators):
    """The simulators of the four tasks, each in a process of ManiSkill3's interpreter."""

    launch: Launch
    suite: str = SUITE
    view: SimplerView = field(default_factory=SimplerView)
    max_steps: int | None = None
    ensemble: int = 7
    renderer: Literal["cpu", "gpu"] = "cpu"
    facts: dict[str, Any] = field(default_factory=dict)
    """What each episode's record says about the scenes' files."""
    stop_on_success: bool = False
    """SimplerEnv looks at the last step, others at any: both are recorded, so no episode ends early."""
    film_every: int = 1

    def instructions(self) -> tuple[str, ...]:
        """The instruction of every task, in order."""
        return tuple(task.instruction for task in SIMPLER_TASKS)

    def make(self, task: int) -> Simulator:
        """Starts the process of one task (seconds)."""
        settings = {
            "task": task,
            "view": dataclasses.asdict(self.view),
            "step_limit": self.max_steps,
            "renderer": self.renderer,
        }
        env = RemoteEnv(self.launch, settings, action_from_policy)
        env.facts |= self.facts
        return cast(Simulator, env)

    def expert(self, simulator: Simulator) -> Callable[[], np.ndarray]:
        """The scripted expert of the process; it knows where everything is."""
        return cast(RemoteEnv, simulator).expert()

    def executor(self, execute: int) -> Executor:
        """Averages the latest chunks at every step, or executes `execute` actions of each."""
        return SimilarityEnsemble(window=self.ensemble) if self.ensemble else OpenLoop(execute=execute)


def evaluate_simpler(
    config: SimplerConfig, *, artist: Artist = plain, load: Callable[[Path, str, int], BatchPolicy] | None = None
) -> Summary:
    """Runs, or continues, an evaluation on SimplerEnv's WidowX tasks.

    Args:
        artist: Draws the policy's foresight over film frames.
        load: Opens a policy; None takes LaMP's.

    Raises:
        MissingDependencyError: ManiSkill3, its assets or Vulkan are missing; nothing has been started then.
        ConfigError: A setting does not fit, or the folder holds an evaluation with other settings.
        MismatchError: A policy was trained with what SimplerEnv does not show.
    """
    environment = find_environment(config.python, config.assets, config.renderer)
    simulators = simulators_of(config, environment, view_of(config.checkpoint, config.against))
    settings = {**config.settings, "assets": environment.fingerprint}
    return evaluate(
        config.evaluation(simulators.suite), artist=artist, load=load, simulators=simulators, settings=settings
    )


def simulators_of(config: SimplerConfig, environment: ManiSkillEnvironment, view: SimplerView) -> SimplerSimulators:
    """The simulators that a configuration asks for; with files that are stand-ins, under another name."""
    return SimplerSimulators(
        launch=environment.launch,
        suite=WITH_STAND_INS if environment.stand_ins else SUITE,
        view=view,
        max_steps=config.max_steps,
        ensemble=config.ensemble,
        renderer=config.renderer,
        facts={"assets": environment.fingerprint, "stand_ins": list(environment.stand_ins)},
    )


def view_of(*checkpoints: Path | None) -> SimplerView:
    """What policies are to be shown: the camera, image size and state that they were trained with.

    Raises:
        MismatchError: SimplerEnv cannot show that, or not the same to all of them.
    """
    views = {path: _view(path) for path in checkpoints if path is not None}
    if len(set(views.values())) > 1:
        described = "; ".join(f"{path}: {view}" for path, view in views.items())
        raise MismatchError(
            f"the policies see different things ({described}); expected the same: evaluate them one by one"
        )
    return next(iter(views.values()), SimplerView())


def _view(checkpoint: Path) -> SimplerView:
    from lamp.train.checkpoint_metadata import read_description

    description = read_description(checkpoint)
    if description.policy is None:
        raise MismatchError(f"{checkpoint} is a {description.kind} checkpoint; expected a policy's")
    cameras, width = description.backbone.cameras, description.policy.state_width
    if len(cameras) != 1:
        names = ", ".join(camera.name for camera in cameras)
        raise MismatchError(f"{checkpoint} was trained with the cameras {names}; SimplerEnv has one")
    if width not in (0, STATE_WIDTH):
        raise MismatchError(
            f"{checkpoint} was trained with a state of {width} values; expected none, or BridgeV2's {STATE_WIDTH} (position, "
            "roll-pitch-yaw, gripper)"
        )
    (camera,) = cameras
    return SimplerView(camera=camera.name, height=camera.height, width=camera.width, state_width=width)


VARIABLE = "LAMP_SIMPLER_PYTHON"
PLACE = Path(".venv-simpler/bin/python")
MODULE = "lamp_client.envs.simpler_process"
CHECK_S = 300.0
"""Importing ManiSkill3 takes half a minute on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class ManiSkillEnvironment:
    """An interpreter that can run the scenes."""

    launch: Launch
    versions: dict[str, str]
    fingerprint: str
    """Names the content of the scenes' files."""
    stand_ins: tuple[str, ...]
    """Files that are not the original ones."""


def find_environment(python: Path | None, assets: Path | None, renderer: str) -> ManiSkillEnvironment:
    """Looks for everything that the scenes need.

    Args:
        python: ManiSkill3's interpreter; None looks in the usual places.
        assets: The folder that holds ManiSkill's `data`; None: $MS_ASSET_DIR, or `~/.maniskill`.
        renderer: `cpu` or `gpu`.

    Raises:
        MissingDependencyError: Something is missing; the message says what, all of it, and how to get it.
    """
    python_path = interpreter(python)
    data = simpler_tasks.asset_folder(assets)
    problems, versions = [], {}
    if not python_path.is_file():
        problems.append(
            f"there is no {python_path}, ManiSkill3's own environment: build it with `make simpler-env`, or name its interpreter "
            f"with --python or ${VARIABLE}"
        )
    else:
        checked = _check_interpreter(python_path, data.parent, renderer)
        versions = checked["versions"]
        problems += [checked["problem"]] if checked["problem"] else []
    problems += _missing_assets(data, python_path)
    if problems:
        numbered = " ".join(f"({number}) {problem}." for number, problem in enumerate(problems, 1))
        raise MissingDependencyError(f"SimplerEnv cannot run here. {numbered}")
    return ManiSkillEnvironment(
        launch=Launch(command=(str(python_path), "-m", MODULE, "host"), environment=_variables(data.parent)),
        versions=versions,
        fingerprint=simpler_tasks.assets_fingerprint(data),
        stand_ins=tuple(simpler_tasks.stand_in_assets(data)),
    )


def interpreter(chosen: Path | None) -> Path:
    """Where ManiSkill3's interpreter is, or would be: the one given, the variable's, or that of `make simpler-env`."""
    if chosen is not None:
        return chosen
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    beside = Path(sys.prefix).parent / PLACE
    # Absolute, but not resolved: a virtual environment's interpreter is a link, and works by the place of the link.
    return beside if beside.is_file() and not PLACE.is_file() else PLACE.absolute()


def _variables(assets: Path) -> dict[str, str]:
    return {"MS_ASSET_DIR": str(assets.absolute()), "PYTHONWARNINGS": "ignore"}


def _check_interpreter(python: Path, assets: Path, renderer: str) -> dict[str, Any]:
    """Asks the interpreter itself what it has."""
    command = [str(python), "-m", MODULE, "check", renderer]
    done = None
    try:
        done = run_program(
            command,
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            stdin=DEVNULL,
            env={**os.environ, **_variables(assets)},
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, TimeoutExpired) as error:
        return {"problem": f"{' '.join(command)} does not run ({error})", "versions": {}}
    except (IndexError, ValueError):
        words = (done.stderr if done else "").strip().splitlines()[-1:] or ["no output"]
        return {"problem": f"{' '.join(command)} failed ({words[0]}): build it with `make simpler-env`", "versions": {}}


def _missing_assets(data: Path, python: Path) -> list[str]:
    problems = []
    for download, files in simpler_tasks.missing_assets(data).items():
        count = f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        problems.append(
            f"{data} lacks {count}: download the assets (CC BY-NC 4.0) with `MS_ASSET_DIR={data.parent} {python} -m "
            f"mani_skill.utils.download_asset {download}`, which replaces what is there of them, or name the folder that holds "
            "ManiSkill's `data` with --assets"
        )
    return problems
