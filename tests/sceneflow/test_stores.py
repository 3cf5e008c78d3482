"""Which of a dataset's scene-flow stores is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lamp.errors import ConfigError, DataError, MismatchError
from lamp.sceneflow.build import FlowBuildConfig
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.stores import FlowRequirements, find_store

NEEDS = FlowRequirements(grid=(4, 4), horizon=8, frames=4, camera="agentview")


@pytest.fixture
def config(tmp_path: Path) -> FlowBuildConfig:
    return FlowBuildConfig(data=tmp_path, grid=(4, 4), horizon=8, stride=4)


def made(config: FlowBuildConfig, name: str) -> None:
    SceneFlowStore.create(config.data / name, config.description)


def test_the_only_store_is_taken_whatever_it_holds(config: FlowBuildConfig, tmp_path: Path) -> None:
    made(replace(config, grid=(5, 5)), "sceneflow")
    assert find_store(tmp_path, NEEDS).path.name == "sceneflow"


def test_of_several_the_one_that_fits_is_taken(config: FlowBuildConfig, tmp_path: Path) -> None:
    made(replace(config, cameras=("wrist",)), "sceneflow")
    made(replace(config, horizon=7), "sceneflow-a")
    made(replace(config, horizon=32, stride=1), "sceneflow-b")  # the same span in finer steps
    made(replace(config, stride=3), "sceneflow-c")
    assert find_store(tmp_path, NEEDS).path.name == "sceneflow-b"
    made(config, "sceneflow-d")  # what was made for just this
    assert find_store(tmp_path, NEEDS).path.name == "sceneflow-d"
    with pytest.raises(
        MismatchError, match=r"none of the scene-flow stores .* a 9x9 grid over 8 flow steps of 4 frames"
    ):
        find_store(tmp_path, replace(NEEDS, grid=(9, 9)))


def test_several_that_fit_are_named(config: FlowBuildConfig, tmp_path: Path) -> None:
    made(config, "sceneflow")
    made(replace(config, every=2), "sceneflow-a")
    with pytest.raises(
        ConfigError, match=r"2 scene-flow stores .* every 1, .*; sceneflow-a .* every 2, .*--scene-flow"
    ):
        find_store(tmp_path, NEEDS)
    assert find_store(tmp_path, NEEDS, "sceneflow-a").description.every == 2
    for name in ("../sceneflow", "sceneflow-b", ""):
        with pytest.raises(ConfigError, match="unknown scene-flow store"):
            find_store(tmp_path, NEEDS, name)


def test_a_damaged_store_does_not_keep_others_from_being_found(config: FlowBuildConfig, tmp_path: Path) -> None:
    made(config, "sceneflow")
    made(replace(config, horizon=9), "sceneflow-a")
    (tmp_path / "sceneflow-a/zarr.json").write_text("{")
    assert find_store(tmp_path, NEEDS).path.name == "sceneflow"
    with pytest.raises(MismatchError, match=r"sceneflow-a \(damaged: "):
        find_store(tmp_path, replace(NEEDS, horizon=9))
    with pytest.raises(DataError):
        find_store(tmp_path, NEEDS, "sceneflow-a")
