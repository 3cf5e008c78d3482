"""The frozen backbone's tokens, computed once: image tokens per fresh frame and camera, text tokens per instruction.

A cache lives under ``features/<key>/`` in the dataset's folder, where the key identifies the backbone's weights and settings.
Each episode is a file of its own, written whole or not at all; files are mapped into memory, so that the operating system
keeps in RAM what fits, and shares it between processes.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lamp.data.lerobot_reader import LeRobotDataset
from lamp.errors import DataError, LampError, MismatchError
from lamp.files import atomic_path, read_json, write_json
from lamp.types import Encoded

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
    def cameras(self) -> tuple[str, ...]:
        """Cameras in the order of their tokens."""
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


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """All fresh frames of a dataset, in order: one row of features each."""

    episode: Int64[np.ndarray, "r"]
    frame: Int64[np.ndarray, "r"]
    first: Int64[np.ndarray, "e"]
    """Each episode's first row."""

    @classmethod
    def of(cls, dataset: LeRobotDataset) -> FrameIndex:
        """Lists a dataset's fresh frames."""
        frames = [np.flatnonzero(dataset.fresh(index)) for index in range(len(dataset))]
        counts = np.array([len(of_episode) for of_episode in frames])
        return cls(
            episode=np.repeat(np.arange(len(frames)), counts),
            frame=np.concatenate(frames),
            first=np.concatenate([[0], counts.cumsum()[:-1]]).astype(np.int64),
        )

    def rows(self, episode: int, frames: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "n"]:
        """The rows of some fresh frames of an episode.

        Raises:
            DataError: One of them has no image of its own.
        """
        last = self.first[episode + 1] if episode + 1 < len(self.first) else len(self.frame)
        present = self.frame[self.first[episode] : last]
        wanted = np.asarray(frames, np.int64)
        place = np.searchsorted(present, wanted)
        known = (place < len(present)) & (present[np.minimum(place, len(present) - 1)] == wanted)
        if not known.all():
            raise DataError(f"frame {wanted[~known][0]} of episode {episode} repeats an earlier image; use a fresh frame")
        return self.first[episode] + place


class FeatureCache:
    """A complete cache, opened for reading."""

    def __init__(self, dataset: LeRobotDataset, key: str):
        """
        Raises:
            DataError: There is no cache for this backbone, or it lacks episodes.
            MismatchError: It was made from other data, or by another backbone.
        """
        self.dataset, self.key = dataset, key
        self.folder = cache_folder(dataset, key)
        self.manifest = _read_manifest(self.folder, key)
        self.cameras: tuple[str, ...] = tuple(self.manifest["cameras"])
        self.width: int = self.manifest["width"]
        self._varying = slice(*self.manifest["varying"])
        self._check_episodes()
        self.index = FrameIndex.of(dataset)
        self._read_shared()
        self._mapped: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        backbone: FeatureBackbone,
        *,
        processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> FeatureCache:
        """Computes what is missing or out of date, and opens the cache. May be interrupted and run again at any time.

        Args:
            dataset: Where the images are.
            backbone: What encodes them.
            processes: Worker processes, of one thread each; 1 works in this process.
            progress: Is told how many episodes are done, and of how many.
        """
        folder = cache_folder(dataset, backbone.key)
        missing = [camera for camera in backbone.cameras if camera not in dataset.cameras]
        if missing:
            raise MismatchError(f"{dataset.root} has no camera {missing[0]!r}; it has {', '.join(dataset.cameras)}")
        _write_shared(dataset, backbone, folder)
        todo = [index for index in range(len(dataset)) if _stale(dataset, folder, index)]
        done = len(dataset) - len(todo)
        for _ in _encode_all(dataset, backbone, folder, todo, processes):
            done += 1
            if progress is not None:
                progress(done, len(dataset))
        return cls(dataset, backbone.key)

    def _check_episodes(self) -> None:
        total = len(self.dataset)
        missing = [index for index in range(total) if not _episode_path(self.folder, index).exists()]
        if missing:
            raise DataError(f"{self.folder} lacks {len(missing)} of {total} episodes; complete it with `lamp cache`")
        for index in range(total):
            if _stale(self.dataset, self.folder, index):
                raise MismatchError(
                    f"{_episode_path(self.folder, index)} was made from other data than episode {index} now holds; "
                    "bring it up to date with `lamp cache`"
                )

    def _read_shared(self) -> None:
        tensors, metadata = _load(self.folder / SHARED)
        instructions = json.loads(metadata["instructions"])
        absent = [task for task in self.dataset.tasks if task not in instructions]
        if absent:
            raise MismatchError(f"{self.folder} lacks the instruction {absent[0]!r}; complete it with `lamp cache`")
        self._text, self._text_mask = tensors["text"], tensors["text_mask"]
        self._constant = {camera: tensors[f"constant.{camera}"] for camera in self.cameras}
        of_episode = [instructions.index(episode.task) for episode in self.dataset.episodes]
        self._instruction = np.array(of_episode)[self.index.episode]

    @cached_property
    def tokens(self) -> int:
        """Tokens of one observation."""
        return sum(len(constant) for constant in self._constant.values()) + self._text.shape[1]

    def __len__(self) -> int:
        """Number of rows: fresh frames of the dataset."""
        return len(self.index.frame)

    def _episode(self, episode: int) -> dict[str, Tensor]:
        if episode not in self._mapped:
            self._mapped[episode] = _load(_episode_path(self.folder, episode))[0]
        return self._mapped[episode]

    def encoded(self, rows: Int64[np.ndarray, "b"]) -> Encoded:
        """Assembles the tokens of some rows of `index`: cameras in order, then the instruction."""
        tokens = torch.empty(len(rows), self.tokens, self.width)
        mask = torch.ones(len(rows), self.tokens, dtype=torch.bool)
        start = 0
        order = np.argsort(self.index.episode[rows], kind="stable")
        episodes, cuts = np.unique(self.index.episode[rows][order], return_index=True)
        places = np.split(order, cuts[1:])
        for camera, constant in self._constant.items():
            part = tokens[:, start : start + len(constant)]
            part[:] = constant
            for episode, place in zip(episodes.tolist(), places, strict=True):
                local = torch.from_numpy(rows[place] - self.index.first[episode])
                part[torch.from_numpy(place), :, self._varying] = self._episode(episode)[camera][local].float()
            start += len(constant)
        instruction = torch.from_numpy(self._instruction[rows])
        tokens[:, start:], mask[:, start:] = self._text[instruction], self._text_mask[instruction]
        return Encoded(tokens=tokens, mask=mask)


def cache_folder(dataset: LeRobotDataset, key: str) -> Path:
    """Where a backbone's features of a dataset are."""
    return dataset.root / "features" / key


def _episode_path(folder: Path, episode: int) -> Path:
    return folder / f"episode-{episode:06d}.safetensors"


def _read_manifest(folder: Path, key: str) -> dict[str, Any]:
    if not (folder / MANIFEST).exists():
        others = sorted(path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}"))
        raise DataError(
            f"there are no features of the backbone {key} in {folder.parent}; make them with `lamp cache`. "
            f"Present: {', '.join(others) or 'none'}."
        )
    manifest = read_json(folder / MANIFEST, "feature cache's description")
    if manifest.get("format") != "lamp-features" or manifest.get("version") != 1 or manifest.get("key") != key:
        raise MismatchError(
            f"{folder} holds {manifest.get('format')} {manifest.get('version')} of the backbone {manifest.get('key')}; "
            f"expected lamp-features 1 of {key}"
        )
    return manifest


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Maps a file into memory; tensors are read as they are used."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read {path} ({error}); remove it and run `lamp cache` again") from None


def _stale(dataset: LeRobotDataset, folder: Path, episode: int) -> bool:
    """Whether an episode's features are missing, unreadable, or made from something else."""
    try:
        with safe_open(_episode_path(folder, episode), framework="pt") as file:
            return (file.metadata() or {}).get("fingerprint") != dataset.fingerprint(episode)
    except (SafetensorError, OSError):
        return True


@torch.no_grad()
def _write_shared(dataset: LeRobotDataset, backbone: FeatureBackbone, folder: Path) -> None:
    """Writes what all episodes share: the description, the instructions' tokens, the constant channels."""
    varying, constant = slice(0, backbone.width), {}
    if isinstance(backbone, PartlyConstant):
        varying = slice(*backbone.varying_channels.indices(backbone.width)[:2])
        constant = {camera: backbone.constant_tokens(camera) for camera in backbone.cameras}
    else:
        for camera in backbone.cameras:
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
        "backbone": getattr(backbone, "description", {}),
        "cameras": list(backbone.cameras),
        "width": backbone.width,
        "varying": [varying.start, varying.stop],
    }
    write_json(folder / MANIFEST, manifest)


@torch.no_grad()
def _encode_episode(dataset: LeRobotDataset, backbone: FeatureBackbone, folder: Path, episode: int) -> None:
    varying = backbone.varying_channels if isinstance(backbone, PartlyConstant) else slice(None)
    frames = np.flatnonzero(dataset.fresh(episode))
    found: dict[str, Tensor] = {}
    for camera in backbone.cameras:
        images = torch.from_numpy(dataset.frames(camera, episode, frames))
        parts = [backbone.image_tokens(camera, part)[..., varying].half().cpu() for part in images.split(IMAGES_AT_ONCE)]
        found[camera] = torch.cat(parts).contiguous()
        if not found[camera].isfinite().all():
            raise DataError(f"the backbone's tokens of episode {episode}, camera {camera}, do not fit into 16-bit floats")
    with atomic_path(_episode_path(folder, episode)) as path:
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


def _encode_all(
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
            raise LampError("a worker process died while computing features (out of memory?); use fewer processes") from None
        finally:
            pool.shutdown(cancel_futures=True)
