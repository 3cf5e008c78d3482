from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import TEXT, WIDTH, Compact, Plain
from demonstrations import episode, write

from lamp.data.feature_cache.build import FeatureShardBuilder
from lamp.data.feature_cache.cache import FeatureBackbone, FeatureCache, FrameIndex, PartlyConstant
from lamp.data.feature_cache.work_sharing import BuildProgress
from lamp.data.lerobot import LeRobotDataset, LeRobotWriter, stage_episode
from lamp.errors import DataError, MismatchError


def direct(dataset: LeRobotDataset, backbone: Plain, place: int, frame: int) -> torch.Tensor:
    """What the cache should give: the backbone on the picture itself."""
    images = [
        backbone.image_tokens(c, torch.from_numpy(dataset.frames(c, place, [frame])))[0] for c in backbone.cameras
    ]
    return torch.cat([*images, backbone.text_tokens([dataset.episode(place).task])[0][0]])


def test_the_protocols_tell_the_backbones_apart() -> None:
    assert isinstance(Plain(), FeatureBackbone) and not isinstance(Plain(), PartlyConstant)
    assert isinstance(Compact(), PartlyConstant)


@pytest.mark.parametrize("backbone", [Plain(), Compact()], ids=["plain", "compact"])
def test_cached_tokens_are_the_backbones(dataset: LeRobotDataset, backbone: Plain) -> None:
    cache = FeatureCache.build(dataset, backbone)
    assert len(cache) == 10 + 5 + 17 + 1 and cache.tokens == 16 + 4 + TEXT and cache.width == WIDTH
    rows = np.array([30, 0, 12, 32, 0, 11])
    encoded = cache.encoded(rows)
    assert encoded.tokens.dtype == torch.float32
    for row, tokens in zip(rows, encoded.tokens, strict=True):
        expected = direct(dataset, backbone, int(cache.index.episode[row]), int(cache.index.frame[row]))
        torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-3)
    assert encoded.mask[:, :-1].all() and not encoded.mask[:, -1].any()
    if isinstance(backbone, Compact):
        fixed = torch.ones(WIDTH, dtype=torch.bool)
        fixed[backbone.varying_channels] = False
        torch.testing.assert_close(
            encoded.tokens[0, :16, fixed], backbone.constant_tokens("agentview")[:, fixed], rtol=0, atol=0
        )


@pytest.mark.long
def test_workers_give_the_same(dataset: LeRobotDataset, tmp_path: Path) -> None:
    other = write(tmp_path / "other")
    seen: list[BuildProgress] = []
    two = FeatureCache.build(other, Compact(), processes=2, progress=seen.append)
    one = FeatureCache.build(dataset, Compact())
    assert [(now.episodes, now.of_episodes, now.of_frames) for now in seen] == [(n, 4, 33) for n in range(1, 5)]
    assert seen[-1].frames == 33 and seen[0].frames < seen[1].frames
    rows = np.arange(len(one))
    torch.testing.assert_close(two.encoded(rows).tokens, one.encoded(rows).tokens, rtol=0, atol=0)


def test_building_goes_on_where_it_stopped(dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, done = FeatureShardBuilder.make, []

    def make(self: FeatureShardBuilder, place: int) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        whole(self, place)
        done.append(place)

    monkeypatch.setattr(FeatureShardBuilder, "make", make)
    with pytest.raises(KeyboardInterrupt):
        FeatureCache.build(dataset, Compact())
    with pytest.raises(DataError, match="lacks 2 of 4 episodes; complete it with `lamp cache features"):
        FeatureCache(dataset, "compact")
    done[:] = [0]
    cut = dataset.root / "features/compact/episode-000001.safetensors"
    cut.write_bytes(cut.read_bytes()[:30])
    monkeypatch.setattr(FeatureShardBuilder, "make", lambda *given: (whole(*given), done.append(given[-1])))
    FeatureCache.build(dataset, Compact())
    assert done == [0, 1, 2, 3]
    FeatureCache.build(dataset, Compact())
    assert done == [0, 1, 2, 3]


def test_an_extended_dataset_needs_only_the_new_episodes(dataset: LeRobotDataset) -> None:
    FeatureCache.build(dataset, Compact())
    first = dataset.root / "features/compact/episode-000000.safetensors"
    before = first.stat().st_mtime_ns
    stage_episode(dataset.root, "later", episode(4, 6, tasks=5))
    LeRobotWriter(dataset.root).finalize()
    extended = LeRobotDataset(dataset.root)
    with pytest.raises(DataError, match="lacks 1 of 5"):
        FeatureCache(extended, "compact")
    cache = FeatureCache.build(extended, Compact())
    assert first.stat().st_mtime_ns == before and len(cache) == 33 + 3
    torch.testing.assert_close(
        cache.encoded(np.array([33])).tokens[0], direct(extended, Compact(), 4, 0), rtol=1e-3, atol=1e-3
    )


def test_stale_and_foreign_caches_are_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no features of the backbone compact"):
        FeatureCache(dataset, "compact")
    FeatureCache.build(dataset, Compact())
    with pytest.raises(DataError, match=r"Present: compact\."):
        FeatureCache(dataset, "plain")
    (dataset.root / "features/compact").rename(dataset.root / "features/plain")
    with pytest.raises(MismatchError, match="of the backbone compact; expected lamp-features 1 or 2 of plain"):
        FeatureCache(dataset, "plain")
    other = write(tmp_path / "other", (20, 8, 33, 1))
    (other.root / "features").mkdir()
    (dataset.root / "features/plain").rename(other.root / "features/compact")
    with pytest.raises(MismatchError, match=r"000001\.safetensors was made from other data"):
        FeatureCache(other, "compact")
    FeatureCache.build(other, Compact())


def test_a_camera_the_dataset_lacks(shared_dataset: LeRobotDataset) -> None:
    with pytest.raises(MismatchError, match="no camera 'top'; it has agentview, wrist"):
        FeatureCache.build(shared_dataset, replace(Plain(), cameras=("top",)))


def test_rows_of_frames(shared_dataset: LeRobotDataset) -> None:
    index = FrameIndex.of(shared_dataset)
    np.testing.assert_array_equal(index.rows(1, [0, 8]), [10, 14])
    np.testing.assert_array_equal(index.rows(3, [0]), [32])
    with pytest.raises(DataError, match="frame 3 of episode 1 repeats"):
        index.rows(1, [2, 3])


def test_episodes_that_cannot_be_read_are_left_out_on_request(dataset: LeRobotDataset) -> None:
    from lamp.data.stored_images import CorruptPicturesError

    whole = FeatureCache.build(dataset, Plain())
    tokens = whole.encoded(np.arange(len(whole))).tokens
    shutil.rmtree(whole.folder)
    real = LeRobotDataset.frames

    def frames(self: LeRobotDataset, camera: str, episode: int, indices: object = None) -> np.ndarray:
        if episode == 1 and camera == "wrist":
            raise CorruptPicturesError("broken", path=self.video_path(camera, episode), episode=episode)
        return real(self, camera, episode, indices)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LeRobotDataset, "frames", frames)
        with pytest.raises(CorruptPicturesError):
            FeatureCache.build(dataset, Plain())
        cache = FeatureCache.build(dataset, Plain(), on_corrupt="leave_out")
        assert cache.left_out == (1,) and len(cache) == len(whole) - 5 and FeatureCache.is_complete(dataset, "plain")
        kept = np.flatnonzero(whole.index.episode != 1)
        assert torch.equal(cache.encoded(np.arange(len(cache))).tokens, tokens[kept])
        assert cache.index.rows(2, [0]).tolist() == [10]
    mended = FeatureCache.build(dataset, Plain())
    assert mended.left_out == () and torch.equal(mended.encoded(np.arange(len(mended))).tokens, tokens)
