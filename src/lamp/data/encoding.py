"""Making the files of a feature cache: what a backbone must offer, and encoding episodes, in parallel where asked."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lamp.data.lerobot_reader import LeRobotDataset
from lamp.errors import DataError, LampError, MismatchError
from lamp.files import atomic_path, read_json, write_json

MANIFEST = "manifest.json"
SHARED = "shared.safetensors"
IMAGES_AT_ONCE = 16


@runtime_checkable
class FeatureBackbone(Protocol):
    """What the cache needs of a frozen backbone. It must be picklable, to be sent to worker processes."""

    @property
    def key(self) -> str:
        """Identifies weights and settings; different tokens mean a different key."""
        ...

    @property
    def width(self) -> int:
        """Channels of a token."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """JSON values; among them ``cameras``, a list of [name, size in px] in the order of their tokens."""
        ...

    def image_tokens(self, camera: str, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b n d"]:
        """Tokens of a camera's images."""
        ...

    def text_tokens(self, instructions: Sequence[str]) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Tokens of instructions, and which of them are real."""
        ...


@runtime_checkable
class PartlyConstant(Protocol):
    """A backbone some of whose channels (position, type) are the same for every image: only the others are stored."""

    @property
    def varying_channels(self) -> slice:
        """The channels that depend on the image."""
        ...

    def constant_tokens(self, camera: str) -> Float[Tensor, "n d"]:
        """A camera's tokens with the right values in all other channels."""
        ...


def camera_names(backbone: FeatureBackbone) -> tuple[str, ...]:
    """A backbone's cameras, in the order of their tokens."""
    return tuple(name for name, _ in backbone.description["cameras"])


def cache_folder(dataset: LeRobotDataset, key: str) -> Path:
    """Where a backbone's features of a dataset are."""
    return dataset.root / "features" / key


def episode_path(folder: Path, episode: int) -> Path:
    return folder / f"episode-{episode:06d}.safetensors"


def read_manifest(folder: Path, key: str) -> dict[str, Any]:
    if not (folder / MANIFEST).exists():
        others = sorted(path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}"))
        raise DataError(
            f"there are no features of the backbone {key} in {folder.parent}; "
            f"make them with `lamp cache features {folder.parent.parent}`. "
            f"Present: {', '.join(others) or 'none'}."
        )
    manifest = read_json(folder / MANIFEST, "feature cache's description")
    if manifest.get("format") != "lamp-features" or manifest.get("version") != 1 or manifest.get("key") != key:
        raise MismatchError(
            f"{folder} holds {manifest.get('format')} {manifest.get('version')} of the backbone {manifest.get('key')}; "
            f"expected lamp-features 1 of {key}"
        )
    return manifest


def load_mapped(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Maps a file into memory; tensors are read as they are used."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read {path} ({error}); remove it and run `lamp cache features` again") from None


def is_stale(dataset: LeRobotDataset, folder: Path, episode: int) -> bool:
    """Whether an episode's features are missing, unreadable, or made from something else."""
    try:
        with safe_open(episode_path(folder, episode), framework="pt") as file:
            return (file.metadata() or {}).get("fingerprint") != dataset.fingerprint(episode)
    except (SafetensorError, OSError):
        return True


@torch.no_grad()
def write_shared(dataset: LeRobotDataset, backbone: FeatureBackbone, folder: Path) -> None:
    """Writes what all episodes share: the description, the instructions' tokens, the constant channels."""
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
    manifest = {
        "format": "lamp-features",
        "version": 1,
        "key": backbone.key,
        "backbone": backbone.description,
        "cameras": list(camera_names(backbone)),
        "width": backbone.width,
        "varying": [varying.start, varying.stop],
    }
    write_json(folder / MANIFEST, manifest)


@torch.no_grad()
def _encode_episode(dataset: LeRobotDataset, backbone: FeatureBackbone, folder: Path, episode: int) -> None:
    varying = backbone.varying_channels if isinstance(backbone, PartlyConstant) else slice(None)
    frames = np.flatnonzero(dataset.fresh(episode))
    found: dict[str, Tensor] = {}
    for camera in camera_names(backbone):
        images = torch.from_numpy(dataset.frames(camera, episode, frames))
        parts = [
            backbone.image_tokens(camera, part)[..., varying].half().cpu() for part in images.split(IMAGES_AT_ONCE)
        ]
        found[camera] = torch.cat(parts).contiguous()
        if not found[camera].isfinite().all():
            raise DataError(
                f"the backbone's tokens of episode {episode}, camera {camera}, do not fit into 16-bit floats"
            )
    with atomic_path(episode_path(folder, episode)) as path:
        save_file(found, path, metadata={"fingerprint": dataset.fingerprint(episode)})


_worker: tuple[LeRobotDataset, FeatureBackbone, Path] | None = None


def _start_worker(dataset: LeRobotDataset, backbone: bytes, folder: Path) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = dataset, pickle.loads(backbone), folder


def _work(episode: int) -> int:
    assert _worker is not None
    _encode_episode(*_worker, episode)
    return episode


def encode_all(
    dataset: LeRobotDataset, backbone: FeatureBackbone, folder: Path, episodes: Sequence[int], processes: int
) -> Iterator[int]:
    """Encodes episodes, here or in workers, and yields each one that is done."""
    if processes <= 1 or len(episodes) <= 1:
        for episode in episodes:
            _encode_episode(dataset, backbone, folder, episode)
            yield episode
        return
    # As plain bytes: by itself multiprocessing would put the weights into shared memory, of which containers have little.
    packed = pickle.dumps(backbone)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(episodes)), context, _start_worker, (dataset, packed, folder)) as pool:
        try:
            for future in as_completed([pool.submit(_work, episode) for episode in episodes]):
                yield future.result()
        except BrokenProcessPool:
            raise LampError(
                "a worker process died while computing features (out of memory?); use fewer processes"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
