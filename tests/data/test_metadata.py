"""Metadata that cannot be right: every wrong value is a fault or an error in words, wherever a dataset is opened."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_datasets import DATA30, EPISODES30, FRONT, write_v21, write_v30

from lamp.cli import main
from lamp.data.check import check_dataset
from lamp.data.embodiment import OWN
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import DataError, LampError
from lamp.info import describe
from lamp.recipes import recipe
from lamp.recipes.fit import fit
from lamp.recipes.fit_robot import FitConfig

DATA21 = "data/chunk-000/episode_000001.parquet"
BAD: tuple[Any, ...] = (
    None, float("nan"), float("inf"), "", "x", "12", 1.0, 0.5, -1, 0, 10**6, 10**12, 1e300, 10**400, [], {}, [None], [1, "x"],
    True, {"a": {"b": 1}}, "../../x", "/etc/passwd", "{nope}", "{0}", "{chunk_index.__class__}", "{file_index:0999999999d}", "{",
    "\ud800", "a\0b", [[[[[[]]]]]], "cubes\nand cones",
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    return {"v30": write_v30(folder / "v30"), "v21": write_v21(folder / "v21")}


@pytest.fixture
def v30(sound: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(sound["v30"], tmp_path / "v30")


@pytest.fixture
def v21(sound: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(sound["v21"], tmp_path / "v21")


def change_info(root: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def change_rows(path: Path, edit: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = pq.read_table(path).to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


def change_column(path: Path, name: str, edit: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(path)
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(edit(table[name].to_pylist()))), path)


def told(root: Path) -> list[str]:
    return [str(fault) for fault in check_dataset(root, quick=True).faults]


def uses(root: Path) -> Iterator[Callable[[], Any]]:
    """What training, fitting a recipe and `lamp info` do with a dataset's metadata and numbers."""
    yield lambda: fit(FitConfig(data=str(root), out=root.with_suffix(".json")), recipe("demo"))
    yield lambda: describe(root)
    dataset = OWN.open(root)
    for episode in range(min(len(dataset), 4)):
        for ask in (dataset.instructions, dataset.fingerprint, dataset.extra):
            yield lambda ask=ask, episode=episode: ask(episode)
        for camera in dataset.cameras:
            yield lambda camera=camera, episode=episode: dataset.frames(camera, episode, [0])
        yield lambda episode=episode: OWN.states(dataset, episode)
    for name in dataset.features:
        yield lambda name=name: dataset.statistics(name)
        yield lambda name=name: dataset.table.statistics(name)


def use(root: Path) -> None:
    for step in uses(root):
        step()


def test_sound_datasets_have_no_fault(sound: dict[str, Path]) -> None:
    for root in sound.values():
        assert told(root) == []
        assert OWN.open(root).describe()["frames"] == 17


def test_whole_floats_are_integers_and_a_text_is_a_list_of_one(v30: Path, v21: Path) -> None:
    def as_floats(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row |= {key: float(value) for key, value in row.items() if key != "tasks"}
            row["tasks"] = row["tasks"][0]

    change_rows(v30 / EPISODES30, as_floats)
    change_info(v30, lambda info: info.update(total_episodes=3.0, total_frames=17.0))
    path = v21 / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    as_floats(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for root in (v30, v21):
        assert told(root) == []
        assert [(place.index, place.length, place.task) for place in LeRobotDataset(root).episodes] == [
            (0, 6, "pick up the cube"),
            (1, 5, "open the drawer"),
            (2, 6, "pick up the cube"),
        ]


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), (float("nan"), "nan")])
def test_a_number_that_is_missing_is_named_with_file_episode_and_key(v30: Path, value: Any, shown: str) -> None:
    key = f"videos/{FRONT}/chunk_index"
    change_rows(v30 / EPISODES30, lambda rows: [row.update({key: value if n else 0.0}) for n, row in enumerate(rows)])
    (line,) = told(v30)
    assert line.startswith(f"{EPISODES30}, episode 1, {key}: is {shown}; expected a")
    assert line.endswith("number (1 later row likewise)")
    with pytest.raises(DataError, match=rf"{EPISODES30}, episode 1: {key} is {shown}"):
        LeRobotDataset(v30).episode(0)


def test_a_wrong_count_makes_one_fault_and_not_a_million(v30: Path, v21: Path) -> None:
    for root in (v30, v21):
        change_info(root, lambda info: info.update(total_episodes=10**12, total_frames=10**13))
        lines = told(root)
        assert len(lines) <= 4
        assert any(
            "episode 3: is not listed, nor are the 999999999996 after it up to 999999999999" in line for line in lines
        )


def test_faults_of_one_kind_are_counted_beyond_twenty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_v30(tmp_path / "many", tasks_of=[(0,) * 2] * 50)
    change_column(root / DATA30, "action", lambda rows: [[float("nan"), 0.0, 0.0] for _ in rows])
    found = check_dataset(root, quick=True)
    assert len(found.faults) == 20 and found.alike == 30 and found.faulty == tuple(range(50))
    assert main(["data", "check", str(root), "--quick"]) == 1
    shown = capsys.readouterr().out
    assert "... and 30 more like those above" in shown and "50 faults" in shown and len(shown.splitlines()) == 22


def test_an_empty_list_of_tasks_is_a_fault(v30: Path, v21: Path) -> None:
    (v21 / "meta/tasks.jsonl").write_text("")
    pq.write_table(pq.read_table(v30 / "meta/tasks.parquet").slice(0, 0), v30 / "meta/tasks.parquet")
    for root, file in ((v21, "meta/tasks.jsonl"), (v30, "meta/tasks.parquet")):
        assert f"{file}, task: lists no task; expected an instruction in words for each" in told(root)


@pytest.mark.parametrize("key", ["data_path", "video_path"])
@pytest.mark.parametrize(
    "template",
    ["{nope}", "{0}", "{}", "{chunk_index.__class__}", "{video_key[0]}", "{chunk_index!r}", "{file_index:01000000000d}", "{",
     "../{chunk_index}/{file_index}.mp4", "/etc/{file_index}", "a/../../{file_index}", "{chunk_index}\0", "\ud800{file_index}"],
)  # fmt: skip
def test_templates_that_are_none_are_named(v30: Path, key: str, template: str) -> None:
    change_info(v30, lambda info: info.update({key: template}))
    (line,) = told(v30)
    assert line.startswith(f"meta/info.json, {key}: is ") and (
        "expected a path" in line or "expected whole characters" in line
    )
    with pytest.raises(DataError, match=f"{key} is "):
        LeRobotDataset(v30)


def test_a_features_name_does_not_lead_out(v30: Path) -> None:
    change_info(v30, lambda info: info["features"].update({"../../../escape": info["features"].pop(FRONT)}))
    assert any("leads out of" in line for line in told(v30))
    with pytest.raises(DataError, match="leads out of"):
        LeRobotDataset(v30)


def test_an_episode_file_without_its_number_is_named(v21: Path) -> None:
    change_info(v21, lambda info: info.update(data_path="data/chunk-000/all.parquet"))
    assert "expected {episode_index} in it" in told(v21)[0]


@pytest.mark.parametrize("name", ["meta/info.json", "meta/stats.json", "meta/episodes.jsonl", "meta/tasks.jsonl"])
def test_deeply_nested_json(v21: Path, name: str) -> None:
    (v21 / name).write_text("[" * 200_000 + "]" * 200_000)
    assert told(v21) != []


def test_statistics_that_are_none(v30: Path, v21: Path) -> None:
    for value in ([], 3, "x", {"action": None}, {"action": {"mean": "x"}}, {"action": {"min": [[1], [2, 3]]}}):
        (v30 / "meta/stats.json").write_text(json.dumps(value))
        (v21 / "meta/episodes_stats.jsonl").write_text(json.dumps({"episode_index": 1, "stats": value}) + "\n")
        dataset = LeRobotDataset(v30)
        assert isinstance(value, dict) is (told(v30) == [] or "action" in told(v30)[0])
        try:
            assert dataset.statistics("action").mean.shape == (3,)
        except DataError as error:
            assert "meta/stats.json" in str(error)
        told(v21)


@pytest.mark.parametrize(
    ("column", "edit", "problem"),
    [
        ("action", lambda rows: ["x" for _ in rows], "holds string; expected float32"),
        ("action", lambda rows: [row[:2] for row in rows], "has 2 values; the description says 3"),
        ("task_index", lambda rows: [None, *rows[1:]], "has no value"),
        ("task_index", lambda rows: [0.5 for _ in rows], "holds 0.5 in row 0; expected int64"),
        ("frame_index", lambda rows: [{"a": row} for row in rows], "expected int64"),
        ("timestamp", lambda rows: [None for _ in rows], "has no value"),
    ],
)
def test_columns_of_another_type(v30: Path, column: str, edit: Any, problem: str) -> None:
    change_column(v30 / DATA30, column, edit)
    lines = [line for line in told(v30) if f", {column}: " in line]
    assert lines and all(problem in line for line in lines), told(v30)
    with pytest.raises(LampError):
        use(v30)


def test_files_without_rows(v30: Path, v21: Path) -> None:
    for root, name in ((v30, DATA30), (v30, EPISODES30), (v21, DATA21)):
        pq.write_table(pq.read_table(root / name).slice(0, 0), root / name)
        assert told(root) != []
        with pytest.raises(LampError):
            use(root)


def test_a_dataset_without_episodes_is_described(v30: Path) -> None:
    change_info(v30, lambda info: info.update(total_episodes=0, total_frames=0))
    assert LeRobotDataset(v30).describe()["episodes"] == 0


def _spoil_json(value: Any, random: np.random.Generator) -> Any:
    """Puts one wrong value somewhere in a JSON value."""
    bad = BAD[int(random.integers(len(BAD)))]
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = list(value)[int(random.integers(len(value)))]
        if random.random() < 0.1:
            return {name: entry for name, entry in value.items() if name != key}
        return value | {key: _spoil_json(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.6:
        place = int(random.integers(len(value)))
        return [*value[:place], _spoil_json(value[place], random), *value[place + 1 :]]
    return bad


def _spoil_table(path: Path, random: np.random.Generator) -> None:
    """Puts a wrong value into a column, in one row or in all, or takes the column away."""
    table = pq.read_table(path)
    names = table.column_names
    name = names[int(random.integers(len(names)))]
    bad, values = BAD[int(random.integers(len(BAD)))], table[name].to_pylist()
    if random.random() < 0.1:
        pq.write_table(table.drop_columns([name]), path)
        return
    for edited in ([bad, *values[1:]], [bad] * len(values)):
        try:
            pq.write_table(table.set_column(names.index(name), name, pa.array(edited)), path)
            return
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue


def _spoil_bytes(path: Path, random: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    if random.random() < 0.3:
        content = content[: int(random.integers(len(content)))]
    for place in random.integers(len(content), size=int(random.integers(1, 6))) if content else ():
        content[int(place)] = int(random.integers(256))
    path.write_bytes(bytes(content))


def spoil(root: Path, seed: int) -> str:
    """Spoils one file of a dataset, as the seed says; returns what was done to which."""
    random = np.random.default_rng(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".mp4")
    # The description and the lists are where most of what can be wrong is.
    path = root / "meta/info.json" if random.random() < 0.4 else files[int(random.integers(len(files)))]
    if random.random() < 0.15:
        _spoil_bytes(path, random)
    elif path.suffix == ".json":
        path.write_text(json.dumps(_spoil_json(json.loads(path.read_text()), random)))
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in _as_list(_spoil_json(rows, random))))
    else:
        _spoil_table(path, random)
    return str(path.relative_to(root))


def _that_open(root: Path) -> list[Callable[[], Any]]:
    """Those of `uses` that can be tried at all."""
    found = list[Callable[[], Any]]()
    with contextlib.suppress(LampError):
        for step in uses(root):
            found.append(step)  # those before an error are tried too
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 300), marks=pytest.mark.slow)])
@pytest.mark.parametrize("version", ["v30", "v21"])
def test_random_wrong_values_end_in_words(sound: dict[str, Path], tmp_path: Path, version: str, seeds: range) -> None:
    for seed in seeds:
        root = shutil.copytree(sound[version], tmp_path / f"{version}-{seed}", symlinks=True)
        where = spoil(root, seed)
        found = check_dataset(root, quick=True)  # raises nothing
        assert len(found.faults) < 200, f"{seed}: {where}: {len(found.faults)} faults"
        found.to_text().encode()
        for step in _that_open(root):
            try:
                step()
            except LampError as error:
                assert str(error).encode(), f"{seed}: {where}"
        shutil.rmtree(root)


def test_halves_of_characters_are_named(v30: Path, v21: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_info(v30, lambda info: info["features"].update({"half \ud800": {"dtype": "float32", "shape": [3]}}))
    (v21 / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick \\ud800"}\n')
    for root in (v30, v21):
        assert main(["data", "check", str(root), "--quick"]) == 1 and main(["info", str(root)]) == 2
        shown = capsys.readouterr()
        assert "\\ud800'; expected whole characters" in shown.out.encode().decode() and "expected whole" in shown.err
