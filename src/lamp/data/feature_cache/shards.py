"""Shards: the files of a store, one an episode. Each is whole or absent, and records its source and its contents.

An episode is identified by a hash of what its features depend on: its pictures as encoded in the files, which of its frames are
fresh, and its instruction. It stays the same where a dataset grows or only its actions change. Files are read once; their hashes
are kept beside the caches until a file's size or time changes.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lamp.checksums import with_own
from lamp.data.lerobot.format import INFO_PATH
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.video import packet_digests
from lamp.data.stored_images import image_digests
from lamp.errors import DataError, unreadable
from lamp.files import atomic_path
from lamp.json_files import read_json_object, write_json

FEATURES = "features"
"""The folder of a dataset that its feature caches are in, unless they are somewhere else."""
PICTURES = ".pictures.json"
FORMAT, VERSION = "lamp-pictures", 1


class EpisodeFingerprints:
    """Hashes of a dataset's episodes, as a cache of some of its cameras sees them."""

    def __init__(self, dataset: LeRobotDataset, cameras: Sequence[str], folder: Path) -> None:
        """
        Args:
            cameras: Those that the cache is of.
            folder: Where hashes of pictures are kept, if it is there and can be written to.
        """
        self._dataset, self._cameras, self._path = dataset, tuple(sorted(cameras)), folder / PICTURES
        self._fingerprints: dict[int, str] = {}
        self._files: dict[str, dict[str, Any]] | None = None
        self._spans: dict[tuple[str, Path], list[tuple[int, int]]] | None = None

    def __getitem__(self, episode: int) -> str:
        if episode not in self._fingerprints:
            self.find([episode])
        return self._fingerprints[episode]

    def find(self, episodes: Collection[int]) -> None:
        """Computes the hashes of some episodes; of a file that has to be read, those of all its episodes."""
        read = False
        for episode in episodes:
            if episode in self._fingerprints:
                continue
            place = self._dataset.episode(episode)
            digest = hashlib.sha256(f"{place.length} {self._dataset.instruction_key(episode)}".encode())
            digest.update(np.packbits(self._dataset.fresh(episode)).tobytes())
            for camera in self._cameras:
                entry, new = self._of_file(camera, self._dataset.video_path(camera, episode))
                read = read or new
                span = f"{place.first_picture(camera)}+{place.length}"
                digest.update(f"\n{camera} {entry.get(span, entry['state'])}".encode())
            self._fingerprints[episode] = digest.hexdigest()[:16]
        if read and self._path.parent.is_dir():
            with contextlib.suppress(OSError):  # a cache on a read-only disk: computed anew each time
                write_json(self._path, {"format": FORMAT, "version": VERSION, "files": self._files})

    def pictures(self, episode: int) -> dict[str, str]:
        """Hashes of an episode's pictures alone, by camera; of those that can be read."""
        self.find([episode])
        place, hashes = self._dataset.episode(episode), {}
        for camera in self._cameras:
            entry, _ = self._of_file(camera, self._dataset.video_path(camera, episode))
            if digest := entry.get(f"{place.first_picture(camera)}+{place.length}"):
                hashes[camera] = digest
        return hashes

    def _of_file(self, camera: str, path: Path) -> tuple[dict[str, Any], bool]:
        """Hashes of the pictures in a file, by span of frames, and whether it had to be read for them."""
        if self._files is None:
            self._files = self._kept()
        name, state = self._name(camera, path), _file_state(path)
        known = self._files.get(name)
        if known is not None and known.get("state") == state:
            return known, False
        entry = {"state": state}
        with contextlib.suppress(DataError):  # known by its size and time alone
            entry |= self._read(camera, path)
        self._files[name] = entry
        return entry, True

    def _read(self, camera: str, path: Path) -> dict[str, str]:
        spans = self._spans_in(camera, path)
        feature = self._dataset.meta.cameras[camera]
        if feature.in_videos:
            numbers, digests = packet_digests(path, self._dataset.fps)
        else:
            digests = image_digests(path, feature.key, self._dataset.root)
            numbers = np.arange(len(digests))
        hashes = {}
        for first, length in spans:
            start, stop = np.searchsorted(numbers, [first, first + length]).tolist()
            hashes[f"{first}+{length}"] = hashlib.sha256(b"".join(digests[start:stop])).hexdigest()[:16]
        return hashes

    def _spans_in(self, camera: str, path: Path) -> list[tuple[int, int]]:
        """First picture and number of pictures of each episode in a file."""
        if self._spans is None:
            self._spans = {}
            for place in self._dataset.episodes:
                for name in self._cameras:
                    key = (name, self._dataset.video_path(name, place.index))
                    self._spans.setdefault(key, []).append((place.first_picture(name), place.length))
        return self._spans[camera, path]

    def _kept(self) -> dict[str, dict[str, Any]]:
        try:
            stored = read_json_object(self._path, "hashes of pictures") if self._path.is_file() else {}
            if (stored.get("format"), stored.get("version")) == (FORMAT, VERSION):
                return {str(name): dict(entry) for name, entry in stored["files"].items()}
        except (DataError, AttributeError, KeyError, TypeError, ValueError):
            pass  # damaged: computed anew
        return {}

    def _name(self, camera: str, path: Path) -> str:
        key, inside = self._dataset.meta.cameras[camera].key, path.is_relative_to(self._dataset.root)
        return f"{key} {path.relative_to(self._dataset.root) if inside else path}"


def picture_hashes(data: Path, cameras: Sequence[str]) -> Callable[[int], dict[str, str]] | None:
    """Finds the pictures of a dataset's episodes, for `lamp.sceneflow.build`; None where it has none of these cameras."""
    if not (data / INFO_PATH).is_file():
        return None
    dataset = LeRobotDataset(data)
    shown = [camera for camera in cameras if camera in dataset.cameras]
    fingerprints = EpisodeFingerprints(dataset, shown, data / FEATURES)
    return (lambda episode: fingerprints.pictures(episode) if episode < len(dataset) else {}) if shown else None


def _file_state(path: Path) -> str:
    """Identifies a state of a file without reading it."""
    if not path.is_file():
        return "missing"
    state = path.stat()
    return f"{state.st_size} bytes at {state.st_mtime_ns}"


FULL = ("os error 28", "os error 122", "os error 27")
"""safetensors' messages for: no space left, quota exceeded, file too large."""


class ShardState(enum.Enum):
    """The state of an episode's shard."""

    CURRENT = "is current"
    MISSING = "is missing"
    FEWER = "holds fewer views or draws than requested"
    STALE = "was made from other data than the episode now holds"
    CORRUPT = "is not a whole file"
    LEFT_OUT = "was left out, since its pictures cannot be read"


@dataclass(frozen=True)
class Shards:
    """A store's shards: `episode-000000.safetensors` and so on."""

    dataset: LeRobotDataset
    folder: Path
    least: Mapping[str, int] = field(default_factory=dict)
    """How many views, or draws, each is to hold at least."""
    fingerprints: EpisodeFingerprints | None = None
    """What identifies the episodes; None: computed here, over all of the dataset's cameras."""

    @cached_property
    def _fingerprints(self) -> EpisodeFingerprints:
        return self.fingerprints or EpisodeFingerprints(self.dataset, self.dataset.cameras, self.folder)

    def _is_of(self, episode: int, fingerprint: str | None) -> bool:
        """Whether something was made from what an episode now holds."""
        # The latter is what versions before 0.2 wrote: it changes whenever a file does that the episode shares with others.
        return fingerprint is not None and (
            fingerprint == self._fingerprints[episode] or fingerprint == self.dataset.fingerprint(episode)
        )

    def path(self, episode: int) -> Path:
        """An episode's shard."""
        return self.folder / f"episode-{episode:06d}.safetensors"

    def left_out_path(self, episode: int) -> Path:
        """The note in place of the shard of an episode whose pictures cannot be read, with the reason."""
        return self.folder / f"episode-{episode:06d}.left-out.json"

    def state(self, episode: int) -> ShardState:
        """The state of a shard, by its header alone; `verify` reads the rest."""
        if not self.path(episode).is_file():
            path = self.left_out_path(episode)
            note = read_json_object(path, "note of an episode that was left out") if path.is_file() else {}
            return ShardState.LEFT_OUT if self._is_of(episode, note.get("fingerprint")) else ShardState.MISSING
        try:
            header = read_header(self.path(episode))
        except DataError:
            return ShardState.CORRUPT
        if not self._is_of(episode, header.get("fingerprint")):
            return ShardState.STALE
        enough = all(int(header.get(name, 0)) >= wanted for name, wanted in self.least.items())
        return ShardState.CURRENT if enough else ShardState.FEWER

    def describe(self, episode: int, state: ShardState) -> str:
        """A shard's file, state and episode, in words; of a stale one, what differs."""
        why = ""
        if state is ShardState.STALE:
            stored = read_header(self.path(episode)).get("fingerprint")
            why = f": fingerprint {stored} stored, {self._fingerprints[episode]} now"
        return f"{self.path(episode)} {state.value} (episode {episode}{why})"

    def verify(self, episode: int) -> ShardState:
        """The same after reading the whole shard and comparing it with its own checksum."""
        state = self.state(episode)
        if state in (ShardState.CURRENT, ShardState.FEWER):
            tensors, header = load_mapped(self.path(episode))
            if header.get("sha256") not in (None, content_hash(tensors)):
                return ShardState.CORRUPT
        return state

    def leave_out(self, episode: int, file: Path, reason: str) -> None:
        """Notes that an episode's pictures cannot be read."""
        note = {"file": str(file), "reason": reason, "fingerprint": self._fingerprints[episode]}
        with one_error_when_full(self.folder):
            write_json(self.left_out_path(episode), note)

    def write(self, episode: int, tensors: Mapping[str, Tensor], **header: str) -> None:
        """Writes a shard in place of what was there, with further entries of its header.

        Raises:
            DataError: The disk is full; nothing half-written stays.
        """
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        header = {"fingerprint": self._fingerprints[episode], "sha256": content_hash(whole), **header}
        with one_error_when_full(self.folder), atomic_path(self.path(episode)) as path:
            save_file(whole, path, metadata=with_own(header))
        self.left_out_path(episode).unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, str]:
    """A shard's metadata.

    Raises:
        DataError: It is no whole file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from None


def load_mapped(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Maps a file into memory; tensors are read as they are used.

    Raises:
        DataError: It is no whole file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from None


def _corrupt(path: Path, error: Exception) -> Exception:
    again = f"cannot read {path} ({error}): it is cut short or corrupt; run `lamp cache features` again"
    return unreadable(path, error, DataError(again))


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors' names, types, shapes and values, wherever they are and in whichever order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def one_error_when_full(folder: Path) -> Iterator[None]:
    """Turns any library's error of a full disk into one that names the folder.

    Raises:
        DataError: It is.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if not any(words in str(error) or words == f"os error {number}" for words in FULL):
            raise
        raise DataError(
            f"no space left for {folder} ({in_bytes(_free(folder))} free); what is finished stays: free some and run the "
            "same command again, or write to another disk with --out"
        ) from None


def check_space(folder: Path, wanted: int) -> None:
    """
    Raises:
        DataError: As many bytes will not fit where the folder is.
    """
    free = _free(folder)
    if wanted > free:
        raise DataError(
            f"{folder} needs about {in_bytes(wanted)} more, and {in_bytes(free)} are free there; nothing was written: "
            "free some, or write to another disk with --out"
        )


def in_bytes(size: int) -> str:
    """A size for people: 4.1 GB."""
    return f"{size / 1e9:,.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _free(folder: Path) -> int:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    disk = os.statvfs(existing)
    return disk.f_bavail * disk.f_frsize
