"""The frozen backbones of checkpoints: compared with what is on record before weights are read, and loaded once for all."""

from __future__ import annotations

from pathlib import Path

from lamp.data.features import FrozenBackbone
from lamp.errors import MismatchError
from lamp.train.backbones import BackboneConfig, find_backbone, loaded
from lamp.train.checkpoint import Expected
from lamp.train.configs import Imported
from lamp.train.description import Description, checkpoint_folder, read_description


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
        recorded = description.backbone
        if recorded.key is not None and recorded.key in self._loaded:
            return self._loaded[recorded.key]
        found = find_backbone(_settings(folder, description), recorded=recorded.description)
        Expected(backbone_key=found.key, backbone=found.description).check(folder, description)
        if found.key not in self._loaded:
            self._loaded[found.key] = loaded(found)
        return self._loaded[found.key]


def _settings(folder: Path, description: Description) -> BackboneConfig:
    training = description.training
    settings = training.backbone_in(folder) if isinstance(training, Imported) else training.backbone
    if settings is None:
        raise MismatchError(
            f"{folder} was imported and holds no settings of its backbone (`lamp info` says which VLM it needs); expected the "
            "backbone itself, as the argument `backbone`, or import it again."
        )
    return settings
