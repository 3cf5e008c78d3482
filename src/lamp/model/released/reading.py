"""Reading files of released weights: `.pt` without executing anything in it, and `.safetensors`."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lamp.errors import ConfigError, DataError
from lamp.model.backbone import frozen
from lamp.model.lamp import LaMP
from lamp.model.released.keys import check_shapes, parts_of, to_ours
from lamp.model.released.sizes import ReleasedSizes

WEIGHTS = "weights."
"""May begin the names of the weights in a safetensors file that also holds other tensors."""
CONFIG = "config"
"""The key of a safetensors file's metadata that holds the sizes, as JSON."""


def load(path: Path | str, config: Mapping[str, Any] | ReleasedSizes | None = None) -> LaMP:
    """Builds our model from a file of released weights, frozen and in evaluation mode.

    Args:
        path: A `.safetensors` file (weights as they are named, or each after `weights.`), or a `.pt` file.
        config: The sizes, by the names of `ReleasedSizes`; None takes them from the metadata of a safetensors file, key
            `config`.

    Raises:
        ConfigError: There are no sizes, or impossible ones.
        DataError: The file is missing, damaged, or holds anything but tensors.
        MismatchError: Tensors are missing, unknown or of another shape.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        sizes = sizes_from(path) if config is None else _sizes(config)
        tensors = read_weights(path, sizes)
    elif config is None:
        raise ConfigError(
            f"{path} says nothing of its sizes, and none are given: pass config, a mapping with the fields of ReleasedSizes "
            "(`lamp import-released` takes them from the config.yaml beside the file)."
        )
    else:
        sizes, tensors = _sizes(config), read_pt(path)
    return build(tensors, sizes, str(path))


def build(tensors: Mapping[str, Tensor], sizes: ReleasedSizes, where: str) -> LaMP:
    """Builds our model from the release's tensors, frozen and in evaluation mode.

    Raises:
        MismatchError: Tensors are missing, unknown or of another shape.
    """
    weights = to_ours(tensors, sizes, where)
    model = LaMP(sizes.config(parts_of(tensors, where)))
    model.load_state_dict(weights)
    return frozen(model)


def read_pt(path: Path) -> dict[str, Tensor]:
    """Reads a `.pt` file of named tensors, mapped into memory; nothing in it is executed.

    Raises:
        DataError: The file is missing or damaged, or holds anything but tensors by name.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; expected a released checkpoint, named tensors in a .pt file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of another program's pickle
            # Only the zip format, which torch.save has written since 2020, can be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch advises to execute it; of its text, only the name of what would be executed is of use.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _not_tensors(path, f"it asks for {named[1]}" if named else "it holds more than tensors") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} is not a whole .pt file ({reason}); fetch it again.") from None
    if not isinstance(state, dict):
        raise _not_tensors(path, f"it holds a {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _not_tensors(path, f"{name!r} is a {type(value).__name__}")
        if value.layout != torch.strided or not value.is_floating_point():
            raise _not_tensors(path, f"{name!r} has type {value.dtype} and layout {value.layout}")
    return state


def _not_tensors(path: Path, found: str) -> DataError:
    return DataError(
        f"{path} is refused ({found}): expected a .pt file that holds tensors of floating-point numbers by name, and nothing "
        "else, as torch.save writes a state dict."
    )


def sizes_from(path: Path) -> ReleasedSizes:
    """Reads the sizes in a safetensors file's metadata.

    Raises:
        ConfigError: They are missing or impossible.
        DataError: The file is missing or damaged.
    """
    with opened(path) as file:
        text = (file.metadata() or {}).get(CONFIG)
    if text is None:
        raise ConfigError(f"{path} has no metadata {CONFIG!r}; expected the sizes there, or pass them as config.")
    try:
        obj = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{path}: its metadata {CONFIG!r} is not JSON ({error}); expected a mapping of sizes."
        ) from None
    if not isinstance(obj, dict):
        raise ConfigError(f"{path}: its metadata {CONFIG!r} is {obj!r}; expected a mapping of sizes.")
    return ReleasedSizes.of(obj)


def read_weights(path: Path, sizes: ReleasedSizes) -> dict[str, Tensor]:
    """Reads the weights of a safetensors file, after comparing their names and shapes with the sizes.

    Raises:
        DataError: The file is missing or damaged.
        MismatchError: Tensors are missing, unknown or of another shape.
    """
    with opened(path) as file:
        names = list(file.keys())
        prefix = WEIGHTS if any(name.startswith(WEIGHTS) for name in names) else ""
        chosen = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        shapes = {ours: tuple(file.get_slice(name).get_shape()) for ours, name in chosen.items()}
        check_shapes(shapes, sizes, parts_of(shapes, str(path)), str(path))
        return {ours: file.get_tensor(name) for ours, name in chosen.items()}


def opened(path: Path) -> Any:
    """Opens a safetensors file.

    Raises:
        DataError: The file is missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; expected a .safetensors file.")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a whole safetensors file ({error}); fetch it again.") from None


def _sizes(config: Mapping[str, Any] | ReleasedSizes) -> ReleasedSizes:
    return config if isinstance(config, ReleasedSizes) else ReleasedSizes.of(config)
