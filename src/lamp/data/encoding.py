"""Making the files of a feature cache: what a backbone must offer, and encoding episodes, in parallel where asked.

There are two kinds of frozen backbone. A `FeatureBackbone` looks at each image and reads each instruction by itself, so that
tokens of either can be kept and put together later. A `SequenceBackbone`, such as a vision-language model, makes one sequence
of them in which each token depends on those before it: it encodes whole observations.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Iterator, Mapping, Sequence
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

from lamp.configuration import to_json
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.data.padding import Padding
from lamp.data.stored_images import CorruptPicturesError, OnCorrupt, Refuse
from lamp.errors import DataError, LampError, MismatchError
from lamp.files import atomic_path, read_json, write_json
from lamp.types import Encoded, Observations

MANIFEST = "manifest.json"
SHARED = "shared.safetensors"
TOKENS = "tokens"
IMAGES_AT_ONCE, OBSERVATIONS_AT_ONCE = 16, 8
PARTS, SEQUENCES = 1, 2
"""Versions of the files: tokens of images and of instructions apart; whole sequences."""


@runtime_checkable
class FeatureBackbone(Protocol):
    """A frozen backbone whose tokens of one image or instruction do not depend on the others.

    It must be picklable, to be sent to worker processes.
    """

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
class SequenceBackbone(Protocol):
    """A frozen backbone whose tokens of images and instruction depend on each other.

    How many tokens an observation has depends on its instruction alone: each camera's images have one size.
    """

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

    @property
    def padding(self) -> Padding:
        """On which side `encode` pads."""
        ...

    @property
    def length(self) -> int | None:
        """Tokens of every padded sequence; None: as many as the longest of its batch has."""
        ...

    def encode(self, observations: Observations) -> Encoded:
        """Tokens of whole observations, zero where there is padding."""
        ...


FrozenBackbone = FeatureBackbone | SequenceBackbone
"""What tokens can be cached of, and what a policy can act with."""


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


def camera_names(backbone: FrozenBackbone) -> tuple[str, ...]:
    """A backbone's cameras, in the order of their tokens."""
    return tuple(name for name, _ in backbone.description["cameras"])


def cache_folder(dataset: LeRobotDataset, key: str) -> Path:
    """Where a backbone's features of a dataset are."""
    return dataset.root / "features" / key


def episode_path(folder: Path, episode: int) -> Path:
    return folder / f"episode-{episode:06d}.safetensors"


def left_out_path(folder: Path, episode: int) -> Path:
    """Stands in for the file of an episode whose pictures cannot be read, and says why."""
    return folder / f"episode-{episode:06d}.left-out.json"


def is_left_out(dataset: LeRobotDataset, folder: Path, episode: int) -> bool:
    """Whether an episode was left out, as it is now."""
    path = left_out_path(folder, episode)
    found = read_json(path, "note of an episode that was left out") if path.is_file() else {}
    return found.get("fingerprint") == dataset.fingerprint(episode)


def read_manifest(folder: Path, key: str) -> dict[str, Any]:
    if not (folder / MANIFEST).exists():
        others = sorted(path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}"))
        raise DataError(
            f"there are no features of the backbone {key} in {folder.parent}; "
            f"make them with `lamp cache features {folder.parent.parent}`. "
            f"Present: {', '.join(others) or 'none'}."
        )
    manifest = read_json(folder / MANIFEST, "feature cache's description")
    known = manifest.get("format") == "lamp-features" and manifest.get("version") in (PARTS, SEQUENCES)
    if not known or manifest.get("key") != key:
        raise MismatchError(
            f"{folder} holds {manifest.get('format')} {manifest.get('version')} of the backbone {manifest.get('key')}; "
            f"expected lamp-features {PARTS} or {SEQUENCES} of {key}"
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


def write_shared(dataset: LeRobotDataset, backbone: FrozenBackbone, folder: Path) -> None:
    """Writes what all episodes share: the description and, where they are computed apart, the instructions' tokens."""
    manifest = {
        "format": "lamp-features",
        "version": PARTS,
        "key": backbone.key,
        "backbone": backbone.description,
        "cameras": list(camera_names(backbone)),
        "width": backbone.width,
    }
    if isinstance(backbone, FeatureBackbone):
        manifest |= {"varying": _write_parts(dataset, backbone, folder)}
    else:
        manifest |= {"version": SEQUENCES, "padding": to_json(backbone.padding), "length": backbone.length}
    write_json(folder / MANIFEST, manifest)


@torch.no_grad()
def _write_parts(dataset: LeRobotDataset, backbone: FeatureBackbone, folder: Path) -> list[int]:
    """Writes the instructions' tokens and the constant channels; returns which channels vary."""
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
    return [varying.start, varying.stop]


def _encode_episode(dataset: LeRobotDataset, backbone: FrozenBackbone, folder: Path, episode: int) -> None:
    frames = np.flatnonzero(dataset.fresh(episode))
    images = {camera: torch.from_numpy(dataset.frames(camera, episode, frames)) for camera in camera_names(backbone)}
    if isinstance(backbone, FeatureBackbone):
        found = _image_parts(backbone, images, episode)
    else:
        found = {TOKENS: _sequences(backbone, images, dataset.episode(episode).task)}
    with atomic_path(episode_path(folder, episode)) as path:
        save_file(found, path, metadata={"fingerprint": dataset.fingerprint(episode)})


@torch.no_grad()
def _image_parts(backbone: FeatureBackbone, images: Mapping[str, Tensor], episode: int) -> dict[str, Tensor]:
    varying = backbone.varying_channels if isinstance(backbone, PartlyConstant) else slice(None)
    found: dict[str, Tensor] = {}
    for camera, of_camera in images.items():
        parts = [
            backbone.image_tokens(camera, part)[..., varying].half().cpu() for part in of_camera.split(IMAGES_AT_ONCE)
        ]
        found[camera] = torch.cat(parts).contiguous()
        if not found[camera].isfinite().all():
            raise DataError(
                f"the backbone's tokens of episode {episode}, camera {camera}, do not fit into 16-bit floats"
            )
    return found


@torch.no_grad()
def _sequences(backbone: SequenceBackbone, images: Mapping[str, Tensor], instruction: str) -> Float[Tensor, "f n d"]:
    """The real tokens of an episode's frames, in the backbone's own number format: what it gives is kept to the bit."""
    frames = len(next(iter(images.values())))
    found = []
    for start in range(0, frames, OBSERVATIONS_AT_ONCE):
        part = {camera: of_camera[start : start + OBSERVATIONS_AT_ONCE] for camera, of_camera in images.items()}
        count = len(next(iter(part.values())))
        encoded = backbone.encode(Observations(images=part, instructions=(instruction,) * count))
        found.append(encoded.tokens[encoded.mask].unflatten(0, (count, -1)).cpu())
        if not found[-1].isfinite().all():
            raise DataError(f"the backbone's tokens of {instruction!r} are not finite numbers; use it in float32")
    return torch.cat(found)


def _encode_or_leave_out(
    dataset: LeRobotDataset, backbone: FrozenBackbone, folder: Path, on_corrupt: OnCorrupt, episode: int
) -> None:
    try:
        _encode_episode(dataset, backbone, folder, episode)
    except CorruptPicturesError as error:
        if isinstance(on_corrupt, Refuse):
            raise
        note = {"file": str(error.path), "reason": str(error), "fingerprint": dataset.fingerprint(episode)}
        write_json(left_out_path(folder, episode), note)


_worker: tuple[LeRobotDataset, FrozenBackbone, Path, OnCorrupt] | None = None


def _start_worker(dataset: LeRobotDataset, backbone: bytes, folder: Path, on_corrupt: OnCorrupt) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = dataset, pickle.loads(backbone), folder, on_corrupt


def _work(episode: int) -> int:
    assert _worker is not None
    _encode_or_leave_out(*_worker, episode)
    return episode


def encode_all(
    dataset: LeRobotDataset,
    backbone: FrozenBackbone,
    folder: Path,
    episodes: Sequence[int],
    processes: int,
    on_corrupt: OnCorrupt,
) -> Iterator[int]:
    """Encodes episodes, here or in workers, and yields each one that is done or left out."""
    if processes <= 1 or len(episodes) <= 1:
        for episode in episodes:
            _encode_or_leave_out(dataset, backbone, folder, on_corrupt, episode)
            yield episode
        return
    # As plain bytes: by itself multiprocessing would put the weights into shared memory, of which containers have little.
    packed = pickle.dumps(backbone)
    context = multiprocessing.get_context("spawn")
    arguments = dataset, packed, folder, on_corrupt
    with ProcessPoolExecutor(min(processes, len(episodes)), context, _start_worker, arguments) as pool:
        try:
            for future in as_completed([pool.submit(_work, episode) for episode in episodes]):
                yield future.result()
        except BrokenProcessPool:
            raise LampError(
                "a worker process died while computing features (out of memory?); use fewer processes"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
