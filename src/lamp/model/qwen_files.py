"""The files of a Qwen3-VL model: a local folder, or a download from the hub; what they are, told by their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lamp.errors import DataError, MismatchError, MissingDependencyError
from lamp.files import sha256_of
from lamp.hub import Fetch, HubId, fetch
from lamp.json_files import read_json

CONFIG, TOKENIZER, IMAGES = "config.json", "tokenizer.json", "preprocessor_config.json"
DESCRIBING = (CONFIG, TOKENIZER, IMAGES)
"""Files that describe how the weights are used."""
WEIGHTS = "*.safetensors"
MODEL_TYPE = "qwen3_vl"
MODELS_VARIABLE = "LAMP_MODELS"
"""Environment variable: a folder of local copies, looked up by the name on the hub, or its last part."""
INSTALL = "pip install 'transformers>=5.23,<6'"


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder that holds a Qwen3-VL model.

    Raises:
        DataError: A file is missing.
        MismatchError: It holds another model.
    """

    path: Path
    revision: str | None = None
    """The commit on the hub that it was downloaded from; None for a local folder."""

    def __post_init__(self) -> None:
        read_config(self.path)
        if not any(self.path.glob(WEIGHTS)):
            raise _missing_files(self.path, WEIGHTS)

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return read_config(self.path)

    @property
    def width(self) -> int:
        """Width of a token."""
        return token_width(self.path, self.config)

    @cached_property
    def content(self) -> str:
        """SHA-256 of all files that tokens depend on: the same for a download and for a copy of it."""
        files = sorted([self.path / name for name in DESCRIBING] + list(self.path.glob(WEIGHTS)))
        with ThreadPoolExecutor() as pool:
            hashes = pool.map(sha256_of, files)
            lines = [f"{file.name} {sha256}" for file, sha256 in zip(files, hashes, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json`, once it is sure that the other files that describe a model are there as well.

    Raises:
        DataError: A file is missing.
        MismatchError: They describe another model.
    """
    if absent := [name for name in DESCRIBING if not (folder / name).is_file()]:
        raise _missing_files(folder, *absent)
    config = read_json(folder / CONFIG, "description of the model")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != MODEL_TYPE:
        raise MismatchError(
            f"{folder} holds a model of type {model_type!r}; expected a Qwen3-VL model of type {MODEL_TYPE!r} "
            "(2B, 4B, 8B or 32B), such as Qwen/Qwen3-VL-4B-Instruct."
        )
    return config


def token_width(folder: Path, config: dict[str, Any]) -> int:
    """
    Raises:
        DataError: The description does not say it.
    """
    text = config.get("text_config")
    width = text.get("hidden_size") if isinstance(text, dict) else None
    if type(width) is not int:
        raise DataError(f"{folder / CONFIG}: text_config.hidden_size is {width!r}; expected a number, such as 2560.")
    return width


def _missing_files(folder: Path, *names: str) -> DataError:
    return DataError(
        f"{folder} lacks {', '.join(names)}; expected the folder of a Qwen3-VL model as the hub has it: "
        f"{', '.join(DESCRIBING)} and weights in {WEIGHTS}."
    )


def find_model(model: str, revision: str | None = None) -> ModelFolder:
    """Finds a model's folder: `model` itself, a copy under $LAMP_MODELS, or the hub's, downloaded when first needed.

    Args:
        revision: Commit, tag or branch on the hub; None: its newest.

    Raises:
        DataError: There is no such folder, or the hub does not give it.
        MismatchError: It is no Qwen3-VL model.
        MissingDependencyError: The hub's client is not installed.
    """
    for folder in _candidate_folders(model):
        if folder.is_dir():
            return ModelFolder(path=folder)
    hub = HubId.parse(model, revision)
    if hub is None:
        raise DataError(
            f"no folder at {model}; expected the folder of a Qwen3-VL model, or its name on the hub. A copy of it at "
            f"${MODELS_VARIABLE}/{Path(model).name} serves as well."
        )
    instead = (
        f"Use the folder of a copy instead (hf download {model} --local-dir FOLDER, where there is a hub): in training as "
        f"--backbone.model FOLDER, or at ${MODELS_VARIABLE}/{model} for every command."
    )
    path = fetch(hub, Fetch(patterns=("*.json", WEIGHTS), instead=instead))
    return ModelFolder(path=path, revision=path.name)


def _candidate_folders(model: str) -> Iterator[Path]:
    yield Path(model).expanduser()
    if copies := os.environ.get(MODELS_VARIABLE):
        yield Path(copies) / model
        yield Path(copies) / model.split("/")[-1]


def missing(error: ImportError) -> MissingDependencyError:
    """The error for a package that the model needs and that is missing, or broken."""
    return MissingDependencyError(f"Qwen3-VL needs package {error.name or error!r}; install it: {INSTALL}")
