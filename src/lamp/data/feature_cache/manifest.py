"""A feature cache's folder and manifest, and which of its shards are complete and up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

import torch
from safetensors.torch import save_file
from typing_extensions import TypedDict

from lamp.checksums import with_own
from lamp.configuration import from_json, to_json
from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.encode import (
    BackboneIdentity,
    FeatureBackbone,
    PartlyConstant,
    StorageFormat,
    camera_names,
    storage_dtype,
)
from lamp.data.feature_cache.shards import (
    FEATURES,
    EpisodeFingerprints,
    Shards,
    ShardState,
    content_hash,
    one_error_when_full,
)
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import DataError, MismatchError
from lamp.files import atomic_path
from lamp.json_files import read_json, read_json_as, write_json

"""The folder in a dataset that caches are in, unless another was chosen."""
MANIFEST = "manifest.json"
SHARED = "shared.safetensors"
FORMAT = "lamp-features"
PARTS, SEQUENCES = 1, 2
"""Layouts of the files: tokens of images and of instructions apart; whole sequences."""


def cache_folder(dataset: LeRobotDataset, key: str, root: Path | None = None) -> Path:
    """Where a backbone's features of a dataset are.

    Two embodiments may give one name to different cameras of a dataset: the second gets a folder of its own.

    Args:
        key: Of the backbone.
        root: A folder for the caches of any datasets, each by its folder's name; None: in the dataset itself.
    """
    folder = (dataset.root / FEATURES if root is None else root / dataset.root.resolve().name) / key
    manifest = stored_manifest(folder)
    seen = None if manifest is None else manifest.get("camera_features")
    here = {name: camera.key for name, camera in dataset.meta.cameras.items()}
    if seen is None or all(here.get(name) == one for name, one in seen.items()):
        return folder
    mapping = json.dumps({name: here.get(name) for name in sorted(seen)})
    return folder.with_name(f"{key}-{hashlib.sha256(mapping.encode()).hexdigest()[:8]}")


class CacheManifest(TypedDict):
    """`manifest.json`, as it is read: what both kinds of cache have, and what one of them has."""

    format: str
    version: int
    key: str
    backbone: dict[str, Any]
    cameras: list[str]
    width: int
    camera_features: NotRequired[dict[str, str]]
    storage: NotRequired[str]
    shared_sha256: NotRequired[str]
    varying: NotRequired[tuple[int, int]]
    """In parts: the channels that pictures change."""
    padding: NotRequired[dict[str, Any]]
    """In sequences, as the next two."""
    length: NotRequired[int | None]
    dtype: NotRequired[str]


def stored_manifest(folder: Path) -> CacheManifest | None:
    """The description of the cache in a folder; None where there is none.

    Raises:
        DataError: It is damaged.
    """
    path = folder / MANIFEST
    return read_json_as(path, CacheManifest, "feature cache's description") if path.exists() else None


def advice(dataset: LeRobotDataset, flags: str = "") -> str:
    """The command that makes a cache as the training needs it."""
    return f"`lamp cache features {dataset.root}{flags}` with the recipe and settings of the training"


def read_manifest(folder: Path, key: str, dataset: LeRobotDataset, wanted: Mapping[str, Any] | None) -> CacheManifest:
    """Reads the description of a cache.

    Args:
        key: Of the requested backbone.
        wanted: That backbone's description, to name how the caches that are there differ.

    Raises:
        DataError: There is no cache at all.
        MismatchError: There are only caches of other backbones, or the folder holds something else.
    """
    manifest = stored_manifest(folder)
    if manifest is None:
        raise _no_cache(folder, key, dataset, wanted)
    if manifest["format"] != FORMAT or manifest["version"] not in (PARTS, SEQUENCES) or manifest["key"] != key:
        raise MismatchError(
            f"{folder} holds {manifest['format']} {manifest['version']} of the backbone {manifest['key']}; "
            f"expected lamp-features {PARTS} or {SEQUENCES} of {key}"
        )
    needed = ("padding", "length") if manifest["version"] == SEQUENCES else ("varying",)
    if lacking := [name for name in needed if name not in manifest]:
        raise DataError(f"{folder / MANIFEST}: {lacking[0]} is missing; restore or remove it")
    return manifest


def _no_cache(
    folder: Path, key: str, dataset: LeRobotDataset, wanted: Mapping[str, Any] | None
) -> DataError | MismatchError:
    paths = [path for path in sorted(folder.parent.glob(f"*/{MANIFEST}")) if path.parent != folder]
    others = [manifest for path in paths if (manifest := stored_manifest(path.parent)) is not None]
    if not others or wanted is None:
        present = ", ".join(str(manifest["key"]) for manifest in others) or "none"
        return DataError(
            f"there are no features of the backbone {key} in {folder.parent}; make them with {advice(dataset)}. "
            f"Present: {present}."
        )
    nearest = min(others, key=lambda manifest: len(differences(manifest["backbone"], wanted)))
    changes = differences(nearest["backbone"], wanted) or [
        f"its weights or code: key {nearest['key']} stored, {key} requested"
    ]
    return MismatchError(
        f"{folder.parent / nearest['key']} is of another backbone: {'; '.join(changes)}. Make the requested features with "
        f"{advice(dataset)}, or train with what is stored"
    )


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """How stored settings differ from requested ones, a line for each entry."""
    # As JSON has it: what is stored has no tuples.
    requested = json.loads(json.dumps(dict(wanted)))
    names = [*requested, *(name for name in stored if name not in requested)]
    return [
        f"{name} is {stored.get(name)!r} stored, {requested.get(name)!r} requested"
        for name in names
        if stored.get(name) != requested.get(name)
    ]


def write_manifest(
    dataset: LeRobotDataset, backbone: BackboneIdentity, folder: Path, storage: StorageFormat
) -> dict[str, Any]:
    """Writes what all episodes share: the description and, where they are computed apart, the instructions' tokens.

    Raises:
        DataError: The disk is full.
        MismatchError: The cache that is there keeps its tokens in another format.
    """
    apart = isinstance(backbone, FeatureBackbone)
    dtype = storage_dtype(storage, apart=apart)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": PARTS if apart else SEQUENCES,
        "key": backbone.key,
        "backbone": backbone.description,
        "cameras": list(camera_names(backbone)),
        "camera_features": {name: dataset.meta.cameras[name].key for name in camera_names(backbone)},
        "width": backbone.width,
        "storage": storage_name(dtype or torch.float32 if apart else dtype or backbone.dtype),
    }
    _check_storage(folder, manifest)
    with one_error_when_full(folder):
        if isinstance(backbone, FeatureBackbone):
            manifest |= _write_parts(dataset, backbone, folder)
        else:
            own = storage_name(backbone.dtype)
            manifest |= {"padding": to_json(backbone.padding), "length": backbone.length, "dtype": own}
        write_json(folder / MANIFEST, with_own(manifest))
    return manifest


def storage_name(dtype: torch.dtype) -> str:
    """A number format's name in files."""
    return str(dtype).removeprefix("torch.")


def _check_storage(folder: Path, manifest: Mapping[str, Any]) -> None:
    there = stored_manifest(folder)
    if there is None:
        return
    stored = there.get("storage", "float16" if there["version"] == PARTS else manifest["storage"])
    if stored != manifest["storage"]:
        raise MismatchError(
            f"{folder} keeps its tokens as {stored}, {manifest['storage']} requested; "
            f"expected the same (--storage {stored}): or remove the folder, or write to another with --out"
        )


@torch.no_grad()
def _write_parts(dataset: LeRobotDataset, backbone: FeatureBackbone, folder: Path) -> dict[str, Any]:
    """Writes the instructions' tokens and the constant channels; returns which channels vary, and a hash of what was written."""
    varying, constant = slice(0, backbone.width), {}
    if isinstance(backbone, PartlyConstant):
        varying = slice(*backbone.varying_channels.indices(backbone.width)[:2])
        constant = {camera: backbone.constant_tokens(camera) for camera in camera_names(backbone)}
    else:
        for camera in camera_names(backbone):
            height, width = dataset.image_sizes[camera]
            blank = backbone.image_tokens(camera, torch.zeros(1, height, width, 3, dtype=torch.uint8))
            constant[camera] = torch.zeros(blank.shape[1:])
    text, mask = backbone.text_tokens(dataset.tasks)
    shared = {"text": text.float(), "text_mask": mask}
    shared |= {f"constant.{camera}": tokens.float() for camera, tokens in constant.items()}
    with atomic_path(folder / SHARED) as path:
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in shared.items()}
        save_file(contiguous, path, metadata={"instructions": json.dumps(dataset.tasks)})
    return {"varying": [varying.start, varying.stop], "shared_sha256": content_hash(contiguous)}


INCOMPLETE = (ShardState.MISSING, ShardState.FEWER)
VIEWS = "views"
VIEWS_MANIFEST = "augmentation.json"


@dataclass(frozen=True)
class FeatureStore:
    """The shards of a feature cache: of the pictures themselves and, with an augmentation, of their augmented views."""

    dataset: LeRobotDataset
    folder: Path
    augmentation: Augmentation = NO_AUGMENTATION
    least: Mapping[str, int] = field(default_factory=dict)
    """Counts that each shard must hold at least, such as draws, besides the views."""
    flags: str = ""
    """Flags of `lamp cache features` that it takes to make these shards."""
    known: EpisodeFingerprints | None = None
    """What identifies the episodes, where it is at hand."""

    @cached_property
    def fingerprints(self) -> EpisodeFingerprints:
        """What identifies the episodes, as far as the cache depends on them."""
        if self.known is not None:
            return self.known
        manifest = stored_manifest(self.folder)
        cameras = self.dataset.cameras if manifest is None else manifest["cameras"]
        return EpisodeFingerprints(self.dataset, cameras, self.folder.parent)

    @cached_property
    def pictures(self) -> Shards:
        """Of the pictures themselves."""
        return Shards(self.dataset, self.folder, self.least, self.fingerprints)

    @cached_property
    def views(self) -> Shards | None:
        """Of all augmented views of each; None without an augmentation."""
        if not self.augmentation.views:
            return None
        least = {**self.least, "views": self.augmentation.views}
        return Shards(self.dataset, self.folder / VIEWS / self.augmentation.key, least, self.fingerprints)

    def left_out(self) -> tuple[int, ...]:
        """Episodes whose pictures cannot be read, as noted when they were last tried."""
        noted = sorted(
            episode
            for path in self.folder.glob("episode-*.left-out.json")
            if (episode := int(path.name.split("-")[1].split(".")[0])) < len(self.dataset)
        )
        return tuple(episode for episode in noted if self.pictures.state(episode) is ShardState.LEFT_OUT)

    def is_current(self, episode: int) -> bool:
        """Whether an episode needs nothing."""
        parts = (self.pictures, self.views)
        return all(shards.state(episode) is ShardState.CURRENT for shards in parts if shards is not None)

    def check(self, *, complete: bool = True, episodes: Collection[int] | None = None) -> None:
        """Checks what is stored by the shards' headers.

        Args:
            complete: Whether nothing may be missing, either.
            episodes: Of which; all by default.

        Raises:
            DataError: A shard is missing or corrupt.
            MismatchError: One was made from other data, or the augmented views that are there are others.
        """
        if complete:
            self._check_views()
        total, again = len(self.dataset), advice(self.dataset, self.flags)
        expected = set(range(total) if episodes is None else episodes).difference(self.left_out())
        for shards, what in ((self.pictures, "episodes"), (self.views, "episodes' augmented views")):
            states = {episode: shards.state(episode) for episode in sorted(expected)} if shards is not None else {}
            missing = [episode for episode, state in states.items() if state in INCOMPLETE]
            if missing and complete:
                raise DataError(f"{self.folder} lacks {len(missing)} of {total} {what}; complete it with {again}")
            for episode, state in states.items():
                if shards is not None and state not in (ShardState.CURRENT, *INCOMPLETE):
                    kind = DataError if state is ShardState.CORRUPT else MismatchError
                    raise kind(f"{shards.describe(episode, state)}; bring it up to date with {again}")

    def _check_views(self) -> None:
        if self.views is None or self.views.folder.is_dir():
            return
        wanted = _flat(to_json(self.augmentation))
        for path in sorted((self.folder / VIEWS).glob(f"*/{VIEWS_MANIFEST}")):
            stored = _flat(to_json(read_augmentation(path)))
            changes = [line for line in differences(stored, wanted) if not line.startswith("views ")]
            raise MismatchError(
                f"{path.parent} has other augmented views: {'; '.join(changes) or 'drawn by other code'}. "
                f"Make the requested ones with {advice(self.dataset, self.flags)}, or train with the stored ones"
            )


def read_augmentation(path: Path) -> Augmentation:
    """Reads the description of a folder of augmented views."""
    return from_json(Augmentation, read_json(path, "description of augmented views"), where=str(path))


def _flat(plain: object, name: str = "") -> dict[str, object]:
    """The entries of nested JSON objects, each under its dotted name."""
    if not isinstance(plain, Mapping):
        return {name: plain}
    return {
        key: value
        for entry, item in plain.items()
        for key, value in _flat(item, f"{name}.{entry}" if name else str(entry)).items()
    }


HIDDEN = "hidden"
"""The name of the values in a shard: (draw, frame, token, channel), of augmented views with the view before that."""
HIDDEN_MANIFEST = "hidden.json"
