"""What an early version wrote, this one reads and continues (tests/fixtures/made_by_0_1_0).

Mostly through the command line, which stays where it is when modules move.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lamp.cli import main
from lamp.configuration import from_json, to_json
from lamp.policy import LaMPPolicy
from lamp.recipes import Recipe, TrainingRecipe
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp_client.types import Observation

ARCHIVE = Path(__file__).parent / "fixtures" / "made_by_0_1_0" / "artefacts.tar.xz"
INSTRUCTION = "pick up the alphabet soup and place it in the basket"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The artefacts, unpacked where they may be changed."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def recipe(made: Path) -> Recipe:
    """The recipe of the artefacts."""
    return from_json(Recipe, json.loads((made / "experiment.json").read_text()))


def printed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What a command prints; it has to succeed."""
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    assert code == 0, out.err
    return out.out


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "checkpoint" / "model.safetensors")


@pytest.mark.parametrize(("name", "kind"), [("experiment.json", Recipe), ("recipe.json", TrainingRecipe)])
def test_a_recipe_is_read_and_written_as_it_was(made: Path, name: str, kind: type) -> None:
    """Fields may be added, with a default; none that was there may go or change its value."""

    def kept(before: Any, now: Any, where: str) -> None:
        if isinstance(before, dict):
            assert before.keys() <= now.keys(), where
            for key in before:
                kept(before[key], now[key], f"{where}.{key}")
        elif isinstance(before, list):
            assert len(before) == len(now), where
            for index, (one, other) in enumerate(zip(before, now, strict=True)):
                kept(one, other, f"{where}[{index}]")
        else:
            assert before == now, where

    stored = json.loads((made / name).read_text())
    kept(stored, json.loads(json.dumps(to_json(from_json(kind, stored)))), "recipe")


@pytest.mark.parametrize("run", ["policy_with", "policy_without"])
def test_a_policy_acts_as_it_did(made: Path, run: str) -> None:
    expected = load_file(made / "expected.safetensors")
    draws = np.random.default_rng(0)
    images = {name: draws.integers(0, 255, (256, 256, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    observation = Observation(images=images, state=expected["state"], instruction=INSTRUCTION)
    policy = LaMPPolicy.from_checkpoint(made / run)
    chunk = policy.act_batch([observation], [(1, 2)], foresight=policy.uses_motion)[0]
    np.testing.assert_allclose(chunk.actions, expected[f"{run}.actions"], atol=2e-4)
    if policy.uses_motion:
        assert chunk.foresight is not None
        np.testing.assert_allclose(chunk.foresight, expected[f"{run}.foresight"], atol=2e-4)


@pytest.mark.usefixtures("bfloat16")
def test_stopped_trainings_go_on_to_the_same_weights(made: Path, recipe: Recipe) -> None:
    """With the features and the scene flow that are there: nothing is computed anew."""
    torch.set_num_threads(1)
    stored = {path: path.stat().st_mtime_ns for path in (made / "data").rglob("*") if "episode-" in path.name}
    train_motion(recipe.motion, made / "data", made / "motion_half")
    train_policy(recipe.without_motion, made / "data", made / "policy_half", None)
    for half, whole in (("motion_half", "motion"), ("policy_half", "policy_without")):
        continued, at_once = weights(made / half), weights(made / whole)
        assert continued.keys() == at_once.keys()
        # Other processors add up in another order, and AdamW takes whole steps along gradients that are
        # nothing but rounding, as those of the keys' biases are. Another order of samples moves four weights in five.
        near = np.concatenate([np.abs(continued[name] - at_once[name]).ravel() < 1e-5 for name in at_once])
        assert near.mean() > 0.99, half
    assert stored == {path: path.stat().st_mtime_ns for path in (made / "data").rglob("*") if "episode-" in path.name}


@pytest.mark.parametrize(
    ("folder", "tells"),
    [
        ("data", "20"),
        ("data/sceneflow", "agentview"),
        ("motion", "motion"),
        ("policy_with", "policy"),
        ("policy_half", "policy"),
        ("evaluation", "with_motion"),
    ],
)
def test_info_knows_every_folder(made: Path, folder: str, tells: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tells in printed(capsys, "info", made / folder)


def test_the_dataset_has_no_fault(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "data", "check", made / "data")


def test_the_evaluation_is_reported(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "report", made / "evaluation", made / "motion", "--out", made / "r.html", "--json", made / "r.json")
    page, tables = (made / "r.html").read_text(), json.dumps(json.loads((made / "r.json").read_text()))
    for condition in ("replay", "zero"):
        assert condition in page and condition in tables


def test_a_recording_becomes_a_dataset(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "import-recording", made / "recording", "--out", made / "imported")
    assert json.loads((made / "imported" / "meta" / "info.json").read_text())["total_frames"] == 12
