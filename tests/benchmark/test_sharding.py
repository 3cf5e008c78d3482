"""Evaluations in parts: each scene in exactly one shard, and the merged folder is the whole evaluation's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmark_fakes import FakePolicy, FakeSimulators, make_checkpoint
from hypothesis import given, strategies

from lamp.benchmark import episodes
from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.benchmark.run_manifest import MergeConfig, Shard, merge, parse_shard
from lamp.errors import ConfigError
from lamp.json_files import read_json


def run(root: Path, out: str, **changes: Any):
    settings: dict[str, Any] = dict(
        checkpoint=root / "policy", suite="fake", states="0:5", task=(0, 1), controls=("zero",), workers=1, videos=1
    )
    return evaluate(
        EvaluateConfig(**{**settings, **changes}, out=root / out), load=FakePolicy, simulators=FakeSimulators()
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_checkpoint(root / "policy")
    for index in range(3):
        run(root, f"part{index}", shard=f"{index}/3")
    return root


def lines(folder: Path) -> dict[str, tuple[bool, int, float]]:
    found = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return {
        f"{x['condition']} {x['task']} {x['state']}": (x["success"], x["steps"], x["placement"]["bowl"][0])
        for x in found
    }


def test_the_merged_folder_is_the_whole_evaluation(parts: Path) -> None:
    folders = tuple(parts / f"part{index}" for index in range(3))
    assert merge(MergeConfig(shards=folders, out=parts / "merged")) == 20
    whole = run(parts, "whole")
    assert lines(parts / "merged") == lines(parts / "whole")
    before = (parts / "merged" / "episodes.jsonl").read_bytes()
    again = run(parts, "merged")  # nothing is left to do, and the settings are those of the whole
    assert again.complete and (parts / "merged" / "episodes.jsonl").read_bytes() == before
    assert again.tables == whole.tables
    assert len(list((parts / "merged" / "videos").iterdir())) >= 1


@given(strategies.integers(1, 7), strategies.integers(1, 4), strategies.integers(1, 3))
def test_every_scene_is_in_one_shard_with_all_its_conditions(count: int, states: int, repeats: int) -> None:
    plan = episodes.plan(
        conditions=[("a", "1"), ("b", "")], suite="fake", tasks=(0, 2), states=range(states), repeats=repeats, seed=0
    )
    shards = [Shard(index=index, count=count).of(plan) for index in range(count)]
    assert sorted(e.name for shard in shards for e in shard) == sorted(e.name for e in plan)
    scenes = [{e.scene for e in shard} for shard in shards]
    assert all(not (scenes[i] & scenes[j]) for i in range(count) for j in range(i))
    assert max(map(len, scenes)) - min(map(len, scenes)) <= 1


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "1/2/3", "0/0", "1.0/2"])
def test_impossible_shards_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected such as '0/4'"):
        parse_shard(text)
    with pytest.raises(ConfigError, match="expected such as '0/4'"):
        EvaluateConfig(checkpoint=Path("x"), shard=text)


@pytest.mark.slow
def test_what_is_not_all_of_one_evaluation_is_refused(parts: Path, tmp_path: Path) -> None:
    one, two, three = (parts / f"part{index}" for index in range(3))
    for folders, message in (
        ((one, three), "shards 1/3 are missing"),
        ((), "no shards given"),
        ((one, two, two, three), "in two of the folders"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(MergeConfig(shards=folders, out=tmp_path / "out"))
    run(parts, "other", shard="1/3", states="0:6")
    with pytest.raises(ConfigError, match="differ in states"):
        merge(MergeConfig(shards=(one, parts / "other"), out=tmp_path / "out"))
    run(parts, "half", shard="0/2")
    with pytest.raises(ConfigError, match="of 2 and of 3 parts"):
        merge(MergeConfig(shards=(parts / "half", two, three), out=tmp_path / "out"))
    run(parts, "uncut")
    with pytest.raises(ConfigError, match="is a whole evaluation"):
        merge(MergeConfig(shards=(parts / "uncut", one), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    shutil.copytree(one, tmp_path / "taken")
    with pytest.raises(ConfigError, match="is not empty"):
        merge(MergeConfig(shards=(one, two, three), out=tmp_path / "taken"))


def test_the_manifest_of_a_whole_evaluation_names_no_shard(parts: Path) -> None:
    run(parts, "plain")
    assert "shard" not in read_json(parts / "plain" / "run.json")["config"]
    with pytest.raises(ConfigError, match="shard is '0/3', was None"):
        run(parts, "plain", shard="0/3")
