"""Every kind of fault, made in datasets that LeRobot itself wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from demonstrations import numbered

from lamp.bench.data import SYNTHETIC_FRAMES, write_synthetic_dataset
from lamp.cli import main
from lamp.data.check import DatasetFault, check_dataset
from lamp.data.check import values as check_values
from lamp.data.lerobot.statistics import aggregate, moments_of, statistics_of
from lamp.data.lerobot.video import write_video

FIXTURES = Path(__file__).parents[1] / "fixtures/lerobot"
DATA21, DATA30 = "data/chunk-000/episode_000001.parquet", "data/chunk-000/file-000.parquet"
VIDEO21 = "videos/chunk-000/observation.images.front/episode_000001.mp4"
VIDEO30 = "videos/observation.images.front/chunk-000/file-000.mp4"
EPISODES30 = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def v21(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURES / "v21", tmp_path / "v21")


@pytest.fixture
def v30(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURES / "v30", tmp_path / "v30")


def faults_of(root: Path) -> set[tuple[str, int | None, int | None, str | None]]:
    return {(fault.file, fault.episode, fault.frame, fault.key) for fault in check_dataset(root).faults}


def one_of(root: Path, key: str | None = None) -> DatasetFault:
    """The only fault, or the only one of a key."""
    found = [fault for fault in check_dataset(root).faults if key is None or fault.key == key]
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def change(path: Path, column: str, edit: Callable[[list[Any]], Any]) -> None:
    """Rewrites a column of a data file."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    edited = edit(values)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values if edited is None else edited)), path)


def change_lines(path: Path, edit: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_info(root: Path, **values: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_lerobots_own_datasets_have_no_fault(version: str) -> None:
    found = check_dataset(FIXTURES / version)
    assert found.ok and (found.episodes, found.frames, found.pictures) == (3, 34, 68), found.to_text()


def test_our_own_dataset_has_no_fault(shared_dataset: Any) -> None:
    found = check_dataset(shared_dataset.root)
    assert found.ok and found.pictures == 2 * 63, found.to_text()


def test_values_that_are_not_finite(v21: Path, v30: Path) -> None:
    def spoil(rows: list[Any]) -> None:
        rows[14 if len(rows) == 34 else 2][1] = float("nan")
        rows[16 if len(rows) == 34 else 4][0] = float("inf")

    for root, data in ((v21, DATA21), (v30, DATA30)):
        change(root / data, "action", spoil)
        fault = one_of(root, "action")
        assert (fault.file, fault.episode, fault.frame) == (data, 1, 2)
        assert fault.problem == "is nan in dimension 1; expected finite numbers (1 later frame likewise)"


def test_widths_that_do_not_match_even_where_their_sum_does(v21: Path) -> None:
    change(v21 / DATA21, "observation.state", lambda rows: [rows[0][:2], [*rows[1], 1.0], *rows[2:]])
    fault = one_of(v21, "observation.state")
    assert (fault.episode, fault.frame) == (1, 0)
    assert fault.problem == "has 2 values; the description says 3 (1 later frame likewise)"


def test_no_value_at_all(v21: Path) -> None:
    change(v21 / DATA21, "action", lambda rows: [*rows[:3], None, *rows[4:]])
    assert str(one_of(v21, "action")) == f"{DATA21}, episode 1, frame 3, action: has no value"


def test_clocks(v21: Path) -> None:
    change(v21 / DATA21, "timestamp", lambda rows: [0.05 * n for n in range(len(rows))])
    fault = one_of(v21, "timestamp")
    assert (fault.episode, fault.frame) == (1, 1) and "run at 20 fps, the description says 10" in fault.problem
    change(v21 / DATA21, "timestamp", lambda rows: [0.1 * n + (0.03 if n == 5 else 0) for n in range(len(rows))])
    fault = one_of(v21, "timestamp")
    assert fault.frame == 5 and fault.problem == "is 0.53 s; expected 0.5 s"


def test_a_wrong_fps_is_seen_in_numbers_and_in_videos(v30: Path) -> None:
    change_info(v30, fps=20)
    keys = {(fault.key, fault.episode, fault.frame) for fault in check_dataset(v30).faults}
    assert {("timestamp", episode, 1) for episode in range(3)} < keys
    assert any(key == "observation.images.front" for key, _, _ in keys)


def test_index_gaps_and_rows_of_others(v30: Path) -> None:
    change(v30 / DATA30, "index", lambda rows: [*rows[:20], *(n + 3 for n in rows[20:])])
    change(v30 / DATA30, "frame_index", lambda rows: [*rows[:13], 5, *rows[14:]])
    change(v30 / DATA30, "episode_index", lambda rows: [*rows[:18], 2, *rows[19:]])
    assert faults_of(v30) == {
        (DATA30, 2, 1, "index"),  # row 20: episode 2 starts at row 19
        (DATA30, 1, 1, "frame_index"),
        (DATA30, 1, 6, "episode_index"),
    }


def test_missing_files_are_named_with_their_episode(v21: Path) -> None:
    (v21 / DATA21).unlink()
    (v21 / VIDEO21).unlink()
    found = faults_of(v21)
    assert (DATA21, 1, None, None) in found and (VIDEO21, 1, 0, "observation.images.front") in found
    assert all(episode == 1 for _, episode, _, _ in found)


def test_a_column_is_missing(v30: Path) -> None:
    table = pq.read_table(v30 / DATA30)
    pq.write_table(table.drop_columns(["action"]), v30 / DATA30)
    fault = one_of(v30, "action")
    assert fault.file == DATA30 and fault.problem.startswith(
        "the column is missing; the file has observation.images.side"
    )


def test_wrong_lengths(v21: Path, v30: Path) -> None:
    change_lines(v21 / "meta/episodes.jsonl", lambda rows: rows[1].update(length=9))
    found = check_dataset(v21).faults
    told = {(fault.file, fault.episode, fault.key): fault.problem for fault in found}
    assert told[DATA21, 1, "length"] == "has 7 rows; its length is 9"
    assert told[VIDEO21, 1, "observation.images.front"] == "the video ends after 7 pictures of the episode; expected 9"
    assert told["meta/info.json", None, "total_frames"] == "total_frames is 34; the listed episodes add up to 36"
    table = pq.read_table(v30 / DATA30)
    pq.write_table(table.slice(0, 30), v30 / DATA30)
    assert one_of(v30, "length").problem == "has 11 rows; its length is 15"


def test_an_episode_listed_twice_or_not_at_all(v21: Path, v30: Path) -> None:
    change_lines(v21 / "meta/episodes.jsonl", lambda rows: rows.append(rows[1]))
    fault = one_of(v21)
    assert fault.episode == 1 and fault.problem == "is listed 2 times; expected once"
    rows = pq.read_table(v30 / EPISODES30)
    pq.write_table(pa.concat_tables([rows.slice(0, 1), rows.slice(2)]), v30 / EPISODES30)
    told = [fault for fault in check_dataset(v30).faults if fault.file == "meta/episodes"]
    assert [(fault.episode, fault.problem) for fault in told] == [
        (1, "is not listed; expected episodes 0 to 2"),
        (2, "starts at row 19; the episodes before it end at 12"),
    ]
    # The others are still found in the right rows: the rest of what is told is about totals.
    assert {fault.episode for fault in check_dataset(v30).faults if fault.file == DATA30} == set()


def test_a_copy_of_another_episode(v21: Path) -> None:
    first, copy = (v21 / f"data/chunk-000/episode_{n:06d}.parquet" for n in (0, 1))
    table = pq.read_table(first)
    names = table.column_names
    for key, values in (("episode_index", [1] * 12), ("index", list(range(12, 24)))):
        table = table.set_column(names.index(key), key, pa.array(values))
    pq.write_table(table, copy)
    change_lines(v21 / "meta/episodes.jsonl", lambda rows: rows[1].update(length=12, tasks=["task 0"]))
    shutil.copy(str(v21 / VIDEO21).replace("000001", "000000"), v21 / VIDEO21)
    assert any(
        fault.episode == 1 and fault.problem.startswith("is a copy of episode 0") for fault in check_dataset(v21).faults
    )


def test_tasks_without_text(v21: Path, v30: Path) -> None:
    change_lines(v21 / "meta/tasks.jsonl", lambda rows: rows[1].update(task=" "))
    change_lines(v21 / "meta/episodes.jsonl", lambda rows: rows[1].update(tasks=[""]))
    assert faults_of(v21) == {("meta/tasks.jsonl", None, None, "task"), ("meta/episodes.jsonl", 1, None, "tasks")}
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["task 0", "another"]}), v30 / "meta/tasks.parquet")
    assert faults_of(v30) == {("meta/episodes", 1, None, "tasks"), (DATA30, 1, 0, "task_index")}
    change(v30 / DATA30, "task_index", lambda rows: [7 if n == 14 else value for n, value in enumerate(rows)])
    assert (DATA30, 1, 2, "task_index") in faults_of(v30)


def test_videos_that_are_short_corrupt_or_of_another_size(v21: Path, v30: Path) -> None:
    write_video(v30 / VIDEO30, np.stack([numbered(0)] * 25), 10)
    fault = one_of(v30)
    assert (fault.file, fault.episode, fault.frame, fault.key) == (VIDEO30, 2, 6, "observation.images.front")
    assert fault.problem == "the video ends after 6 pictures of the episode; expected 15"
    write_video(v21 / VIDEO21, np.zeros((7, 32, 48, 3), np.uint8), 10)
    assert one_of(v21).problem == "is 32x48; the description says 64x64"
    write_video(v21 / VIDEO21, np.stack([numbered(0)] * 8), 10)
    assert one_of(v21).problem == "the video has 8 pictures; expected 7"
    (v21 / VIDEO21).write_bytes((v21 / VIDEO21).read_bytes()[:500])
    assert "truncated or corrupt" in one_of(v21).problem


def test_corruption_in_the_middle_of_a_video_needs_decoding(v30: Path) -> None:
    path = v30 / VIDEO30
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 1500
    content[start : start + 600] = bytes(255 - byte for byte in content[start : start + 600])
    path.write_bytes(bytes(content))
    found = check_dataset(v30).faults
    assert found and all(fault.file == VIDEO30 and fault.frame is not None for fault in found), found
    assert check_dataset(v30, quick=True).ok


def test_stored_images_that_are_corrupt(v30: Path) -> None:
    change(v30 / DATA30, "observation.images.side", lambda rows: rows[13].update(bytes=rows[13]["bytes"][:40]))
    fault = one_of(v30)
    assert (fault.file, fault.episode, fault.frame, fault.key) == (DATA30, 1, 1, "observation.images.side")


def test_statistics_of_other_data(v21: Path, v30: Path) -> None:
    path = v30 / "meta/stats.json"
    stored = json.loads(path.read_text())
    stored["action"]["mean"][1] += 0.1
    path.write_text(json.dumps(stored))
    fault = one_of(v30)
    assert (fault.file, fault.key) == ("meta/stats.json", "action") and "mean is [" in fault.problem
    change_lines(
        v21 / "meta/episodes_stats.jsonl",
        lambda rows: rows[1]["stats"]["observation.state"].update(max=[1.0, 5.0, 6.0]),
    )
    fault = one_of(v21)
    assert (fault.file, fault.episode, fault.key) == ("meta/episodes_stats.jsonl", 1, "observation.state")


@pytest.mark.slow
def test_all_faults_are_told_and_workers_find_the_same(v21: Path) -> None:
    def spoil(rows: list[Any]) -> None:
        rows[0][0] = float("nan")

    change(v21 / DATA21, "action", spoil)
    (v21 / VIDEO21).unlink()
    change_lines(v21 / "meta/tasks.jsonl", lambda rows: rows[0].update(task=""))
    (v21 / "data/chunk-000/episode_000007.parquet").write_bytes(b"")
    found = check_dataset(v21)
    keys = {fault.key for fault in found.faults}
    assert {"action", "observation.images.front", "task"} <= keys and found.faulty == (0, 1, 2)
    assert any("episode_000007" in fault.file for fault in found.faults)
    assert set(check_dataset(v21, workers=2).faults) == set(found.faults)


def test_the_command_line(v21: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(v21)]) == 0
    assert capsys.readouterr().out.endswith("3 episodes, 34 frames, 68 pictures read: no fault found\n")
    (v21 / VIDEO21).unlink()
    assert main(["data", "check", str(v21), "--json", "--quick"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False and found["faults"][0]["episode"] == 1 and found["faults"][0]["file"] == VIDEO21
    (v21 / "meta/info.json").write_text("{")
    assert main(["data", "check", str(v21)]) == 1
    assert "not valid JSON" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "nothing")]) == 2


def test_only_episodes_with_faults_are_looked_at_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "many"
    write_synthetic_dataset(root, 60)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    values = np.stack(table["action"].to_pylist()).astype(np.float32)
    values[7 * SYNTHETIC_FRAMES + 3, 2] = np.nan
    place = table.column_names.index("action")
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    pq.write_table(table.set_column(place, "action", column), path)
    seen: list[int] = []
    read = check_values._EpisodeColumns.read
    monkeypatch.setattr(
        check_values._EpisodeColumns, "read", lambda rows, *of: seen.append(rows.episode.index) or read(rows, *of)
    )
    found = check_dataset(root)
    assert seen == [7]
    (fault,) = found.faults
    assert (fault.episode, fault.frame, fault.key) == (7, 3, "action") and "is nan in dimension 2" in fault.problem


def test_moments_of_many_episodes_are_those_of_each() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    start, stop = np.array([2, 9, 30]), np.array([9, 10, 50])
    found = moments_of(values, start, stop, np.array([4, 5, 6]))
    for row, (first, end) in enumerate(zip(start, stop, strict=True)):
        wanted = statistics_of(values[first:end])
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(found.of(name)[row], getattr(wanted, name), atol=1e-12)
    parts = [statistics_of(values[first:end]) for first, end in zip(start, stop, strict=True)]
    whole, wanted = found.together(), aggregate(parts)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(whole.of(name)[0], getattr(wanted, name), atol=1e-12)


def test_a_dataset_without_episodes(v30: Path) -> None:
    info = json.loads((v30 / "meta/info.json").read_text())
    (v30 / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 0, "total_frames": 0}))
    assert ("meta/info.json", None, None, "total_episodes") in faults_of(v30)
