"""The JSON files that LaMP writes, with a wrong type in one place: refused in one line, or it makes no difference."""

from __future__ import annotations

import copy
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamp.benchmark.episodes import read_records
from lamp.benchmark.run_manifest import checkpoint_hash, model_kind, read_manifest, read_sessions, trained_with
from lamp.benchmark.tables import tabulate
from lamp.cli import main
from lamp.collect.jobs import Attempts
from lamp.configuration import from_json
from lamp.data.feature_cache.manifest import read_manifest as read_cache_manifest
from lamp.data.feature_cache.report import list_caches
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import DataError, LampError
from lamp.experiment import Clock
from lamp.json_files import read_json_as, read_lines_as
from lamp.recipes import AnyRecipe
from lamp.sceneflow.store import SceneFlowStore
from lamp.seeding import restore_global_states
from lamp.train.checkpoint import check_files
from lamp.train.checkpoint_metadata import read_description
from lamp.train.metrics import Journal
from lamp.train.training_state import TrainingState
from lamp.view.report import discover
from lamp.view.results import load_results

ARCHIVE = Path(__file__).parent / "fixtures" / "made_by_0_1_0" / "artefacts.tar.xz"
WRONG = (None, "x", 3.5, -1, True, [], [1], {}, {"a": 1})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind; who changes a file puts it back."""
    folder = tmp_path_factory.mktemp("made")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    (folder / "experiment.json").rename(folder / "whole.json")  # a recipe, where a run's own record is now
    (folder / "evaluation" / "sessions.jsonl").write_text('{"session": 1, "episodes": 2, "seconds": 3.5}\n')
    return folder


def places(value: Any, at: tuple[Any, ...] = (), depth: int = 2) -> Iterator[tuple[Any, ...]]:
    """The way to every entry, of lists to the first."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, entry in entries if depth else ():
        yield from places(entry, (*at, key), depth - 1)


def changed(value: Any, at: tuple[Any, ...], wrong: Any) -> Any:
    if not at:
        return wrong
    value = copy.deepcopy(value)
    inside = value
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = wrong
    return value


def damaged(path: Path, each: int) -> Iterator[str]:
    """Writes a file with one entry wrong, again and again, and at last as it was; says what is wrong.

    Args:
        each: Wrong values for each place; which ones goes round.
    """
    content = path.read_text()
    lines = content.splitlines() if path.suffix == ".jsonl" else [content]
    good = json.loads(lines[0])
    try:
        for number, at in enumerate(places(good)):
            for turn in range(len(WRONG) if not at else each):
                wrong = WRONG[(number * each + turn) % len(WRONG)]
                path.write_text("\n".join([json.dumps(changed(good, at, wrong)), *lines[1:]]) + "\n")
                yield f"{path.name}: {at} is {wrong!r}"
    finally:
        path.write_text(content)


def resumed(run: Path) -> None:
    """What a run that is continued reads of its state."""
    state = TrainingState.read(run / "checkpoint" / "training", {})
    restore_global_states(state.random_tensors, state.random_plain)


def journal(run: Path) -> None:
    kept = (run / "metrics.jsonl").read_bytes()
    try:
        Journal(run, from_step=1, trackers=()).close()
    finally:
        (run / "metrics.jsonl").write_bytes(kept)


def cache(made: Path) -> None:
    caches = made / "data" / "features"
    (folder,) = caches.glob("*/")
    list_caches(caches)
    read_cache_manifest(folder, folder.name, LeRobotDataset(made / "data"), {})
    with pytest.raises(LampError):
        read_cache_manifest(caches / "other", "other", LeRobotDataset(made / "data"), {"name": "other"})


def store(made: Path) -> None:
    flow = SceneFlowStore(made / "data" / "sceneflow")
    for episode in flow.episodes:
        flow.frames(episode)
        flow.made_from(episode)


def evaluation(made: Path) -> None:
    folder = made / "evaluation"
    read_manifest(folder)
    read_sessions(folder)
    tabulate(read_records(folder))
    load_results(motions={}, policies={}, evaluations=[folder], flows={}, data=None)


def checkpoint(made: Path) -> None:
    run = made / "motion_half"
    read_description(run)
    model_kind(run)
    trained_with(run)
    checkpoint_hash(run)
    check_files(run / "checkpoint")


def whole_report(made: Path) -> None:
    parts = discover(made)
    load_results(
        motions=parts.motions,
        policies=parts.policies,
        evaluations=parts.evaluations,
        flows=parts.flows,
        data=parts.data,
    )


def recipe(path: Path) -> Callable[[Path], None]:
    return lambda made: from_json(AnyRecipe, json.loads((made / path).read_text()))


CASES: dict[str, tuple[Callable[[Path], object], int]] = {
    "evaluation/run.json": (evaluation, 2),
    "evaluation/episodes.jsonl": (evaluation, 1),
    "evaluation/sessions.jsonl": (lambda made: read_sessions(made / "evaluation"), 9),
    "motion_half/checkpoint/lamp.json": (checkpoint, 1),
    "motion_half/checkpoint/training/committed.json": (checkpoint, 9),
    "motion_half/checkpoint/training/state.json": (lambda made: resumed(made / "motion_half"), 9),
    "motion_half/metrics.jsonl": (lambda made: journal(made / "motion_half"), 9),
    "motion/metrics.jsonl": (whole_report, 1),
    "motion/flow.json": (whole_report, 1),
    "motion/lamp.json": (lambda made: main(["info", str(made / "motion")]), 1),
    "summary.json": (whole_report, 1),
    "seconds.json": (lambda made: Clock(made / "seconds.json").rounded(), 9),
    "data/meta/lamp_episodes.jsonl": (whole_report, 1),
    "data/meta/lamp.json": (whole_report, 1),
    "data/meta/collection_attempts.jsonl": (lambda made: Attempts.read(made / "data"), 9),
    "data/features/*/manifest.json": (cache, 3),
    "data/sceneflow/zarr.json": (store, 2),
    "data/sceneflow/episode-000000/zarr.json": (store, 3),
    "whole.json": (recipe(Path("whole.json")), 1),
    "recipe.json": (recipe(Path("recipe.json")), 1),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_wrong_type_in_a_file_is_one_line(made: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = made.glob(name)
    read, each = CASES[name]
    refused = 0
    read(made)  # as it is, it can be read
    for what in damaged(path, each):
        try:
            read(made)
        except LampError as error:
            refused += 1
            assert str(error).strip(), what
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__} {error}") from error
    assert refused or name == "motion/lamp.json"
    assert "Traceback" not in capsys.readouterr().err
    shutil.rmtree(made / "data" / "sceneflow" / ".index", ignore_errors=True)


@pytest.mark.parametrize(
    ("name", "content", "command", "says"),
    [
        ("evaluation/run.json", "[1]", ("info", "evaluation"), "run.json is not a JSON object"),
        ("evaluation/run.json", '{"planned": "many"}', ("info", "evaluation"), "planned is 'many'; expected a whole number"),
        ("evaluation/run.json", '{"conditions": null}', ("info", "evaluation"), "conditions is null; expected an object"),
        ("evaluation/episodes.jsonl", '{"steps": "x"}', ("info", "evaluation"), "line 1 of"),
        ("motion/metrics.jsonl", '{"step": null}', ("info", "motion"), "metrics.jsonl: step is null; expected a whole number"),
        ("motion/checkpoint/lamp.json", "3", ("info", "motion"), "is not a JSON object"),
        ("seconds.json", '{"flow": "x"}', ("report", "."), "nothing"),
    ],
)  # fmt: skip
def test_the_command_line_says_it_and_ends_with_2(
    made: Path, name: str, content: str, command: tuple[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made / name
    kept = path.read_text()
    first = json.loads(kept.splitlines()[0]) if path.suffix == ".jsonl" else json.loads(kept)
    new = json.loads(content)
    path.write_text(json.dumps({**first, **new} if isinstance(new, dict) else new) + "\n")
    try:
        code = main([command[0], str(made / command[1])])
    finally:
        path.write_text(kept)
    err = capsys.readouterr().err
    assert (code, says in err) == (2, True) or says == "nothing", err
    assert len([line for line in err.splitlines() if line.startswith("lamp: ")]) <= 1 and "Traceback" not in err


def test_what_is_checked_is_a_json_value_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    for text, says in (
        ('{"a": {"b": "3"}}', r"the file .*one.json: a.b is '3'; expected a whole number"),
        ('{"a": {"b": true}}', "a.b is true; expected a whole number"),
        ('{"a": {"b": NaN}}', "holds a number that is not finite"),
        ('{"a": {}, "c": 1e999}', "holds a number that is not finite"),
        ('{"a": []}', "a is .*; expected an object"),
        ('["a"]', "expected an object with named entries"),
        ('{"a": {"b": ' + "[" * 300 + "]" * 300 + "}}", "is nested too deeply"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=says) as caught:
            read_json_as(path, dict[str, dict[str, int]])
        assert "\n" not in str(caught.value)
    path.write_text('{"a": {"b": 3}}')
    assert read_json_as(path, dict[str, dict[str, int]]) == {"a": {"b": 3}}
    path.write_text('{"a": 1}\n\n{"a": "x"}\n')
    with pytest.raises(DataError, match=r"line 2 of the log .*: a is 'x'"):
        read_lines_as(path, dict[str, int])
