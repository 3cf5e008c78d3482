"""Named tensors on disk (safetensors, never pickle)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lamp.errors import DataError, unreadable


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors; the caller makes the write atomic."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, str(path))


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Reads named tensors.

    Raises:
        DataError: The file is missing or is not a whole safetensors file.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; expected a checkpoint folder as `lamp train` writes it.")
    try:
        return load_file(str(path), device=str(device))
    except (SafetensorError, OSError) as error:
        damaged = DataError(f"{path} is not a whole safetensors file ({error}); restore it or train again.")
        raise unreadable(path, error, damaged) from None
