"""A batch that lies in a file as a cache keeps it, and is read anew for each step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lamp.data.shards import load_mapped
from lamp.types import Batch

BATCHES = 8
"""How many batches the file holds: rows are picked from all over it."""


class KeptBatch:
    """The backbone's tokens of a batch and, where it has them, its z_m: 16-bit numbers in a file that is mapped into memory.

    Args:
        batch: What every step gets; of the tokens and z_m, other copies each time.
        folder: Where to write.
    """

    def __init__(self, batch: Batch, folder: Path) -> None:
        tokens = batch.encoded.tokens
        self._batch, self._device, self._dtype = batch, tokens.device, tokens.dtype
        kept = {"tokens": tokens.half() if tokens.dtype == torch.float32 else tokens}
        if batch.motion_hidden is not None:
            kept["hidden"] = batch.motion_hidden.half()
        many = {name: tensor.cpu().repeat(BATCHES, *(1,) * (tensor.ndim - 1)) for name, tensor in kept.items()}
        path = folder / "kept.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in many.items()}, path)
        self._kept, self._random = load_mapped(path)[0], np.random.default_rng(0)

    def read(self) -> Batch:
        """Reads it to where it was."""
        count = len(self._batch.encoded.tokens)
        rows = torch.from_numpy(self._random.permutation(count * BATCHES)[:count])
        tokens = self._kept["tokens"][rows].to(self._device).to(self._dtype)
        hidden = self._batch.motion_hidden
        if hidden is not None:
            hidden = self._kept["hidden"][rows].to(self._device).to(hidden.dtype)
        return replace(self._batch, encoded=replace(self._batch.encoded, tokens=tokens), motion_hidden=hidden)
