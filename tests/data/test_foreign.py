"""Datasets that LeRobot itself wrote (tests/fixtures/lerobot), and layouts of others made by hand."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from demonstrations import number_in, numbered
from PIL import Image

from lamp.data.check import check_dataset
from lamp.data.lerobot import EpisodeData, LeRobotDataset, LeRobotWriter
from lamp.data.lerobot.video import VideoReader, VideoReaders
from lamp.errors import ConfigError, DataError, MismatchError

FIXTURES = Path(__file__).parents[1] / "fixtures/lerobot"
LENGTHS = (12, 7, 15)


LANGUAGE: dict[str, dict[str, pa.DataType]] = {
    "language_persistent": {
        "role": pa.string(), "content": pa.string(), "style": pa.string(), "timestamp": pa.float32(), "camera": pa.string(),
        "tool_calls": pa.list_(pa.string()),
    },
    "language_events": {
        "role": pa.string(), "content": pa.string(), "style": pa.string(), "camera": pa.string(),
        "tool_calls": pa.list_(pa.string()),
    },
}  # fmt: skip
"""The columns that LeRobot 0.6 writes for annotations (`lerobot.datasets.language`): a list of such rows in each frame."""


def add_language(root: Path) -> None:
    """Annotates a v3.0 dataset as LeRobot 0.6 does: a subtask that lasts, and an event at some frames."""
    (path,) = root.glob("data/chunk-*/file-*.parquet")
    table = pq.read_table(path)
    subtask = {"role": "assistant", "content": "reach", "style": "subtask", "timestamp": 0.0}
    event = {"role": "user", "content": "faster", "style": "interjection"}
    for name, values in {
        "language_persistent": [[subtask]] * len(table),
        "language_events": [[event] if row % 3 == 0 else [] for row in range(len(table))],
    }.items():
        kind = pa.list_(pa.struct(list(LANGUAGE[name].items())))
        table = table.append_column(name, pa.array(values, kind))
    pq.write_table(table, path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] |= {name: {"dtype": "language", "shape": [1], "names": None} for name in LANGUAGE}
    (root / "meta/info.json").write_text(json.dumps(info))


@pytest.fixture(params=["v21", "v30"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> LeRobotDataset:
    """A copy of the test's own."""
    return LeRobotDataset(shutil.copytree(FIXTURES / request.param, tmp_path / request.param))


def test_lerobots_own_datasets_are_read_whole(foreign: LeRobotDataset) -> None:
    assert foreign.cameras == ("front", "side") and foreign.fps == 10 and foreign.tasks == ["task 0", "task 1"]
    assert foreign.features["observation.state"].names == ("x", "y", "z")
    assert [(place.length, place.task) for place in foreign.episodes] == [(12, "task 0"), (7, "task 1"), (15, "task 0")]
    for episode, length in enumerate(LENGTHS):
        frames = np.arange(length, dtype=np.float32)
        state = np.stack([np.full(length, episode, np.float32), frames, episode * frames], axis=1)
        np.testing.assert_array_equal(foreign.column("observation.state", episode), state)
        np.testing.assert_array_equal(foreign.column("action", episode)[:, 1], np.arange(length) % 2)
        for side, camera in enumerate(foreign.cameras):
            found = [number_in(image) for image in foreign.frames(camera, episode)]
            assert found == [512 * episode + 2 * frame + side for frame in range(length)]
    assert check_dataset(foreign.root, quick=True).faults == ()


def test_single_frames_backwards_and_forwards(foreign: LeRobotDataset) -> None:
    for frame in (14, 0, 7, 6, 13, 1, 14):
        for side, camera in enumerate(foreign.cameras):
            assert number_in(foreign.frames(camera, 2, [frame])[0]) == 1024 + 2 * frame + side


def test_statistics_without_quantiles_are_completed_and_kept(foreign: LeRobotDataset) -> None:
    values = np.concatenate([foreign.column("observation.state", episode) for episode in range(3)])
    found = foreign.statistics("observation.state")
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-5)
    if foreign.meta.version == "v2.1":  # LeRobot 0.4.4 averages quantiles over episodes; ours are exact
        np.testing.assert_allclose(found.q90, np.quantile(values.astype(float), 0.9, axis=0))
        kept = foreign.root / "meta/lamp_statistics.json"
        spoilt = json.loads(kept.read_text())
        spoilt["features"]["action"]["mean"] = [5.0, 5.0]
        kept.write_text(json.dumps(spoilt))
        assert LeRobotDataset(foreign.root).statistics("action").mean[0] == 5.0
        data = foreign.data_path(0)
        pq.write_table(pq.read_table(data), data)
        assert LeRobotDataset(foreign.root).statistics("action").mean[0] != 5.0


def test_chosen_cameras_go_by_other_names(foreign: LeRobotDataset) -> None:
    renamed = LeRobotDataset(foreign.root, cameras={"agentview": "observation.images.front"})
    assert renamed.cameras == ("agentview",)
    assert number_in(renamed.frames("agentview", 1, [3])[0]) == 518
    with pytest.raises(ConfigError, match=r"unknown camera feature 'observation\.images\.left'"):
        LeRobotDataset(foreign.root, cameras={"agentview": "observation.images.left"})


def test_optional_files_may_be_missing(foreign: LeRobotDataset) -> None:
    for name in ("meta/stats.json", "meta/episodes_stats.jsonl"):
        (foreign.root / name).unlink(missing_ok=True)
    opened = LeRobotDataset(foreign.root)
    assert opened.statistics("action").count[0] == sum(LENGTHS) and opened.lamp == {}
    assert len(opened.fingerprint(1)) == 16 and opened.describe()["frames"] == 34


def test_v3_with_several_data_files_and_images_at_the_front(tmp_path: Path) -> None:
    """A hand-made layout: an episode a data file, of which the second has a path of its own chunk; channels come first."""
    root = tmp_path / "made"
    features = {
        "observation.image": {"dtype": "image", "shape": [3, 64, 64], "names": ["channels", "height", "width"]},
        "observation.state": {"dtype": "float64", "shape": [2], "names": {"axes": ["x", "y"]}},
        "note": {"dtype": "string", "shape": [1]},
        "next.done": {"dtype": "bool", "shape": []},
    }
    bookkeeping = ("frame_index", "episode_index", "index", "task_index")
    info = {"codebase_version": "v3.0", "fps": 5, "total_episodes": 2, "total_frames": 5, "features": features}
    rows, start = [], 0
    for episode, length in enumerate((3, 2)):
        path = root / f"data/chunk-{episode:03d}/file-000.parquet"
        path.parent.mkdir(parents=True)
        columns = {name: pa.array([0] * length) for name in bookkeeping}
        columns["observation.state"] = pa.array([[episode, frame + 0.5] for frame in range(length)])
        columns["next.done"] = pa.array([frame == length - 1 for frame in range(length)])
        columns["observation.image"] = pa.array([_png(10 * episode + frame) for frame in range(length)])
        pq.write_table(pa.table(columns), path, row_group_size=2)
        place = {"data/chunk_index": episode, "data/file_index": 0, "dataset_from_index": start}
        rows.append({"episode_index": episode, "tasks": ["stir"], "length": length, **place})
        start += length
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "__index_level_0__": ["stir"]}), root / "meta/tasks.parquet")
    (root / "meta/info.json").write_text(json.dumps(info))
    dataset = LeRobotDataset(root)
    assert dataset.cameras == ("observation.image",) and dataset.image_sizes["observation.image"] == (64, 64)
    assert set(dataset.features) == {"observation.state", "next.done"}
    np.testing.assert_array_equal(dataset.column("observation.state", 1), [[1, 0.5], [1, 1.5]])
    assert dataset.column("next.done", 0).tolist() == [False, False, True]
    assert [number_in(image) for image in dataset.frames("observation.image", 0, [0, 2])] == [0, 2]
    assert [number_in(image) for image in dataset.frames("observation.image", 1)] == [10, 11]


def _png(number: int) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    Image.fromarray(numbered(number)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames with B-frames and a keyframe every 20, as many writers make them."""
    path = tmp_path_factory.mktemp("videos") / "reordered.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "20", "bf": "3", "sc_threshold": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_any_order_of_frames_of_a_video_with_b_frames(reordered: Path) -> None:
    reader = VideoReader(reordered, 10.0)
    order = np.random.default_rng(0).permutation(60).tolist()
    assert [number_in(reader.frame(number)) for number in order] == order
    with pytest.raises(DataError, match="ends before frame 60"):
        reader.frame(60)
    assert number_in(reader.frame(41)) == 41


def test_seeks_do_not_decode_from_the_start_and_neighbours_are_reused(reordered: Path) -> None:
    reader = VideoReader(reordered, 10.0)
    reader.frame(45)
    assert reader.decoded <= 6 + 4  # from the keyframe at 40, and a few that a decoder gives out late
    before = reader.decoded
    for number in range(46, 56):
        reader.frame(number)
    assert reader.decoded - before == 10
    reader.frame(55)
    assert reader.decoded - before == 10
    reader.frame(59)
    assert reader.decoded - before == 14


def test_readers_stay_open_until_the_file_changes(reordered: Path, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    shutil.copy(reordered, path)
    readers = VideoReaders(limit=1)
    one = readers.reader(path, 10.0)
    assert readers.reader(path, 10.0) is one
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match="truncated or corrupt"):
        readers.reader(path, 10.0)
    readers.reader(reordered, 10.0)
    assert len(readers._open) == 1


def test_language_columns_of_lerobot_0_6_are_left_aside_and_kept(dataset: LeRobotDataset) -> None:
    add_language(dataset.root)
    annotated = LeRobotDataset(dataset.root)
    assert check_dataset(annotated.root, quick=True).faults == ()
    assert check_dataset(dataset.root).faults == ()
    assert annotated.features == dataset.features and annotated.tasks == dataset.tasks
    assert annotated.meta.other_features == {"language_persistent": "language", "language_events": "language"}
    writer = LeRobotWriter(dataset.root, fps=annotated.fps)
    writer.add_episode(small_episode(annotated), "zzz")
    with pytest.raises(MismatchError, match=r"has language_events, language_persistent; .*expected another folder"):
        writer.finalize()
    assert pq.read_schema(annotated.data_path(0)).names[-2:] == [*LANGUAGE] and len(
        LeRobotDataset(dataset.root)
    ) == len(dataset)


def test_datasets_of_other_writers_are_not_extended(foreign: LeRobotDataset) -> None:
    before = {path: path.read_bytes() for path in foreign.root.rglob("*") if path.is_file()}
    writer = LeRobotWriter(foreign.root, fps=foreign.fps)
    writer.add_episode(small_episode(foreign), "zzz")
    reason = "is LeRobot v2.1" if foreign.meta.version == "v2.1" else "has observation.images.side; "
    with pytest.raises(MismatchError, match=reason):
        writer.finalize()
    assert before == {path: path.read_bytes() for path in before}


def small_episode(dataset: LeRobotDataset) -> EpisodeData:
    """Two frames with a dataset's cameras and features."""
    frames = {name: dataset.column(name, 0)[:2] for name in dataset.features}
    images = {camera: dataset.frames(camera, 0, [0, 1]) for camera in dataset.cameras}
    return EpisodeData(frames=frames, images=images, task=dataset.tasks[0])
