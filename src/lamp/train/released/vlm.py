"""The VLM's weights that a released checkpoint brings: a folder beside ours that transformers can load, and back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from lamp.errors import DataError, MismatchError, MissingDependencyError
from lamp.json_files import read_json_as, write_json
from lamp.model.qwen_files import CONFIG, DESCRIBING, read_config, token_width
from lamp.model.released.artifact import download
from lamp.model.released.config import ReleasedConfig
from lamp.train.shards import read_tensors

INDEX = "model.safetensors.index.json"
DESCRIPTION = ("*.json", "*.txt", "*.jinja")
"""A VLM's configuration, preprocessing and tokenizer, without its weights."""
SHARD_BYTES = 4 * 2**30


def description_files(config: ReleasedConfig, given: Path | None, notes: list[str]) -> list[Path] | None:
    """Finds the VLM's configuration, tokenizer and preprocessor settings, which a released checkpoint does not hold.

    Args:
        config: Names the VLM's hub id.
        given: A folder that has them.
        notes: Gets a line where they are missing, with the remedy.

    Returns:
        The files; None where the hub cannot be reached, which leaves the weights without.

    Raises:
        DataError: The folder given does not have them.
        MismatchError: They describe another kind of model, or a VLM of another width.
    """
    try:
        folder = given or download(config.base_vlm, config.revision, DESCRIPTION)
    except (DataError, MissingDependencyError) as error:
        notes.append(
            f"the VLM's weights are kept, but cannot be used without its {', '.join(DESCRIBING)}: {error} "
            f"Then import again with --vlm FOLDER, or copy its {', '.join(DESCRIPTION)} beside the weights, to vlm/."
        )
        return None
    width = token_width(folder, read_config(folder))
    if width != config.sizes.vl:
        raise MismatchError(
            f"{folder / CONFIG} describes a VLM {width} wide; the released model's is {config.sizes.vl} wide: expected "
            f"{config.base_vlm}."
        )
    files = {file for pattern in DESCRIPTION for file in folder.glob(pattern)}
    return sorted(file for file in files if file.name != INDEX)


def write_vlm(folder: Path, tensors: Mapping[str, Tensor], described: list[Path] | None) -> None:
    """Writes the VLM as transformers reads it: safetensors files with an index, beside its configuration and tokenizer."""
    folder.mkdir()
    shards = list(_shards(tensors))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        # Tensors that share memory, such as tied embeddings, are written one by one.
        save_file({key: value.contiguous().clone() for key, value in shard.items()}, folder / name, {"format": "pt"})
    place = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place})
    for file in described or ():
        shutil.copyfile(file, folder / file.name)


def _shards(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name in sorted(tensors):
        size = tensors[name].numel() * tensors[name].element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensors[name]
        room -= size
    return shards


class WeightIndex(TypedDict):
    """The index of weights in several files, as transformers writes it."""

    weight_map: dict[str, str]


def read_vlm(folder: Path) -> dict[str, Tensor]:
    """Reads the weights in a folder that transformers can load: one safetensors file, or several.

    Raises:
        DataError: There are none, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"no .safetensors file at {folder}; expected the weights of a VLM, as transformers saves them.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_tensors(file)
    if (folder / INDEX).exists():
        wanted = set(read_json_as(folder / INDEX, WeightIndex, "index of the VLM's weights")["weight_map"])
        if missing := sorted(wanted - tensors.keys()):
            raise DataError(f"{folder} lacks {missing[0]} ({len(missing)} in all), which {INDEX} names; restore it.")
    return tensors
