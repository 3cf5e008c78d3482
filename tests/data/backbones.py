"""Tiny stand-ins for a frozen backbone: each image token is a quarter of the picture, each text token a letter; and for z_m."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamp.data.feature_cache.cache import HiddenStates

WIDTH, VARYING, TEXT = 10, 4, 5
GRIDS = {"agentview": 4, "wrist": 2, "top": 2}


@dataclass(frozen=True)
class Plain:
    """All channels are stored."""

    key: str = "plain"
    cameras: tuple[str, ...] = ("agentview", "wrist")
    width: int = WIDTH

    @property
    def description(self) -> dict[str, Any]:
        return {"cameras": [[camera, GRIDS[camera]] for camera in self.cameras]}

    def constant_tokens(self, camera: str) -> Tensor:
        positions = torch.arange(GRIDS[camera] ** 2)[:, None] / 7 + torch.arange(WIDTH) * 100
        return positions + (0.5 if camera == "wrist" else 0.0)

    def image_tokens(self, camera: str, images: Tensor) -> Tensor:
        grid = GRIDS[camera]
        means = images.float().mean(-1).reshape(len(images), grid, images.shape[1] // grid, grid, -1).mean((2, 4)) / 256
        tokens = self.constant_tokens(camera).repeat(len(images), 1, 1)
        tokens[..., 2 : 2 + VARYING] = means.flatten(1)[..., None] * torch.arange(1, VARYING + 1)
        return tokens

    def text_tokens(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = (
            torch.zeros(len(instructions), TEXT, WIDTH),
            torch.zeros(len(instructions), TEXT, dtype=torch.bool),
        )
        for row, text in enumerate(instructions):
            letters = torch.tensor([ord(letter) for letter in text[-TEXT + 1 :]])
            tokens[row, : len(letters)], mask[row, : len(letters)] = letters[:, None].float(), True
        return tokens, mask


@dataclass(frozen=True)
class Compact(Plain):
    """Only the channels that vary are stored."""

    key: str = "compact"

    @property
    def varying_channels(self) -> slice:
        return slice(2, 2 + VARYING)


class HiddenArray(HiddenStates):
    """z_m in memory: samples, draws, tokens, channels."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.draws = values, values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, samples: np.ndarray, draws: np.ndarray, views: np.ndarray | None) -> np.ndarray:
        return self.values[samples, draws]


@dataclass(frozen=True)
class Slow:
    """Batches of their samples' numbers; the one with a certain sample takes a second when it is first made."""

    sample: int
    marker: Path

    def __len__(self) -> int:
        return 1000

    def batch(self, indices: np.ndarray, *, epoch: int = 0) -> Tensor:
        if self.sample in indices and not self.marker.exists():
            self.marker.touch()
            time.sleep(1.0)
        return torch.from_numpy(indices)
