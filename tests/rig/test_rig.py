"""A rig of fakes: what is sent, seen, refused, and paced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rig_fakes import START, description, fake_rig

from lamp_client import Asynchronous, InProcessPolicy, Observation, OpenLoop, Recorder
from lamp_client.control import drive
from lamp_client.envs.rotations import axis_angle_from_matrix, matrix_from_axis_angle, quaternion_from_matrix
from lamp_client.errors import InvalidValueError, LampClientError
from lamp_client.recording import read_episode
from lamp_client.rig import Pose, RigDescription, RigError, RigStoppedError, SimulatedClock, WallClock, read_description
from lamp_client.rig.trials import Replayed, add_trial, drive_rig, made_trials, plan_trials, wilson


@pytest.mark.parametrize("seed", range(30))
def test_seven_values_are_a_pose_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=3)
    vector *= rng.choice([1e-9, 0.3, 3.0, 3.14159]) / np.linalg.norm(vector)
    rotation = matrix_from_axis_angle(vector) @ START.rotation
    rig = fake_rig().rig
    pose, openness = rig.pose(rig.values(Pose(position=rng.uniform(-1, 1, 3), rotation=rotation), 0.25))
    assert openness == 0.25 and np.abs(pose.rotation - rotation).max() < 1e-6
    quaternion = quaternion_from_matrix(rotation)
    assert Pose.of_quaternion([0, 0, 0, *quaternion]).rotation == pytest.approx(rotation, abs=1e-12)
    assert axis_angle_from_matrix(matrix_from_axis_angle(vector)) == pytest.approx(vector, abs=1e-6)


def test_straight_down_is_no_rotation() -> None:
    assert fake_rig().rig.values(START, 1.0) == pytest.approx([0.5, 0, 0.3, 0, 0, 0, 1])


def test_a_policy_drives_the_rig_in_its_own_time(tmp_path: Path) -> None:
    fakes = fake_rig()
    asked = []

    def act(seen: Any, seed: Any) -> np.ndarray:
        asked.append(fakes.rig.clock.now())
        return seen.state + np.arange(1, 11)[:, None] * np.array([0.005, 0, 0, 0, 0, 0, 0])

    policy = InProcessPolicy(act, {"fps": 20, "action_width": 7, "state_width": 7, "cameras": {"front": [24, 32]}})
    recorder = Recorder(folder=tmp_path, fps=20, metadata=fakes.rig.description.recorded)
    with fakes.rig as rig:
        went = drive_rig(
            rig,
            policy,
            Asynchronous(every=4, delay=2),
            instruction="go",
            steps=20,
            recorder=recorder,
            episode="one",
            outcome=lambda: True,
        )
        assert rig.watchdog.stopped is None
    assert (went.steps, went.late, went.rate) == (20, 0, pytest.approx(20))
    episode = read_episode(tmp_path, "one")
    assert episode.success is True and episode.complete and len(episode.frames) == 20
    assert np.diff([frame["time_s"] for frame in episode.frames]) == pytest.approx(np.full(19, 0.05))
    assert episode.metadata["rig_fingerprint"] == fakes.rig.description.fingerprint
    moves = [at for name, at in fakes.arm.calls if name == "move"]
    assert np.diff(moves) == pytest.approx(np.full(19, 0.05))


@pytest.mark.parametrize(("every", "delay"), [(1, 1), (3, 2), (5, 4), (4, None)])
def test_no_action_is_executed_twice_or_skipped_at_hand_over(every: int, delay: int | None) -> None:
    fakes = fake_rig()
    step = [0]

    def act(seen: Any, seed: Any) -> np.ndarray:
        # Each action says for which step of the run it is meant.
        meant = seen.state[0] + np.arange(16)
        actions = np.tile(fakes.rig.values(START, 1.0), (16, 1))
        actions[:, 0] += 0.001 * meant
        return actions

    class Counting(Asynchronous):
        def next_action(self, observe: Any, policy: Any, noise_seed: Any) -> np.ndarray:
            action = super().next_action(observe, policy, noise_seed)
            step[0] += 1
            return action

    with fakes.rig as rig:
        sent: list[np.ndarray] = []
        send = rig.send
        pixels = np.zeros((24, 32, 3), np.uint8)
        rig.observe = lambda words: Observation(  # type: ignore[method-assign]
            images={"front": pixels}, state=np.array([step[0]], np.float32), instruction=words
        )
        rig.send = lambda action: sent.append(action) or send(action)  # type: ignore[method-assign]
        drive_rig(rig, InProcessPolicy(act), Counting(every=every, delay=delay), instruction="go", steps=60)
    assert np.array(sent)[:, 0] - 0.5 == pytest.approx(0.001 * np.arange(60), abs=1e-6)


def test_a_policy_that_fails_stops_the_arm() -> None:
    fakes = fake_rig()

    def act(seen: Any, seed: Any) -> np.ndarray:
        raise LampClientError("the server went away.")

    with fakes.rig as rig, pytest.raises(LampClientError, match="went away"):
        drive_rig(rig, InProcessPolicy(act), OpenLoop(), instruction="go", steps=5)
    stopped = fakes.rig.watchdog.stopped
    assert stopped is not None and stopped.kind == "server" and "stop" in fakes.arm.names()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"fps": 10}, "trained at 10 actions per second, and the rig runs at 20"),
        ({"action_width": 8}, "its actions have 8 values, and the rig takes 7"),
        ({"state_width": 14}, "its state has 14 values, and the rig gives 7"),
        ({"actions": "delta"}, "its actions are delta"),
        ({"cameras": {"front": [], "wrist": []}}, "it looks through wrist, and the rig has front"),
        ({"rig_fingerprint": "abc"}, "trained on the rig abc"),
        ({"embodiment": {"name": "lab.rig-0123456789ab_recorded"}}, "trained on the rig 0123456789ab"),
    ],
)
def test_a_policy_of_another_rig_is_refused_before_anything_moves(metadata: dict[str, Any], message: str) -> None:
    fakes = fake_rig()
    with fakes.rig as rig, pytest.raises(RigError, match=message):
        drive_rig(
            rig, InProcessPolicy(lambda seen, seed: np.zeros((1, 7)), metadata), OpenLoop(), instruction="go", steps=5
        )
    assert "move" not in fakes.arm.names()


def test_the_fingerprint_comes_back_with_what_was_trained_on_its_recordings() -> None:
    rig = description()
    name = rig.policy_entry["embodiment"]["name"]
    rig.check_policy({"embodiment": {"name": f"{name}_recorded"}})
    rig.check_policy({"embodiment": {"name": "lab.rig-0123456789ab_recorded"}}, another_rig=True)
    rig.check_policy({"embodiment": {"name": "libero"}})
    rig.check_policy({"embodiment": 3})


def test_an_arm_that_is_not_fit_does_not_start() -> None:
    fakes = fake_rig()
    fakes.arm.pose = Pose(position=np.array([0.1, 0, 0.3]), rotation=START.rotation)
    with pytest.raises(RigError, match="outside of the workspace"), fakes.rig:
        pass
    assert fakes.arm.names() == ["connect", "close"] and fakes.camera.closed


def test_an_arm_is_not_readied_while_a_camera_sends_nothing() -> None:
    fakes = fake_rig()
    fakes.camera.fails = True
    with pytest.raises(RigError, match="'front' has sent no picture: the camera 'front' failed: unplugged"), fakes.rig:
        pass
    assert "enable" not in fakes.arm.names() and fakes.camera.closed


def test_a_camera_of_another_size_is_refused() -> None:
    fakes = fake_rig()
    fakes.camera.shape = (48, 64, 3)
    with fakes.rig as rig, pytest.raises(RigError, match="sends 64x48; its description says 32x24"):
        rig.observe("go")


def test_a_dry_run_commands_nothing_and_limits_all_the_same() -> None:
    notes: list[str] = []
    fakes = fake_rig(dry_run=True, on_note=notes.append)
    with fakes.rig as rig:
        sent = rig.send(rig.values(Pose(position=START.position + np.array([0.1, 0, 0]), rotation=START.rotation), 0.0))
        rig.clock.sleep(0.2)
        assert sent[0] == pytest.approx(0.5125) and rig.state_values()[0] == pytest.approx(0.5125)
    assert not {"move", "enable", "stop"} & set(fakes.arm.names()) and fakes.gripper.moves == []
    assert "2.00 m/s" in notes[0]


@pytest.mark.parametrize("goal", [1.0, 0.0])
def test_the_fingers_are_read_anew_after_somebody_moved_them(goal: float) -> None:
    fakes = fake_rig()
    with fakes.rig as rig:
        rig.send(rig.values(START, 0.0))
        rig.clock.sleep(0.1)
        assert rig.state_values()[6] == 0.0
        rig.release()
        fakes.gripper.at, fakes.gripper.moves = 0.7, []
        rig.resume()
        # A policy that is asked at once must not be told of a grasp that is over.
        assert rig.state_values()[6] == pytest.approx(0.7)
        rig.clock.sleep(0.1)
        assert fakes.gripper.moves == []
        rig.send(rig.values(START, goal))
        rig.clock.sleep(0.1)
        assert fakes.gripper.moves == [goal]  # also where it is the one that was sent before


def test_going_home_keeps_the_limits_and_arrives() -> None:
    fakes = fake_rig(home=(0.6, 0.1, 0.25, 0.0, 1.0, 0.0, 0.0))
    with fakes.rig as rig:
        rig.go_home(0.0)
        rig.clock.sleep(2.0)  # nobody commands, and nobody expects it
        assert rig.watchdog.stopped is None
        assert fakes.arm.pose.position == pytest.approx([0.6, 0.1, 0.25]) and fakes.gripper.at == 0.0


def test_reduced_speed_is_as_much_slower() -> None:
    fakes = fake_rig(speed=0.5)
    with fakes.rig as rig:
        drive_rig(
            rig,
            InProcessPolicy(lambda seen, seed: np.tile(seen.state, (4, 1)), {"fps": 20}),
            OpenLoop(),
            instruction="go",
            steps=8,
        )
    assert np.diff([at for name, at in fakes.arm.calls if name == "move"]) == pytest.approx(np.full(7, 0.1))


def test_jobs_of_a_simulated_clock_are_done_when_due() -> None:
    passed: list[float] = []
    clock = SimulatedClock(passed.append)
    done: list[tuple[str, float]] = []
    clock.every(0.03, lambda: done.append(("a", clock.now())), "a")
    slow = clock.every(0.05, lambda: done.append(("b", clock.now())), "b")
    clock.sleep(0.1)
    assert [name for name, _ in done] == ["a", "b", "a", "b", "a", "a", "b"]
    assert [at for _, at in done] == pytest.approx([0, 0, 0.03, 0.05, 0.06, 0.09, 0.1]) and sum(
        passed
    ) == pytest.approx(0.1)
    slow.cancel()
    clock.sleep(0.1)
    assert done[-1][0] == "a"


def test_a_job_that_fails_goes_on() -> None:
    clock, runs = WallClock(), []

    def work() -> None:
        runs.append(1)
        raise ValueError("once more")

    job = clock.every(0.001, work, "failing")
    clock.sleep(0.1)
    job.cancel()
    assert len(runs) > 2 and not job.alive


# The description


def test_a_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = description(home=(0.5, 0, 0.3, 0, 1, 0, 0), notes="Größe")
    one.save(tmp_path / "rig.json")
    assert read_description(tmp_path / "rig.json") == one
    assert [path.name for path in tmp_path.iterdir()] == ["rig.json"]


def test_the_fingerprint_is_of_what_a_policy_depends_on() -> None:
    from dataclasses import replace

    one = description()
    limits = replace(one.limits, max_speed=0.1)
    assert replace(one, name="other", limits=limits, notes="x").fingerprint == one.fingerprint
    assert replace(one, arm=replace(one.arm, address="there")).fingerprint == one.fingerprint
    assert replace(one, fps=10.0).fingerprint != one.fingerprint
    assert replace(one, arm=replace(one.arm, model="panda")).fingerprint != one.fingerprint
    camera = replace(one.cameras["front"], width=64)
    assert replace(one, cameras={"front": camera}).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("fps",), "fast", "fps is 'fast'; expected a number"),
        (("fps",), 0, "0 actions per second"),
        (("fps",), True, "fps is True; expected a number"),
        (("arm",), None, "arm is None; expected a map"),
        (("arm", "drivr"), "x", "unknown value in .*'drivr'. Did you mean 'driver'"),
        (("arm", "tool_rotation"), [0, 0, 0, 0], "tool_rotation has no length"),
        (("limits", "outside"), "stop", "Known: clip, reject"),
        (("limits", "max_speed"), -1, "max_speed is -1; expected more than 0"),
        (("limits", "workspace_low"), [0.3, 0.0], "expected a list of 3 values"),
        (("limits", "workspace_low"), [0.9, -0.3, 0], "goes from x = 0.9 to 0.7 m"),
        (("cameras",), {}, "the rig has no cameras"),
        (("cameras", "../x"), {"driver": "a", "width": 64, "height": 64}, "cannot name a camera"),
        (("cameras", "front", "width"), 3, "3x24 pixels"),
        (("cameras", "front", "calibration"), {"serial": "1"}, None),
        (("watchdog", "image_s"), 1e9, "image_s is 1e.09"),
        (("home",), [2, 0, 0, 1, 0, 0, 0], "home .* is outside"),
        (("version",), 2, "version 2; expected 'lamp-rig', 1"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(
    tmp_path: Path, path: tuple[str, ...], value: Any, message: str | None
) -> None:
    import json

    plain = description().plain
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file = tmp_path / "rig.json"
    file.write_text(json.dumps(plain))
    if message is None:
        assert isinstance(read_description(file), RigDescription)
        return
    with pytest.raises(LampClientError, match=message):
        read_description(file)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"format": "lamp-rig", "version": 1}', "[" * 100_000, '{"fps": NaN}']
)
def test_what_is_no_description_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rig.json").write_text(content)
    with pytest.raises(LampClientError):
        read_description(tmp_path / "rig.json")


def test_a_calibration_of_another_camera_is_refused() -> None:
    from lamp_client.rig.description import Calibration, CameraDescription

    with pytest.raises(InvalidValueError, match="the camera '2' has the calibration of '1'"):
        CameraDescription(driver="realsense", width=640, height=480, serial="2", calibration=Calibration(serial="1"))


# Trials


def test_every_method_meets_every_layout_in_random_order() -> None:
    plan = plan_trials(["a", "b", "c"], {"in_domain": 10, "unseen_object": 5}, 3)
    assert len(plan) == 45 and len(set((each.method, each.condition, each.layout) for each in plan)) == 45
    assert [each.layout for each in plan[:30:3]] == list(range(10))
    assert len({tuple(each.method for each in plan[at : at + 3]) for at in range(0, 45, 3)}) > 2
    assert plan == plan_trials(["a", "b", "c"], {"in_domain": 10, "unseen_object": 5}, 3)


def test_trials_survive_a_line_that_was_cut_short_before_them(tmp_path: Path) -> None:
    add_trial(tmp_path, {"method": "a", "stages": 1, "of": 2})
    with open(tmp_path / "trials.jsonl", "a") as file:
        file.write('{"undo": true}')
    add_trial(tmp_path, {"method": "b", "stages": 2, "of": 2})
    assert [each["method"] for each in made_trials(tmp_path)] == ["b"]


def test_wilson_intervals() -> None:
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=0.001)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(5, 5)[1] == 1.0


def test_a_replay_sends_what_was_recorded() -> None:
    fakes = fake_rig()
    actions = [
        fakes.rig.values(Pose(position=START.position + np.array([0.002 * at, 0, 0]), rotation=START.rotation), 1.0)
        for at in range(9)
    ]
    with fakes.rig as rig:
        drive(
            rig, InProcessPolicy(lambda seen, seed: np.zeros((1, 7))), Replayed(actions=actions), instruction="x", fps=20,
            steps=9, now=rig.clock.now, sleep=rig.clock.sleep,
        )  # fmt: skip
        assert fakes.arm.pose.position[0] == pytest.approx(0.516)
        with pytest.raises(RigStoppedError):
            rig.send(np.zeros(3, np.float32))
