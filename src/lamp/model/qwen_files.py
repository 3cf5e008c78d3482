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
from lamp.files import read_json, sha256_of

CONFIG, TOKENIZER, IMAGES = "config.json", "tokenizer.json", "preprocessor_config.json"
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
        absent = [name for name in (CONFIG, TOKENIZER, IMAGES) if not (self.path / name).is_file()]
        if not absent and not any(self.path.glob(WEIGHTS)):
            absent = [WEIGHTS]
        if absent:
            raise DataError(
                f"{self.path} lacks {', '.join(absent)}; expected the folder of a Qwen3-VL model as the hub has it: "
                f"{CONFIG}, {TOKENIZER}, {IMAGES} and weights in {WEIGHTS}."
            )
        found = self.config.get("model_type")
        if found != MODEL_TYPE:
            raise MismatchError(
                f"{self.path} holds a model of type {found!r}; expected a Qwen3-VL model of type {MODEL_TYPE!r} "
                "(2B, 4B, 8B or 32B), such as Qwen/Qwen3-VL-4B-Instruct."
            )

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return read_json(self.path / CONFIG, "description of the model")

    @cached_property
    def content(self) -> str:
        """SHA-256 of all files that tokens depend on: the same for a download and for a copy of it."""
        files = sorted([self.path / name for name in (CONFIG, TOKENIZER, IMAGES)] + list(self.path.glob(WEIGHTS)))
        with ThreadPoolExecutor() as pool:
            hashes = pool.map(sha256_of, files)
            lines = [f"{file.name} {found}" for file, found in zip(files, hashes, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def find_model(model: str, revision: str | None = None) -> ModelFolder:
    """Finds a model's folder: `model` itself, a copy under $LAMP_MODELS, or the hub's, downloaded when first needed.

    Args:
        model: A folder, or a name on the hub.
        revision: Commit, tag or branch on the hub; None: its newest.

    Raises:
        DataError: There is no such folder, or the hub does not give it.
        MismatchError: It is no Qwen3-VL model.
        MissingDependencyError: transformers is not installed.
    """
    for folder in _places(model):
        if folder.is_dir():
            return ModelFolder(path=folder)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise DataError(f"no folder at {model}; expected the folder of a Qwen3-VL model, or its name on the hub.")
    path = _downloaded(model, revision)
    return ModelFolder(path=path, revision=path.name)


def _places(model: str) -> Iterator[Path]:
    yield Path(model).expanduser()
    if copies := os.environ.get(MODELS_VARIABLE):
        yield Path(copies) / model
        yield Path(copies) / model.split("/")[-1]


def _downloaded(model: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise missing(error) from error
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=["*.json", WEIGHTS]))
    # Offline, unknown name, no access, full disk: the hub's client and its transport each have their own exceptions.
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot get {model}{at} from the model hub ({reason}). Give the folder of a copy instead: as `model` "
            f"(--backbone.model FOLDER), or put it at ${MODELS_VARIABLE}/{model}."
        ) from error


def missing(error: ImportError) -> MissingDependencyError:
    """The error for a package that the model needs and that is missing, or broken."""
    return MissingDependencyError(f"Qwen3-VL needs package {error.name or error!r}; install it: {INSTALL}")
