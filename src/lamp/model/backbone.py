"""What the settings of every backbone can do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lamp.data.feature_cache.encode import BackboneIdentity, FrozenBackbone
from lamp.data.observation_encoder import InstructionTokenizer
from lamp.model.qwen_lora import LoRA

Settings = TypeVar("Settings")


class BackboneSettings:
    """Settings of a backbone, a frozen dataclass. The defaults are those of one that is small and comes with its weights."""

    cameras: tuple[tuple[str, int], ...]
    """(name, size) of each camera, in the order of their tokens."""
    lora: LoRA | None = None
    """Adapters that Stage 2 trains along; None: the backbone is frozen."""
    encodes_on_gpu: ClassVar[bool] = False
    """Whether its features are computed on GPUs where there are any, rather than in a process a core."""

    @property
    def grids(self) -> tuple[tuple[int, int], ...] | None:
        """Rows and columns of each camera's tokens; None where the settings do not tell."""
        return None

    def build(self) -> FrozenBackbone:
        """Loads the backbone."""
        raise NotImplementedError

    def find(self) -> BackboneIdentity:
        """Returns what tells its key, description and width, without loading gigabytes for it."""
        raise NotImplementedError

    def tokenizer(self) -> InstructionTokenizer | None:
        """Returns its tokenizer, without the weights; None where there is none, or it would have to be downloaded."""
        return None

    def pinned(self: Settings, recorded: Mapping[str, Any]) -> Settings:
        """Returns the same with the revision that a description recorded, where the settings leave it open."""
        return self

    def stored_in(self: Settings, folder: Path) -> Settings:
        """Returns the same for weights that lie in this folder now."""
        return self

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings in its description, as JSON values, without reading its weights or asking a hub."""
        return json.loads(json.dumps(asdict(self)))  # pyright: ignore[reportArgumentType]
