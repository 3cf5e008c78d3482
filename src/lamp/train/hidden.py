"""z_m of every training sample, computed once: Stage 2 then trains without the Motion Expert.

Each sample gets several noise draws; each draw has its own address (seed, draw, episode, frame), so the noise depends neither on
the batches in which the states were computed nor on where an interrupted computation went on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16

from lamp.data.samples import PolicySamples
from lamp.errors import DataError, MismatchError
from lamp.files import atomic_write_text, read_json
from lamp.model.lamp import LaMP
from lamp.train.configs import LoopConfig
from lamp.train.randomness import generator_at

SAMPLES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class HiddenCache:
    """Where the hidden states of one set of samples are kept: `<folder>/<key>.npy`."""

    folder: Path
    key: str
    """Names everything the values depend on: Motion Expert, backbone, data, episodes, seed."""

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.npy"

    @property
    def _partial(self) -> Path:
        return self.folder / f"{self.key}.partial.npy"

    @property
    def _progress(self) -> Path:
        return self.folder / f"{self.key}.progress.json"

    def fill(
        self,
        model: LaMP,
        samples: PolicySamples,
        *,
        draws: int,
        loop: LoopConfig,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float16[np.ndarray, "n draws m dm"]:
        """Returns the hidden states, mapped from the file; computes what is not there yet.

        Raises:
            DataError: A hidden state does not fit into 16-bit floats.
            MismatchError: The file holds another number of samples, draws or values.
        """
        motion = model.config.motion
        assert motion is not None
        shape = (len(samples), draws, motion.tokens, motion.width)
        if not self.path.exists():
            self._compute(model, samples, shape, loop, report)
        hidden = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if hidden.shape != shape or hidden.dtype != np.float16:
            raise MismatchError(
                f"{self.path} holds {hidden.dtype} {hidden.shape}; expected float16 {shape}: remove it."
            )
        return hidden

    def _compute(
        self,
        model: LaMP,
        samples: PolicySamples,
        shape: tuple[int, int, int, int],
        loop: LoopConfig,
        report: Callable[[int, int], None],
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        done = read_json(self._progress, "progress of the hidden states")["done"] if self._progress.exists() else 0
        if done and self._partial.exists():
            array = np.lib.format.open_memmap(self._partial, mode="r+")
        else:
            array, done = np.lib.format.open_memmap(self._partial, mode="w+", dtype=np.float16, shape=shape), 0
        total = shape[0]
        for start in range(done, total, SAMPLES_AT_ONCE):
            indices = np.arange(start, min(start + SAMPLES_AT_ONCE, total))
            values = hidden_states(model, samples, indices, draws=shape[1], loop=loop)
            if not np.isfinite(values).all():
                raise DataError(
                    "a hidden state of the Motion Expert does not fit into 16-bit floats; set cached_hidden_draws to 0."
                )
            array[indices] = values
            array.flush()
            atomic_write_text(self._progress, json.dumps({"done": int(indices[-1]) + 1}) + "\n")
            report(int(indices[-1]) + 1, total)
        del array
        os.replace(self._partial, self.path)
        self._progress.unlink(missing_ok=True)


@torch.inference_mode()
def hidden_states(
    model: LaMP, samples: PolicySamples, indices: np.ndarray, *, draws: int, loop: LoopConfig
) -> Float16[np.ndarray, "b draws m dm"]:
    """Computes z_m of some samples, exactly as inference does, for noise that depends on seed, draw, episode and frame alone."""
    encoded = samples.features.encoded(samples.rows[indices]).to(loop.device)
    of_draw = []
    for draw in range(draws):
        noise = torch.stack(
            [
                motion_noise(model, loop.seed, "hidden", draw, int(samples.episode[i]), int(samples.frame[i]))
                for i in indices
            ]
        )
        with loop.precision.autocast(loop.device):
            of_draw.append(model.motion_hidden(encoded, noise.to(loop.device)).float().cpu())
    return torch.stack(of_draw, dim=1).half().numpy()


def motion_noise(model: LaMP, *address: int | str) -> Float[torch.Tensor, "k t 3"]:
    """Draws the initial motion noise m^0 of one sample."""
    shape = model.motion_shape
    assert shape is not None
    return torch.randn(shape, generator=generator_at(*address))
