"""Checkpoints: a folder of weights, their description, and the state that continues the run. Whole or absent, never pickled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from lamp import checksums
from lamp.data.feature_cache.cache import FrozenBackbone
from lamp.data.feature_cache.shards import content_hash
from lamp.errors import DataError, MismatchError, unreadable
from lamp.files import TEMPORARY, atomic_path, sync
from lamp.json_files import read_json_as, read_json_object, write_json
from lamp.model.lamp import LaMP
from lamp.model.qwen3_vl import CONTENT, PROVENANCE, Qwen3VLBackbone, Qwen3VLBackboneConfig
from lamp.model.qwen_lora import describe, fill, from_files, to_files
from lamp.train.backbones import BackboneConfig, find_backbone, load_backbone
from lamp.train.checkpoint_metadata import FILE_NAME, Description, checkpoint_folder, read_description
from lamp.train.distributed import SINGLE_PROCESS, DistributedContext
from lamp.train.shards import read_tensors, whole, write_tensors
from lamp.train.training_state import TrainingState

WEIGHTS = "model.safetensors"
TRAINING = "training"
COMMITTED = "committed.json"
"""In `training`, written once everything else of a checkpoint is on the disk: the step, and every file's size and hash."""
HASH_BELOW = 1 << 20
"""Files below this are compared whole wherever a checkpoint is loaded. [bytes]"""
MOTION_PREFIX = "motion_expert."


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a checkpoint has to be; None accepts anything."""

    kind: str | None = None
    backbone_key: str | None = None
    backbone: Mapping[str, Any] | None = None
    """Description of the expected backbone: where keys differ, the message names how."""
    grid: tuple[int, int] | None = None
    horizon: int | None = None
    stride: int | None = None
    cameras: tuple[str, ...] | None = None
    image_sizes: tuple[tuple[int, int], ...] | None = None
    """Height and width of each camera's images. [px]"""
    chunk: int | None = None
    vlm: str | None = None
    """Hub id or folder of the vision-language model, as it was named in training."""
    feature_layer: str | None = None
    """Where the VLM's tokens are read: PreNorm or PostNorm."""

    def check(self, path: Path, description: Description) -> None:
        """
        Raises:
            MismatchError: The checkpoint is something else.
        """
        flow = description.flow
        cameras = tuple(camera.name for camera in description.backbone.cameras)
        advice = {
            "kind": "use `lamp train motion` for the first stage and `lamp train policy` for the second",
            "backbone_key": f"{self._describe_differences(description)}load it with the backbone it was trained on, "
            "or train again with this one",
            "grid": "use the recipe it was trained with, or train again",
            "horizon": "use the recipe it was trained with, or train again",
            "stride": "use the recipe it was trained with, or train again",
            "cameras": "give these cameras, in this order",
            "image_sizes": "render or record at these sizes",
            "chunk": "use the recipe it was trained with, or train again",
            "vlm": "use the VLM it was trained with, or train again",
            "feature_layer": "read the VLM's tokens there, or train again",
        }
        have = {
            "kind": description.kind,
            "backbone_key": description.backbone.key,
            "grid": flow.grid if flow else None,
            "horizon": flow.horizon if flow else None,
            "stride": flow.stride if flow else None,
            "cameras": cameras,
            "image_sizes": tuple((camera.height, camera.width) for camera in description.backbone.cameras),
            "chunk": description.policy.chunk if description.policy else None,
            "vlm": description.backbone.description.get("model"),
            "feature_layer": description.backbone.description.get("layer"),
        }
        for name, value in have.items():
            wanted = getattr(self, name)
            if wanted is None or wanted == value or (name == "backbone_key" and self._may_match(description)):
                continue
            raise MismatchError(f"checkpoint {path} has {name} {value!r}; expected {wanted!r}: {advice[name]}.")

    def _may_match(self, description: Description) -> bool:
        """Whether the expected backbone has all settings of one whose weights were never seen."""
        if description.backbone.key is not None or self.backbone is None:
            return False
        return {*PROVENANCE, CONTENT}.issuperset(self._differing_settings(description))

    def _describe_differences(self, description: Description) -> str:
        """Names what differs between the checkpoint's backbone and the expected one, as far as both say it."""
        have, wanted = description.backbone.description, self.backbone or {}
        return "".join(
            f"its {name} is {have.get(name)!r}, here it is {wanted[name]!r}; "
            for name in self._differing_settings(description)
        )

    def _differing_settings(self, description: Description) -> list[str]:
        have, wanted = description.backbone.description, self.backbone or {}
        return [name for name in wanted if have.get(name) != wanted[name]]


def save_checkpoint(
    path: Path,
    description: Description,
    weights: Mapping[str, Tensor],
    state: TrainingState | None = None,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> None:
    """Writes a checkpoint folder in place of the previous one, which stays until the new one is complete.

    All processes of a training have to; the main one writes, and of a sharded state each its own part.
    """
    with _staged(path, distributed) as folder:
        if state is not None and state.sharded:
            state.write_shards(folder / TRAINING, distributed.group)
        joined: dict[str, Tensor] = {}
        for name, value in weights.items():
            tensor = whole(value)  # all processes ask, and only the main one keeps it
            if distributed.is_main:
                joined[name] = tensor.cpu()
        distributed.on_main(lambda: _write(folder, description, joined, state))


@contextmanager
def _staged(path: Path, distributed: DistributedContext) -> Iterator[Path]:
    """A temporary folder, the same for all processes, that takes the place of `path`."""
    if not distributed.is_main:
        yield Path(distributed.broadcast(""))
        return
    with atomic_path(path) as folder:
        folder.mkdir()
        distributed.broadcast(str(folder))
        yield folder


def _write(folder: Path, description: Description, weights: Mapping[str, Tensor], state: TrainingState | None) -> None:
    adapter = {
        name.removeprefix(ADAPTER_PREFIX): value for name, value in weights.items() if name.startswith(ADAPTER_PREFIX)
    }
    model = {name: value for name, value in weights.items() if not name.startswith(ADAPTER_PREFIX)}
    write_tensors(folder / WEIGHTS, model)
    hashes = {"weights_sha256": content_hash(model)}
    if adapter:
        hashes["adapter_sha256"] = content_hash(adapter)
        write_adapter(folder, description.training.backbone, adapter)
    replace(description, **hashes).write(folder)
    if state is not None:
        state.write(folder / TRAINING)
        sync(folder)
        listed = checksums.to_json(checksums.checksums_of(folder, _checkpoint_files(folder)))
        write_json(folder / TRAINING / COMMITTED, checksums.with_own({"step": state.step, "files": listed}))


def _checkpoint_files(folder: Path) -> list[Path]:
    """Everything that a run is continued from; not what others may put beside it, such as a card."""
    beside = [path for path in folder.iterdir() if path.is_file() and path.suffix in (".json", ".safetensors")]
    adapters = checksums.files_in(folder / ADAPTER_FOLDER) if (folder / ADAPTER_FOLDER).is_dir() else []
    return beside + adapters + checksums.files_in(folder / TRAINING, without=[COMMITTED])


def read_committed(folder: Path) -> dict[str, checksums.Checksum] | None:
    """The checksums of a checkpoint's files; None where it was written without, or holds no state.

    Raises:
        DataError: They are damaged.
    """
    path = folder / TRAINING / COMMITTED
    if not path.is_file():
        return None
    committed = read_json_object(path, "list of a checkpoint's files")
    if set(committed) == {"step"}:
        return None
    if set(committed) != {"step", "files", checksums.OWN} or not checksums.is_intact(committed):
        raise DataError(f"{path} is damaged; restore the checkpoint, or start again with --fresh.")
    listed = checksums.parse(committed["files"], path)
    missing = sorted({path.relative_to(folder).as_posix() for path in _checkpoint_files(folder)} - listed.keys())
    if missing:
        raise DataError(f"{folder / missing[0]} is not among the files that {path} lists; restore the checkpoint.")
    if committed["step"] != read_json_object(folder / TRAINING / "state.json", "training state").get("step"):
        raise DataError(f"{path} and the state beside it are of different steps; restore the checkpoint.")
    return listed


def check_files(path: Path, *, hash_below: int | None = None) -> bool:
    """Compares all files of a checkpoint with what they were when it was written.

    Args:
        hash_below: Of larger files only the size is compared. [bytes]

    Returns:
        Whether there was something to compare them with: earlier versions wrote no checksums.

    Raises:
        DataError: One is missing or is not as it was written; names it.
    """
    listed = read_committed(path)
    if listed is None:
        return False
    if FILE_NAME not in listed or WEIGHTS not in listed:
        raise DataError(f"{path / TRAINING / COMMITTED} does not list {FILE_NAME} and {WEIGHTS}; it is damaged.")
    faults = checksums.compare(path, listed, hash_below=hash_below)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise DataError(
            f"{faults[0]}{more}: the checkpoint is damaged. Restore it from a copy, or train again with --fresh."
        )
    return True


class CommittedStep(TypedDict):
    """What every version's list of a checkpoint's files holds."""

    step: int


def recover(path: Path) -> None:
    """Tidies up after a training that was killed while it wrote a checkpoint; nobody else may be writing.

    Where the killed one had taken the old checkpoint away and not yet put the new one in its place, that is done now.
    """
    holders = list(path.parent.glob(f"{TEMPORARY}*"))
    complete = [folder for holder in holders if ((folder := holder / path.name) / TRAINING / COMMITTED).is_file()]
    if complete and not path.exists():
        newest = max(complete, key=lambda folder: read_json_as(folder / TRAINING / COMMITTED, CommittedStep)["step"])
        os.rename(newest, path)
    for holder in holders:
        shutil.rmtree(holder, ignore_errors=True)


def load_checkpoint(
    path: Path, *, expected: Expected | None = None, device: torch.device | str = "cpu"
) -> tuple[LaMP, Description]:
    """Builds the model of a checkpoint and loads its weights, frozen and in evaluation mode.

    Raises:
        DataError: A file is missing or damaged.
        MismatchError: The checkpoint is not what is expected; nothing of the weights has been read then.
    """
    folder = checkpoint_folder(path)
    description = read_description(path)
    (expected or Expected()).check(folder, description)
    model = LaMP(description.model)
    load_weights(folder, description, model)
    # The weights were compared with the description, and this compares the description.
    listed = read_committed(folder) or {}
    beside = {name: listed[name] for name in listed if not name.startswith(f"{TRAINING}/")}
    for fault in checksums.compare(folder, beside, hash_below=HASH_BELOW):
        raise DataError(f"{fault}: the checkpoint is damaged; restore it from a copy, or train again.")
    model.requires_grad_(False)
    return model.eval().to(device), description


def load_weights(folder: Path, description: Description, model: LaMP) -> dict[str, Tensor]:
    """Reads a checkpoint's weights into a model, after comparing their names and shapes.

    Raises:
        DataError: The file is damaged, or holds other values than its description says.
        MismatchError: Weights are missing, superfluous or of another shape.
    """
    _check_names(folder / WEIGHTS, model.state_dict())
    weights = read_tensors(folder / WEIGHTS)
    _check_hash(folder, "weights", content_hash(weights), description.weights_sha256)
    if description.motion_source is not None:
        _check_hash(folder, "Motion Expert", content_hash(motion_weights(weights)), description.motion_source.sha256)
    model.load_state_dict(weights)
    return weights


def load_adapter(folder: Path, description: Description) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint's adapters; empty where it has none.

    Raises:
        DataError: The file is missing or damaged, or holds other values than the description says.
    """
    if not description.adapter_sha256:
        return {}
    weights = from_files(read_tensors(folder / ADAPTER_FOLDER / ADAPTER_WEIGHTS))
    _check_hash(folder, "adapter's weights", content_hash(weights), description.adapter_sha256)
    return weights


def load_state(path: Path, weights: Mapping[str, Tensor], trained: list[str]) -> TrainingState:
    """Reads the state that continues the run of a checkpoint."""
    missing = [name for name in trained if name not in weights]
    if missing:
        raise MismatchError(f"checkpoint {path} lacks {missing[0]}, which this run trains; expected the same recipe.")
    return TrainingState.read(checkpoint_folder(path) / TRAINING, {name: weights[name] for name in trained})


def motion_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Motion Expert's part of a model's weights."""
    return {name: value for name, value in weights.items() if name.startswith(MOTION_PREFIX)}


def _check_hash(folder: Path, what: str, actual: str, stated: str) -> None:
    if actual != stated:
        raise DataError(
            f"the {what} in {folder} have sha256 {actual[:12]}, its description says {stated[:12]}; "
            "the checkpoint is damaged: restore it or train again."
        )


def _check_names(file: Path, wanted: Mapping[str, Tensor]) -> None:
    try:
        with safe_open(str(file), framework="pt") as opened:
            stored = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        damaged = DataError(f"{file} is not a whole safetensors file ({error}); restore it or train again.")
        raise unreadable(file, error, damaged) from None
    shapes = {name: tuple(value.shape) for name, value in wanted.items()}
    for problem, names in (("lacks", shapes.keys() - stored.keys()), ("has an unknown", stored.keys() - shapes.keys())):
        if names:
            raise MismatchError(
                f"{file} {problem} {sorted(names)[0]} ({len(names)} in all); expected the {len(shapes)} weights of the model "
                "that its description names: it was written by other code, or edited."
            )
    for name, shape in shapes.items():
        if stored[name] != shape:
            raise MismatchError(
                f"{file}: {name} has shape {stored[name]}; the model that its description names has {shape}."
            )


ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PREFIX = "vlm."
"""How the names of the adapters' weights begin among those of a run."""


def write_adapter(folder: Path, backbone: BackboneConfig | None, weights: Mapping[str, Tensor]) -> None:
    """Writes the adapters' weights into a checkpoint's folder, as peft reads them."""
    assert isinstance(backbone, Qwen3VLBackboneConfig) and backbone.lora is not None
    (folder / ADAPTER_FOLDER).mkdir()
    write_tensors(folder / ADAPTER_FOLDER / ADAPTER_WEIGHTS, to_files(weights))
    describe(folder / ADAPTER_FOLDER, backbone.lora, backbone.model, backbone.commit)


class BackboneCache:
    """Loads the backbones of checkpoints; checkpoints that were trained on the same one share it."""

    def __init__(self) -> None:
        self._loaded: dict[str, FrozenBackbone] = {}

    def of(self, path: Path) -> FrozenBackbone:
        """Returns the backbone of a checkpoint (its folder, or the run that holds it).

        Raises:
            DataError: There is no checkpoint, or the backbone is not where its settings say.
            MismatchError: What is there is another backbone, or the checkpoint has no settings of it.
        """
        folder, description = checkpoint_folder(path), read_description(path)
        recorded, adapter = description.backbone, description.adapter_sha256
        if recorded.key is not None and recorded.key + adapter in self._loaded:
            return self._loaded[recorded.key + adapter]
        identity = find_backbone(_backbone_settings(folder, description), recorded=recorded.description)
        Expected(backbone_key=identity.key, backbone=identity.description).check(folder, description)
        if identity.key + adapter not in self._loaded:
            self._loaded[identity.key + adapter] = _with_adapter(load_backbone(identity), folder, description)
        return self._loaded[identity.key + adapter]


def _with_adapter(backbone: FrozenBackbone, folder: Path, description: Description) -> FrozenBackbone:
    weights = load_adapter(folder, description)
    if weights and isinstance(backbone, Qwen3VLBackbone):
        fill(backbone.vlm, weights)
    return backbone


def _backbone_settings(folder: Path, description: Description) -> BackboneConfig:
    settings = description.training.backbone_in(folder)
    if settings is None:
        raise MismatchError(
            f"{folder} was imported and holds no settings of its backbone (`lamp info` says which VLM it needs); expected the "
            "backbone itself, as the argument `backbone`, or import it again."
        )
    return settings
