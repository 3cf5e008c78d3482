"""`lamp replay`: predicted beside recorded actions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serve_fakes import running
from training_fakes import PatchBackbone, write_dataset  # pyright: ignore[reportMissingImports]

from lamp import cli
from lamp.data.embodiment import DROID, LIBERO, OWN, Embodiment, action_units
from lamp.data.episode_selection import EpisodeSelection
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, MismatchError
from lamp.policy import LaMPPolicy
from lamp.serve.policy_spec import CheckpointPolicy, policy_spec
from lamp.train.checkpoint_metadata import read_description
from lamp.view import replay as replaying
from lamp.view.images import read_caption
from lamp.view.replay import ReplayConfig, ReplayReport, replay
from lamp_client.client import InProcessPolicy, WebsocketPolicy
from lamp_client.client import action_units as whose_units
from lamp_client.types import ActionChunk, Observation


class Scripted(WebsocketPolicy):
    """A server's policy that answers with the recorded actions, and what it was asked."""

    def __init__(self, data: Path, *, wrong_by: float = 0.0, **about: Any) -> None:
        super().__init__("nowhere")
        self.dataset, self.wrong_by = LeRobotDataset(data), wrong_by
        self.about: dict[str, Any] = {
            "cameras": {"agentview": [64, 64]},
            "state_width": 8,
            "execute": 4,
            "fps": 20.0,
            **about,
        }
        self.observed: list[tuple[int, int]] = []

    @property
    def metadata(self) -> dict[str, Any]:
        return self.about

    def act(self, observation: Observation, *, noise_seed: tuple[int, ...] | None = None) -> ActionChunk:
        assert noise_seed is not None
        _, episode, frame = noise_seed
        self.observed.append((episode, frame))
        np.testing.assert_array_equal(observation.state, self.dataset.column("observation.state", episode)[frame])
        assert observation.instruction == f"task {episode % 2}"
        actions = self.dataset.column("action", episode)[frame : frame + 6].astype(np.float32)
        return ActionChunk(actions=actions + np.float32(self.wrong_by))


def scripted(policy: Scripted, out: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> ReplayReport:
    monkeypatch.setattr(replaying, "WebsocketPolicy", lambda *_: policy)
    return replay(ReplayConfig(data=str(policy.dataset.root), server="robot:8000", out=out, **settings))  # pyright: ignore[reportArgumentType]


def test_the_recorded_actions_themselves_have_no_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Scripted(root / "data")
    report = scripted(policy, tmp_path / "replay.png", monkeypatch, most=2)
    assert [one.mean for one in report.dimensions] == [0.0] * 7 and report.better == 7
    assert report.dimensions[6].agrees == 1.0 and report.dimensions[0].agrees is None
    assert [one.name for one in report.dimensions] == ["x", "y", "z", "rx", "ry", "rz", "gripper"]
    # Every fourth frame, all of which have new pictures; of four episodes, two.
    assert policy.observed == [(episode, frame) for episode in (0, 3) for frame in range(0, 24, 4)]
    assert "2 of 4" in report.chosen and "does not say what it was trained on" in report.chosen
    with Image.open(tmp_path / "replay.png") as picture:
        assert picture.width > 800 and picture.height > 700
    assert "recorded and predicted" in read_caption(tmp_path / "replay.png")


def test_errors_are_those_of_each_dimension(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = scripted(Scripted(root / "data", wrong_by=0.25), tmp_path / "x.png", monkeypatch)
    assert [one.mean for one in report.dimensions] == pytest.approx([0.25] * 7, abs=1e-6)
    recorded = np.concatenate([LeRobotDataset(root / "data").column("action", episode)[:, 2] for episode in range(4)])
    assert report.dimensions[2].constant == pytest.approx(np.abs(recorded - np.median(recorded)).mean(), rel=1e-5)
    assert report.dimensions[6].agrees == 1.0
    table = str(report).splitlines()
    assert table[0].split()[:2] == ["dimension", "unit"] and table[3].startswith("z ") and "0.25" in table[3]
    assert report.to_json()["actions"] == 4 * 24


def test_pictures_that_repeat_are_not_asked_about(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Scripted(root / "data", execute=3)
    scripted(policy, tmp_path / "x.png", monkeypatch, selection=EpisodeSelection(episodes="1"))
    assert policy.observed == [(1, frame) for frame in range(0, 24, 4)]


def test_held_out_episodes_are_the_default(root: Path, tmp_path: Path) -> None:
    config = ReplayConfig(data=str(root / "data"), checkpoint=root / "guided", out=tmp_path / "replay.png")
    held_out = read_description(root / "guided").data.validation_episodes
    report = replay(config, backbone=PatchBackbone())
    assert tuple(one.episode for one in report.episodes) == held_out and "held out" in report.chosen
    assert all(np.isfinite(one.predicted).all() for one in report.episodes)
    assert replay(config, backbone=PatchBackbone()).dimensions == report.dimensions
    seen = next(episode for episode in range(4) if episode not in held_out)
    chosen = replay(replace(config, selection=EpisodeSelection(episodes=str(seen))), backbone=PatchBackbone())
    assert chosen.chosen == "as selected, 1 of them trained on"
    other = write_dataset(tmp_path / "other", episodes=3)
    assert "not trained on" in replay(replace(config, data=str(other)), backbone=PatchBackbone()).chosen


def test_a_server_is_asked_the_same(root: Path, tmp_path: Path) -> None:
    config = ReplayConfig(
        data=str(root / "data"),
        checkpoint=root / "guided",
        out=tmp_path / "a.png",
        selection=EpisodeSelection(episodes="0"),
    )
    here = replay(config, backbone=PatchBackbone())
    policy = LaMPPolicy.from_checkpoint(root / "guided", backbone=PatchBackbone())
    with running(CheckpointPolicy(spec=policy_spec(policy), act_batch=policy.act_batch)) as server:
        there = replay(replace(config, checkpoint=None, server=f"localhost:{server.port}"))
    np.testing.assert_allclose(there.episodes[0].predicted, here.episodes[0].predicted, atol=1e-4)
    assert there.episodes[0].observed == here.episodes[0].observed


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"cameras": {"front": [64, 64]}}, "unknown camera .* 'front'"),
        ({"fps": 30.0}, "runs at 20 fps, the policy at 30"),
        ({"fps": 10.0}, "runs at 20 fps, the policy at 10; expected its own rate"),
    ],
)
def test_what_does_not_fit_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, MismatchError), match=message):
        scripted(Scripted(root / "data", **about), tmp_path / "x.png", monkeypatch)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("replay data", "--checkpoint or --server: neither is given"),
        ("replay data --checkpoint a --server b:1", "both are given"),
        ("replay data --server b:port", "'b:port' is no address; expected HOST:PORT"),
        ("replay nowhere --checkpoint a", "a"),
    ],
)
def test_slips_are_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_command_prints_the_table_or_json(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replaying, "WebsocketPolicy", lambda *_: Scripted(root / "data"))
    out = tmp_path / "pictures" / "replay.png"
    words = ["replay", str(root / "data"), "--server", "robot:8000", "--episodes", "1,2", "--out", str(out)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "episodes 1-2 (as selected)" in said and said.endswith(f"picture: {out}\n") and out.is_file()
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["episodes"] == [1, 2] and found["dimensions"][6]["name"] == "gripper"


def test_units_are_said_where_they_are_known(root: Path) -> None:
    dataset = LeRobotDataset(root / "data")
    assert action_units(OWN, dataset, 7) == ()  # anybody's data have these names
    assert action_units(LIBERO, dataset, 7) == (*("[-1, 1]",) * 6, "1 = open")
    assert action_units(DROID, dataset, 8)[0] == "rad" and action_units(DROID, dataset, 7) == ()
    assert action_units(Embodiment(name="droid"), dataset, 8) == ()  # another robot of that name


def test_a_policy_that_names_its_units_is_one_that_environments_take(root: Path) -> None:
    """`action_units` of its metadata says whose units they are, and is another thing."""
    policy = LaMPPolicy.from_checkpoint(root / "guided", backbone=PatchBackbone())
    named = replace(policy.record, action_names=tuple("abcdefg"), action_units=("m",) * 7)
    policy.record = named
    assert (
        whose_units(policy)
        == whose_units(InProcessPolicy(lambda *_: np.zeros(7), policy_spec(policy).about))
        == "dataset"
    )
    assert policy.metadata["action_value_units"] == ["m"] * 7
