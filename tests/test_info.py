"""`lamp info` recognises each kind of folder and says what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zarr
from demonstrations import write
from training_fakes import PatchBackbone, loop, motion_training, write_dataset

from lamp import cli
from lamp.errors import DataError
from lamp.files import write_json
from lamp.info import describe, to_text
from lamp.sceneflow.building import FlowBuildConfig
from lamp.sceneflow.store import SceneFlowStore
from lamp.train.motion import train_motion


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with an empty scene-flow store and a feature cache in it."""
    root = tmp_path_factory.mktemp("info") / "demonstrations"
    write(root)
    SceneFlowStore.create(root / "sceneflow", FlowBuildConfig(data=root, stride=2, horizon=16).description)
    zarr.create_group(root / "sceneflow" / "part", zarr_format=3)
    write_json(root / "features" / "abc" / "manifest.json", {"format": "lamp-features", "key": "abc", "width": 400})
    (root / "features" / "abc" / "episode-000000.safetensors").write_bytes(b"0" * 2_000_000)
    return root


def test_dataset_and_what_is_inside(dataset: Path) -> None:
    found = describe(dataset)
    assert found["kind"] == "dataset"
    assert found["episodes"] > 0 and set(found["cameras"]) == {"agentview", "wrist"}
    assert found["inside"] == {"features/abc": "feature cache", "sceneflow": "scene-flow store"}


def test_scene_flow_store(dataset: Path) -> None:
    found = describe(dataset / "sceneflow")
    assert found["kind"] == "scene-flow store"
    assert (found["sampling"]["horizon"], found["sampling"]["stride"]) == (16, 2)


def test_feature_cache(dataset: Path) -> None:
    found = describe(dataset / "features" / "abc")
    assert (found["kind"], found["episodes"], found["megabytes"], found["width"]) == ("feature cache", 1, 2.0, 400)


def test_evaluation_that_is_not_finished(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"planned": 20, "config": {"suite": "libero_object"}, "conditions": {"zero": ""}})
    (tmp_path / "episodes.jsonl").touch()
    found = describe(tmp_path)
    assert (found["kind"], found["episodes"], found["results"]) == ("evaluation", "0 of 20", [])


def test_run_and_checkpoint(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    train_motion(motion_training(loop=loop(steps=2)), data, tmp_path / "run", backbone=PatchBackbone())
    run, checkpoint = describe(tmp_path / "run"), describe(tmp_path / "run" / "checkpoint")
    assert (run["kind"], checkpoint["kind"]) == ("training run", "checkpoint")
    assert run["last metrics"]["step"] == checkpoint["step"] == 2
    assert checkpoint["trained"] == "Motion Expert (Stage 1)"
    assert checkpoint["parameters"]["total"] > 0
    assert "tau = 0" in to_text(checkpoint)


def test_other_folders_are_refused_and_say_what_they_hold(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it holds .*demonstrations \(dataset\)"):
        describe(dataset.parent)
    with pytest.raises(DataError, match="none of LaMP's folders"):
        describe(tmp_path)
    with pytest.raises(DataError, match="no folder at"):
        describe(tmp_path / "nothing")


def test_damage_is_an_error_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json is not valid JSON"):
        describe(tmp_path)


def test_the_command_prints_text_or_json(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(dataset / "sceneflow")]) == 0
    assert capsys.readouterr().out.startswith("kind:")
    assert cli.main(["info", str(dataset / "sceneflow"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "scene-flow store"


def test_text_indents_what_is_nested() -> None:
    value = {"a": 1.0, "list": [1, None], "deep": {"yes": True, "rows": [{"x": 1, "y": []}, {"x": 2}]}, "none": {}}
    assert to_text(value).splitlines() == [
        "a:    1",
        "list: 1, -",
        "deep:",
        "  yes: yes",
        "  rows:",
        "    - x: 1",
        "      y: -",
        "    - x: 2",
        "none: -",
    ]
