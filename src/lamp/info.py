"""`lamp info`: recognises LaMP's folders by their files and describes them without reading weights or images.

`--verify` reads everything and compares it with the checksums written beside it (`lamp.verification`).
"""

from __future__ import annotations

import difflib
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamp import checksums
from lamp.checksums import CHECKSUMS
from lamp.description_text import LINES, WIDTH, brief_lines, cut
from lamp.errors import DataError
from lamp.hub import HubId
from lamp.json_files import read_json_as, read_json_object, read_lines_json
from lamp.verification import (
    Verification,
    verify_checkpoint,
    verify_dataset,
    verify_evaluation,
    verify_other,
    verify_recording,
    verify_run,
    verify_scene_flow,
    verify_shards,
)

if TYPE_CHECKING:
    from lamp.data.feature_cache.report import CacheEntry
    from lamp.train.checkpoint_metadata import Description, StageEpisodes


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """One kind of folder: the file that identifies it, and how it is described and verified."""

    name: str
    marker: str
    """A file inside that identifies the kind; may be a glob pattern."""
    describe: Callable[[Path], dict[str, Any]]
    verify: Callable[[Path, Verification], None] | None
    """Reads all of it and records what is damaged; None where only the folders inside hold anything."""
    table: Callable[[Path], str] | None = None
    """Its results as a table for a terminal, for the kinds that have some."""

    def matches(self, path: Path) -> bool:
        return any(path.glob(self.marker)) if "*" in self.marker else (path / self.marker).exists()


def _describe_dataset(path: Path) -> dict[str, Any]:
    from lamp.data.feature_cache.report import list_caches, list_stores
    from lamp.data.feature_cache.shards import FEATURES
    from lamp.data.lerobot import LeRobotDataset

    description = LeRobotDataset(path).describe()
    caches = [cache_line(entry) for entry in (*list_caches(path / FEATURES), *list_stores(path))]
    description |= {"caches": caches} if caches else {}
    return description | {"inside": {str(folder.relative_to(path)): name for name, folder in _subfolders_of_kind(path)}}


def cache_line(entry: CacheEntry) -> dict[str, Any]:
    """One cache for people: its name, size, and what it is of."""
    described, line = entry.description, {"name": entry.name, "kind": entry.kind, "episodes": entry.episodes}
    line["megabytes"] = round(entry.size / 1e6, 1)
    if entry.kind == "features":
        cameras = ", ".join(f"{name} at {size} px" for name, size in described.get("cameras", []))
        layer = f", {described['layer']}" if "layer" in described else ""
        line["of"] = f"{described.get('model') or described.get('kind')}{layer}, {cameras}"
        line["recipes"] = ", ".join(recipes_using(described)) or "none by name"
    elif entry.kind == "scene flow":
        from lamp.sceneflow.stores import settings_of

        line["of"] = settings_of(described) if described else "damaged: it cannot be read"
    elif entry.kind == "augmented views":
        line["of"] = f"{described.get('views')} views, seed {described.get('seed')}"
    else:
        settings = described.get("settings", {})
        kind = "of the TRUE motion (oracle)" if settings.get("prior") == "oracle" else f"seed {settings.get('seed')}"
        line["of"] = f"Motion Expert {str(settings.get('motion weights'))[:12]}, {kind}"
    return line


def _describe_scene_flow(path: Path) -> dict[str, Any]:
    from lamp.sceneflow.store import SceneFlowStore

    return SceneFlowStore(path).describe()


def _describe_features(path: Path) -> dict[str, Any]:
    from lamp.data.feature_cache.report import describe_cache

    description = describe_cache(path)
    return description | {"recipes": recipes_using(description.get("backbone") or {})}


def recipes_using(backbone: Mapping[str, Any]) -> list[str]:
    """The recipes that can use a cache of a backbone's features, by what the cache says of the backbone's settings."""
    from lamp.recipes import RECIPES, Recipe, TrainingRecipe, recipe

    names = []
    for name in RECIPES:
        made = recipe(name)
        if isinstance(made, Recipe | TrainingRecipe):
            settings = made.backbone.recorded
            if all(backbone.get(key) == value for key, value in settings.items()):
                names.append(name)
    return names


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    from lamp.train.checkpoint_metadata import read_description

    return _describe_metadata(read_description(path))


PRIORS = {
    None: "none",
    "predicted": "predicted by the Motion Expert",
    "oracle": "oracle: trained with the TRUE motion to come; a ceiling, and no policy to be used",
}


def _describe_metadata(description: Description) -> dict[str, Any]:
    from lamp.configuration import to_json
    from lamp.model.parameter_count import expected_parameters
    from lamp.train.checkpoint_metadata import stage_episodes

    described = to_json(description)
    for record in (described["data"], (described["motion_source"] or {}).get("data", {})):
        record.pop("train_episodes", None)  # they are in `episodes`, in fewer words
    shown = ("step", "averaged", "exactly_reproducible", "flow", "policy", "backbone", "data", "motion_source")
    return {
        "trained": {"motion": "Motion Expert (Stage 1)", "policy": "guidance and Action Expert (Stage 2)"}[
            description.kind
        ],
        **({"prior": PRIORS[description.prior]} if description.kind == "policy" else {}),
        "parameters": dict(expected_parameters(description.model)),
        "episodes": [_stage_line(one, description.kind) for one in stage_episodes(description)],
        **{key: described[key] for key in (*shown, "started_from", "code")},
        "time convention": description.time_convention,
        "model": described["model"],
        "training": described["training"],
    }


def _stage_line(one: StageEpisodes, kind: str) -> dict[str, Any]:
    """The episodes of a dataset that each stage was trained on, for people."""
    from lamp.data.episode_selection import counted_ranges

    stages = {"stage 1 (motion)": one.stage_1, "stage 2 (actions)": one.stage_2}
    if kind == "policy":
        stages["in both"] = one.in_both
    stages["held out"] = one.held_out
    return {"dataset": one.name} | {
        name: counted_ranges(numbers)
        for name, numbers in stages.items()
        if kind == "policy" or name != "stage 2 (actions)"
    }


def _describe_run(path: Path) -> dict[str, Any]:
    from lamp.train.checkpoint_metadata import read_description
    from lamp.train.metrics import read_metrics

    rows = read_metrics(path / "metrics.jsonl")
    last = {"last metrics": rows[-1] if rows else None}
    if not (path / "checkpoint" / "lamp.json").exists():
        return {**last, "checkpoint": "none yet: the same command starts from the beginning"}
    description = read_description(path)
    loop = description.training.loop
    # A run with a budget of time is finished when that is spent, at whatever step.
    left = loop is not None and loop.time_budget_s is None and description.step < loop.steps
    state = f"step {description.step} of {loop.steps}: the same command goes on" if left and loop else "finished"
    return {"state": state, **last, "checkpoint": _describe_metadata(description)}


def _describe_evaluation(path: Path) -> dict[str, Any]:
    from lamp.benchmark import robustness
    from lamp.benchmark.episodes import read_records
    from lamp.benchmark.run_manifest import read_manifest
    from lamp.benchmark.tables import tabulate, to_json

    manifest = read_manifest(path)
    records = read_records(path)
    return {
        "episodes": f"{len(records)} of {manifest['planned']}",
        "settings": manifest["config"],
        "conditions": manifest["conditions"],
        "results": to_json(tabulate(records)) if records else [],
        "perturbed": robustness.to_json(robustness.robustness(records)),
    }


def _table_of_evaluation(path: Path) -> str:
    from lamp.benchmark import robustness, tables
    from lamp.benchmark.episodes import read_records

    records = read_records(path)
    return "\n".join(
        filter(None, (tables.to_text(tables.tabulate(records)), robustness.to_text(robustness.robustness(records))))
    )


def _table_of_experiment(path: Path) -> str:
    evaluations = [folder for name, folder in _subfolders_of_kind(path) if name == "evaluation"]
    texts = [(folder, _table_of_evaluation(folder)) for folder in evaluations]
    return "\n".join(f"{folder.name}: {text}" if len(evaluations) > 1 else text for folder, text in texts if text)


def _describe_experiment(path: Path) -> dict[str, Any]:
    from lamp.view.report import RunSummary, command_of

    has_summary, command = (path / "summary.json").is_file(), command_of(path)
    summary = read_json_as(path / "summary.json", RunSummary, "summary") if has_summary else RunSummary()
    seconds = read_json_object(path / "seconds.json", "stage times")
    return {
        "state": "finished: see report.html" if summary else "unfinished: the same command goes on",
        **({"command": command} if command else {}),
        **{key: value for key, value in summary.items() if key in ("warning", "title", "notes", "flow", "facts")},
        "seconds": summary.get("seconds", seconds),
        "inside": {str(folder.relative_to(path)): name for name, folder in _subfolders_of_kind(path)},
    }


def _describe_study(path: Path) -> dict[str, Any]:
    from lamp.study.results import describe_study

    return describe_study(path)


def _describe_collection(path: Path) -> dict[str, Any]:
    from lamp.data.lerobot.staging import staged_names

    return {"recorded episodes": len(staged_names(path)), "state": "unfinished: the same `lamp collect` goes on"}


def _describe_hidden_states(path: Path) -> dict[str, Any]:
    description = read_json_object(path / "hidden.json", "description of hidden states")
    return {**description, "episodes": len(list(path.glob("episode-*.safetensors")))}


def _describe_recording(path: Path) -> dict[str, Any]:
    files = sorted(path.glob("*.lamprec"))
    size = sum(file.stat().st_size for file in files)
    return {
        "episodes": len(files),
        "megabytes": round(size / 1e6, 1),
        "next": f"lamp import-recording {path} --out DATASET",
    }


def _describe_trials(path: Path) -> dict[str, Any]:
    return {"lines": len(read_lines_json(path / "trials.jsonl")), "next": f"lamp report {path}"}


def _describe_release(path: Path) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in path.glob("*.pt"))
    return {"megabytes": round(size / 1e6, 1), "next": f"lamp import-released {path} --out CHECKPOINT"}


KINDS = (
    FolderKind(name="dataset", marker="meta/info.json", describe=_describe_dataset, verify=verify_dataset),
    FolderKind(
        name="evaluation",
        marker="run.json",
        describe=_describe_evaluation,
        verify=verify_evaluation,
        table=_table_of_evaluation,
    ),
    FolderKind(name="training run", marker="checkpoint/lamp.json", describe=_describe_run, verify=verify_run),
    FolderKind(name="checkpoint", marker="model.safetensors", describe=_describe_checkpoint, verify=verify_checkpoint),
    FolderKind(name="scene-flow store", marker="zarr.json", describe=_describe_scene_flow, verify=verify_scene_flow),
    FolderKind(name="feature cache", marker="manifest.json", describe=_describe_features, verify=verify_shards),
    FolderKind(
        name="hidden states (z_m)", marker="hidden.json", describe=_describe_hidden_states, verify=verify_shards
    ),
    FolderKind(name="study", marker="definition.json", describe=_describe_study, verify=None),
    FolderKind(
        name="experiment", marker="seconds.json", describe=_describe_experiment, verify=None, table=_table_of_experiment
    ),
    FolderKind(name="unfinished training run", marker="metrics.jsonl", describe=_describe_run, verify=verify_run),
    FolderKind(name="trials on a robot", marker="trials.jsonl", describe=_describe_trials, verify=verify_other),
    FolderKind(name="recording of a robot", marker="*.lamprec", describe=_describe_recording, verify=verify_recording),
    FolderKind(
        name="unfinished collection",
        marker=".staging/*/episode.json",
        describe=_describe_collection,
        verify=verify_other,
    ),
    FolderKind(
        name="release of the authors'",
        marker="dataset_statistics.json",
        describe=_describe_release,
        verify=verify_other,
    ),
)


def _kind_of(path: Path) -> FolderKind:
    """
    Raises:
        DataError: It is missing, a file, or none of LaMP's folders; says what is known.
    """
    if path.is_file():
        hint = {
            ".json": f"; `lamp recipe show {path}` prints a recipe",
            ".jsonl": f"; the folder it is in: `lamp info {path.parent}`",
            ".safetensors": f"; the folder it is in: `lamp info {path.parent}`",
            ".lamprec": f"; the folder of its recording: `lamp info {path.parent}`",
        }.get(path.suffix, "")
        raise DataError(f"{path} is a file; expected a folder that a lamp command wrote{hint}")
    if not path.is_dir():
        beside = sorted(item.name for item in path.parent.iterdir() if item.is_dir()) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        guess = f"did you mean {path.parent / near[0]}? " if near else ""
        raise DataError(f"no folder at {path}; {guess}expected one that a lamp command wrote")
    for kind in KINDS:
        if kind.matches(path):
            return kind
    known = ", ".join(kind.name for kind in KINDS)
    inside = [f"{folder} ({name})" for name, folder in _subfolders_of_kind(path)]
    hint = f"; it holds {', '.join(inside[:6])}" if inside else "" if any(path.iterdir()) else "; it is empty"
    raise DataError(f"{path} is none of LaMP's folders ({known}){hint}")


def verify(path: Path) -> Verification:
    """Reads all of a folder, and of LaMP's folders in it, and compares it with the checksums that were kept.

    Raises:
        DataError: It is none of LaMP's folders.
    """
    verification = Verification()
    kinds = {kind.name: kind for kind in KINDS}

    def read(kind: FolderKind, folder: Path) -> None:
        if kind.verify is not None:
            kind.verify(folder, verification)
        if kind.name in ("dataset", "experiment", "study"):
            for name, inner in _subfolders_of_kind(folder, depth=6 if kind.name == "study" else 2):
                read(kinds[name], inner)

    read(_kind_of(path), path)
    return verification


def update_checksums(path: Path) -> Path:
    """Writes the checksums of a folder's files as they are now, where none are kept: of a dataset of others, say.

    Returns:
        The file that lists them.

    Raises:
        DataError: It is none of LaMP's folders, or they are there already.
    """
    from lamp.data.lerobot.format import CHECKSUMS_PATH
    from lamp.data.lerobot.writer import update_checksums as keep_of_dataset

    kind = _kind_of(path)
    file = path / (CHECKSUMS_PATH if kind.name == "dataset" else CHECKSUMS)
    if file.exists():
        raise DataError(
            f"{file} is there already: `lamp info {path} --verify` compares with it. Remove it to write it anew"
        )
    if kind.name == "dataset":
        keep_of_dataset(path)
    else:
        checksums.write_checksums(file, checksums.checksums_of(path, checksums.files_in(path, without=[CHECKSUMS])))
    return file


def describe(path: Path) -> dict[str, Any]:
    """Says what a folder, or a checkpoint on the hub, is and what is in it, as JSON values.

    Raises:
        DataError: The folder is missing, damaged, or none that LaMP writes; or a hub does not give the checkpoint.
    """
    hub = None if path.exists() else HubId.parse(str(path))
    if hub is not None:
        return _on_the_hub(hub)
    part = _select_part(path)
    if part is not None:
        return part
    kind = _kind_of(path)
    return {"kind": kind.name, "path": str(path), **kind.describe(path)}


def _select_part(path: Path) -> dict[str, Any] | None:
    """What a folder holds that is none of LaMP's kinds and lies in one that is, such as an experiment's pictures."""
    if not path.is_dir() or any(kind.matches(path) for kind in KINDS):
        return None
    whole = next(
        ((kind, folder) for folder in path.resolve().parents[:4] for kind in KINDS if kind.matches(folder)), None
    )
    if whole is None:
        return None
    from lamp.view.images import read_caption

    files = sorted(file for file in path.rglob("*") if file.is_file())
    captions = {file.name: text for file in files if file.suffix == ".png" and (text := read_caption(file))}
    return {
        "kind": f"part of {'an' if whole[0].name[0] in 'aeiou' else 'a'} {whole[0].name}",
        "path": str(path),
        "of": str(whole[1]),
        "files": dict(Counter(file.suffix or file.name for file in files)),
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        **({"pictures": captions} if captions else {}),
        "inside": {str(folder.relative_to(path)): name for name, folder in _subfolders_of_kind(path)},
    }


def _on_the_hub(hub: HubId) -> dict[str, Any]:
    from lamp.train.checkpoint_metadata import parse_description
    from lamp.train.publishing import describe_remote

    file, commit = describe_remote(hub)
    return {"kind": "checkpoint", "path": hub.name, "commit": commit, **_describe_metadata(parse_description(file))}


def _subfolders_of_kind(path: Path, depth: int = 2) -> Iterator[tuple[str, Path]]:
    """Finds recognisable folders some levels down; what is inside one of them is its own affair."""
    for folder in sorted(path.iterdir()) if depth else ():
        if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("."):
            kind = next((kind for kind in KINDS if kind.matches(folder)), None)
            if kind is not None:
                yield kind.name, folder
            else:
                yield from _subfolders_of_kind(folder, depth - 1)


def to_brief(path: Path, description: Mapping[str, Any]) -> str:
    """Lays a description out in at most 40 lines: a table of results first, then a line for each entry, cut where it is long.

    Args:
        found: What `describe` says of the folder.
    """
    kind = next((kind for kind in KINDS if kind.name == description.get("kind")), None)
    table = kind.table(path).rstrip().splitlines() if kind is not None and kind.table is not None else []
    entries = list(brief_lines(description))
    shown = [*table[: LINES // 2], *(["  ..."] if len(table) > LINES // 2 else []), *([""] if table else [])]
    shown = [*(cut(line, 2 * WIDTH) for line in shown), *(cut(line) for line in entries)]
    last = f"more: lamp info {shlex.quote(str(description.get('path', path)))} --all"
    return "\n".join([*shown[: LINES - 1], last])
