from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.data.actions import Absolute, AxisAngle, Delta, Gripper, Pose, Relative, RollPitchYaw, RotationFormat
from lamp.errors import ConfigError, MismatchError

FORMATS = (AxisAngle(), RollPitchYaw(), AxisAngle(degrees=True), RollPitchYaw(degrees=True))
angles = st.floats(-3.1, 3.1)


@settings(max_examples=60, deadline=None)
@given(values=st.tuples(angles, angles, angles), form=st.sampled_from(FORMATS))
def test_rotations_come_back_as_the_same_rotation(values: tuple[float, float, float], form: RotationFormat) -> None:
    matrix = form.matrix(np.array(values))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    np.testing.assert_allclose(form.matrix(form.values(matrix)), matrix, atol=1e-9)


def test_rotations_by_hand() -> None:
    quarter = np.pi / 2
    np.testing.assert_allclose(
        AxisAngle().matrix(np.array([0, 0, quarter])), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15
    )
    # Fixed axes: x is turned to itself by roll, then to y by yaw.
    turned = RollPitchYaw().matrix(np.array([quarter, 0, quarter]))
    np.testing.assert_allclose(turned @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(turned @ [0, 1, 0], [0, 0, 1], atol=1e-15)
    half_turn = np.array([0, np.pi, 0])
    np.testing.assert_allclose(np.abs(AxisAngle().values(AxisAngle().matrix(half_turn))), half_turn, atol=1e-7)
    np.testing.assert_allclose(AxisAngle().values(np.eye(3)), 0)
    upright = RollPitchYaw().matrix(np.array([0.3, quarter, 0.5]))
    np.testing.assert_allclose(RollPitchYaw().matrix(RollPitchYaw().values(upright)), upright, atol=1e-8)


def test_at_the_ends_of_pitch_the_roll_is_nothing_and_no_one_is_warned(recwarn: pytest.WarningsRecorder) -> None:
    ends = RollPitchYaw().matrix(
        np.array([[0.3, np.pi / 2, 0.5], [0.3, -np.pi / 2, 0.5], [0.3, np.pi / 2 - 1e-6, 0.5]])
    )
    found = RollPitchYaw().values(ends)
    np.testing.assert_allclose(
        found, [[0, np.pi / 2, 0.2], [0, -np.pi / 2, 0.8], [0.3, np.pi / 2 - 1e-6, 0.5]], atol=1e-8
    )
    assert not recwarn.list


def test_half_turns_keep_their_sign_and_what_is_no_number_stays_none() -> None:
    half = np.pi / np.sqrt(2)
    vectors = np.array(
        [[np.pi, 0, 0], [0, -np.pi, 0], [half, half, 0], [np.pi - 1e-9, 0, 0], [4.0, 0, 0], [1e-13, 0, 0]]
    )
    expected = vectors.copy()
    expected[4, 0] -= 2 * np.pi
    np.testing.assert_allclose(AxisAngle().values(AxisAngle().matrix(vectors)), expected, atol=1e-8)
    lost = np.array([[np.nan, 0, 0], [0.5, 0, 0]])
    for form in FORMATS:
        back = form.values(form.matrix(lost))
        assert np.isnan(back[0]).any()
        np.testing.assert_allclose(back[1], lost[1])
        assert form.values(form.matrix(np.zeros((0, 3)))).shape == (0, 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), form=st.sampled_from(FORMATS))
def test_relative_poses_are_restored(seed: int, form: RotationFormat) -> None:
    random = np.random.default_rng(seed)
    kind = Relative(pose=Pose(action=1, state=2, rotation=form), offsets=((7, 0),))
    chunks, states = random.uniform(-1, 1, (3, 4, 9)), random.uniform(-1, 1, (3, 8))
    related = kind.relate(chunks, states)
    np.testing.assert_allclose(kind.restore(related, states), chunks, atol=1e-9)
    np.testing.assert_array_equal(related[..., [0, 8]], chunks[..., [0, 8]])
    np.testing.assert_allclose(related[..., 7], chunks[..., 7] - states[:, None, 0])


def test_a_target_at_the_present_pose_is_no_motion_and_the_frame_is_the_tools() -> None:
    kind = Relative(pose=Pose())
    state = np.array([[1.0, 2.0, 3.0, 0.0, 0.0, np.pi / 2, 1.0]])
    still = np.concatenate([state[0, :6], [0.0]])
    ahead = still + np.array([0, 0.5, 0, 0, 0, 0, 0])  # the tool's x axis points along the robot's y
    related = kind.relate(np.stack([still, ahead])[None], state)
    np.testing.assert_allclose(related[0], [[0] * 7, [0.5, 0, 0, 0, 0, 0, 0]], atol=1e-12)


def test_what_is_learnt_as_recorded_is_not_touched() -> None:
    chunks, states = np.ones((2, 3, 7)), np.ones((2, 8))
    for kind in (Absolute(), Delta()):
        assert kind.relate(chunks, states) is chunks and kind.restore(chunks, states) is chunks


def test_grippers() -> None:
    actions = np.array([[0.3, -1.0], [0.2, 1.0], [0.1, 0.0]])
    gripper = Gripper(opened=-1.0, closed=1.0)
    np.testing.assert_array_equal(gripper.learnt(actions)[:, 1], [1, 0, 0.5])
    np.testing.assert_array_equal(gripper.recorded(gripper.learnt(actions)), actions)
    np.testing.assert_array_equal(gripper.learnt(actions)[:, 0], actions[:, 0])
    with pytest.raises(ConfigError, match=r"opened = closed = 1\.0"):
        Gripper(opened=1.0, closed=1.0)


def test_poses_that_are_not_there() -> None:
    with pytest.raises(MismatchError, match="5 values hold no pose of six at 0"):
        Relative(pose=Pose()).relate(np.zeros((1, 2, 7)), np.zeros((1, 5)))
    with pytest.raises(MismatchError, match=r"no pair \(9, 0\)"):
        Relative(offsets=((9, 0),)).relate(np.zeros((1, 2, 7)), np.zeros((1, 5)))


def test_degrees() -> None:
    for kind in (AxisAngle, RollPitchYaw):
        values = np.array([0.3, -0.2, 1.1])
        np.testing.assert_allclose(kind(degrees=True).matrix(np.degrees(values)), kind().matrix(values), atol=1e-12)
        np.testing.assert_allclose(kind(degrees=True).values(kind().matrix(values)), np.degrees(values), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    start=st.tuples(*[st.floats(-3, 3)] * 2, st.floats(-20, 20)),
    steps=st.lists(st.tuples(*[st.floats(-0.4, 0.4)] * 3), min_size=4, max_size=4),
    form=st.sampled_from(FORMATS),
)
def test_rotations_that_go_on_beyond_half_a_turn_come_back_as_recorded(
    start: tuple[float, ...], steps: list[tuple[float, ...]], form: RotationFormat
) -> None:
    """A wrist at 350 degrees is sent to 355, not to -5, and one that turns on and on does so."""
    unit = 180 / np.pi if form.degrees else 1.0
    path = np.array(start) + np.cumsum([(0.0, 0.0, 0.0), *steps], axis=0)
    if isinstance(form, AxisAngle):  # about an axis that is nearly still: neighbours on the sphere of axes
        angle = path[:, 2] + np.where(abs(start[2]) < 1, 3.0, 0.0)
        axis = np.array([0.6, 0.0, 0.8]) + 0.01 * path[:, :2] @ np.array([[0, 1, 0], [1, 0, 0]])
        path = axis / np.linalg.norm(axis, axis=1, keepdims=True) * angle[:, None]
    else:
        path[:, 1] = np.clip(path[:, 1] % np.pi, 0.2, np.pi - 0.2) - np.pi / 2
    poses = np.concatenate([np.zeros((5, 3)), path * unit], axis=1)
    kind = Relative(pose=Pose(rotation=form, unwrapped=True))
    chunks, states = poses[None, 1:], poses[:1]
    if np.abs(np.diff(path, axis=0)).max() > 1:
        return  # the clip above made a jump
    np.testing.assert_allclose(kind.restore(kind.relate(chunks, states), states), chunks, atol=1e-5 * unit)


def test_a_wrist_at_350_degrees() -> None:
    state = np.array([[0, 0, 0, 0, 0, 350.0]])
    target = np.array([[[0, 0, 0, 0, 0, 355.0], [0, 0, 0, 0, 0, 365.0]]])
    for unwrapped, wanted in ((True, [355, 365]), (False, [-5, 5])):
        kind = Relative(pose=Pose(rotation=RollPitchYaw(degrees=True), unwrapped=unwrapped))
        related = kind.relate(target, state)
        np.testing.assert_allclose(related[0, :, 5], [5, 15], atol=1e-9)
        np.testing.assert_allclose(kind.restore(related, state)[0, :, 5], wanted, atol=1e-9)
