"""Listing, checking and removing feature caches, augmented views, z_m and scene-flow stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from lamp.configuration import to_json
from lamp.data.feature_cache.manifest import HIDDEN, HIDDEN_MANIFEST, MANIFEST, VIEWS, VIEWS_MANIFEST, FeatureStore
from lamp.data.feature_cache.shards import ShardState, read_header
from lamp.data.feature_cache.work_sharing import LOCK_FILE, in_use
from lamp.errors import ConfigError, DataError, LampError
from lamp.files import locked, remove_folder
from lamp.json_files import read_json_as, read_json_object
from lamp.sceneflow.store import SceneFlowStore, lock_of
from lamp.sceneflow.stores import store_folders

NAMED = 20
"""At most this many faults are named; all are counted."""


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """The outcome of checking a cache."""

    folder: Path
    episodes: dict[str, int]
    """How many are current, missing, stale and so on."""
    faults: tuple[str, ...]
    """Each names its file; of left-out episodes too, which are no faults."""
    ok: bool
    """Every episode is current or was left out."""

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "folder": str(self.folder), "episodes": self.episodes, "faults": list(self.faults)}


def check_store(store: FeatureStore, *, apart_from: tuple[int, ...] = ()) -> CacheReport:
    """Reads all of a cache's shards and compares them with their checksums and with the dataset.

    Args:
        apart_from: Episodes that it need not have.
    """
    left_out = {*store.left_out(), *apart_from}
    counts: Counter[ShardState] = Counter({ShardState.LEFT_OUT: len(left_out)} if left_out else {})
    faults = [f"{store.pictures.left_out_path(episode)} (episode {episode}): left out" for episode in sorted(left_out)]
    for shards in (store.pictures, store.views):
        for episode in range(len(store.dataset)) if shards is not None else ():
            if shards is None or episode in left_out:
                continue
            state = shards.verify(episode)
            counts[state] += 1
            if state is not ShardState.CURRENT:
                faults.append(shards.describe(episode, state))
    more = [f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
    return CacheReport(
        folder=store.folder,
        episodes={state.name.lower().replace("_", " "): count for state, count in counts.items()},
        faults=tuple(faults[:NAMED] + more),
        ok=set(counts) <= {ShardState.CURRENT, ShardState.LEFT_OUT},
    )


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One of the caches of a dataset, or a part of one that can be removed by itself."""

    name: str
    """The folder, relative to that of all caches, or of scene flow to the dataset's."""
    kind: Literal["features", "augmented views", "z_m", "scene flow"]
    episodes: int
    size: int
    """Without the parts that have an entry of their own. [bytes]"""
    description: dict[str, Any]
    """Of the backbone, the augmentation, what z_m depends on, or the settings of scene flow."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Listed(TypedDict, total=False):
    """What a list of caches shows of a description, of whichever version."""

    backbone: dict[str, Any] | None


def list_caches(caches: Path) -> list[CacheEntry]:
    """What is in the folder of a dataset's caches, each followed by its views and z_m.

    Raises:
        DataError: A description is damaged.
    """
    entries = []
    for path in sorted(caches.glob(f"*/{MANIFEST}")):
        manifest, folder = read_json_as(path, Listed, "feature cache's description"), path.parent
        parts = [
            *(_entry(caches, mark, "augmented views") for mark in sorted(folder.glob(f"{VIEWS}/*/{VIEWS_MANIFEST}"))),
            *(_entry(caches, mark, "z_m") for mark in sorted(folder.glob(f"{HIDDEN}/*/{HIDDEN_MANIFEST}"))),
        ]
        whole = _entry(caches, path, "features")
        size = whole.size - sum(part.size for part in parts)
        entries += [replace(whole, size=size, description=manifest.get("backbone") or {}), *parts]
    return entries


def list_stores(data: Path) -> list[CacheEntry]:
    """The scene-flow stores of a dataset, the first one first; one that is damaged is there without a description."""
    entries = []
    for folder in store_folders(data):
        try:
            described = to_json(SceneFlowStore(folder).description)
        except LampError:
            described = {}
        count = len(list(folder.glob("episode-[0-9]*")))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        entries.append(
            CacheEntry(name=folder.name, kind="scene flow", episodes=count, size=size, description=described)
        )
    return entries


def _entry(caches: Path, mark: Path, kind: Literal["features", "augmented views", "z_m"]) -> CacheEntry:
    folder = mark.parent
    return CacheEntry(
        name=folder.relative_to(caches).as_posix(),
        kind=kind,
        episodes=len(list(folder.glob("episode-*.safetensors"))),
        size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        description=read_json_object(mark, f"description of {kind}"),
    )


def remove_caches(caches: Path, names: Sequence[str], data: Path | None = None) -> list[CacheEntry]:
    """Removes some caches with all their parts, or single parts; nothing, where one of the names is wrong.

    Args:
        data: The dataset, whose scene-flow stores can then be named too.
        names: As `list_caches` gives them; of each, the beginning is enough where it is the only one that begins so.

    Returns:
        What was removed.

    Raises:
        ConfigError: There is no such cache, or there are several.
        DataError: Another process is at work on one.
    """
    stores = [] if data is None else list_stores(data)
    present = [*list_caches(caches), *stores]
    chosen = [_named(name, present, caches) for name in names]
    names_of_stores = {entry.name for entry in chosen if entry.kind == "scene flow"}
    for store in [data / name for name in sorted(names_of_stores)] if data is not None else []:
        with locked(lock_of(store), f"{store} is being built by another process; wait for it, or stop it first"):
            pass
    for entry in chosen:
        if entry.name in names_of_stores:
            continue
        locks = (caches / entry.name).rglob(LOCK_FILE)
        if any(in_use(path) for path in locks):
            raise DataError(f"{caches / entry.name} is being filled by another process; wait for it, or stop it first")
    removed = [entry for entry in present if any(_is_in(entry.name, one.name) for one in chosen)]
    for entry in chosen:
        within = data if data is not None and entry.kind == "scene flow" else caches
        remove_folder(within / entry.name)
    return removed


def _is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")


def _named(name: str, present: Sequence[CacheEntry], caches: Path) -> CacheEntry:
    wanted = name.rstrip("/").removesuffix("...")
    exact = [entry for entry in present if entry.name == wanted]
    near = [entry for entry in present if wanted and entry.name.startswith(wanted)]
    # A cache's own name begins the names of its parts.
    whole = [
        entry for entry in near if not any(other is not entry and _is_in(entry.name, other.name) for other in near)
    ]
    matching = exact or whole
    if len(matching) == 1:
        return matching[0]
    have = ", ".join(entry.name for entry in (matching or present)) or "none"
    raise ConfigError(
        f"{len(matching) or 'no'} caches in {caches} are called {name!r}; expected one of: {have} (lamp cache list)"
    )


def describe_cache(folder: Path) -> dict[str, Any]:
    """A summary for people: which backbone, how many episodes, how large, in which format, and the views and z_m beside them."""
    manifest = read_json_object(folder / MANIFEST, "feature cache's description")
    views = [
        {"augmentation": read_json_object(path, "description of augmented views"), **_summary(path.parent)}
        for path in sorted(folder.glob(f"{VIEWS}/*/{VIEWS_MANIFEST}"))
    ]
    hidden = [
        {**read_json_object(path, "description of hidden states"), **_summary(path.parent)}
        for path in sorted(folder.glob(f"{HIDDEN}/*/{HIDDEN_MANIFEST}"))
    ]
    return manifest | _summary(folder) | ({"views": views} if views else {}) | ({"z_m": hidden} if hidden else {})


def _summary(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("episode-*.safetensors"))
    summary: dict[str, Any] = {
        "episodes": len(files),
        "left out": len(list(folder.glob("episode-*.left-out.json"))),
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
    }
    unreadable, rounding = [], 0.0
    for file in files:
        try:
            rounding = max(rounding, float(read_header(file).get("rounding", 0.0)))
        except DataError:
            unreadable.append(file.name)
    if rounding:
        summary["rounding error"] = rounding
    return summary | ({"unreadable": unreadable[:NAMED]} if unreadable else {})
