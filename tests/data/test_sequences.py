"""Backbones of whole sequences: what the cache gives back is what the backbone gave, padded as the backbone pads."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from backbones import Compact
from demonstrations import write

from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.feature_cache.encode import FeatureBackbone, SequenceBackbone
from lamp.data.lerobot import LeRobotDataset
from lamp.data.observation_encoder import ObservationEncoder
from lamp.errors import DataError, MismatchError
from lamp.types import Encoded, LeftPadding, Observations, Padding, RightPadding, padded

WIDTH = 3


@dataclass(frozen=True)
class Reader:
    """A token an image, then one a letter; every token holds the sum of all before it."""

    key: str = "reader"
    cameras: tuple[str, ...] = ("agentview", "wrist")
    padding: Padding = field(default_factory=RightPadding)
    length: int | None = None
    dtype: torch.dtype = torch.bfloat16
    width: int = WIDTH

    @property
    def description(self) -> dict[str, Any]:
        return {"cameras": [[camera, 64] for camera in self.cameras]}

    def encode(self, observations: Observations) -> Encoded:
        rows = []
        for row, instruction in enumerate(observations.instructions):
            letters = [float(ord(letter)) for letter in instruction if "task 0" not in instruction or letter != " "]
            seen = [observations.images[camera][row].float().mean() / 7 for camera in self.cameras]
            sums = torch.tensor([*seen, *letters]).cumsum(0)
            rows.append((sums[:, None] * torch.arange(1, WIDTH + 1)).to(self.dtype))
        return padded(rows, self.padding, self.length)


def direct(dataset: LeRobotDataset, backbone: Reader, rows: list[tuple[int, int]]) -> Encoded:
    """What the cache should give: the backbone on the pictures themselves."""
    images = {
        camera: torch.from_numpy(np.concatenate([dataset.frames(camera, e, [f]) for e, f in rows]))
        for camera in backbone.cameras
    }
    return backbone.encode(Observations(images=images, instructions=tuple(dataset.episode(e).task for e, _ in rows)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("padding", [RightPadding(), LeftPadding()])
@pytest.mark.parametrize("length", [None, 11])
def test_cached_sequences_are_the_backbones_to_the_bit(
    dataset: LeRobotDataset, padding: Padding, length: int | None, dtype: torch.dtype
) -> None:
    backbone = Reader(padding=padding, length=length, dtype=dtype)
    assert isinstance(backbone, SequenceBackbone) and not isinstance(backbone, FeatureBackbone)
    cache = FeatureCache.build(dataset, backbone)
    assert len(cache) == 33 and cache.tokens == length and cache.width == WIDTH
    for rows in ([30, 0, 12, 32, 0, 11], [0, 3], [11, 10]):
        encoded = cache.encoded(np.array(rows))
        places = [(int(cache.index.episode[row]), int(cache.index.frame[row])) for row in rows]
        expected = direct(dataset, backbone, places)
        assert encoded.tokens.dtype == dtype
        assert torch.equal(encoded.mask, expected.mask) and torch.equal(encoded.tokens, expected.tokens)
    assert expected.mask.shape[1] == (length or 8)


def test_files_hold_no_padding_and_say_their_layout(dataset: LeRobotDataset) -> None:
    from safetensors.torch import load_file

    FeatureCache.build(dataset, Reader(length=20, padding=LeftPadding()))
    FeatureCache.build(dataset, Compact())
    folder = dataset.root / "features"
    shapes = [load_file(folder / f"reader/episode-00000{n}.safetensors")["tokens"].shape for n in range(2)]
    assert shapes == [(10, 2 + 5, WIDTH), (5, 2 + 6, WIDTH)]
    whole, parts = (json.loads((folder / key / "manifest.json").read_text()) for key in ("reader", "compact"))
    assert (whole["version"], whole["length"], whole["padding"]["type"]) == (2, 20, "LeftPadding")
    assert not (folder / "reader" / "shared.safetensors").exists()
    known = ["format", "version", "key", "backbone", "cameras", "camera_features", "width", "storage", "varying"]
    assert list(parts) == [*known, "shared_sha256", "checksum"]
    assert (parts["version"], parts["storage"]) == (1, "float16")
    assert (whole["storage"], whole["dtype"]) == ("bfloat16", "bfloat16")


def test_a_cache_is_complete_or_says_that_it_is_not(dataset: LeRobotDataset) -> None:
    assert not FeatureCache.is_complete(dataset, "reader")
    FeatureCache.build(dataset, Reader())
    assert FeatureCache.is_complete(dataset, "reader") and not FeatureCache.is_complete(dataset, "other")
    (dataset.root / "features/reader/episode-000002.safetensors").write_bytes(b"cut short")
    assert not FeatureCache.is_complete(dataset, "reader")
    with pytest.raises(DataError, match=r"000002\.safetensors is not a whole file \(episode 2\); bring it up to date"):
        FeatureCache(dataset, "reader")
    FeatureCache.build(dataset, Reader())
    assert FeatureCache.is_complete(dataset, "reader")


def test_sequences_that_cannot_be_kept_are_refused(dataset: LeRobotDataset) -> None:
    with pytest.raises(
        DataError, match="a sequence has 8 tokens; at most 7 expected: raise the backbone's text_tokens"
    ):
        FeatureCache.build(dataset, Reader(length=7))
    broken = Reader(key="broken", dtype=torch.float16)
    object.__setattr__(broken, "encode", lambda given: replace(Reader().encode(given), tokens=infinite(given)))
    with pytest.raises(DataError, match="tokens of 'task 0' are not finite"):
        FeatureCache.build(dataset, broken)


def infinite(observations: Observations) -> torch.Tensor:
    return Reader().encode(observations).tokens * float("inf")


@pytest.mark.parametrize("backbone", [Reader(), Reader(length=9, padding=LeftPadding()), Compact()])
def test_acting_encodes_as_the_cache_does(backbone: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    images = {
        camera: torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)
        for camera in ("wrist", "agentview")
    }
    tasks = ("task 1", "task 0", "task 1")
    encoder = ObservationEncoder(backbone)
    encoded = encoder.encode(Observations(images=images, instructions=tasks))
    if isinstance(backbone, Reader):
        expected = backbone.encode(Observations(images=images, instructions=tasks))
        assert encoder.instruction_cache == OrderedDict()
    else:
        parts = [backbone.image_tokens(camera, images[camera]) for camera in backbone.cameras]
        text, mask = backbone.text_tokens(tasks)
        seen = torch.ones(3, 20, dtype=torch.bool)
        expected = Encoded(tokens=torch.cat([*parts, text], 1), mask=torch.cat([seen, mask], 1))
        assert list(encoder.instruction_cache) == ["task 0", "task 1"]
    assert torch.equal(encoded.tokens, expected.tokens) and torch.equal(encoded.mask, expected.mask)
    with pytest.raises(MismatchError, match=r"no camera 'agentview'; it has wrist\. Expected agentview, wrist"):
        encoder.encode(Observations(images={"wrist": images["wrist"]}, instructions=tasks))


def test_an_extended_dataset_may_bring_longer_instructions(dataset: LeRobotDataset, tmp_path: Any) -> None:
    """With a length that follows the batch, rows of long and short instructions still fit together."""
    other = write(tmp_path / "other", (4, 4, 4))
    cache = FeatureCache.build(other, Reader(padding=LeftPadding()))
    short, both = cache.encoded(np.array([0, 1])), cache.encoded(np.array([0, 2]))
    assert short.tokens.shape[1] == 7 and both.tokens.shape[1] == 8
    assert torch.equal(both.tokens[0, 1:], short.tokens[0]) and not both.mask[0, 0]
