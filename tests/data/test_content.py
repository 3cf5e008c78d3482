"""Which episodes need encoding again when a dataset has changed: those whose pictures or instructions have."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import Compact, Plain
from demonstrations import LENGTHS, episode, numbered
from safetensors.torch import load_file, save_file

from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.feature_cache.manifest import FeatureStore
from lamp.data.feature_cache.shards import PICTURES, EpisodeFingerprints, ShardState, picture_hashes, read_header
from lamp.data.lerobot import LeRobotDataset, LeRobotWriter
from lamp.data.lerobot.staging import EpisodeData, stage_episode
from lamp.errors import MismatchError

CAMERAS = ("agentview", "wrist")
Change = Callable[[EpisodeData], EpisodeData]


def recorded(root: Path, changes: Mapping[int, Change] | None = None, *, lengths: tuple[int, ...] = LENGTHS) -> Path:
    """Writes episodes into as few files as can be, some of them changed."""
    for seed, length in enumerate(lengths):
        made = episode(seed, length)
        stage_episode(root, f"episode-{seed}", (changes or {}).get(seed, lambda one: one)(made))
    LeRobotWriter(root).finalize()
    return root


@dataclass(frozen=True)
class Counting(Compact):
    """Notes how many pictures of a camera it has encoded."""

    seen: tuple[list[int], ...] = ([],)

    def image_tokens(self, camera: str, images: torch.Tensor) -> torch.Tensor:
        if camera == "agentview" and images.any():  # a blank one tells the size
            self.seen[0].append(len(images))
        return super().image_tokens(camera, images)


def taken_over(old: Path, new: Path) -> LeRobotDataset:
    """The new dataset, with the caches that were made of the old one."""
    shutil.copytree(old / "features", new / "features")
    return LeRobotDataset(new)


def states(dataset: LeRobotDataset, key: str = "compact") -> list[ShardState]:
    store = FeatureStore(dataset, dataset.root / "features" / key)
    return [store.pictures.state(index) for index in range(len(dataset))]


def test_pictures_are_known_by_what_is_encoded(tmp_path: Path) -> None:
    """A file that grew shows the same pictures, one that was replaced does not, in the episode that it was changed in."""
    bright = {1: lambda one: replace(one, images={name: 255 - images for name, images in one.images.items()})}
    old, new = recorded(tmp_path / "old"), recorded(tmp_path / "new", lengths=(*LENGTHS, 12))
    other = recorded(tmp_path / "other", bright)
    of_old, of_new, of_other = (picture_hashes(root, ("agentview", "gone")) for root in (old, new, other))
    assert of_old is not None and of_new is not None and of_other is not None
    assert [of_old(0), of_old(1)] == [of_new(0), of_new(1)] and set(of_old(0)) == {"agentview"}
    assert of_other(0) == of_old(0) and of_other(1) != of_old(1) and of_old(9) == {}
    assert picture_hashes(old, ("gone",)) is None and picture_hashes(tmp_path, ("agentview",)) is None


def test_episodes_in_a_file_that_grew_are_not_encoded_again(tmp_path: Path) -> None:
    old, new = recorded(tmp_path / "old"), recorded(tmp_path / "new", lengths=(*LENGTHS, 12))
    before, after = LeRobotDataset(old), LeRobotDataset(new)
    assert after.video_path("wrist", 4) == after.video_path("wrist", 0), "one file holds them all"
    assert before.fingerprint(0) != after.fingerprint(0)
    FeatureCache.build(before, Compact())
    counting = Counting(seen=([],))
    grown = taken_over(old, new)
    assert states(grown) == [ShardState.CURRENT] * 4 + [ShardState.MISSING]
    cache = FeatureCache.build(grown, counting)
    assert sum(counting.seen[0]) == 6, "the fresh frames of the new episode"
    alone = FeatureCache.build(LeRobotDataset(new), Compact(), root=tmp_path / "alone")
    assert torch.equal(cache.encoded(np.arange(len(cache))).tokens, alone.encoded(np.arange(len(alone))).tokens)


def other_picture(made: EpisodeData) -> EpisodeData:
    images = {camera: of.copy() for camera, of in made.images.items()}
    images["wrist"][4] = numbered(12345)
    return replace(made, images=images)


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (other_picture, True),
        (lambda made: replace(made, task="another task"), True),
        (lambda made: replace(made, frames={**made.frames, "action": made.frames["action"] + 1}), False),
    ],
    ids=["a picture", "the instruction", "only actions"],
)
def test_an_episode_is_encoded_again_where_what_was_encoded_has_changed(
    tmp_path: Path, change: Change, stale: bool
) -> None:
    old, new = recorded(tmp_path / "old"), recorded(tmp_path / "new", {2: change})
    FeatureCache.build(LeRobotDataset(old), Compact())
    changed = taken_over(old, new)
    assert states(changed) == [ShardState.CURRENT] * 2 + [
        ShardState.STALE if stale else ShardState.CURRENT,
        ShardState.CURRENT,
    ]
    if stale:
        with pytest.raises(MismatchError, match=r"000002\.safetensors was made from other data"):
            FeatureCache(changed, "compact")
    counting = Counting(seen=([],))
    FeatureCache.build(changed, counting)
    assert sum(counting.seen[0]) == (17 if stale else 0)


def test_a_picture_changed_in_place_is_noticed_whatever_was_kept(tmp_path: Path) -> None:
    root = recorded(tmp_path / "data")
    FeatureCache.build(LeRobotDataset(root), Compact())
    video = LeRobotDataset(root).video_path("wrist", 0)
    assert set(states(LeRobotDataset(root))) == {ShardState.CURRENT} and (root / "features" / PICTURES).is_file()
    content, size = bytearray(video.read_bytes()), video.stat().st_size
    at = content.find(b"mdat") + 400
    content[at] ^= 0xFF
    video.write_bytes(content)
    assert video.stat().st_size == size
    found = states(LeRobotDataset(root))
    assert found.count(ShardState.STALE) == 1 and found.count(ShardState.CURRENT) == 3, "the one whose picture it is"


def test_a_camera_that_is_not_encoded_does_not_matter(tmp_path: Path) -> None:
    old, new = recorded(tmp_path / "old"), recorded(tmp_path / "new", {2: other_picture})
    front = Plain(key="front", cameras=("agentview",))
    FeatureCache.build(LeRobotDataset(old), front)
    assert set(states(taken_over(old, new), "front")) == {ShardState.CURRENT}


def test_caches_of_earlier_versions_are_current_as_long_as_no_file_has_changed(tmp_path: Path) -> None:
    root = recorded(tmp_path / "data")
    dataset = LeRobotDataset(root)
    cache = FeatureCache.build(dataset, Compact())
    for index in range(len(dataset)):
        path = cache.folder / f"episode-{index:06d}.safetensors"
        save_file(load_file(path), path, metadata={**read_header(path), "fingerprint": dataset.fingerprint(index)})
    (root / "features" / PICTURES).unlink()
    assert FeatureCache.is_complete(LeRobotDataset(root), "compact")
    path = cache.folder / "episode-000001.safetensors"
    save_file(load_file(path), path, metadata={"fingerprint": "0123456789abcdef"})
    assert states(LeRobotDataset(root))[1] is ShardState.STALE


def test_one_name_for_two_cameras_makes_two_caches(tmp_path: Path) -> None:
    root = recorded(tmp_path / "data")
    backbone = Plain(key="front", cameras=("agentview",))
    one = LeRobotDataset(root, cameras={"agentview": "observation.images.agentview"})
    other = LeRobotDataset(root, cameras={"agentview": "observation.images.wrist"})
    first, second = FeatureCache.build(one, backbone), FeatureCache.build(other, backbone)
    assert first.folder != second.folder and first.folder.name == "front"
    assert not torch.equal(first.encoded(np.arange(3)).tokens, second.encoded(np.arange(3)).tokens)
    assert FeatureCache.is_complete(one, "front") and FeatureCache.is_complete(other, "front")


def test_hashes_are_found_again_without_reading_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = recorded(tmp_path / "data")
    (root / "features").mkdir()
    first = EpisodeFingerprints(LeRobotDataset(root), CAMERAS, root / "features")
    found = [first[index] for index in range(4)]
    assert len(set(found)) == 4
    monkeypatch.setattr(
        "lamp.data.feature_cache.shards.packet_digests", lambda *_: pytest.fail("pictures were read again")
    )
    again = EpisodeFingerprints(LeRobotDataset(root), CAMERAS, root / "features")
    assert [again[index] for index in range(4)] == found
    (root / "features" / PICTURES).write_text("{broken")
    monkeypatch.undo()
    assert EpisodeFingerprints(LeRobotDataset(root), CAMERAS, root / "features")[2] == found[2]
