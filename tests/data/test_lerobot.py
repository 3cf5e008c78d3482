from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from demonstrations import CAMERAS, LENGTHS, episode, image_number, number_in
from safetensors import safe_open

from lamp.data.check import check_dataset
from lamp.data.lerobot import FileSizes, LeRobotDataset, LeRobotWriter, stage_episode
from lamp.data.lerobot.format import STATISTICS_PATH
from lamp.errors import ConfigError, DataError
from lamp.sceneflow.sim_states import SIMULATION_PATH

STATISTICS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def faults(root: Path) -> str:
    return "\n".join(map(str, check_dataset(root, quick=True).faults))


def check(dataset: LeRobotDataset, seeds: list[int], lengths: list[int], *, killed: bool = False) -> None:
    """Everything that was recorded is there, in order, and every picture belongs to its frame; a killed `finalize` may have
    written the statistics of episodes that do not count yet."""
    found = [
        fault for fault in check_dataset(dataset.root, quick=True).faults if not killed or fault.file != STATISTICS_PATH
    ]
    assert found == []
    assert [place.length for place in dataset.episodes] == lengths
    for index, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
        recorded = episode(seed, length)
        for name, values in recorded.frames.items():
            np.testing.assert_array_equal(dataset.column(name, index), values)
        np.testing.assert_allclose(dataset.column("timestamp", index), np.arange(length) / 20, rtol=1e-6)
        assert dataset.episode(index).task == recorded.task
        assert dataset.extra(index)["initial_state"] == seed
        with safe_open(dataset.root / SIMULATION_PATH.format(episode_index=index), framework="np") as file:
            assert recorded.simulation is not None
            np.testing.assert_array_equal(file.get_tensor("states"), recorded.simulation["states"])
            assert json.loads(file.metadata()["placement"]) == {"bowl": [0.01, -0.02]}
        for camera in CAMERAS:
            shown = np.maximum.accumulate(np.where(dataset.fresh(index), np.arange(length), 0))
            found = [number_in(image) for image in dataset.frames(camera, index)]
            assert found == [image_number(seed, frame, camera) for frame in shown]
    np.testing.assert_array_equal(dataset.all_values("index"), np.arange(sum(lengths)))


def test_what_is_written_is_read_back(shared_dataset: LeRobotDataset) -> None:
    check(shared_dataset, [0, 1, 2, 3], list(LENGTHS))


def test_single_frames_from_the_middle(shared_dataset: LeRobotDataset) -> None:
    found = shared_dataset.frames("wrist", 2, [4, 4, 30])
    assert [number_in(image) for image in found] == [image_number(2, frame, "wrist") for frame in (4, 4, 30)]
    assert shared_dataset.frames("wrist", 2, []).shape == (0, 64, 64, 3)


def test_files_hold_what_lerobot_expects(shared_dataset: LeRobotDataset) -> None:
    root, info = shared_dataset.root, shared_dataset.info
    assert info["codebase_version"] == "v3.0" and info["total_episodes"] == 4 and info["total_frames"] == sum(LENGTHS)
    assert info["splits"] == {"train": "0:4"} and info["total_tasks"] == 2
    assert info["features"]["observation.images.wrist"]["dtype"] == "video"
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [8], "names": None}
    data = pq.read_table(root / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(data.column_names) == {name for name in info["features"] if "images" not in name}
    assert str(data.schema.field("action").type) == "fixed_size_list<element: float>[7]"
    assert str(data.schema.field("observation.fresh").type) == "bool"
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    expected = {"episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index"}
    expected |= {f"{part}/{name}" for part in ("data", "meta/episodes") for name in ("chunk_index", "file_index")}
    for camera in CAMERAS:
        names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        expected |= {f"videos/observation.images.{camera}/{name}" for name in names}
    expected |= {f"stats/{feature}/{name}" for feature in info["features"] for name in STATISTICS}
    assert set(rows.column_names) == expected
    assert rows["dataset_to_index"].to_pylist() == np.cumsum(LENGTHS).tolist()
    assert rows["videos/observation.images.wrist/from_timestamp"].to_pylist() == pytest.approx([0, 1, 1.45, 3.1])
    assert np.shape(rows["stats/observation.images.wrist/q50"][0].as_py()) == (3, 1, 1)
    statistics = json.loads((root / "meta/stats.json").read_text())
    assert set(statistics) == set(info["features"]) and all(set(entry) == STATISTICS for entry in statistics.values())
    assert json.loads((root / "meta/lamp.json").read_text()) == {
        "format": "lamp-dataset",
        "version": 1,
        "cameras": list(CAMERAS),
        "fps": 20,
        "suite": "libero_object",
        "render_every": 2,
        "collected": {"episodes": 4, "frames": sum(LENGTHS), "tasks": 2},
    }


def test_pandas_sees_tasks_as_lerobot_does(shared_dataset: LeRobotDataset) -> None:
    pandas = pytest.importorskip("pandas")
    tasks = pandas.read_parquet(shared_dataset.root / "meta/tasks.parquet")
    assert tasks.index.tolist() == ["task 0", "task 1"] and tasks.columns.tolist() == ["task_index"]
    assert tasks.loc["task 1"].task_index == 1


def test_statistics_are_those_of_all_frames(dataset: LeRobotDataset) -> None:
    stage_episode(dataset.root, "later", episode(7, 12))
    LeRobotWriter(dataset.root).finalize()
    extended = LeRobotDataset(dataset.root)
    actions, found = extended.all_values("action"), extended.statistics("action")
    np.testing.assert_allclose(found.mean, actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.q99, np.quantile(actions, 0.99, axis=0), atol=1e-6)
    pictures = np.concatenate([extended.frames("wrist", index) for index in range(5)]) / 255
    np.testing.assert_allclose(extended.statistics("wrist").mean.ravel(), pictures.mean((0, 1, 2)), atol=0.03)
    assert extended.statistics("wrist").count[0] == sum(min(length, 32) for length in (*LENGTHS, 12))


def test_finalising_again_extends_or_does_nothing(dataset: LeRobotDataset) -> None:
    writer = LeRobotWriter(dataset.root)

    def written() -> dict[Path, bytes]:
        """All files but the lock, which holds who took it last, and when."""
        files = (path for path in dataset.root.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.read_bytes() for path in files}

    before = written()
    assert writer.finalize() == 0
    assert written() == before
    stage_episode(dataset.root, "zz", episode(5, 6, tasks=9))
    stage_episode(dataset.root, "a", episode(4, 7))
    assert writer.names() == {"episode-0", "episode-1", "episode-2", "episode-3", "zz", "a"}
    assert writer.finalize() == 2
    extended = LeRobotDataset(dataset.root)
    assert extended.tasks == ["task 0", "task 1", "task 5"]
    assert extended.lamp["render_every"] == 2 and extended.lamp["collected"]["episodes"] == 6
    assert [extended.extra(index)["name"] for index in (4, 5)] == ["a", "zz"]
    assert [number_in(image) for image in extended.frames("agentview", 4, [0, 6])] == [
        image_number(4, frame, "agentview") for frame in (0, 6)
    ]
    assert faults(extended.root) == ""
    with pytest.raises(DataError, match="'zz' is in"):
        stage_episode(dataset.root, "zz", episode(5, 6))


def test_small_file_limits_make_several_files(tmp_path: Path) -> None:
    for seed in range(4):
        stage_episode(tmp_path, str(seed), episode(seed, 10))
    LeRobotWriter(tmp_path, sizes=FileSizes(data_mb=0.002, video_mb=0.004)).finalize()
    check(LeRobotDataset(tmp_path), [0, 1, 2, 3], [10] * 4)
    assert len(list(tmp_path.glob("data/*/*.parquet"))) > 1 < len(list(tmp_path.glob("videos/*wrist/*/*.mp4")))


class Killed(BaseException):
    """Stands for the process's end."""


@pytest.mark.long
@pytest.mark.parametrize("first", [True, False])
def test_a_killed_finalize_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    import lamp.files

    seeds, lengths = ([0], [8]) if not first else ([], [])
    for name in ("prepared", *(f"try {n}" for n in range(40))):
        root = tmp_path / name
        if name == "prepared":
            if not first:
                stage_episode(root, "0", episode(0, 8))
                LeRobotWriter(root).finalize()
            stage_episode(root, "1", episode(1, 6))
            stage_episode(root, "2", episode(2, 5))
            continue
        shutil.copytree(tmp_path / "prepared", root)
        countdown = int(name.split()[1])

        def replace(source: Path, target: Path) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown < 0:
                raise Killed
            Path(source).rename(target)

        with monkeypatch.context() as patch:
            patch.setattr(lamp.files.os, "replace", replace)
            try:
                LeRobotWriter(root).finalize({"suite": "x"})
            except Killed:
                if first:
                    assert not (root / "meta/info.json").exists()
                else:
                    check(LeRobotDataset(root), seeds, lengths, killed=True)
            else:
                assert int(name.split()[1]) > 8
                return
        assert LeRobotWriter(root).finalize({"suite": "x"}) == 2
        check(LeRobotDataset(root), [*seeds, 1, 2], [*lengths, 6, 5])
        assert len(list(root.glob("data/*/*.parquet"))) == 1 + len(seeds)
        shutil.rmtree(root)
    pytest.fail("finalize never ran to its end")


def test_a_finalize_killed_after_its_commit_adds_nothing_twice(
    dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_episode(dataset.root, "later", episode(4, 5))
    with monkeypatch.context() as patch:
        patch.setattr("lamp.data.lerobot.writer.remove_folder", lambda path: None)
        LeRobotWriter(dataset.root).finalize()
    assert LeRobotWriter(dataset.root).finalize() == 0
    check(LeRobotDataset(dataset.root), [0, 1, 2, 3, 4], [*LENGTHS, 5])


def test_folders_that_are_no_dataset(tmp_path: Path, dataset: LeRobotDataset) -> None:
    with pytest.raises(DataError, match="not a LeRobot dataset"):
        LeRobotDataset(tmp_path)
    with pytest.raises(DataError, match="no episodes are staged"):
        LeRobotWriter(tmp_path / "new").finalize()
    info = dataset.root / "meta/info.json"
    info.write_text(info.read_text().replace("v3.0", "v1.6"))
    with pytest.raises(DataError, match=r"v1\.6 dataset; expected v2\.0, v2\.1 or v3\.0"):
        LeRobotDataset(dataset.root)


def test_unknown_names_come_with_the_known_ones(shared_dataset: LeRobotDataset) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown camera 'agentveiw'; did you mean 'agentview'\? Known: agentview, wrist"
    ):
        shared_dataset.frames("agentveiw", 0)
    with pytest.raises(ConfigError, match="unknown feature 'effort'"):
        shared_dataset.column("effort", 0)
    with pytest.raises(ConfigError, match="unknown episode '4'"):
        shared_dataset.episode(4)
    with pytest.raises(ConfigError, match="0 to 19 in episode 0"):
        shared_dataset.frames("wrist", 0, [20])
    with pytest.raises(ConfigError, match="unknown statistics 'effort'"):
        shared_dataset.statistics("effort")


def test_damaged_files_are_named(dataset: LeRobotDataset) -> None:
    root = dataset.root
    data, video = root / "data/chunk-000/file-000.parquet", dataset.video_path("wrist", 0)
    content = data.read_bytes()
    pq.write_table(pq.read_table(data).drop_columns(["action"]), data)
    with pytest.raises(DataError, match=r"file-000\.parquet lacks the column action; it has"):
        LeRobotDataset(root).column("action", 0)
    data.write_bytes(content[:-500])
    assert "truncated or corrupt" in faults(root)
    pq.write_table(pq.ParquetFile(io.BytesIO(content)).read().slice(0, 40), data)
    assert "episode 2, length: has 11 rows" in faults(root)
    data.unlink()
    with pytest.raises(DataError, match="no file"):
        LeRobotDataset(root).column("action", 0)
    data.write_bytes(content)
    video.write_bytes(video.read_bytes()[:400])
    assert "truncated or corrupt" in faults(root)
    video.write_bytes(dataset.video_path("agentview", 0).read_bytes())
    (root / "meta/stats.json").unlink()
    with pytest.raises(DataError, match="no file of dataset statistics"):
        LeRobotDataset(root).statistics("wrist")
    (root / "meta/episodes/chunk-000/file-000.parquet").unlink()
    assert "no episode table" in faults(root)


def test_a_video_with_too_few_frames_is_found(dataset: LeRobotDataset) -> None:
    from lamp.data.lerobot.video import write_video

    write_video(dataset.video_path("wrist", 0), np.zeros((10, 64, 64, 3), np.uint8), 20)
    assert "the video ends after 10 pictures of the episode; expected 20" in faults(dataset.root)


def test_description_for_people(shared_dataset: LeRobotDataset) -> None:
    found = shared_dataset.describe()
    assert found["episodes"] == 4 and found["frames"] == 63 and found["fresh frames"] == 10 + 5 + 17 + 1
    assert found["tasks"] == {"task 0": 2, "task 1": 2} and found["cameras"] == {
        "agentview": [64, 64],
        "wrist": [64, 64],
    }
    json.dumps(found)
