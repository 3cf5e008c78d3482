"""The folder of a release: `config.yaml`, `dataset_statistics.json`, one `.pt` or `.safetensors`, perhaps a manifest.

A `.pt` is read without executing anything in it."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from lamp.errors import ConfigError, DataError, MissingDependencyError
from lamp.files import sha256_of
from lamp.hub import Fetch, HubId, fetch
from lamp.json_files import read_json, read_json_as
from lamp.model.lamp import LaMP
from lamp.model.released.config import ReleasedConfig, read_config
from lamp.model.released.keys import check_shapes, parts_of, to_ours
from lamp.model.released.sizes import ReleasedSizes

CONFIG_FILE = "config.yaml"
STATISTICS_FILE = "dataset_statistics.json"
MANIFEST_FILE = "checkpoint_manifest.json"
EMBODIMENTS = ("libero", "franka")
"""Under which the statistics may stand, in this order."""
DOWNLOADED = ("*.yaml", "*.json", "*.pt", "README.md")
"""All that a manifest names."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Smallest and largest value of each dimension in the training data."""

    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]


class ReleasedFile(TypedDict):
    """A file in a release's manifest."""

    name: str
    size: NotRequired[int | None]
    """[bytes]"""
    sha256: NotRequired[str | None]


class ReleaseManifest(TypedDict, total=False):
    """What is read of `checkpoint_manifest.json`."""

    files: list[ReleasedFile]
    checkpoint: ReleasedFile | None
    optimizer_step: Any


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a release's folder says, before its weights are read."""

    folder: Path
    source: str
    """The hub id or the folder's name."""
    revision: str | None
    """The hub's commit."""
    config: ReleasedConfig
    raw_config: dict[str, Any]
    statistics: Statistics | None
    """None where the file is missing; the Motion Expert alone needs none."""
    raw_statistics: dict[str, Any]
    checkpoint: Path
    manifest: ReleaseManifest
    """Empty where there is none."""


def open_artifact(source: str, revision: str | None = None) -> Artifact:
    """Opens a release, a local folder or a hub id, and checks everything but its weights' names.

    Raises:
        ConfigError: `config.yaml` describes something else than the published code builds.
        DataError: A file is missing or damaged, or the hub cannot be reached.
        MissingDependencyError: A hub id is given, and `huggingface_hub` is not installed.
    """
    local = Path(source).expanduser()
    if local.is_file():
        raise DataError(
            f"{source} is a file; expected the folder that holds it, with {CONFIG_FILE} and {STATISTICS_FILE}."
        )
    folder = local if local.is_dir() else download(source, revision, DOWNLOADED)
    manifest = _manifest(folder)
    checkpoint = _checkpoint(folder, manifest)
    raw_config = _mapping(_yaml(folder / CONFIG_FILE), folder / CONFIG_FILE)
    config = read_config(raw_config, str(folder / CONFIG_FILE))
    statistics = folder / STATISTICS_FILE
    raw_statistics = _mapping(read_json(statistics, "dataset statistics"), statistics) if statistics.exists() else {}
    return Artifact(
        folder=folder,
        source=folder.resolve().name if local.is_dir() else source,
        revision=None if local.is_dir() else folder.name,
        config=config,
        raw_config=raw_config,
        statistics=_statistics(raw_statistics, statistics, config) if raw_statistics else None,
        raw_statistics=raw_statistics,
        checkpoint=checkpoint,
        manifest=manifest,
    )


def download(hub_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Fetches files of a hub's repository, and returns their folder, whose name is the commit.

    Raises:
        DataError: It is no hub id, or the hub cannot be reached.
        MissingDependencyError: `huggingface_hub` is not installed.
    """
    instead = f"Fetch it elsewhere with `hf download {hub_id} --local-dir FOLDER` and give that FOLDER instead."
    hub = HubId.parse(hub_id, revision)
    if hub is None:
        raise DataError(f"no folder {hub_id}; expected a folder, or a hub id such as summerwang11/LaMP-LIBERO.")
    return fetch(hub, Fetch(patterns=patterns, instead=instead))


def _checkpoint(folder: Path, manifest: ReleaseManifest) -> Path:
    files = sorted(folder.glob("*.pt"))
    if len(files) != 1:
        have = ", ".join(path.name for path in files) or "none"
        raise DataError(f"{folder} has the .pt files {have}; expected exactly one.")
    named = manifest.get("checkpoint")
    if named is not None and named["name"] != files[0].name:
        raise DataError(f"{folder / MANIFEST_FILE} names the checkpoint {named['name']!r}; there is {files[0].name}.")
    return files[0]


def _manifest(folder: Path) -> ReleaseManifest:
    """Reads the manifest, and compares size and sha256 of every file that it names.

    Raises:
        DataError: A file is missing or differs, or the manifest is damaged.
    """
    file = folder / MANIFEST_FILE
    if not file.exists():
        return {}
    manifest = read_json_as(file, ReleaseManifest, "checkpoint manifest")
    named = manifest.get("checkpoint")
    records = [*manifest.get("files", []), *([named] if named is not None else [])]
    unique = {str(record): record for record in records}
    for check in (_check_size, _check_sha256):  # a size is known at once, a sum takes minutes
        for record in unique.values():
            check(folder, record)
    return manifest


def _check_size(folder: Path, record: ReleasedFile) -> None:
    name, size = record["name"], record.get("size")
    if not name or Path(name).name != name or "\\" in name:
        raise DataError(f"{folder / MANIFEST_FILE} names {name!r}; expected a file of the same folder.")
    if not (folder / name).is_file():
        raise DataError(f"{folder / MANIFEST_FILE} names {name}, which is missing; fetch the whole folder again.")
    actual = (folder / name).stat().st_size
    if size is not None and actual != size:
        raise DataError(f"{folder / name} has {actual} bytes; {MANIFEST_FILE} says {size}: fetch it again.")


def _check_sha256(folder: Path, record: ReleasedFile) -> None:
    stated = record.get("sha256")
    if stated and (sha256 := sha256_of(folder / record["name"])) != stated:
        raise DataError(
            f"{folder / record['name']} has sha256 {sha256}; {MANIFEST_FILE} says {stated}: it is damaged or another file, "
            "fetch it again."
        )


def _statistics(obj: dict[str, Any], file: Path, config: ReleasedConfig) -> Statistics:
    name = next((name for name in EMBODIMENTS if name in obj), None)
    if name is None:
        have = ", ".join(obj) or "nothing"
        raise DataError(f"{file} has statistics of {have}; expected {' or '.join(EMBODIMENTS)}.")

    def end(kind: str, which: str, width: int) -> tuple[float, ...]:
        values = None
        match obj[name]:
            case {**kinds} if type(kinds.get(kind)) is dict:
                values = kinds[kind].get(which)
        match values:
            case list() if len(values) == width and all(type(x) in (int, float) for x in values):
                return tuple(map(float, values))
        raise DataError(f"{file}: {name}.{kind}.{which} is {values!r}; expected {width} numbers.")

    state, action = config.sizes.S, config.sizes.A
    return Statistics(
        state_low=end("state", "min", state),
        state_high=end("state", "max", state),
        action_low=end("action", "min", action),
        action_high=end("action", "max", action),
    )


def _yaml(file: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(f"reading {file} needs PyYAML: pip install pyyaml.") from None
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no {file.name} at {file.parent}; expected the folder of a release.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not YAML ({' '.join(str(error).split())}); fetch it again.") from None


def _mapping(obj: Any, file: Path) -> dict[str, Any]:
    if type(obj) is not dict or not all(type(key) is str for key in obj):
        raise DataError(f"{file} holds no mapping with names; expected the file of a release.")
    return obj


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
    return model.eval().requires_grad_(False)


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


def _not_tensors(path: Path, content: str) -> DataError:
    return DataError(
        f"{path} is refused ({content}): expected a .pt file that holds tensors of floating-point numbers by name, and nothing "
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
    if type(obj) is not dict:
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
