"""The studies that are named, and the made-up data with which the machinery itself is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lamp.collect.jobs import CollectConfig
from lamp.data.episode_selection import EpisodeSelection
from lamp.data.lerobot import EpisodeData, LeRobotDataset, LeRobotWriter, stage_episode
from lamp.model.action_expert import ActionExpertConfig, Prefix
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.model.small import SmallBackboneConfig
from lamp.recipes import TrainingRecipe
from lamp.recipes.small import SMALL_TOKENS, small_collection
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription
from lamp.sceneflow.tracks import grid_points
from lamp.study.study import Arm, MadeUpData, MotionPrior, RecordedData, SimulatorTest, Study
from lamp.train.config import LoopConfig, MotionTraining, PolicyTraining
from lamp.train.optimizer import AdamW
from lamp.types import Camera, Tracks

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
NOT_ATM = (
    "Only the budget is ATM's (arXiv 2401.00025). What differs: demonstrations are a scripted expert's and not people's; motion "
    "is the simulator's own, in three dimensions, and not tracked in pictures; the backbone is small and frozen; initial states "
    "30 to 49 are those of no demonstration; and with 3 seeds this software claims nothing."
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


def regimes_object() -> Study:
    """LIBERO-Object with shifted objects, all six arms."""
    tests = SimulatorTest(name="shifted", suite="libero_object", tasks=OBJECT_TASKS, states="30:50", shift=SHIFT)
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
    standard = SimulatorTest(name="standard", suite="libero_object", tasks=OBJECT_TASKS, states="30:40", shift=SHIFT)
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


def hand_overs() -> Study:
    """The paper's Figure 5, and more ways in."""
    prior, ceiling = MotionPrior(), MotionPrior(oracle=True)
    ways = {
        "gated": "small_gated",
        "add": "small_add",
        "concat": "small_concat_mlp",
        "tokens": "small_tokens",
        "path": "small_path",
    }
    return Study(
        name="hand-overs",
        question="By which way does motion reach the Action Expert best: Eq. 4, Add, Concat, tokens, a decoded path, or a flow "
        "head in training alone (Fig. 5)?",
        data=_collected("libero_object", OBJECT_TASKS, 60, shift=SHIFT),
        held_out=_states("27:30"),
        actions=_states("0:10"),
        motion=_states("10:27"),
        demonstrations=(10,),
        arms=(
            NONE,
            *(Arm(name=name, prior=prior, recipe=recipe) for name, recipe in ways.items()),
            FLOW_HEAD,
            *(Arm(name=f"oracle_{name}", prior=ceiling, recipe=recipe) for name, recipe in ways.items()),
        ),
        motion_steps=1000,
        policy_steps=1000,
        prior_from=0.0,
        tests=(SimulatorTest(name="shifted", suite="libero_object", tasks=OBJECT_TASKS, states="30:40", shift=SHIFT),),
    )


def flow_2d() -> Study:
    """The paper's Figure 4."""
    return Study(
        name="flow-2d",
        question="Is 3-D scene flow a better prior than 2-D flow (Fig. 4)?",
        data=_collected("libero_object", OBJECT_TASKS, 60, shift=SHIFT),
        held_out=_states("27:30"),
        actions=_states("0:10"),
        motion=_states("10:27"),
        demonstrations=(10,),
        arms=(
            NONE,
            Arm(name="flow_3d", prior=MotionPrior()),
            Arm(name="flow_2d", prior=MotionPrior(), recipe="small_flow_2d"),
            Arm(name="oracle_3d", prior=MotionPrior(oracle=True)),
            Arm(name="oracle_2d", prior=MotionPrior(oracle=True), recipe="small_flow_2d"),
        ),
        motion_steps=1000,
        policy_steps=1200,
        prior_from=0.0,
        tests=(
            SimulatorTest(name="shifted", suite="libero_object", tasks=OBJECT_TASKS, states="30:50", shift=SHIFT),
            SimulatorTest(
                name="camera_2",
                suite="libero_object",
                tasks=OBJECT_TASKS,
                states="30:40",
                shift=SHIFT,
                perturb="camera=2",
            ),
        ),
    )


def other_arm() -> Study:
    """Motion of a WidowX beside, or in place of, the Panda's."""
    return Study(
        name="other-arm",
        question="Does the motion of another arm (WidowX) in Stage 1 help a policy on LIBERO, or harm it?",
        data=_collected("libero_object", OBJECT_TASKS, 60, shift=SHIFT),
        extra=(RecordedData(path="data/widowx"),),
        held_out=_states("27:30"),
        actions=_states("0:10"),
        motion=_states("10:27"),
        demonstrations=(10,),
        arms=(
            NONE,
            Arm(name="own_motion", prior=MotionPrior(extra=False)),
            Arm(name="own_and_other_motion", prior=MotionPrior()),
            Arm(name="other_beside_same", prior=MotionPrior(motion="both")),
            ORACLE,
        ),
        motion_steps=1000,
        policy_steps=1000,
        prior_from=0.0,
        tests=(SimulatorTest(name="shifted", suite="libero_object", tasks=OBJECT_TASKS, states="30:50", shift=SHIFT),),
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
    "regimes-object": regimes_object,
    "regimes-spatial": regimes_spatial,
    "motion-only-tasks": motion_only_tasks,
    "robustness": robustness,
    "hand-overs": hand_overs,
    "flow-2d": flow_2d,
    "other-arm": other_arm,
    "atm": atm,
    "atm-object": partial(atm, "libero_object", "LIBERO-Object"),
    "tiny": tiny,
}


SIDE, FRAMES = 64, 24
"""Of the made-up images [px], and frames of an episode."""
GRID, HORIZON, STRIDE = (4, 4), 4, 2
"""Of the made-up scene flow: points, the model's flow steps, and stored steps (of a frame) for each of them."""


def made_up_recipe() -> TrainingRecipe:
    """Experts of a few thousand parameters on the embedded backbone."""
    backbone = SmallBackboneConfig(cameras=(("agentview", SIDE), ("wrist", SIDE)), text_tokens=8)
    motion = MotionExpertConfig(
        token_width=SMALL_TOKENS,
        width=16,
        layers=2,
        heads=2,
        grid=GRID,
        horizon=HORIZON,
        frames_per_token=4,
        time_channels=16,
    )
    action = ActionExpertConfig(
        token_width=SMALL_TOKENS,
        width=16,
        layers=2,
        heads=2,
        chunk=5,
        state_dim=11,
        attention=Prefix(),
        time_channels=8,
        positions=64,
    )
    loop = LoopConfig(steps=6, batch_size=4, optimiser=AdamW(lr=3e-3), log_every=2, threads=1)
    guidance = GuidanceConfig(token_width=SMALL_TOKENS, motion_width=16, heads=2)
    return TrainingRecipe(
        name="made_up",
        summary="experts of a few thousand parameters, for made-up data",
        motion=MotionTraining(
            model=LaMPConfig(token_width=SMALL_TOKENS, motion=motion, guidance=None, action=None),
            backbone=backbone,
            loop=loop,
            flow_stride=STRIDE,
            validation_samples=4,
            final_samples=8,
        ),
        policy=PolicyTraining(
            model=LaMPConfig(token_width=SMALL_TOKENS, motion=motion, guidance=guidance, action=action),
            backbone=backbone,
            loop=loop,
            execute=3,
        ),
    )


def write_made_up_data(data: MadeUpData, root: Path) -> None:
    """Writes episodes of a square that slides to the right, with its scene flow; what is there already is left as it is."""
    if (root / "sceneflow" / "zarr.json").is_file():
        return
    writer = LeRobotWriter(root)
    for seed in range(data.episodes):
        if f"episode-{seed:03d}" not in writer.names():
            stage_episode(root, f"episode-{seed:03d}", _made_up_episode(seed))
    writer.finalize({"suite": "made up"})
    store = SceneFlowStore.create(
        root / "sceneflow",
        StoreDescription(
            sampling=Sampling(grid=GRID, horizon=HORIZON * STRIDE, stride=1),
            cameras=("agentview",),
            image_size=(SIDE, SIDE),
            mirrored=False,
            every=1,
            estimator="made up 1",
            source=root.name,
        ),
    )
    for episode in LeRobotDataset(root).episodes:
        store.write(episode.index, {"agentview": _made_up_flow(episode.index, episode.length)})


def _made_up_episode(seed: int) -> EpisodeData:
    random = np.random.default_rng(seed)
    images = np.full((FRAMES, SIDE, SIDE, 3), 40, np.uint8)
    start, speed = int(random.integers(0, 16)), 1 + seed % 2
    for frame in range(FRAMES):
        left = min(start + speed * frame, SIDE - 16)
        images[frame, 16:32, left : left + 16] = 220
    action = np.tile(np.linspace(-1, 1, 7), (FRAMES, 1)) * speed + 0.1 * random.normal(size=(FRAMES, 7))
    action[:, 6] = np.arange(FRAMES) > FRAMES // 2
    return EpisodeData(
        frames={
            "observation.state": random.normal(size=(FRAMES, 8)).astype(np.float32),
            "action": action.astype(np.float32),
            "observation.fresh": np.arange(FRAMES) % 2 == 0,
        },
        images=dict.fromkeys(("agentview", "wrist"), images[np.arange(FRAMES) // 2 * 2]),
        task=f"move the square at speed {speed}",
        extra={"task": seed % 2},
    )


def _made_up_flow(seed: int, length: int) -> CameraFlow:
    """The upper half of the points moves with the square, the lower half rests."""
    frames, moments, points = np.arange(0, length, 2), HORIZON * STRIDE + 1, GRID[0] * GRID[1]
    places = np.zeros((len(frames), points, moments, 3), np.float32)
    places[..., :2] = grid_points(*GRID).numpy()[None, :, None]
    places[..., 2] = 1.0
    places[:, : points // 2, :, 0] += (1 + seed % 2) / SIDE * np.arange(moments, dtype=np.float32)
    known = torch.from_numpy((frames[:, None] + np.arange(moments))[:, None].repeat(points, 1) < length)
    pinhole = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    return CameraFlow(
        frames=frames,
        tracks=Tracks(points=torch.from_numpy(places), visible=known, valid=known),
        camera=Camera(
            intrinsics=torch.from_numpy(np.tile(pinhole, (len(frames), 1, 1))),
            world_from_cam=torch.eye(4, dtype=torch.float64).expand(len(frames), 4, 4),
        ),
    )
