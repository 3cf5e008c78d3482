"""The two layouts of cached tokens, and how the tokens of a batch are put together from each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from lamp.configuration import from_json
from lamp.data.encoding import FORMATS, LENGTHS, TOKENS
from lamp.data.manifest import SHARED
from lamp.data.padding import Padding, RightPadding, padded
from lamp.data.shards import MappedShards, Shards, load_mapped
from lamp.errors import MismatchError
from lamp.types import Encoded


@dataclass(frozen=True, kw_only=True)
class Located:
    """Those rows of a batch that are of one episode, and all of its pictures themselves or all of augmented views."""

    episode: int
    places: Int64[np.ndarray, " n"]
    """Where they stand in the batch."""
    frames: Int64[np.ndarray, " n"]
    """Which of the episode's fresh frames they are."""
    texts: Int64[np.ndarray, " n"]
    """Which instruction each frame has."""
    views: Int64[np.ndarray, " n"] | None = None
    """Which augmented view each is seen in, from 1; None: the pictures themselves."""


class Stored:
    """The rows of a cache's shards, read as they are asked for."""

    def __init__(self, pictures: Shards, views: Shards | None) -> None:
        self._pictures = MappedShards(pictures)
        self._views = None if views is None else MappedShards(views)

    def has(self, part: Located, name: str) -> bool:
        """Whether the shard of some rows holds something under a name."""
        shards = self._pictures if part.views is None else self._views
        assert shards is not None
        return name in shards[part.episode]

    def rows(self, part: Located, name: str) -> Shaped[Tensor, "n ..."]:
        """What is stored of some rows, such as (row, token, channel), under a name that the layout gives them."""
        frames = torch.from_numpy(part.frames)
        if part.views is None:
            return self._pictures[part.episode][name][frames]
        assert self._views is not None
        return self._views[part.episode][name][torch.from_numpy(part.views - 1), frames]


class Parts:
    """Tokens of each camera's image, then those of the instruction: computed apart, put together here.

    Args:
        stored: The shards' rows.
        folder: The cache.
        manifest: Its description.
        instructions: All that frames have.

    Raises:
        MismatchError: The cache lacks an instruction.
    """

    def __init__(self, stored: Stored, folder: Path, manifest: Mapping[str, Any], instructions: Sequence[str]) -> None:
        self._stored, self._width = stored, manifest["width"]
        self._varying = slice(*manifest["varying"])
        tensors, metadata = load_mapped(folder / SHARED)
        known = {task: place for place, task in enumerate(json.loads(metadata["instructions"]))}
        absent = [task for task in instructions if task not in known]
        if absent:
            raise MismatchError(f"{folder} lacks the instruction {absent[0]!r}; run `lamp cache features` again")
        self._text, self._text_mask = tensors["text"], tensors["text_mask"]
        self._constant = {camera: tensors[f"constant.{camera}"] for camera in manifest["cameras"]}
        self._instruction = torch.tensor([known[task] for task in instructions], dtype=torch.int64)
        self.tokens: int = sum(map(len, self._constant.values())) + self._text.shape[1]
        self.padding: Padding = RightPadding()

    def encoded(self, located: Sequence[Located]) -> Encoded:
        """Puts the tokens of a batch together: cameras in order, then the instruction."""
        size, start = sum(len(part.places) for part in located), 0
        tokens = torch.empty(size, self.tokens, self._width)
        mask = torch.ones(size, self.tokens, dtype=torch.bool)
        for camera, constant in self._constant.items():
            of_camera = tokens[:, start : start + len(constant)]
            of_camera[:] = constant
            for part in located:
                stored = self._stored.rows(part, camera)
                of_camera[torch.from_numpy(part.places), :, self._varying] = stored.float()
            start += len(constant)
        for part in located:
            places, instruction = torch.from_numpy(part.places), self._instruction[torch.from_numpy(part.texts)]
            tokens[places, start:], mask[places, start:] = self._text[instruction], self._text_mask[instruction]
        return Encoded(tokens=tokens, mask=mask)


class Sequences:
    """Whole sequences, stored without their padding, and given in the backbone's number format.

    Args:
        stored: The shards' rows.
        folder: The cache.
        manifest: Its description.
        instructions: All that frames have; a frame's own tokens say all about its instruction.
    """

    def __init__(self, stored: Stored, folder: Path, manifest: Mapping[str, Any], instructions: Sequence[str]) -> None:
        self._stored = stored
        self.padding: Padding = from_json(Padding, manifest["padding"], where=f"padding in {folder}")
        self.tokens: int | None = manifest["length"]
        self._dtype = None if "dtype" not in manifest else FORMATS[manifest["dtype"]]

    def encoded(self, located: Sequence[Located]) -> Encoded:
        """Puts the sequences of a batch together and pads them as the backbone does."""
        rows: dict[int, Tensor] = {}
        for part in located:
            stored = self._stored.rows(part, TOKENS)
            stored = stored.to(self._dtype or stored.dtype)
            lengths = [stored.shape[1]] * len(stored)
            if self._stored.has(part, LENGTHS):
                lengths = self._stored.rows(part, LENGTHS).tolist()
            real = (tokens[:length] for tokens, length in zip(stored, lengths, strict=True))
            rows.update(zip(part.places.tolist(), real, strict=True))
        return padded([rows[place] for place in range(len(rows))], self.padding, self.tokens)
