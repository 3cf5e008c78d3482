"""Named tensors on disk (safetensors, never pickle), whole or sharded over processes (FSDP's DTensors).

A shard is a safetensors file with the places of its parts in its header, as torch.distributed.checkpoint writes it: any number of
processes can read what any other number has written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lamp.errors import DataError, MismatchError, unreadable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


def is_sharded(value: Tensor) -> TypeGuard[DTensor]:
    # Not by its class, whose module takes a second to import: every training and evaluation would wait for it.
    return hasattr(value, "full_tensor")


def local(value: Tensor) -> Tensor:
    """The part that this process holds; it shares the memory."""
    return value.to_local() if is_sharded(value) else value


def whole(value: Tensor) -> Tensor:
    """The whole tensor; where it is sharded, all processes have to ask."""
    return value.full_tensor() if is_sharded(value) else value


@torch.no_grad()
def filled(target: Tensor, value: Tensor) -> Tensor:
    """Copies a tensor, whole or sharded like `target`, into `target`, which is returned."""
    if is_sharded(target) and not is_sharded(value):
        from torch.distributed.tensor import distribute_tensor

        # Each process has the whole value, so none has to send it.
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    local(target).copy_(local(value))
    return target


def write_shards(folder: Path, tensors: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
    """Writes this process's part of some tensors; all processes of the group have to.

    Args:
        folder: The same for all, and empty.
        tensors: By names that are the same for all.
        group: The processes that write; None: this one alone.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def shard_names(folder: Path) -> dict[str, torch.Size]:
    """The tensors that are written in `folder`, with their whole shapes.

    Raises:
        DataError: There are none.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    if not any(folder.glob("*.safetensors")):
        raise DataError(f"no shards at {folder}; expected a checkpoint as a sharded training writes it.")
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: item.size for name, item in metadata.items()}  # pyright: ignore[reportAttributeAccessIssue]


def read_shards(folder: Path, into: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
    """Reads tensors, whole or sharded in whatever way `into` is, from what any number of processes has written.

    Raises:
        MismatchError: One is missing or of another shape.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    names = shard_names(folder)
    for name, value in into.items():
        if names.get(name) != value.shape:
            have = tuple(names[name]) if name in names else "nothing"
            raise MismatchError(f"{folder} has {have} as {name}; this run needs {tuple(value.shape)}: the same recipe.")
    dcp.load(
        dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), process_group=group, no_dist=group is None
    )


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
