"""One evaluation on several machines: each does the scenes of its shard, and the folders are merged afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamp.benchmark.episodes import EPISODES, Episode, EpisodeRecord, read_records
from lamp.benchmark.runs import FORMAT, MANIFEST, read_sessions, write_session
from lamp.errors import ConfigError, DataError
from lamp.files import atomic_write_text, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `index` of `count`: every `count`-th scene, with all conditions that meet it, so that they stay comparable."""

    index: int
    count: int

    def of(self, plan: Sequence[Episode]) -> list[Episode]:
        """Returns the shard's episodes, in order."""
        numbers: dict[tuple[Any, ...], int] = {}
        for episode in plan:
            numbers.setdefault(episode.scene, len(numbers))
        return [episode for episode in plan if numbers[episode.scene] % self.count == self.index]


def parse_shard(text: str) -> Shard:
    """Reads `0/4` to `3/4`; an empty text is the whole.

    Raises:
        ConfigError: The text is no such fraction.
    """
    if not text:
        return Shard(index=0, count=1)
    parts = text.split("/")
    if len(parts) == 2 and all(part.isdecimal() for part in parts) and int(parts[0]) < int(parts[1]):
        return Shard(index=int(parts[0]), count=int(parts[1]))
    raise ConfigError(f"shard {text!r}: expected such as '0/4', '1/4', '2/4', '3/4' for four machines")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What `lamp merge-evaluations` does."""

    shards: tuple[Path, ...]
    """Output folders of `lamp evaluate --shard ...`, all parts of one evaluation."""
    out: Path
    """Folder for the whole; `lamp evaluate` without --shard can go on with it."""


def merge(config: MergeConfig) -> int:
    """Joins the shards of an evaluation and returns the number of episodes.

    Raises:
        ConfigError: The folders are not all the shards of one evaluation, or `out` is not empty.
        DataError: A folder is none of an evaluation, or damaged.
    """
    if config.out.exists() and any(config.out.iterdir()):
        raise ConfigError(f"{config.out} is not empty; expected a new folder for the merged evaluation")
    manifests = {folder: _manifest(folder) for folder in config.shards}
    _check(manifests)
    records = [record for folder in config.shards for record in read_records(folder)]
    _check_none_twice(records)
    first = next(iter(manifests.values()))
    whole = {name: value for name, value in first["config"].items() if name != "shard"}
    planned = sum(int(manifest["planned"]) for manifest in manifests.values())
    facts = {**first["facts"], "merged": [str(folder) for folder in config.shards]}
    for folder in config.shards:
        if (folder / "videos").is_dir():
            shutil.copytree(folder / "videos", config.out / "videos", dirs_exist_ok=True)
    atomic_write_text(config.out / EPISODES, "".join(record.to_line() + "\n" for record in records))
    sessions = [session for folder in config.shards for session in read_sessions(folder)]
    for number, session in enumerate(sessions, start=1):
        write_session(config.out, replace(session, number=number))
    # Last: a folder without a manifest is no evaluation.
    write_json(config.out / MANIFEST, {**first, "config": whole, "planned": planned, "facts": facts})
    return len(records)


def _manifest(folder: Path) -> dict[str, Any]:
    found = read_json(folder / MANIFEST, "evaluation manifest")
    if found.get("format") != FORMAT:
        raise DataError(f"{folder / MANIFEST} is not the manifest of an evaluation")
    if "shard" not in found["config"]:
        raise ConfigError(f"{folder} is a whole evaluation; expected folders of `lamp evaluate --shard ...`")
    return found


def _check(manifests: Mapping[Path, Mapping[str, Any]]) -> None:
    if not manifests:
        raise ConfigError("no shards given; expected the folders of all of them")
    first_folder, first = next(iter(manifests.items()))
    for folder, manifest in manifests.items():
        for part in ("config", "conditions"):
            differing = [
                name
                for name in sorted(first[part].keys() | manifest[part].keys())
                if name != "shard" and first[part].get(name) != manifest[part].get(name)
            ]
            if differing:
                raise ConfigError(
                    f"{folder} and {first_folder} differ in {', '.join(differing)}: no shards of one evaluation"
                )
    shards = [parse_shard(manifest["config"]["shard"]) for manifest in manifests.values()]
    counts = {shard.count for shard in shards}
    if len(counts) > 1:
        raise ConfigError(
            f"shards of {' and of '.join(map(str, sorted(counts)))} parts were given; expected one division"
        )
    missing = set(range(counts.pop())) - {shard.index for shard in shards}
    if missing:
        names = ", ".join(f"{index}/{shards[0].count}" for index in sorted(missing))
        raise ConfigError(f"shards {names} are missing; expected all {shards[0].count}")


def _check_none_twice(records: Sequence[EpisodeRecord]) -> None:
    seen = set()
    for record in records:
        if record.key in seen:
            raise ConfigError(f"an episode is in two of the folders: {record.key}; give each shard once")
        seen.add(record.key)
