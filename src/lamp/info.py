"""`lamp info`: recognises LaMP's folders by their files and says what is in them, without reading weights or pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamp.errors import DataError
from lamp.files import read_json, read_lines_json
from lamp.hub import HubId

if TYPE_CHECKING:
    from lamp.data.cache_report import CacheEntry
    from lamp.train.description import Description


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of folder: the files that tell it, and what describes it."""

    name: str
    marks: tuple[str, ...]
    """Any of these files or folders inside tells the kind."""
    describe: Callable[[Path], dict[str, Any]]

    def fits(self, path: Path) -> bool:
        return any((path / mark).exists() for mark in self.marks)


def _dataset(path: Path) -> dict[str, Any]:
    from lamp.data.cache_report import list_caches
    from lamp.data.lerobot import LeRobotDataset
    from lamp.data.manifest import FEATURES

    found = LeRobotDataset(path).describe()
    caches = [cache_line(entry) for entry in list_caches(path / FEATURES)]
    found |= {"caches": caches} if caches else {}
    return found | {"inside": {str(folder.relative_to(path)): name for name, folder in _inside(path)}}


def cache_line(entry: CacheEntry) -> dict[str, Any]:
    """One cache for people: its name, size, and what it is of."""
    said, line = entry.description, {"name": entry.name, "kind": entry.kind, "episodes": entry.episodes}
    line["megabytes"] = round(entry.size / 1e6, 1)
    if entry.kind == "features":
        cameras = ", ".join(f"{name} at {size} px" for name, size in said.get("cameras", []))
        layer = f", {said['layer']}" if "layer" in said else ""
        line["of"] = f"{said.get('model') or said.get('kind')}{layer}, {cameras}"
        line["recipes"] = ", ".join(recipes_served(said)) or "none by name"
    elif entry.kind == "augmented views":
        line["of"] = f"{said.get('views')} views, seed {said.get('seed')}"
    else:
        settings = said.get("settings", {})
        line["of"] = f"Motion Expert {str(settings.get('motion weights'))[:12]}, seed {settings.get('seed')}"
    return line


def _scene_flow(path: Path) -> dict[str, Any]:
    from lamp.sceneflow.store import SceneFlowStore

    return SceneFlowStore(path).describe()


def _features(path: Path) -> dict[str, Any]:
    from lamp.data.cache_report import describe_cache

    found = describe_cache(path)
    return found | {"recipes": recipes_served(found.get("backbone") or {})}


def recipes_served(backbone: Mapping[str, Any]) -> list[str]:
    """The recipes that can use a cache of a backbone's features, by what the cache says of the backbone's settings."""
    from lamp.recipes import RECIPES, Recipe, TrainingRecipe, recipe
    from lamp.train.backbones import settings_said

    found = []
    for name in RECIPES:
        made = recipe(name)
        if isinstance(made, Recipe | TrainingRecipe):
            asked = settings_said(made.backbone)
            if all(backbone.get(key) == value for key, value in asked.items()):
                found.append(name)
    return found


def _checkpoint(path: Path) -> dict[str, Any]:
    from lamp.train.description import read_description

    return _described(read_description(path))


def _described(found: Description) -> dict[str, Any]:
    from lamp.configuration import to_json
    from lamp.model.counting import expected_parameters

    described = to_json(found)
    shown = (
        "step",
        "averaged",
        "exactly_reproducible",
        "flow",
        "policy",
        "backbone",
        "data",
        "motion_source",
        "started_from",
        "code",
    )
    return {
        "trained": {"motion": "Motion Expert (Stage 1)", "policy": "guidance and Action Expert (Stage 2)"}[found.kind],
        "parameters": dict(expected_parameters(found.model)),
        **{key: described[key] for key in shown},
        "time convention": found.time_convention,
        "model": described["model"],
        "training": described["training"],
    }


def _run(path: Path) -> dict[str, Any]:
    rows = read_lines_json(path / "metrics.jsonl")
    return {"last metrics": rows[-1] if rows else None, "checkpoint": _checkpoint(path)}


def _evaluation(path: Path) -> dict[str, Any]:
    from lamp.benchmark import robustness
    from lamp.benchmark.episodes import read_records
    from lamp.benchmark.tables import tabulate, to_json

    manifest = read_json(path / "run.json", "evaluation manifest")
    records = read_records(path)
    return {
        "episodes": f"{len(records)} of {manifest['planned']}",
        "settings": manifest["config"],
        "conditions": manifest["conditions"],
        "results": to_json(tabulate(records)) if records else [],
        "perturbed": robustness.to_json(robustness.robustness(records)),
    }


KINDS = (
    Kind(name="dataset", marks=("meta/info.json",), describe=_dataset),
    Kind(name="evaluation", marks=("run.json",), describe=_evaluation),
    Kind(name="training run", marks=("checkpoint/lamp.json",), describe=_run),
    Kind(name="checkpoint", marks=("model.safetensors",), describe=_checkpoint),
    Kind(name="scene-flow store", marks=("zarr.json",), describe=_scene_flow),
    Kind(name="feature cache", marks=("manifest.json",), describe=_features),
)


def describe(path: Path) -> dict[str, Any]:
    """Says what a folder, or a checkpoint on the hub, is and what is in it, as JSON values.

    Raises:
        DataError: The folder is missing, damaged, or none that LaMP writes; or a hub does not give the checkpoint.
    """
    hub = None if path.exists() else HubId.parse(str(path))
    if hub is not None:
        return _on_the_hub(hub)
    if not path.is_dir():
        raise DataError(f"no folder at {path}; expected one that a lamp command wrote")
    for kind in KINDS:
        if kind.fits(path):
            return {"kind": kind.name, "path": str(path), **kind.describe(path)}
    known = ", ".join(kind.name for kind in KINDS)
    inside = [f"{folder} ({name})" for name, folder in _inside(path)]
    hint = f"; it holds {', '.join(inside[:6])}" if inside else ""
    raise DataError(f"{path} is none of LaMP's folders ({known}){hint}")


def _on_the_hub(hub: HubId) -> dict[str, Any]:
    from lamp.train.description import parse_description
    from lamp.train.publishing import describe_remote

    file, commit = describe_remote(hub)
    return {"kind": "checkpoint", "path": hub.name, "commit": commit, **_described(parse_description(file))}


def _inside(path: Path, depth: int = 2) -> Iterator[tuple[str, Path]]:
    """Finds recognisable folders up to two levels down; what is inside one of them is its own affair."""
    for folder in sorted(path.iterdir()) if depth else ():
        if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("."):
            kind = next((kind for kind in KINDS if kind.fits(folder)), None)
            if kind is not None:
                yield kind.name, folder
            else:
                yield from _inside(folder, depth - 1)


def to_text(value: Mapping[str, Any]) -> str:
    """Lays a description out for a terminal: one entry a line, nested entries indented."""
    return "\n".join(_lines(value, ""))


def _lines(value: Mapping[str, Any], indent: str) -> Iterator[str]:
    width = max((len(str(key)) for key, item in value.items() if not _nested(item)), default=0)
    for key, item in value.items():
        if not _nested(item):
            yield f"{indent}{str(key) + ':':<{width + 1}} {_short(item)}"
        elif isinstance(item, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(item, indent + "  ")
        else:
            yield f"{indent}{key}:"
            for entry in item:
                entries = list(_lines(entry, indent + "    "))
                yield from [f"{indent}  - {entries[0].lstrip()}", *entries[1:]]


def _nested(item: Any) -> bool:
    if isinstance(item, Mapping):
        return bool(item)
    return isinstance(item, list) and any(isinstance(entry, Mapping) and entry for entry in item)


def _short(item: Any) -> str:
    if item is None:
        return "-"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, list):
        return ", ".join(map(_short, item)) if item else "-"
    if isinstance(item, Mapping):
        return "-"
    return str(item)
