"""The store gives back what was put in, and says so when it cannot."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.errors import ConfigError, DataError, MismatchError
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription
from lamp.types import Camera, Tracks

DESCRIPTION = StoreDescription(
    sampling=Sampling(grid=(2, 3), horizon=4),
    cameras=("agentview", "wrist"),
    image_size=(256, 256),
    mirrored=True,
    every=2,
    estimator="test 1",
    source="demo",
)


def random_flow(seed: int, frames: int, *, points: int = 6, moments: int = 5) -> CameraFlow:
    generator = torch.Generator().manual_seed(seed)
    return CameraFlow(
        frames=np.arange(frames) * 2 + seed % 3,
        tracks=Tracks(
            points=torch.randn(frames, points, moments, 3, generator=generator),
            visible=torch.rand(frames, points, moments, generator=generator) > 0.5,
            valid=torch.rand(frames, points, moments, generator=generator) > 0.1,
        ),
        camera=Camera(
            intrinsics=torch.randn(frames, 3, 3, generator=generator),
            world_from_cam=torch.randn(frames, 4, 4, generator=generator),
        ),
    )


@pytest.fixture
def store(tmp_path: Path) -> SceneFlowStore:
    made = SceneFlowStore.create(tmp_path / "sceneflow", DESCRIPTION)
    made.write(3, {"agentview": random_flow(0, 7), "wrist": random_flow(1, 7)})
    return made


def assert_equal(found: tuple[Tracks, Camera], expected: CameraFlow, rows: list[int]) -> None:
    for name in ("points", "visible", "valid"):
        assert getattr(found[0], name).equal(getattr(expected.tracks, name)[rows])
    for name in ("intrinsics", "world_from_cam"):
        assert getattr(found[1], name).equal(getattr(expected.camera, name)[rows])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject) -> None:
    frames = data.draw(st.integers(1, 9))
    rows = data.draw(st.lists(st.integers(0, frames - 1), min_size=1, max_size=12))
    flow = random_flow(seed, frames)
    description = dataclasses.replace(DESCRIPTION, cameras=("agentview",))
    store = SceneFlowStore.create(tmp_path_factory.mktemp("store"), description)
    store.write(seed, {"agentview": flow})
    again = SceneFlowStore(store.path)
    assert again.description == description and again.episodes == (seed,)
    assert again.frames(seed).tolist() == flow.frames.tolist()
    assert_equal(again.read(seed, flow.frames[rows]), flow, rows)


def test_cameras_are_kept_apart(store: SceneFlowStore) -> None:
    assert_equal(store.read(3, [0, 12]), random_flow(0, 7), [0, 6])
    assert_equal(store.read(3, [1], "wrist"), random_flow(1, 7), [0])


def test_what_is_not_there_is_named(store: SceneFlowStore) -> None:
    with pytest.raises(DataError, match=r"frame 5 has no scene flow .* 7 frames from 0 to 12"):
        store.read(3, [0, 5])
    with pytest.raises(DataError, match=r"episode 4 is not in the scene-flow store .*lamp flow build.*--episodes "):
        store.read(4, [0])
    with pytest.raises(ConfigError, match=r"'wrst'; did you mean 'wrist'"):
        store.read(3, [0], "wrst")
    with pytest.raises(DataError, match=r"no scene-flow store at .*elsewhere; expected `lamp flow build"):
        SceneFlowStore(store.path.parent / "elsewhere")


def test_a_model_that_does_not_fit_is_refused(store: SceneFlowStore) -> None:
    store.check(grid=(2, 3), span=4)
    for grid, span in [((20, 20), 4), ((2, 3), 5)]:
        with pytest.raises(MismatchError, match=rf"2x3 grid over 4 flow steps .* {grid[0]}x{grid[1]} over {span}"):
            store.check(grid=grid, span=span)


def test_a_store_is_not_continued_with_other_settings(store: SceneFlowStore) -> None:
    assert SceneFlowStore.create(store.path, DESCRIPTION).episodes == (3,)
    other = dataclasses.replace(DESCRIPTION, every=1)
    with pytest.raises(MismatchError, match=r"every 2 there, 1 asked for"):
        SceneFlowStore.create(store.path, other)


@pytest.mark.parametrize("damage", ["half", "missing", "flipped"])
@pytest.mark.parametrize("array", ["points", "valid"])
def test_damaged_shards_are_reported(store: SceneFlowStore, damage: str, array: str) -> None:
    shard = next((store.path / "episode-000003" / "agentview" / array / "c").rglob("0"))
    while shard.is_dir():
        shard = shard / "0"
    content = shard.read_bytes()
    if damage == "half":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(bytes(byte ^ 0xFF for byte in content))
    with pytest.raises(DataError, match=r"cannot read the scene flow in .*episode-000003.*lamp flow build"):
        SceneFlowStore(store.path).read(3, [0])
    if damage != "flipped":
        assert not SceneFlowStore(store.path).is_whole(3)


def test_an_episode_half_copied_is_not_whole(store: SceneFlowStore) -> None:
    shutil.rmtree(store.path / "episode-000003" / "wrist")
    assert not SceneFlowStore(store.path).is_whole(3)


def test_a_store_of_another_version_is_refused(store: SceneFlowStore) -> None:
    description = store.path / "zarr.json"
    description.write_text(description.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(MismatchError, match=r"'lamp-sceneflow' version 9; expected 'lamp-sceneflow' version 1"):
        SceneFlowStore(store.path)
    description.write_text("{")
    with pytest.raises(DataError, match="cannot read the scene flow"):
        SceneFlowStore(store.path)


def test_a_failed_write_leaves_nothing(store: SceneFlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="expected"):
        store.write(4, {"agentview": random_flow(0, 2)})
    monkeypatch.setattr("lamp.sceneflow.store.Crc32cCodec", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.write(4, {"agentview": random_flow(0, 2), "wrist": random_flow(1, 2)})
    assert store.episodes == (3,) and not list(store.path.glob(".tmp-*"))


def test_describe_says_what_is_inside(store: SceneFlowStore) -> None:
    found = store.describe()
    assert found["episodes"] == 1 and found["reference_frames"] == 7 and found["cameras"] == ("agentview", "wrist")
    assert found["sampling"] == {"grid": (2, 3), "horizon": 4, "stride": 1} and found["bytes_per_frame"] > 0


def test_a_foreign_cameras_flow_stays_in_its_episodes_folder(tmp_path: Path) -> None:
    cameras = ("../../x", "/x", "caf\u00e9")
    made = SceneFlowStore.create(tmp_path / "sceneflow", dataclasses.replace(DESCRIPTION, cameras=cameras))
    flows = {camera: random_flow(number, 7) for number, camera in enumerate(cameras)}
    made.write(0, flows)
    for camera in cameras:
        assert_equal(made.read(0, flows[camera].frames[2:3], camera=camera), flows[camera], [2])
    assert [path.name for path in tmp_path.iterdir()] == ["sceneflow"]
    (folder,) = (tmp_path / "sceneflow").glob("episode-*")
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 3 and (folder / "caf\u00e9").is_dir()


def test_the_index_opens_no_episode(store: SceneFlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.all_frames([3])[0].tolist() == list(range(0, 14, 2))
    opened: list[int] = []
    read = SceneFlowStore._open_episode
    monkeypatch.setattr(
        SceneFlowStore, "_open_episode", lambda self, episode, *of: opened.append(episode) or read(self, episode, *of)
    )
    assert SceneFlowStore(store.path).all_frames([3])[0].tolist() == list(range(0, 14, 2)) and opened == []
    store.write(3, {"agentview": random_flow(1, 4), "wrist": random_flow(1, 4)})  # replaced: the entry no longer holds
    assert SceneFlowStore(store.path).frames(3).tolist() == [1, 3, 5, 7] and opened == [3]
    (store.path / ".index.parquet").write_bytes(b"damaged")
    assert SceneFlowStore(store.path).all_frames([3])[0].tolist() == [1, 3, 5, 7]
