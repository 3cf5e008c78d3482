"""The command lamp-rig against the twin."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp.benchmark.trials import read_trials
from lamp.data.import_recording import EMBODIMENT_PATH, import_recording
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.geometry import apply, unproject
from lamp.sceneflow.build import FlowBuildConfig, build
from lamp.sceneflow.rendering import load_scene
from lamp.sceneflow.sim_states import Playback, read_header, read_recording, recording_paths
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.validate import validate
from lamp_client.client import InProcessPolicy
from lamp_client.recording import read_episode, recorded_names
from lamp_client.rig import session
from lamp_client.rig.cli import main
from lamp_client.twin import twin_description


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A twin with a camera that renders soon."""
    path = tmp_path_factory.mktemp("rig") / "rig.json"
    twin_description(width=64, height=48).save(path)
    return str(path)


@pytest.fixture(scope="module")
def recording(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "demos"
    assert main(["record", small, "--out", str(folder), "--episodes", "2", "--noise", "0.003"]) == 0
    return folder


def serving(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever address is asked, this policy answers."""
    policy.close = lambda: None
    monkeypatch.setattr(session, "WebsocketPolicy", lambda address: policy)


def test_a_description_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("twin", "flexiv"):
        out = tmp_path / "a" / f"{kind}.json"
        assert main(["describe", kind, "--out", str(out)]) == 0
        assert json.loads(out.read_text())["format"] == "lamp-rig"
        assert main(["describe", kind, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_check_says_what_is_there_and_moves_nothing(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", small]) == 0
    out = capsys.readouterr().out
    assert (
        "ok    arm: arm rizon4" in out and "ok    camera front: 64x48" in out and "0 faults; nothing was moved" in out
    )


def test_check_holds_a_policy_against_the_rig(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(
        InProcessPolicy(lambda seen, seed: np.tile(seen.state, (16, 1)), {"fps": 20, "action_width": 7, "chunk": 16}),
        monkeypatch,
    )
    assert main(["check", small, "--policy", "localhost:8000"]) == 0
    out = capsys.readouterr().out
    assert (
        "ok    policy: 7 values an action, chunks of 16" in out
        and "now it would do: 16 actions: +0.0 +0.0 +0.0 cm" in out
    )
    serving(InProcessPolicy(lambda seen, seed: np.zeros((1, 14)), {"action_width": 14}), monkeypatch)
    assert main(["check", small, "--policy", "localhost:8000"]) == 1
    assert "FAULT policy: the policy does not fit the rig" in capsys.readouterr().out


def test_demonstrations_say_what_the_expert_wanted_and_what_was_executed(recording: Path) -> None:
    frames = read_episode(recording, recorded_names(recording)[0], pixels=False).frames
    wanted = np.stack([np.asarray(frame["action"]) for frame in frames])
    executed = np.stack([np.asarray(frame["executed"]) for frame in frames])
    away = np.linalg.norm(executed[:, :3] - wanted[:, :3], axis=1)
    assert 0.002 < away.max() < 0.02
    np.testing.assert_allclose(executed[:, 3:], wanted[:, 3:], atol=1e-5)
    # The fingers close and open where the expert wants them to.
    acts = np.flatnonzero(np.diff(wanted[:, 6]))
    assert len(acts) == 2 and away[[*acts, *(acts + 1)]].max() < 1e-5


def test_an_expert_that_meets_a_limit_has_failed_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = twin_description(width=32, height=24)
    replace(rig, limits=replace(rig.limits, max_lag=0.01)).save(tmp_path / "rig.json")
    assert main(["record", str(tmp_path / "rig.json"), "--out", str(tmp_path / "demos"), "--episodes", "1"]) == 1
    assert "episode 6: not kept" in capsys.readouterr().out
    assert not recorded_names(tmp_path / "demos")


def test_recordings_of_the_expert_are_a_lerobot_dataset(recording: Path, tmp_path: Path) -> None:
    names = recorded_names(recording)
    assert names == ["stack_cup-in_domain-000000", "stack_cup-in_domain-000001"]
    episode = read_episode(recording, names[0])
    assert episode.success is True and episode.complete and episode.metadata["seed"] == 0
    assert episode.metadata["rig_fingerprint"] == twin_description(width=64, height=48).fingerprint
    result = import_recording(recording, tmp_path / "data")
    assert result.episodes == 2 and not result.skipped
    dataset = LeRobotDataset(tmp_path / "data")
    assert dataset.fps == 20 and dataset.image_sizes == {"front": (48, 64)}
    said = json.loads((tmp_path / "data" / EMBODIMENT_PATH).read_text())
    assert said["kind"]["type"] == "Relative" and said["kind"]["pose"]["action"] == 0
    assert said["gripper"]["dim"] == 6
    assert said["name"] == f"twin-rizon4.rig-{episode.metadata['rig_fingerprint'][:12]}_recorded"


def test_recordings_of_the_twin_have_exact_scene_flow(recording: Path, tmp_path: Path) -> None:
    import_recording(recording, tmp_path / "data")
    report = build(FlowBuildConfig(data=tmp_path / "data", grid=(12, 16), horizon=6, stride=4, every=20, workers=1))
    assert report.built == 2 and report.kept == 0
    store = SceneFlowStore(tmp_path / "data" / "sceneflow")
    described = store.description
    assert described.cameras == ("front",) and not described.mirrored and described.image_size == (64, 48)
    assert not validate(tmp_path / "data" / "sceneflow")
    tracks, camera = store.read(0, store.frames(0))
    moved = (tracks.points - tracks.points[:, :, :1]).abs().amax((2, 3))
    assert 0.02 < float((moved > 1e-3).float().mean()) < 0.5
    # The table's points do not move at all, and the camera's focal length is that of the rig's description.
    assert float((moved == 0).float().mean()) > 0.3
    focal = twin_description(width=64, height=48).cameras["front"].calibration
    assert focal is not None and focal.focal is not None
    assert float(camera.intrinsics[0, 0, 0]) == pytest.approx(focal.focal[0] / 64)
    # A cup in the hand moves with it: its true path, from the recorded poses, is among the tracks.
    path = recording_paths(tmp_path / "data")[0]
    playback = Playback(load_scene(read_header(path)[0]).model, read_recording(path))
    cup = playback.model.body("cup").id
    poses = playback.world_from_body[:, cup, :3, 3]
    assert float((poses[-1] - poses[0]).norm()) > 0.1
    frame = int((poses[:, 2] - poses[0, 2] > 0.03).float().argmax())
    view_frame = max(int(at) for at in store.frames(0) if at <= frame)
    points, one = store.read(0, [view_frame])
    paths3d = apply(one.world_from_cam[0], unproject(points.points[0].double(), one.intrinsics[0]))
    way = poses[min(view_frame + 24, len(poses) - 1)] - poses[view_frame]
    off = (paths3d[:, -1] - paths3d[:, 0] - way).norm(dim=-1)[points.valid[0].all(-1)]
    assert float(off.min()) < 0.02


def test_an_interrupted_recording_goes_on(small: str, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", small, "--out", str(recording), "--episodes", "2"]) == 0
    assert "2 episodes in" in capsys.readouterr().out and len(recorded_names(recording)) == 2


def test_a_replay_goes_where_the_recording_went(
    small: str, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", small, str(recording)]) == 0
    out = capsys.readouterr().out
    assert "stack_cup-in_domain-000000" in out and "2 of 2 stages" in out
    assert main(["replay", small, str(recording), "--episode", "nine"]) == 2
    assert "unknown episode" in capsys.readouterr().err


def test_a_policy_runs_and_is_recorded(
    small: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = np.stack(
        [frame["action"] for frame in read_episode(recording, recorded_names(recording)[0], pixels=False).frames]
    )
    asked = [0]

    def act(seen: Any, seed: Any) -> np.ndarray:
        start = 8 * asked[0]
        asked[0] += 1
        return actions[np.clip(np.arange(start, start + 12), 0, len(actions) - 1)]

    serving(InProcessPolicy(act, {"fps": 20, "execute": 8, "cameras": {"front": [48, 64]}}), monkeypatch)
    assert main(["run", small, "--policy", "localhost:8000", "--record", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 stages" in out
    (name,) = recorded_names(tmp_path / "run")
    assert read_episode(tmp_path / "run", name, pixels=False).success is True


@pytest.mark.parametrize(
    "more",
    [["--executor", "asynchronous", "--every", "4", "--delay", "3", "--blend", "2"], ["--speed", "0.5"], ["--dry-run"]],
)
def test_ways_to_run(
    more: list[str], small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(seen: Any, seed: Any) -> np.ndarray:
        return np.tile(seen.state, (16, 1)) + 0.002 * np.arange(16)[:, None] * np.array([0, 1, 0, 0, 0, 0, 0])

    serving(InProcessPolicy(act, {"fps": 20}), monkeypatch)
    assert main(["run", small, "--policy", "x", "--steps", "24", *more]) == 0
    assert "24 steps" in capsys.readouterr().out


def test_a_policy_that_does_not_fit_is_a_mistake_before_anything_moves(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(InProcessPolicy(lambda seen, seed: np.zeros((1, 7)), {"fps": 10}), monkeypatch)
    assert main(["run", small, "--policy", "x"]) == 2
    assert "trained at 10 actions per second, and the rig runs at 20" in capsys.readouterr().err


def test_a_policy_that_jumps_is_stopped(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(InProcessPolicy(lambda seen, seed: np.zeros((4, 7))), monkeypatch)
    assert main(["run", small, "--policy", "x"]) == 1
    assert "the limits are 15.0 cm" in capsys.readouterr().err


def test_methods_are_scored_blind_on_the_same_layouts(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(
        InProcessPolicy(lambda seen, seed: np.tile(seen.state, (16, 1)), {"fps": 20, "weights_sha256": "abc"}),
        monkeypatch,
    )
    command = [
        "score",
        small,
        "--out",
        str(tmp_path),
        "--method",
        "still=x",
        "--method",
        "script=expert",
        "--trials",
        "2",
        "--steps",
        "160",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "script, in_domain: progress 100%" in out and "still, in_domain: progress 0%" in out
    trials = read_trials(tmp_path)
    assert [(each.method, each.stages, each.note) for each in sorted(trials, key=lambda each: (each.method, each.note))] == [
        ("script", 2, "layout 0"), ("script", 2, "layout 1"), ("still", 0, "layout 0"), ("still", 0, "layout 1"),
    ]  # fmt: skip
    assert {each.checkpoint for each in trials} == {"", "abc"} and trials[0].category == "Pick-and-place"
    assert main(command) == 0 and len(read_trials(tmp_path)) == 4  # what was scored is not scored again


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["check", "nowhere.json"], "cannot be read as a rig's description"),
        (["check", "twin:ur5"], "unknown arm of the twin"),
        (["record", "twin", "--out", "x", "--task", "tea"], "unknown task of the twin"),
        (["record", "twin", "--out", "x", "--by", "keyboard"], "needs a terminal"),
        (["replay", "twin", "nowhere"], "holds no recorded episodes"),
        (["score", "twin", "--out", "x", "--method", "a"], "expected NAME=HOST:PORT"),
        (["score", "twin", "--out", "x", "--method", "a=expert", "--method", "a=expert"], "names one twice"),
        (["score", "twin", "--out", "x", "--method", "a=expert", "--conditions", "dark"], "unknown condition"),
    ],
)
def test_mistakes_are_one_line(
    command: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_somebody_at_the_keyboard_records_the_twin(small: str, tmp_path: Path) -> None:
    out = tmp_path / "demos"
    with keyboard(small, out, "--keep-failures") as (type_keys, read_until, ended):
        read_until("w s: forth")
        type_keys(" ")
        read_until("held; space goes on")
        for keys in (" ", "aaaaa", "g", "e"):
            type_keys(keys)
            time.sleep(1.0)  # so that some steps are recorded before the next
        read_until("1 episodes in")
        assert ended() == 0
    (name,) = recorded_names(out)
    frames = read_episode(out, name, pixels=False).frames
    assert frames[-1]["action"][1] - frames[0]["action"][1] == pytest.approx(0.05, abs=1e-6)
    assert frames[0]["action"][6] == 1.0 and frames[-1]["action"][6] == 0.0


@pytest.mark.long
def test_a_key_stops_the_arm_and_half_an_episode_is_not_kept(small: str, tmp_path: Path) -> None:
    with keyboard(small, tmp_path / "demos") as (type_keys, read_until, ended):
        read_until("w s: forth")
        type_keys("aa")
        time.sleep(0.5)
        type_keys("q")
        read_until("the arm was stopped (key)")
        assert ended() == 1
    assert recorded_names(tmp_path / "demos") == []


def keyboard(rig: str, out: Path, *more: str) -> contextlib.AbstractContextManager[tuple[Any, Any, Any]]:
    """`lamp-rig record` by the keyboard, at a terminal."""
    words = ["record", rig, "--by", "keyboard", "--out", str(out), *more]
    return terminal([sys.executable, "-m", "lamp_client.rig.cli", *words])


@contextlib.contextmanager
def terminal(command: list[str]) -> Iterator[tuple[Any, Any, Any]]:
    """A command at a terminal: (type keys, wait for a text, wait for the exit code)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    seen = ""

    def read_until(text: str) -> None:
        nonlocal seen
        give_up = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < give_up, f"{text!r} did not come: {seen}"
            if select.select([ours], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    seen += os.read(ours, 4096).decode(errors="replace")

    try:
        yield lambda keys: os.write(ours, keys.encode()), read_until, lambda: process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
