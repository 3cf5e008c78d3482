"""`lamp info` recognises each kind of folder and says what is in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import zarr
from demonstrations import LENGTHS, episode, write
from training_fakes import PatchBackbone, loop, motion_training, write_dataset
from view_fakes import make_run

from lamp import cli
from lamp.checksums import read_checksums
from lamp.data.lerobot.staging import stage_episode
from lamp.data.lerobot.writer import LeRobotWriter
from lamp.description_text import to_text
from lamp.errors import DataError
from lamp.info import describe, to_brief, verify
from lamp.json_files import write_json
from lamp.sceneflow.build import FlowBuildConfig
from lamp.sceneflow.store import SceneFlowStore
from lamp.train.train_motion import train_motion


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


@pytest.mark.parametrize("name", ["manifest.json", "run.json", "seconds.json", "hidden.json"])
def test_a_description_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "features" / "abc"
    folder.mkdir(parents=True)
    (folder / name).write_text("[]")
    with pytest.raises(DataError) as refused:
        describe(folder)
    assert str(folder) in str(refused.value)


def test_evaluation_that_is_not_finished(tmp_path: Path) -> None:
    run = {"planned": 20, "config": {"suite": "libero_object"}, "conditions": {"zero": ""}}
    write_json(tmp_path / "run.json", {"format": "lamp-evaluation", **run})
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


def extend(root: Path) -> None:
    """Adds one episode."""
    stage_episode(root, "later", episode(7))
    LeRobotWriter(root).finalize()


def spoil(path: Path, at: float = 0.6) -> None:
    """Flips one bit."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    path.write_bytes(content)


def test_what_was_written_is_verified_and_a_flipped_bit_anywhere_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dataset with scene flow and features in it, as our own commands write them."""
    data = write_dataset(tmp_path / "data")
    assert cli.main(["info", str(data), "--verify"]) == 0
    assert "no fault in" in capsys.readouterr().out
    files = [path for path in data.rglob("*") if path.is_file() and not path.name.startswith(".")]
    kinds: dict[tuple[str, str], Path] = {}
    for path in sorted(files):
        kinds.setdefault((path.relative_to(data).parts[0], path.suffix), path)
    assert {"data", "meta", "videos", "sceneflow", "features"} <= {folder for folder, _ in kinds}
    for path in kinds.values():
        if path.name in ("collection_attempts.jsonl", "lamp_statistics.json"):
            continue
        kept = path.read_bytes()
        spoil(path)
        assert cli.main(["info", str(data), "--verify"]) == 1, path
        assert path.name in capsys.readouterr().out
        path.write_bytes(kept)
    assert cli.main(["info", str(data), "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told["files"] >= len(files) - 10 and not told["faults"]


def test_a_dataset_that_grows_keeps_the_checksums_of_what_was_there(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(root, LENGTHS[:2])
    before = read_checksums(root / "meta/checksums.json")
    video = next(name for name in before if name.endswith(".mp4"))
    spoil(root / video)
    extend(root)
    after = read_checksums(root / "meta/checksums.json")
    assert after[video] == before[video] and len(after) > len(before)
    assert [fault.file for fault in verify(root).faults] == [root / video]


def test_a_killed_finalising_is_made_good_by_the_next(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(root, LENGTHS[:2])
    old = (root / "meta/checksums.json").read_bytes()
    extend(root)
    (root / "meta/checksums.json").write_bytes(old)
    assert verify(root).faults
    LeRobotWriter(root).finalize()
    assert not verify(root).faults


def test_data_of_others_are_given_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    write(root)
    (root / "meta/checksums.json").unlink()
    assert cli.main(["info", str(root), "--verify"]) == 0
    assert "has no checksums" in capsys.readouterr().out
    assert cli.main(["info", str(root), "--write-checksums", "--verify"]) == 0
    assert cli.main(["info", str(root), "--write-checksums"]) == 2
    assert "is there already" in capsys.readouterr().err
    (root / "meta/stats.json").unlink()
    assert cli.main(["info", str(root), "--verify"]) == 1
    assert "stats.json: is missing" in capsys.readouterr().out


def test_checkpoints_and_experiments_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path / "demo" / "data")
    train_motion(motion_training(loop=loop(steps=2)), data, tmp_path / "demo" / "motion", backbone=PatchBackbone())
    write_json(tmp_path / "demo" / "seconds.json", {"collect": 3.5})
    checkpoint = tmp_path / "demo" / "motion" / "checkpoint"
    found = describe(tmp_path / "demo")
    assert found["kind"] == "experiment" and found["seconds"] == {"collect": 3.5} and "unfinished" in found["state"]
    assert found["inside"] == {"data": "dataset", "motion": "training run"}
    for folder in (tmp_path / "demo", checkpoint.parent, checkpoint):
        assert not verify(folder).faults
    for name in ("lamp.json", "model.safetensors", "training/optimiser.safetensors", "training/committed.json"):
        kept = (checkpoint / name).read_bytes()
        spoil(checkpoint / name)
        assert [fault.file for fault in verify(tmp_path / "demo").faults] == [checkpoint / name]
        (checkpoint / name).write_bytes(kept)
    shutil.rmtree(checkpoint / "training")
    assert not verify(checkpoint).faults and "weights only" in verify(checkpoint).unchecked[0]
    spoil(checkpoint / "model.safetensors")
    assert [fault.file for fault in verify(checkpoint).faults] == [checkpoint / "model.safetensors"]


def test_every_folder_that_the_software_makes_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, file in {
        "unfinished training run": "metrics.jsonl",
        "trials on a robot": "trials.jsonl",
        "recording of a robot": "a.lamprec",
        "unfinished collection": ".staging/a/episode.json",
    }.items():
        folder = tmp_path / kind
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch()
        assert describe(folder)["kind"] == kind
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "robot.json", {})
    for path, said in (
        ("empty", "it is empty"),
        ("robot.json", "is a file.*recipe show"),
        ("emty", "did you mean .*/empty"),
    ):
        with pytest.raises(DataError, match=said):
            describe(tmp_path / path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with an evaluation of many tasks, pictures and a training."""
    out = make_run(tmp_path_factory.mktemp("info") / "my demo")
    write_json(out / "seconds.json", {"collect": 3.5, "report": 1.0})
    write_json(out / "experiment.json", {"command": "lamp demo --quick", "recipe": "demo", "quick": True})
    manifest = json.loads((out / "evaluation" / "run.json").read_text())
    write_json(out / "evaluation" / "run.json", manifest | {"conditions": {"zero": "no action"}})
    return out


def test_in_brief_the_table_comes_first_and_forty_lines_are_enough(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = next(path.parent for path in evaluated.rglob("run.json"))
    for folder in (evaluated, evaluation):
        assert cli.main(["info", str(folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 240
        assert lines[0].startswith("libero") and "with_motion" in "".join(lines[:6])
        assert lines[-1] == f"more: lamp info '{folder}' --all"
    assert cli.main(["info", str(evaluation), "--all"]) == 0
    whole = capsys.readouterr().out.splitlines()
    assert whole[0].startswith("kind:") and len(whole) > 40
    assert "command: lamp demo --quick" in to_brief(evaluated, describe(evaluated)).splitlines()


def test_every_folder_within_an_experiment_says_what_it_is(evaluated: Path, tmp_path: Path) -> None:
    folders = [path for path in evaluated.rglob("*") if path.is_dir() and path.name != "data"]
    assert len(folders) >= 7
    for folder in [evaluated, *folders]:
        found = describe(folder)
        assert len(to_brief(folder, found).splitlines()) <= 40
    pictures = describe(evaluated / "pictures")
    assert pictures["kind"] == "part of an experiment" and pictures["of"] == str(evaluated.resolve())
    assert pictures["files"] and list(pictures["pictures"].values())


def test_long_and_nested_values_are_cut_in_brief(tmp_path: Path) -> None:
    found = {
        "kind": "dataset",
        "tasks": {f"task {n}": {"deep": [n, n]} for n in range(90)},
        "caches": [{"name": str(n)} for n in range(90)],
        "text": "two\nlines",
        **{f"key {n}": n for n in range(90)},
    }
    lines = to_brief(tmp_path, found).splitlines()
    assert len(lines) == 40 and max(map(len, lines)) <= 120
    assert lines[1].startswith("tasks: task 0 (deep 0, 0), task 1") and lines[1].endswith("...")
    assert lines[2:8] == ["caches:", *(f"  - name {n}" for n in range(4)), "  ... and 86 more"]
    assert lines[8] == "text: two lines" and lines[-1] == f"more: lamp info {tmp_path} --all"


def test_a_training_says_whether_it_is_finished(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    train_motion(motion_training(loop=loop(steps=2)), data, tmp_path / "run", backbone=PatchBackbone())
    assert describe(tmp_path / "run")["state"] == "finished"
    stored = json.loads((tmp_path / "run" / "checkpoint" / "lamp.json").read_text())
    write_json(tmp_path / "run" / "checkpoint" / "lamp.json", stored | {"step": 1})
    assert describe(tmp_path / "run")["state"] == "step 1 of 2: the same command goes on"
