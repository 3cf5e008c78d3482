"""What is in a feature cache: told from its files alone, or compared with the dataset after reading every byte."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp.data.feature_store import VIEWS, VIEWS_MANIFEST, FeatureStore
from lamp.data.hidden_states import HIDDEN, HIDDEN_MANIFEST
from lamp.data.manifest import MANIFEST
from lamp.data.shards import Shards, State, read_header
from lamp.errors import DataError
from lamp.files import read_json

NAMED = 20
"""At most this many faults are named; all are counted."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in a cache."""

    folder: Path
    episodes: dict[str, int]
    """How many are current, missing, stale and so on."""
    faults: tuple[str, ...]
    """Each names its file; of left-out episodes too, which are no faults."""
    ok: bool
    """Every episode is current or was left out."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"ok": self.ok, "folder": str(self.folder), "episodes": self.episodes, "faults": list(self.faults)}


def check_store(store: FeatureStore, *, apart_from: tuple[int, ...] = ()) -> Report:
    """Reads all of a cache's shards and compares them with their checksums and with the dataset.

    Args:
        store: The cache.
        apart_from: Episodes that it need not have.
    """
    left_out = {*store.left_out(), *apart_from}
    counts: Counter[State] = Counter({State.LEFT_OUT: len(left_out)} if left_out else {})
    faults = [f"{store.pictures.left_out_path(episode)} (episode {episode}): left out" for episode in sorted(left_out)]
    for shards in (store.pictures, store.views):
        for episode in range(len(store.dataset)) if shards is not None else ():
            if shards is None or episode in left_out:
                continue
            state = shards.verify(episode)
            counts[state] += 1
            if state is not State.CURRENT:
                faults.append(_fault(shards, episode, state))
    more = [f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
    return Report(
        folder=store.folder,
        episodes={state.name.lower().replace("_", " "): count for state, count in counts.items()},
        faults=tuple(faults[:NAMED] + more),
        ok=set(counts) <= {State.CURRENT, State.LEFT_OUT},
    )


def _fault(shards: Shards, episode: int, state: State) -> str:
    return f"{shards.path(episode)} {state.value} ({shards.told(episode, state)})"


def describe_cache(folder: Path) -> dict[str, Any]:
    """A summary for people: which backbone, how many episodes, how large, in which format, and the views and z_m beside them."""
    manifest = read_json(folder / MANIFEST, "feature cache's description")
    views = [
        {"augmentation": read_json(path, "description of augmented views"), **_summary(path.parent)}
        for path in sorted(folder.glob(f"{VIEWS}/*/{VIEWS_MANIFEST}"))
    ]
    hidden = [
        {**read_json(path, "description of hidden states"), **_summary(path.parent)}
        for path in sorted(folder.glob(f"{HIDDEN}/*/{HIDDEN_MANIFEST}"))
    ]
    return manifest | _summary(folder) | ({"views": views} if views else {}) | ({"z_m": hidden} if hidden else {})


def _summary(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("episode-*.safetensors"))
    found: dict[str, Any] = {
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
        found["rounding error"] = rounding
    return found | ({"unreadable": unreadable[:NAMED]} if unreadable else {})
