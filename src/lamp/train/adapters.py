"""The adapters of a checkpoint: in a folder of its own, as peft keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.model.qwen_lora import LoRA, describe, from_files, to_files
from lamp.train.backbones import BackboneConfig
from lamp.train.configs import Imported, MotionTraining, PolicyTraining
from lamp.train.tensors import read_tensors, write_tensors

FOLDER = "adapter"
WEIGHTS = "adapter_model.safetensors"
PART = "vlm."
"""How the names of the adapters' weights begin among those of a run."""


def lora_of(backbone: BackboneConfig | None) -> LoRA | None:
    """The adapters that a backbone's settings ask for."""
    return backbone.lora if isinstance(backbone, Qwen3VLBackboneConfig) else None


def write_adapter(
    folder: Path, training: MotionTraining | PolicyTraining | Imported, weights: Mapping[str, Tensor]
) -> None:
    """Writes the adapters' weights into a checkpoint's folder, as peft reads them."""
    backbone = training.backbone
    assert isinstance(backbone, Qwen3VLBackboneConfig) and backbone.lora is not None
    (folder / FOLDER).mkdir()
    write_tensors(folder / FOLDER / WEIGHTS, to_files(weights))
    describe(folder / FOLDER, backbone.lora, backbone.model, backbone.commit)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Reads the adapters' weights of a checkpoint.

    Raises:
        DataError: They are missing or damaged.
    """
    return from_files(read_tensors(folder / FOLDER / WEIGHTS))
