"""Units out are units in: what was recorded is what a served policy that has learnt it perfectly sends to the robot.

Recorded -> the training's own samples -> a model that says exactly what it was taught -> policy, server, wire, client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_fakes import running
from torch import Tensor
from training_fakes import ACTION, SIDE, WIDTH, PatchBackbone, policy_training  # pyright: ignore[reportMissingImports]

from lamp.configuration import from_json, to_json
from lamp.data.actions import Absolute, AxisAngle, Delta, Gripper, Pose, Relative, RollPitchYaw
from lamp.data.embodiment import EMBODIMENTS, Embodiment, Part
from lamp.data.image_dataset import ImageSamples, Videos
from lamp.data.normalizers import (
    ByDeviation,
    ByQuantiles,
    ByRange,
    ContinuousRotation,
    NormaliserFit,
    NoState,
    RawState,
    StateTransform,
    Unchanged,
)
from lamp.data.policy_dataset import EpisodeSplit
from lamp.errors import MismatchError
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.policy import LaMPPolicy
from lamp.serve.policy_spec import CheckpointPolicy, policy_spec
from lamp.train.checkpoint_metadata import BackboneRecord, CameraInput, DataRecord, Description, PolicyRecord
from lamp.train.config import PolicyTraining
from lamp.train.datasets import Sources, fit_scaling
from lamp_client.client import WebsocketPolicy
from lamp_client.errors import InvalidValueError
from lamp_client.types import GripperUnits, Observation

CHUNK, LENGTH = 4, 12


def write_recording(root: Path, robot: Embodiment, values: Mapping[str, Sequence[np.ndarray]]) -> Path:
    """A LeRobot v2.1 dataset with these values of every episode, and videos that nobody opens."""
    features = {key: {"dtype": "float32", "shape": [of[0].shape[1]], "names": None} for key, of in values.items()} | {
        key: {"dtype": "video", "shape": [SIDE, SIDE, 3], "names": ["height", "width", "channels"]}
        for key in (robot.cameras or {}).values()
    }
    episodes = len(next(iter(values.values())))
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    info = {
        "codebase_version": "v2.1", "fps": robot.fps or 10, "total_episodes": episodes, "chunks_size": 1000,
        "total_frames": episodes * LENGTH, "total_tasks": 1, "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "move"}) + "\n")
    lines = [json.dumps({"episode_index": n, "tasks": ["move"], "length": LENGTH}) + "\n" for n in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("".join(lines))
    for number in range(episodes):
        columns: dict[str, Any] = {
            "timestamp": np.arange(LENGTH, dtype=np.float32) / info["fps"],
            "frame_index": np.arange(LENGTH),
            "episode_index": np.full(LENGTH, number),
            "index": number * LENGTH + np.arange(LENGTH),
            "task_index": np.zeros(LENGTH, np.int64),
        }
        table = {key: pa.array(column) for key, column in columns.items()}
        for key, of in values.items():
            flat = of[number].astype(np.float32)
            table[key] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        pq.write_table(pa.table(table), root / f"data/chunk-000/episode_{number:06d}.parquet")
    return root


def made_up(robot: Embodiment, seed: int, episodes: int = 2) -> dict[str, list[np.ndarray]]:
    """Smooth values of all features, in units between thousandths and thousands, grippers between their ends, angles in range."""
    random = np.random.default_rng(seed)
    widths: dict[str, int] = {}
    for part in (*robot.state, *robot.action):
        widths[part.key] = max(widths.get(part.key, 1), part.stop or part.start + (8 if "pose" in part.key else 7))
    posed = isinstance(robot.kind, Relative)  # a difference of thousandths and thousands is lost in float32
    values = {}
    for key, width in widths.items():
        units = np.ones(width) if posed else 10.0 ** random.integers(-3, 4, width)
        middle = random.uniform(-1, 1, width) * (0.2 if posed else 1)
        walks = [np.cumsum(random.normal(0, 0.05, (LENGTH, width)), axis=0) + middle for _ in range(episodes)]
        values[key] = [walk * units for walk in walks]
    # The dimension of the joined action lies in one of the parts.
    spans = [(part.key, index) for part in robot.action for index in range(part.start, part.stop or widths[part.key])]
    for gripper in robot.grippers:
        key, index = spans[gripper.dim]
        for walk in values[key]:
            share = random.integers(0, 2, LENGTH) if seed % 2 else random.uniform(0, 1, LENGTH)
            walk[:, index] = gripper.closed + share * (gripper.opened - gripper.closed)
    return values


class Pictures(Videos):
    """Black pictures."""

    def read(self, camera: str, episode: int, frames: np.ndarray) -> np.ndarray:
        return np.zeros((len(frames), SIDE, SIDE, 3), np.uint8)


class Learnt:
    """Says, at each state it was trained on, exactly the chunk that it was taught, as the model would."""

    def __init__(self, states: Tensor, actions: Tensor) -> None:
        self.states, self.actions = states, actions
        self.sample = 0

    def act(self, encoded: object, *, state: Tensor, motion_noise: object, action_noise: object) -> Tensor:
        if state.shape[1] == 0:  # nothing tells the samples apart
            return self.actions[[self.sample]]
        distance = (self.states[None] - state[:, None]).abs().amax(-1)
        known = (
            distance.amin(1) < 1e-6
        )  # a state that training never saw, such as the warm-up's, is answered with nonsense
        return torch.where(known[:, None, None], self.actions[distance.argmin(1)], torch.tensor(1e6))


class Backbone(PatchBackbone):
    """The patches, of any cameras."""

    def __init__(self, cameras: Sequence[str]) -> None:
        self.description = {"kind": "patches", "cameras": [[name, SIDE] for name in cameras]}

    def image_tokens(self, camera: str, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 16, WIDTH)


def perfect_policy(
    root: Path, robot: Embodiment, transform: StateTransform, state_fit: NormaliserFit, action_fit: NormaliserFit
) -> tuple[LaMPPolicy, ImageSamples]:
    """Fits the normalisers as a training does, takes its samples, and makes a policy that has learnt them."""
    dataset = robot.open(root)
    cameras = list(robot.cameras or {"front": ""})
    states, actions = robot.states(dataset, 0), robot.recorded_actions(dataset, 0)
    expert = replace(ACTION, chunk=CHUNK, state_dim=transform.width(states.shape[1]), action_dim=actions.shape[1])
    config = policy_training(
        with_motion=False,
        model=LaMPConfig(token_width=WIDTH, motion=None, guidance=None, action=expert),
        embodiment=robot,
        state_transform=transform,
        state_fit=state_fit,
        action_fit=action_fit,
        gripper=tuple(gripper.dim for gripper in robot.grippers) or None,
    )
    episodes = tuple(range(len(dataset)))
    inputs = tuple(CameraInput(name=name, height=SIDE, width=SIDE) for name in cameras)
    backbone = BackboneRecord(key=None, description={}, cameras=inputs)
    split = EpisodeSplit(train=episodes, validation=())
    sources = Sources(dataset=dataset, cache=None, backbone=backbone, frozen_key="", split=split)
    scaling = fit_scaling(config, sources, robot)
    samples = ImageSamples(
        dataset=dataset, pictures=Pictures(dataset=dataset), cameras=tuple(cameras), episodes=episodes, chunk=CHUNK,
        scaling=scaling, embodiment=robot,
    )  # fmt: skip
    blind = isinstance(transform, NoState) and robot.per_frame
    record = PolicyRecord(
        state_width=0 if blind else states.shape[1],
        scaling=scaling,
        chunk=CHUNK,
        execute=2,
        fps=dataset.fps,
        embodiment=robot,
        state_features=robot.state_features(dataset),
    )
    policy = LaMPPolicy(LaMP(config.model), description(config, record, backbone), Backbone(cameras))
    batch = samples.batch(np.arange(len(samples)))
    assert batch.state is not None and batch.actions is not None
    policy._actor = Learnt(batch.state, batch.actions)  # pyright: ignore[reportAttributeAccessIssue]
    return policy, samples


def description(config: PolicyTraining, record: PolicyRecord, backbone: BackboneRecord) -> Description:
    data = DataRecord(name="mine", fingerprint="", episodes=1, frames=1, tasks=(), validation_episodes=())
    return Description(
        kind="policy", model=config.model, backbone=backbone, flow=None,
        policy=record, motion_source=None, training=config, data=data, step=1, averaged=False, exactly_reproducible=True,
        code="", packages={},
    )  # fmt: skip


def check(root: Path, policy: LaMPPolicy, samples: ImageSamples, asked: Sequence[int]) -> None:
    """Asks the server as a robot does, and compares with what is recorded."""
    robot, dataset = policy.record.embodiment, samples.dataset
    served = CheckpointPolicy(spec=policy_spec(policy), act_batch=policy.act_batch)
    with running(served) as server, WebsocketPolicy("127.0.0.1", server.port) as client:
        assert client.metadata["action_units"] == "dataset"
        for index in asked:
            episode, frame = int(samples.episode[index]), int(samples.frame[index])
            if policy.record.state_width:
                given = [robot.states(dataset, episode)[frame]]
                whole = [dataset.column(key, episode)[frame] for key in policy.record.state_features]
                if policy.record.recorded_state_width != policy.record.state_width:
                    given.append(np.concatenate(whole).astype(np.float32))
            else:
                given = [np.zeros(0, np.float32)]
            recorded = robot.recorded_actions(dataset, episode)
            wanted = recorded[np.minimum(frame + np.arange(CHUNK), LENGTH - 1)]
            size = np.maximum(np.abs(wanted), np.ptp(recorded, axis=0))
            for state in given:
                if not policy.record.state_width:
                    cast(Any, policy._actor).sample = int(index)
                images = {name: np.zeros((SIDE, SIDE, 3), np.uint8) for name in client.metadata["cameras"]}
                seen = Observation(images=images, state=state, instruction="move")
                got = client.act(seen, noise_seed=(1,)).actions
                assert (np.abs(got - wanted) <= 1e-5 * size).all(), (got, wanted)


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_every_named_embodiment(name: str, tmp_path: Path) -> None:
    robot = EMBODIMENTS[name]
    robot = replace(robot, cameras=robot.cameras or {"front": "observation.images.front"})
    root = write_recording(tmp_path / "mine", robot, made_up(robot, 3))
    policy, samples = perfect_policy(root, robot, RawState(), ByDeviation(), ByDeviation())
    check(root, policy, samples, [0, 5, LENGTH - 1, LENGTH + 2])


def test_the_grippers_of_two_arms_in_units_of_their_own(tmp_path: Path) -> None:
    """Each arm's comes back as it was recorded, one of them inverted, and a client is told of both."""
    robot = Embodiment(
        name="two_arms",
        cameras={"front": "observation.images.cam_high"},
        state=(Part(key="observation.left"), Part(key="observation.right")),
        action=(Part(key="action.left"), Part(key="action.right")),
        gripper=(Gripper(dim=6, opened=0.0, closed=255.0), Gripper(opened=0.08, closed=0.0)),
        kind=Relative(offsets=tuple((dim, dim) for dim in (*range(6), *range(7, 13)))),
    )
    assert from_json(Embodiment, to_json(robot)) == robot
    root = write_recording(tmp_path / "mine", robot, made_up(robot, 4))
    learnt = robot.actions(robot.open(root), 0)[:, [6, 13]]
    assert learnt.min() > -0.01 and learnt.max() < 1.01 and learnt.std() > 0.2
    policy, samples = perfect_policy(root, robot, RawState(), ByDeviation(), ByDeviation())
    assert policy.record.scaling.actions.binary == (6, 13)
    told = [{"dim": 6, "opened": 0.0, "closed": 255.0}, {"dim": -1, "opened": 0.08, "closed": 0.0}]
    assert policy.metadata["gripper"] == told and policy_spec(policy).grippers == GripperUnits.all_of({"gripper": told})
    check(root, policy, samples, [0, 5, LENGTH - 1, LENGTH + 2])
    with pytest.raises(InvalidValueError, match="grippers at 6, -1; expected those of a robot with one"):
        GripperUnits.of(policy.metadata)
    for wrong, words in (
        ((Gripper(), Gripper(dim=13)), "different ones of 0 to 13"),
        ((Gripper(dim=14), Gripper()), "grippers at"),
    ):
        with pytest.raises(MismatchError, match=words):
            replace(robot, gripper=wrong).open(root)


@pytest.mark.parametrize(
    ("robot", "transform", "words"),
    [
        (EMBODIMENTS["droid"], ContinuousRotation(), "'droid' has no rotation, but joint angles"),
        (EMBODIMENTS["bridge"], ContinuousRotation(), "'bridge' has roll, pitch and yaw in radians at 3"),
        (EMBODIMENTS["libero"], ContinuousRotation(start=2), "takes values 2 to 4"),
        (EMBODIMENTS["libero"], ContinuousRotation(rotation=AxisAngle(degrees=True)), "an axis-angle in degrees"),
        (EMBODIMENTS["libero"], ContinuousRotation(), None),
        (EMBODIMENTS["bridge"], ContinuousRotation(rotation=RollPitchYaw()), None),
        (EMBODIMENTS["droid"], RawState(), None),
    ],
)
def test_what_is_no_rotation_is_not_taken_for_one(
    robot: Embodiment, transform: StateTransform, words: str | None, tmp_path: Path
) -> None:
    root = write_recording(tmp_path / "mine", robot, made_up(robot, 3))
    if words is None:
        perfect_policy(root, robot, transform, ByDeviation(), ByDeviation())
        return
    with pytest.raises(MismatchError, match=words):
        perfect_policy(root, robot, transform, ByDeviation(), ByDeviation())


def test_values_called_joints_are_not_taken_for_a_rotation(tmp_path: Path) -> None:
    robot = Embodiment(name="mine", cameras={"front": "observation.images.front"})
    root = write_recording(tmp_path / "mine", robot, made_up(robot, 3))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = [f"joint_{index}" for index in range(7)]
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(MismatchError, match=r"has joint_3, joint_4, joint_5 there.*lamp recipe fit"):
        perfect_policy(root, robot, ContinuousRotation(), ByDeviation(), ByDeviation())


def test_a_gripper_in_metres_is_not_taken_for_one_from_0_to_1(tmp_path: Path) -> None:
    robot = Embodiment(
        name="mine", cameras={"front": "observation.images.front"}, gripper=Gripper(opened=0.08, closed=0.0)
    )
    root = write_recording(tmp_path / "mine", robot, made_up(robot, 4))
    config = policy_training(
        with_motion=False,
        model=LaMPConfig(
            token_width=WIDTH, motion=None, guidance=None, action=replace(ACTION, state_dim=7, action_dim=7)
        ),
        state_transform=RawState(),
    )
    unknown = replace(robot, gripper=None)
    inputs = BackboneRecord(key=None, description={}, cameras=())
    split = EpisodeSplit(train=(0, 1), validation=())
    sources = Sources(dataset=robot.open(root), cache=None, backbone=inputs, frozen_key="", split=split)
    assert fit_scaling(config, sources, robot).actions.binary == (6,)
    with pytest.raises(MismatchError, match="as one in units of its own does, such as metres"):
        fit_scaling(config, sources, unknown)
    assert fit_scaling(replace(config, gripper=None), sources, unknown).actions.binary == ()
    with pytest.raises(MismatchError, match=r"has grippers at \[6\] of the action, the recipe's gripper is \[0\]"):
        fit_scaling(replace(config, gripper=0), replace(sources, dataset=robot.open(zeroed(root))), robot)


def zeroed(root: Path) -> Path:
    """The dataset with its actions' first value closed throughout."""
    for path in (root / "data/chunk-000").glob("*.parquet"):
        table = pq.read_table(path)
        actions = np.stack(table["action"].to_numpy())
        actions[:, 0] = 0
        column = pa.FixedSizeListArray.from_arrays(pa.array(actions.reshape(-1)), actions.shape[1])
        pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    return root


grippers = st.sampled_from([(70.0, 10.0), (10.0, 70.0), (0.0, 1.0), (-1.0, 1.0), (0.08, 0.0), (0.0, 255.0)])
fits = st.sampled_from([ByDeviation(), ByDeviation(least=0.2), ByRange(), ByQuantiles(), Unchanged()])


@st.composite
def robots(draw: st.DrawFn) -> Embodiment:
    """Robots with features in parts, slices and any order, and all kinds of actions and grippers."""
    kind = draw(
        st.sampled_from(
            [
                Absolute(),
                Delta(),
                Relative(offsets=((0, 1), (1, 0), (2, 2))),
                Relative(pose=Pose(rotation=AxisAngle())),
                Relative(pose=Pose(rotation=RollPitchYaw())),
                Relative(pose=Pose(action=1, state=2, rotation=RollPitchYaw()), offsets=((0, 0),)),
            ]
        )
    )
    state = draw(
        st.sampled_from(
            [
                (Part(key="observation.pose"), Part(key="observation.gripper", stop=2)),
                (Part(key="observation.pose", start=1, stop=8), Part(key="observation.pose", stop=1)),
                (Part(key="observation.joints", stop=3), Part(key="observation.pose", stop=6)),
            ]
        )
    )
    action = draw(
        st.sampled_from(
            [(Part(key="action.pose"),), (Part(key="action.pose", stop=7), Part(key="action.gripper", start=1, stop=2))]
        )
    )
    gripper = None
    if draw(st.booleans()):
        opened, closed = draw(grippers)
        gripper = Gripper(dim=draw(st.sampled_from([-1, 7])), opened=opened, closed=closed)
    cameras = {"front": "observation.images.cam_high", "hand": "observation.images.cam_wrist"}
    return Embodiment(name="random", cameras=cameras, state=state, action=action, gripper=gripper, kind=kind, fps=15.0)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck.__members__.values()))
@given(
    robot=robots(),
    seed=st.integers(0, 10_000),
    transform=st.sampled_from([RawState(), ContinuousRotation(start=3), NoState()]),
    state_fit=fits,
    action_fit=fits,
)
def test_random_robots(
    robot: Embodiment,
    seed: int,
    transform: StateTransform,
    state_fit: NormaliserFit,
    action_fit: NormaliserFit,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if isinstance(transform, NoState) and not robot.per_frame:
        transform = RawState()
    root = write_recording(tmp_path_factory.mktemp("random") / "mine", robot, made_up(robot, seed))
    policy, samples = perfect_policy(root, robot, transform, state_fit, action_fit)
    check(root, policy, samples, [1, LENGTH + 7])
