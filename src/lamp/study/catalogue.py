"""The studies that are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lamp.collect.jobs import CollectConfig
from lamp.configuration import from_json
from lamp.data.episode_selection import EpisodeSelection
from lamp.errors import DataError, missing, unknown
from lamp.json_files import read_json
from lamp.recipes.small import small_collection
from lamp.study.study import Arm, MotionPrior, RecordedData, SimulatorTest, Study
from lamp.study.synthetic_data import MadeUpData

NONE = Arm(name="none", prior=None)
SAME = Arm(name="same", prior=MotionPrior(motion="same"))
ACTION_FREE = Arm(name="action_free", prior=MotionPrior())
SHUFFLED = Arm(name="shuffled", prior=MotionPrior(targets="shuffled"))
FLOW_HEAD = Arm(name="flow_head", prior=None, recipe="small_flow_head")
ORACLE = Arm(name="oracle", prior=MotionPrior(oracle=True))
REGIMES = (NONE, SAME, ACTION_FREE, SHUFFLED, FLOW_HEAD, ORACLE)

SHIFT = 0.04
"""By which objects are displaced on LIBERO-Object [m]."""
OBJECT_TASKS = (0, 1, 5)
SHIFTED = SimulatorTest(name="shifted", suite="libero_object", tasks=OBJECT_TASKS, states="30:40", shift=SHIFT)
NOT_ATM = (
    "Only the budget is ATM's (arXiv 2401.00025). What differs: demonstrations are a scripted expert's and not people's; motion "
    "is the simulator's own, in three dimensions, and not tracked in pictures; the backbone is small and frozen; initial states "
    "30 to 49 are those of no demonstration; and with 3 seeds this software claims nothing."
)
SHIPPED = MotionPrior(checkpoint="pretrained/libero_object")
"""The Motion Expert that comes with LaMP."""
SHIPPED_ARMS = (
    NONE,
    Arm(name="gated", prior=SHIPPED),
    Arm(name="path", prior=SHIPPED, recipe="small_path"),
    Arm(name="oracle_path", prior=replace(SHIPPED, oracle=True), recipe="small_path"),
)


def _states(text: str) -> EpisodeSelection:
    return EpisodeSelection(states=text)


def _collected(suite: str, tasks: tuple[int, ...], episodes: int, *, shift: float = 0.0) -> CollectConfig:
    """The recipes' collection. Initial states come in turn, so that of 60 episodes a task two are of each of 30 states."""
    return replace(small_collection(suite, tasks, episodes=episodes, shift=shift), out=Path("data"))


def _changed(suite: str, tasks: tuple[int, ...], episodes: int) -> CollectConfig:
    """Motion alone, in other layouts, from other cameras, in other light."""
    kinds = [f"{kind}={level}" for kind in ("camera", "light") for level in (1, 2, 3)]
    other = _collected(suite, tasks, episodes, shift=0.08)
    return replace(other, motion_only=True, seed=1, states=(0, 27), perturb=(*kinds, "camera=2+light=2"))


def _ten_demonstrations(**own: Any) -> Study:
    """A study of ten action demonstrations a task of LIBERO-Object with shifted objects."""
    return Study(
        data=_collected("libero_object", OBJECT_TASKS, 60, shift=SHIFT),
        held_out=_states("27:30"),
        actions=_states("0:10"),
        motion=_states("10:27"),
        demonstrations=(10,),
        prior_from=0.0,
        **own,
    )


def quick() -> Study:
    """An hour: one task, held-out errors alone."""
    return Study(
        name="quick",
        question="Does motion without actions help with 3 or 10 demonstrations of one task, and how far is that from the oracle?",
        data=_collected("libero_object", (0,), 60, shift=SHIFT),
        held_out=_states("25:30"),
        actions=_states("0:8"),
        motion=_states("8:25"),
        demonstrations=(3, 10),
        arms=(NONE, SAME, ACTION_FREE, ORACLE),
        motion_steps=300,
        policy_steps=800,
        prior_from=0.0,
        measurements=4,
        held_out_samples=128,
    )


def pretrained() -> Study:
    """The demo's regime: two tasks, few demonstrations, and the Motion Expert that comes with LaMP."""
    tasks = (0, 1)
    return Study(
        name="pretrained",
        question="Does the Motion Expert that comes with LaMP help a policy of few demonstrations, and by which hand-over?",
        data=replace(_collected("libero_object", tasks, 20, shift=SHIFT), states=(0, 10)),
        held_out=_states("8:10"),
        actions=_states("0:8"),
        motion=_states("0:8"),
        demonstrations=(5, 10),
        arms=SHIPPED_ARMS,
        motion_steps=1,
        policy_steps=800,
        prior_from=0.0,
        prior_dropout=0.0,
        measurements=4,
        tests=(SimulatorTest(name="shifted", suite="libero_object", tasks=tasks, states="30:50", shift=SHIFT),),
        notes=("The checkpoint's motion is of other episodes, from initial states 10 to 17, without actions.",),
    )


def pretrained_new_tasks() -> Study:
    """Ten tasks that the shipped Motion Expert saw move, seven of them with actions."""
    unseen = (7, 8, 9)
    return Study(
        name="pretrained-new-tasks",
        question="Does the shipped Motion Expert carry a policy to tasks whose motion it saw and whose actions nobody showed?",
        data=replace(_collected("libero_object", tuple(range(10)), 10, shift=SHIFT), states=(0, 10)),
        held_out=_states("8:10"),
        actions=EpisodeSelection(tasks="0:7", states="0:8"),
        motion=_states("0:8"),
        demonstrations=(8,),
        arms=SHIPPED_ARMS,
        motion_steps=1,
        policy_steps=1200,
        prior_from=0.0,
        prior_dropout=0.0,
        measurements=4,
        tests=(
            SimulatorTest(
                name="tasks_in_motion_only", suite="libero_object", tasks=unseen, states="30:43", shift=SHIFT
            ),
        ),
        notes=(
            "The checkpoint's motion is of other episodes, from initial states 10 to 17 of all ten tasks, without actions.",
        ),
    )


def regimes_object() -> Study:
    """LIBERO-Object with shifted objects, all six arms."""
    tests = replace(SHIFTED, states="30:50")
    return Study(
        name="regimes-object",
        question="In which regime does the prior pay on LIBERO-Object: none, the same demonstrations, motion without actions, "
        "shuffled targets, a flow head, the oracle; with 3, 10 or 50 action demonstrations a task?",
        data=_collected("libero_object", OBJECT_TASKS, 120, shift=SHIFT),
        held_out=_states("27:30"),
        actions=_states("0:14"),
        motion=_states("14:27"),
        demonstrations=(3, 10, 50),
        arms=REGIMES,
        motion_steps=600,
        policy_steps=600,
        prior_from=0.0,
        tests=(tests, replace(tests, name="standard", shift=0.0, states="30:33")),
    )


def regimes_spatial() -> Study:
    """The two tasks of LIBERO-Spatial that share a scene, beside a third."""
    tasks = (2, 7, 9)
    return Study(
        name="regimes-spatial",
        question="The same on LIBERO-Spatial, where in tasks 7 and 9 the instruction alone says which bowl is meant",
        data=_collected("libero_spatial", tasks, 120),
        held_out=_states("27:30"),
        actions=_states("0:14"),
        motion=_states("14:27"),
        demonstrations=(3, 10, 50),
        arms=REGIMES,
        motion_steps=600,
        policy_steps=600,
        prior_from=0.0,
        tests=(
            SimulatorTest(name="standard", suite="libero_spatial", tasks=tasks, states="30:50"),
            SimulatorTest(name="two_task_scene", suite="libero_spatial", tasks=(7, 9), states="30:35", shift=0.02),
        ),
    )


def motion_only_tasks() -> Study:
    """Nine tasks of LIBERO-Spatial in motion, five of them with actions."""
    seen, unseen = (0, 2, 4, 6, 8), (1, 3, 5, 7)
    prior = MotionPrior(motion="both")
    return Study(
        name="motion-only-tasks",
        question="Does the prior carry a policy to tasks whose motion was seen and whose actions never were?",
        data=_collected("libero_spatial", (*seen, *unseen), 30),
        held_out=_states("26:30"),
        actions=EpisodeSelection(tasks="0,2,4,6,8", states="0:26"),
        motion=EpisodeSelection(states="0:26"),
        demonstrations=(10,),
        arms=(
            NONE,
            Arm(name="both", prior=prior),
            Arm(name="path", prior=prior, recipe="small_path"),
            Arm(name="shuffled", prior=replace(prior, targets="shuffled")),
            Arm(name="oracle", prior=replace(prior, oracle=True)),
            Arm(name="oracle_path", prior=replace(prior, oracle=True), recipe="small_path"),
        ),
        motion_steps=1500,
        policy_steps=1500,
        prior_from=0.0,
        tests=(
            SimulatorTest(name="tasks_with_actions", suite="libero_spatial", tasks=seen, states="30:42"),
            SimulatorTest(name="tasks_in_motion_only", suite="libero_spatial", tasks=unseen, states="30:45"),
        ),
    )


def robustness() -> Study:
    """Changed camera, light and images, three levels each."""
    levels = [f"{kind}={level}" for kind in ("camera", "light", "noise") for level in (1, 2, 3)]
    standard = replace(SHIFTED, name="standard")
    changed = [replace(standard, name=text.replace("=", "_"), perturb=text, states="40:46") for text in levels]
    return Study(
        name="robustness",
        question="Does a prior that saw other cameras, lights and layouts in motion keep a policy going where they change?",
        data=_collected("libero_object", OBJECT_TASKS, 60, shift=SHIFT),
        extra=(_changed("libero_object", OBJECT_TASKS, 67),),
        held_out=_states("27:30"),
        actions=_states("0:14"),
        motion=_states("14:27"),
        demonstrations=(20,),
        arms=(
            NONE,
            SAME,
            Arm(name="action_free", prior=MotionPrior(extra=False)),
            Arm(name="changed_motion", prior=MotionPrior()),
            ORACLE,
        ),
        motion_steps=1200,
        policy_steps=1200,
        prior_from=0.0,
        tests=(standard, *changed),
    )


def prior_interfaces() -> Study:
    """The paper's Figure 5, and more ways in."""
    prior, ceiling = MotionPrior(), MotionPrior(oracle=True)
    ways = {
        "gated": "small_gated",
        "add": "small_add",
        "concat": "small_concat_mlp",
        "tokens": "small_tokens",
        "path": "small_path",
    }
    return _ten_demonstrations(
        name="hand-overs",
        question="By which way does motion reach the Action Expert best: Eq. 4, Add, Concat, tokens, a decoded path, or a flow "
        "head in training alone (Fig. 5)?",
        arms=(
            NONE,
            *(Arm(name=name, prior=prior, recipe=recipe) for name, recipe in ways.items()),
            FLOW_HEAD,
            *(Arm(name=f"oracle_{name}", prior=ceiling, recipe=recipe) for name, recipe in ways.items()),
        ),
        motion_steps=1000,
        policy_steps=1000,
        tests=(SHIFTED,),
    )


def flow_2d() -> Study:
    """The paper's Figure 4."""
    return _ten_demonstrations(
        name="flow-2d",
        question="Is 3-D scene flow a better prior than 2-D flow (Fig. 4)?",
        arms=(
            NONE,
            Arm(name="flow_3d", prior=MotionPrior()),
            Arm(name="flow_2d", prior=MotionPrior(), recipe="small_flow_2d"),
            Arm(name="oracle_3d", prior=MotionPrior(oracle=True)),
            Arm(name="oracle_2d", prior=MotionPrior(oracle=True), recipe="small_flow_2d"),
        ),
        motion_steps=1000,
        policy_steps=1200,
        tests=(
            replace(SHIFTED, states="30:50"),
            replace(SHIFTED, name="camera_2", perturb="camera=2"),
        ),
    )


def other_arm() -> Study:
    """Motion of a WidowX beside, or in place of, the Panda's."""
    return _ten_demonstrations(
        name="other-arm",
        question="Does the motion of another arm (WidowX) in Stage 1 help a policy on LIBERO, or harm it?",
        extra=(RecordedData(path="data/widowx"),),
        arms=(
            NONE,
            Arm(name="own_motion", prior=MotionPrior(extra=False)),
            Arm(name="own_and_other_motion", prior=MotionPrior()),
            Arm(name="other_beside_same", prior=MotionPrior(motion="both")),
            ORACLE,
        ),
        motion_steps=1000,
        policy_steps=1000,
        tests=(replace(SHIFTED, states="30:50"),),
    )


def atm(suite: str = "libero_spatial", title: str = "LIBERO-Spatial") -> Study:
    """The budget of Any-point Trajectory Modeling on one of its suites."""
    return Study(
        name="atm" if suite == "libero_spatial" else "atm-object",
        question=f"ATM's budget on {title}: 10 action demonstrations and 50 motion episodes a task, 3 seeds, 20 trials a task",
        data=_collected(suite, (), 70),
        held_out=EpisodeSelection(states="27:30"),
        actions=_states("0:6"),
        motion=EpisodeSelection(states="6:27", per_task=50),
        demonstrations=(10,),
        arms=(NONE, Arm(name="action_free", prior=MotionPrior(motion="both")), ORACLE),
        motion_steps=3000,
        policy_steps=4000,
        prior_from=0.0,
        motion_seeds=3,
        policy_seeds=3,
        tests=(SimulatorTest(name="standard", suite=suite, tasks=tuple(range(10)), states="30:50"),),
        notes=(NOT_ATM,),
    )


def tiny() -> Study:
    """The machinery, in less than a minute and without a simulator."""
    return Study(
        name="tiny",
        question="Does the machinery work? Made-up data, a few steps: its figures mean nothing",
        recipe="made_up",
        data=MadeUpData(),
        held_out=EpisodeSelection(episodes="8:12"),
        actions=EpisodeSelection(episodes="0:4"),
        motion=EpisodeSelection(episodes="4:8"),
        demonstrations=(1, 2),
        arms=(NONE, SAME, ACTION_FREE, SHUFFLED, ORACLE),
        motion_steps=6,
        policy_steps=6,
        motion_seeds=1,
        policy_seeds=2,
        measurements=2,
        held_out_samples=8,
        check=True,
    )


STUDIES: dict[str, Callable[[], Study]] = {
    "quick": quick,
    "pretrained": pretrained,
    "pretrained-new-tasks": pretrained_new_tasks,
    "regimes-object": regimes_object,
    "regimes-spatial": regimes_spatial,
    "motion-only-tasks": motion_only_tasks,
    "robustness": robustness,
    "hand-overs": prior_interfaces,
    "flow-2d": flow_2d,
    "other-arm": other_arm,
    "atm": atm,
    "atm-object": partial(atm, "libero_object", "LIBERO-Object"),
    "tiny": tiny,
}


def find_study(name: str) -> Study:
    """A study of the catalogue, or one in a file.

    Raises:
        ConfigError: There is none of that name, or the file says something that no study can.
        DataError: There is no such file, or it is not JSON.
    """
    if name in STUDIES:
        return STUDIES[name]()
    path = Path(name)
    if path.is_file():
        return from_json(Study, read_json(path, "study"), where=name)
    if path.is_dir():
        raise DataError(f"{name} is a folder; expected a study's JSON file, or a name of `lamp study list`")
    if path.suffix or "/" in name:
        raise missing(path, "study", "a study's JSON file (docs/studies.md), or a name of `lamp study list`")
    raise unknown("study", name, STUDIES)
