"""What of an episode a cache of its pictures depends on, as a hash: the pictures, which of them are fresh, and the instructions.

Pictures are known by their encoded bytes, wherever in which file these are: an episode stays the same when others come after it
in the same file, when the files are arranged anew, or when only its actions change. Files are read through once; what was found
is kept beside the caches until a file's size or time changes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.video import packet_digests
from lamp.data.stored_images import image_digests
from lamp.errors import DataError
from lamp.files import read_json, write_json

PICTURES = ".pictures.json"
FORMAT, VERSION = "lamp-pictures", 1


class EpisodeFingerprints:
    """Hashes of a dataset's episodes, as a cache of some of its cameras sees them."""

    def __init__(self, dataset: LeRobotDataset, cameras: Sequence[str], folder: Path) -> None:
        """
        Args:
            dataset: The demonstrations.
            cameras: Those that the cache is of.
            folder: Where hashes of pictures are kept, if it is there and can be written to.
        """
        self._dataset, self._cameras, self._path = dataset, tuple(sorted(cameras)), folder / PICTURES
        self._found: dict[int, str] = {}
        self._files: dict[str, dict[str, Any]] | None = None
        self._spans: dict[tuple[str, Path], list[tuple[int, int]]] | None = None

    def __getitem__(self, episode: int) -> str:
        if episode not in self._found:
            self.find([episode])
        return self._found[episode]

    def find(self, episodes: Collection[int]) -> None:
        """Finds the hashes of some episodes; of a file that has to be read, those of all its episodes."""
        read = False
        for episode in episodes:
            if episode in self._found:
                continue
            place = self._dataset.episode(episode)
            found = hashlib.sha256(f"{place.length} {self._dataset.told(episode)}".encode())
            found.update(np.packbits(self._dataset.fresh(episode)).tobytes())
            for camera in self._cameras:
                entry, new = self._of_file(camera, self._dataset.video_path(camera, episode))
                read = read or new
                first = place.videos[camera].first if camera in place.videos else place.row
                found.update(f"\n{camera} {entry.get(f'{first}+{place.length}', entry['state'])}".encode())
            self._found[episode] = found.hexdigest()[:16]
        if read and self._path.parent.is_dir():
            with contextlib.suppress(OSError):  # a cache on a read-only disk: found anew each time
                write_json(self._path, {"format": FORMAT, "version": VERSION, "files": self._files})

    def _of_file(self, camera: str, path: Path) -> tuple[dict[str, Any], bool]:
        """Hashes of the pictures in a file, by span of frames, and whether it had to be read for them."""
        if self._files is None:
            self._files = self._kept()
        name, state = self._name(camera, path), _state(path)
        known = self._files.get(name)
        if known is not None and known.get("state") == state:
            return known, False
        found = {"state": state}
        with contextlib.suppress(DataError):  # known by its size and time alone
            found |= self._read(camera, path)
        self._files[name] = found
        return found, True

    def _read(self, camera: str, path: Path) -> dict[str, str]:
        spans = self._spans_in(camera, path)
        feature = self._dataset.meta.cameras[camera]
        if feature.in_videos:
            numbers, digests = packet_digests(path, self._dataset.fps)
        else:
            digests = image_digests(path, feature.key, self._dataset.root)
            numbers = np.arange(len(digests))
        found = {}
        for first, length in spans:
            start, stop = np.searchsorted(numbers, [first, first + length]).tolist()
            found[f"{first}+{length}"] = hashlib.sha256(b"".join(digests[start:stop])).hexdigest()[:16]
        return found

    def _spans_in(self, camera: str, path: Path) -> list[tuple[int, int]]:
        """First picture and number of pictures of each episode in a file."""
        if self._spans is None:
            self._spans = {}
            for place in self._dataset.episodes:
                for name in self._cameras:
                    first = place.videos[name].first if name in place.videos else place.row
                    key = (name, self._dataset.video_path(name, place.index))
                    self._spans.setdefault(key, []).append((first, place.length))
        return self._spans[camera, path]

    def _kept(self) -> dict[str, dict[str, Any]]:
        try:
            found = read_json(self._path, "hashes of pictures") if self._path.is_file() else {}
            if (found.get("format"), found.get("version")) == (FORMAT, VERSION):
                return {str(name): dict(entry) for name, entry in found["files"].items()}
        except (DataError, AttributeError, KeyError, TypeError, ValueError):
            pass  # damaged: found anew
        return {}

    def _name(self, camera: str, path: Path) -> str:
        key, inside = self._dataset.meta.cameras[camera].key, path.is_relative_to(self._dataset.root)
        return f"{key} {path.relative_to(self._dataset.root) if inside else path}"


def _state(path: Path) -> str:
    """Tells one state of a file from another, without reading it."""
    if not path.is_file():
        return "missing"
    found = path.stat()
    return f"{found.st_size} bytes at {found.st_mtime_ns}"
