"""The index of a scene-flow store: what opening it needs of every episode, in one file rather than in each episode's own.

An entry holds as long as the description of its episode's folder is the same file: a folder is replaced whole. What is missing or
out of date is read from the episodes, so that the index may be removed, and stores of earlier versions have none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from lamp.files import atomic_path
from lamp.json_files import to_line

FILE_NAME = ".index.parquet"
VERSION = b"1"
SCHEMA = pa.schema(
    {
        "episode": pa.int64(),
        "camera": pa.string(),
        "bytes": pa.int64(),
        "mtime_ns": pa.int64(),
        "frames": pa.list_(pa.int32()),
        "made_from": pa.string(),
    },
    metadata={b"lamp-sceneflow-index": VERSION},
)


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """What is kept of one episode in one camera."""

    stamp: tuple[int, int]
    """Size and time of the episode's description. [bytes, ns]"""
    frames: Int[np.ndarray, " f"]
    made_from: Mapping[str, Any]


class StoreIndex:
    """The entries of a store, read when the first one is asked for."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._entries: dict[tuple[int, str], IndexEntry] | None = None
        self._changed = False

    def get(self, episode: int, camera: str, folder: Path) -> IndexEntry | None:
        """An episode's entry, where there is one and it still holds."""
        if self._entries is None:
            self._entries = self._read()
        entry = self._entries.get((episode, camera))
        return entry if entry is not None and entry.stamp == _stamp(folder) else None

    def add(
        self, episode: int, camera: str, folder: Path, frames: Int[np.ndarray, " f"], made_from: Mapping[str, Any]
    ) -> IndexEntry:
        """Adds or replaces an entry."""
        if self._entries is None:
            self._entries = self._read()
        entry = IndexEntry(stamp=_stamp(folder), frames=frames, made_from=made_from)
        self._entries[episode, camera] = entry
        self._changed = True
        return entry

    def keep(self) -> None:
        """Writes what was added, where the disk can be written to."""
        if not self._changed or self._entries is None:
            return
        rows = sorted(self._entries.items())
        table = pa.table(
            {
                "episode": [episode for (episode, _), _ in rows],
                "camera": [camera for (_, camera), _ in rows],
                "bytes": [entry.stamp[0] for _, entry in rows],
                "mtime_ns": [entry.stamp[1] for _, entry in rows],
                "frames": [entry.frames for _, entry in rows],
                "made_from": [to_line(entry.made_from) for _, entry in rows],
            },
            schema=SCHEMA,
        )
        with contextlib.suppress(OSError):
            with atomic_path(self._path) as staged:
                pq.write_table(table, staged)
            self._changed = False

    def _read(self) -> dict[tuple[int, str], IndexEntry]:
        try:
            table = pq.read_table(self._path, memory_map=False)
            if (table.schema.metadata or {}).get(b"lamp-sceneflow-index") != VERSION:
                return {}
            columns = {name: table[name].to_pylist() for name in SCHEMA.names if name != "frames"}
            lists = table["frames"].combine_chunks()
            values, ends = lists.flatten().to_numpy().astype(np.int32), lists.value_lengths().to_numpy().cumsum()
            frames = np.split(values, ends[:-1]) if len(ends) else []
            origins: dict[str, Any] = {text: json.loads(text) for text in set(columns["made_from"])}
            return {
                (episode, camera): IndexEntry(stamp=(size, time), frames=of_entry, made_from=origins[text])
                for episode, camera, size, time, of_entry, text in zip(
                    *(columns[name] for name in ("episode", "camera", "bytes", "mtime_ns")),
                    frames,
                    columns["made_from"],
                    strict=True,
                )
            }
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError):
            return {}  # there is none, or it is damaged: what it said is read from the episodes


def _stamp(folder: Path) -> tuple[int, int]:
    try:
        found = (folder / "zarr.json").stat()
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns
