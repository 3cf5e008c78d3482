"""The two layouts of cached tokens, and how the tokens of a batch are put together from each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from lamp.configuration import from_json
from lamp.data.encoding import SHARED, TOKENS, episode_path, load_mapped
from lamp.data.padding import Padding, RightPadding, padded
from lamp.errors import MismatchError
from lamp.types import Encoded


@dataclass(frozen=True, kw_only=True)
class Located:
    """Those rows of a batch that are of one episode."""

    episode: int
    places: Int64[np.ndarray, "n"]
    """Where they stand in the batch."""
    frames: Int64[np.ndarray, "n"]
    """Which of the episode's fresh frames they are."""


class Episodes:
    """The episodes' files, each mapped into memory when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the files itself."""
        return {**self.__dict__, "_mapped": {}}

    def __getitem__(self, episode: int) -> dict[str, Tensor]:
        if episode not in self._mapped:
            self._mapped[episode] = load_mapped(episode_path(self._folder, episode))[0]
        return self._mapped[episode]


class Parts:
    """Tokens of each camera's image, then those of the instruction: computed apart, put together here.

    Args:
        folder: The cache.
        manifest: Its description.
        instructions: Each episode's.

    Raises:
        MismatchError: The cache lacks an instruction.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], instructions: Sequence[str]) -> None:
        self._episodes, self._width = Episodes(folder), manifest["width"]
        self._varying = slice(*manifest["varying"])
        tensors, metadata = load_mapped(folder / SHARED)
        known = json.loads(metadata["instructions"])
        absent = [task for task in instructions if task not in known]
        if absent:
            raise MismatchError(
                f"{folder} lacks the instruction {absent[0]!r}; complete it with `lamp cache features {folder.parents[1]}`"
            )
        self._text, self._text_mask = tensors["text"], tensors["text_mask"]
        self._constant = {camera: tensors[f"constant.{camera}"] for camera in manifest["cameras"]}
        self._instruction = [known.index(task) for task in instructions]
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
                stored = self._episodes[part.episode][camera][torch.from_numpy(part.frames)]
                of_camera[torch.from_numpy(part.places), :, self._varying] = stored.float()
            start += len(constant)
        for part in located:
            places, instruction = torch.from_numpy(part.places), self._instruction[part.episode]
            tokens[places, start:], mask[places, start:] = self._text[instruction], self._text_mask[instruction]
        return Encoded(tokens=tokens, mask=mask)


class Sequences:
    """Whole sequences, stored without their padding and in the backbone's number format.

    Args:
        folder: The cache.
        manifest: Its description.
        instructions: Each episode's; an episode's own tokens say all about it.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], instructions: Sequence[str]) -> None:
        self._episodes = Episodes(folder)
        self.padding: Padding = from_json(Padding, manifest["padding"], where=f"padding in {folder}")
        self.tokens: int | None = manifest["length"]

    def encoded(self, located: Sequence[Located]) -> Encoded:
        """Puts the sequences of a batch together and pads them as the backbone does."""
        rows: dict[int, Tensor] = {}
        for part in located:
            stored = self._episodes[part.episode][TOKENS][torch.from_numpy(part.frames)]
            rows.update(zip(part.places.tolist(), stored, strict=True))
        return padded([rows[place] for place in range(len(rows))], self.padding, self.tokens)
