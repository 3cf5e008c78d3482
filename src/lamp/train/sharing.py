"""The frozen backbones of checkpoints: compared with what is on record before weights are read, and loaded once for all."""

from __future__ import annotations

from pathlib import Path

from lamp.data.feature_cache.cache import FrozenBackbone
from lamp.errors import MismatchError
from lamp.model.qwen3_vl import Qwen3VLBackbone
from lamp.model.qwen_lora import fill
from lamp.train.backbones import BackboneConfig, find_backbone, loaded
from lamp.train.checkpoint import Expected, load_adapter
from lamp.train.checkpoint_metadata import Description, checkpoint_folder, read_description
from lamp.train.config import Imported


class Backbones:
    """Loads the backbones of checkpoints; those that were trained on the same one share it."""

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
        found = find_backbone(_settings(folder, description), recorded=recorded.description)
        Expected(backbone_key=found.key, backbone=found.description).check(folder, description)
        if found.key + adapter not in self._loaded:
            self._loaded[found.key + adapter] = _with_adapter(loaded(found), folder, description)
        return self._loaded[found.key + adapter]


def _with_adapter(backbone: FrozenBackbone, folder: Path, description: Description) -> FrozenBackbone:
    weights = load_adapter(folder, description)
    if weights and isinstance(backbone, Qwen3VLBackbone):
        fill(backbone.vlm, weights)
    return backbone


def _settings(folder: Path, description: Description) -> BackboneConfig:
    training = description.training
    settings = training.backbone_in(folder) if isinstance(training, Imported) else training.backbone
    if settings is None:
        raise MismatchError(
            f"{folder} was imported and holds no settings of its backbone (`lamp info` says which VLM it needs); expected the "
            "backbone itself, as the argument `backbone`, or import it again."
        )
    return settings
