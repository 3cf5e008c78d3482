"""`lamp info`: recognises LaMP's folders by their files and says what is in them, without reading weights or pictures.

`--verify` reads everything, and compares it with the checksums that were kept when it was written.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamp import checksums
from lamp.checksums import CHECKSUMS, Fault
from lamp.errors import DataError, LampError
from lamp.files import read_json, read_lines_json
from lamp.hub import HubId

if TYPE_CHECKING:
    from lamp.data.feature_cache.report import CacheEntry
    from lamp.train.checkpoint_metadata import Description


@dataclass(kw_only=True)
class Verification:
    """What came of reading a folder."""

    files: int = 0
    """That were compared with what was kept of them."""
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    """What there is nothing to compare with."""

    def compare(self, folder: Path, listed: checksums.Listed) -> None:
        """Compares files with a list of them."""
        self.files += len(listed)
        self.bytes += sum(found.bytes for found in listed.values())
        self.faults += checksums.compare(folder, listed)

    def attempt(self, file: Path, work: Callable[[], object]) -> None:
        """Does what raises one of our errors where a file is damaged."""
        try:
            work()
        except (LampError, OSError) as error:
            self.fault(file, " ".join(str(error).split()))

    def fault(self, file: Path, problem: str) -> None:
        self.faults.append(Fault(file=file, problem=problem))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of folder: the files that tell it, and what describes it."""

    name: str
    marks: tuple[str, ...]
    """Any of these files or folders inside tells the kind; may be patterns."""
    describe: Callable[[Path], dict[str, Any]]
    verify: Callable[[Path, Verification], None]
    """Reads all of it, and adds what it finds."""

    def fits(self, path: Path) -> bool:
        return any(any(path.glob(mark)) if "*" in mark else (path / mark).exists() for mark in self.marks)


def _dataset(path: Path) -> dict[str, Any]:
    from lamp.data.feature_cache.manifest import FEATURES
    from lamp.data.feature_cache.report import list_caches, list_stores
    from lamp.data.lerobot import LeRobotDataset

    found = LeRobotDataset(path).describe()
    caches = [cache_line(entry) for entry in (*list_caches(path / FEATURES), *list_stores(path))]
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
    elif entry.kind == "scene flow":
        from lamp.sceneflow.stores import settings_of

        line["of"] = settings_of(said) if said else "damaged: it cannot be read"
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
    from lamp.data.feature_cache.report import describe_cache

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
    from lamp.train.checkpoint_metadata import read_description

    return _described(read_description(path))


def _described(found: Description) -> dict[str, Any]:
    from lamp.configuration import to_json
    from lamp.model.parameter_count import expected_parameters

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


def _demo(path: Path) -> dict[str, Any]:
    summary = read_json(path / "summary.json", "summary") if (path / "summary.json").is_file() else {}
    seconds = read_json(path / "seconds.json", "stage times")
    return {
        "state": "finished: see report.html" if summary else "unfinished: the same command goes on",
        **{key: summary[key] for key in ("title", "notes", "facts") if key in summary},
        "seconds": summary.get("seconds", seconds),
        "inside": {str(folder.relative_to(path)): name for name, folder in _inside(path)},
    }


def _unfinished_run(path: Path) -> dict[str, Any]:
    rows = read_lines_json(path / "metrics.jsonl")
    return {"last metrics": rows[-1] if rows else None, "checkpoint": "none yet: the same training begins anew"}


def _collection(path: Path) -> dict[str, Any]:
    from lamp.data.lerobot.staging import staged_names

    return {"recorded episodes": len(staged_names(path)), "state": "unfinished: the same `lamp collect` goes on"}


def _hidden(path: Path) -> dict[str, Any]:
    found = read_json(path / "hidden.json", "description of hidden states")
    return {**found, "episodes": len(list(path.glob("episode-*.safetensors")))}


def _recording(path: Path) -> dict[str, Any]:
    files = sorted(path.glob("*.lamprec"))
    size = sum(file.stat().st_size for file in files)
    return {
        "episodes": len(files),
        "megabytes": round(size / 1e6, 1),
        "next": f"lamp import-recording {path} --out DATASET",
    }


def _trials(path: Path) -> dict[str, Any]:
    return {"lines": len(read_lines_json(path / "trials.jsonl")), "next": f"lamp report {path}"}


def _release(path: Path) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in path.glob("*.pt"))
    return {"megabytes": round(size / 1e6, 1), "next": f"lamp import-released {path} --out CHECKPOINT"}


def _verify_list(path: Path, found: Verification) -> bool:
    """Compares with the list that `--write-checksums` made, where it did."""
    file = path / CHECKSUMS
    if file.is_file():
        found.attempt(file, lambda: found.compare(path, checksums.read_checksums(file)))
    return file.is_file()


def _verify_dataset(path: Path, found: Verification) -> None:
    from lamp.data.lerobot import LeRobotDataset
    from lamp.data.lerobot.format import CHECKSUMS_PATH
    from lamp.data.lerobot.writer import dataset_files

    listed = path / CHECKSUMS_PATH
    if listed.is_file():
        found.attempt(listed, lambda: found.compare(path, checksums.read_checksums(listed)))
        kept = checksums.read_checksums(listed) if not any(fault.file == listed for fault in found.faults) else {}
        more = [file for file in dataset_files(path) if kept and file.relative_to(path).as_posix() not in kept]
        found.unchecked += [f"{file} is not in {listed}" for file in more]
    else:
        found.attempt(path, lambda: LeRobotDataset(path).validate())
        found.unchecked.append(
            f"{path} has no checksums: its files were read, and can be compared with nothing. "
            f"`lamp info {path} --write-checksums` keeps them from now on"
        )
    _verify_inside(path, found)


def _verify_inside(path: Path, found: Verification) -> None:
    for name, folder in _inside(path):
        next(kind for kind in KINDS if kind.name == name).verify(folder, found)


def _verify_scene_flow(path: Path, found: Verification) -> None:
    from lamp.sceneflow.store import SceneFlowStore

    def intact() -> None:
        if checksums.is_intact(read_json(path / "zarr.json", "description")["attributes"]) is False:
            raise DataError("is not as it was written")

    _verify_list(path, found)
    before = len(found.faults)
    found.attempt(path / "zarr.json", intact)
    found.attempt(path / "zarr.json", lambda: SceneFlowStore(path))
    if len(found.faults) > before:
        return
    store = SceneFlowStore(path)
    for episode in store.episodes:
        folder = path / f"episode-{episode:06d}"
        if (folder / CHECKSUMS).is_file():
            _verify_list(folder, found)
            continue
        found.unchecked.append(f"{folder} has no checksums of its descriptions: its numbers were read")
        for camera in store.description.cameras:
            found.attempt(folder, lambda e=episode, c=camera: store.read(e, store.frames(e, c), c))


def _verify_shards(path: Path, found: Verification) -> None:
    from lamp.data.feature_cache.shards import content_hash, load_mapped

    try:
        described = read_json(path / "manifest.json", "description")
    except LampError:  # said below
        described = {}
    shared = described.get("shared_sha256") if isinstance(described, dict) else None

    def shard(file: Path) -> None:
        tensors, header = load_mapped(file)
        wanted = shared if file.name == "shared.safetensors" else header.get("sha256")
        if checksums.is_intact(header) is False or wanted not in (None, content_hash(tensors)):
            raise DataError("is not as it was written; remove it and run `lamp cache features` again")
        if wanted is None:
            found.unchecked.append(f"{file} holds no checksum: it was read")

    def note(file: Path) -> None:
        said = read_json(file, "description")
        if isinstance(said, dict) and checksums.is_intact(said) is False:
            raise DataError("is not as it was written; remove it and run `lamp cache features` again")

    _verify_list(path, found)
    for file in checksums.files_in(path, without=[CHECKSUMS]):
        work = {".safetensors": shard, ".json": note}.get(file.suffix)
        if work is not None:
            found.files, found.bytes = found.files + 1, found.bytes + file.stat().st_size
            found.attempt(file, lambda f=file, w=work: w(f))


def _verify_checkpoint(path: Path, found: Verification) -> None:
    from lamp.data.feature_cache.shards import content_hash
    from lamp.train.checkpoint import COMMITTED, TRAINING, WEIGHTS, read_committed
    from lamp.train.checkpoint_metadata import read_description
    from lamp.train.shards import read_tensors

    def weights() -> None:
        if content_hash(read_tensors(path / WEIGHTS)) != read_description(path).weights_sha256:
            raise DataError("does not hold the weights that lamp.json names")

    kept: list[checksums.Listed] = []
    committed = path / TRAINING / COMMITTED
    found.attempt(committed, lambda: kept.append(read_committed(path) or {}))
    if kept and kept[0]:
        found.compare(path, kept[0])
        return
    listed = _verify_list(path, found)
    found.attempt(path / WEIGHTS, weights)
    found.files, found.bytes = found.files + 1, found.bytes + _size(path / WEIGHTS)
    if not listed:
        found.unchecked.append(
            f"{path} has a checksum of its weights only; `lamp info {path} --write-checksums` keeps those of all files"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _verify_run(path: Path, found: Verification) -> None:
    found.attempt(path / "metrics.jsonl", lambda: read_lines_json(path / "metrics.jsonl"))
    if (path / "lamp.json").is_file():
        found.attempt(path / "lamp.json", lambda: read_json(path / "lamp.json", "record of a run"))
    if (path / "checkpoint").is_dir():
        _verify_checkpoint(path / "checkpoint", found)


def _verify_evaluation(path: Path, found: Verification) -> None:
    from lamp.benchmark.episodes import read_records

    found.attempt(path / "run.json", lambda: read_json(path / "run.json", "evaluation manifest"))
    found.attempt(path / "episodes.jsonl", lambda: read_records(path))
    if not _verify_list(path, found):
        found.unchecked.append(f"{path} keeps no checksums: its lines were read")


def _verify_recording(path: Path, found: Verification) -> None:
    from lamp_client.recording import read_episode

    for file in sorted(path.glob("*.lamprec")):
        found.files, found.bytes = found.files + 1, found.bytes + file.stat().st_size
        try:
            if not read_episode(path, file.stem).complete:
                found.unchecked.append(f"{file} has no end: the program was killed, or the file is cut")
        except Exception as error:
            found.fault(file, f"{type(error).__name__}: {error}")


def _verify_other(path: Path, found: Verification) -> None:
    if not _verify_list(path, found):
        found.unchecked.append(
            f"{path} keeps no checksums; `lamp info {path} --write-checksums` keeps them from now on"
        )


KINDS = (
    Kind(name="dataset", marks=("meta/info.json",), describe=_dataset, verify=_verify_dataset),
    Kind(name="evaluation", marks=("run.json",), describe=_evaluation, verify=_verify_evaluation),
    Kind(name="training run", marks=("checkpoint/lamp.json",), describe=_run, verify=_verify_run),
    Kind(name="checkpoint", marks=("model.safetensors",), describe=_checkpoint, verify=_verify_checkpoint),
    Kind(name="scene-flow store", marks=("zarr.json",), describe=_scene_flow, verify=_verify_scene_flow),
    Kind(name="feature cache", marks=("manifest.json",), describe=_features, verify=_verify_shards),
    Kind(name="hidden states (z_m)", marks=("hidden.json",), describe=_hidden, verify=_verify_shards),
    Kind(name="experiment", marks=("seconds.json",), describe=_demo, verify=_verify_inside),
    Kind(name="unfinished training run", marks=("metrics.jsonl",), describe=_unfinished_run, verify=_verify_run),
    Kind(name="trials on a robot", marks=("trials.jsonl",), describe=_trials, verify=_verify_other),
    Kind(name="recording of a robot", marks=("*.lamprec",), describe=_recording, verify=_verify_recording),
    Kind(name="unfinished collection", marks=(".staging/*/episode.json",), describe=_collection, verify=_verify_other),
    Kind(name="release of the authors'", marks=("dataset_statistics.json",), describe=_release, verify=_verify_other),
)


def _kind_of(path: Path) -> Kind:
    """
    Raises:
        DataError: It is missing, a file, or none of LaMP's folders; says what is known.
    """
    if path.is_file():
        told = {
            ".json": f"; `lamp recipe show {path}` prints a recipe",
            ".jsonl": f"; the folder it is in: `lamp info {path.parent}`",
            ".safetensors": f"; the folder it is in: `lamp info {path.parent}`",
            ".lamprec": f"; the folder of its recording: `lamp info {path.parent}`",
        }.get(path.suffix, "")
        raise DataError(f"{path} is a file; expected a folder that a lamp command wrote{told}")
    if not path.is_dir():
        beside = sorted(item.name for item in path.parent.iterdir() if item.is_dir()) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        guess = f"did you mean {path.parent / near[0]}? " if near else ""
        raise DataError(f"no folder at {path}; {guess}expected one that a lamp command wrote")
    for kind in KINDS:
        if kind.fits(path):
            return kind
    known = ", ".join(kind.name for kind in KINDS)
    inside = [f"{folder} ({name})" for name, folder in _inside(path)]
    hint = f"; it holds {', '.join(inside[:6])}" if inside else "" if any(path.iterdir()) else "; it is empty"
    raise DataError(f"{path} is none of LaMP's folders ({known}){hint}")


def verify(path: Path) -> Verification:
    """Reads all of a folder, and of LaMP's folders in it, and compares it with the checksums that were kept.

    Raises:
        DataError: It is none of LaMP's folders.
    """
    found = Verification()
    _kind_of(path).verify(path, found)
    return found


def keep_checksums(path: Path) -> Path:
    """Writes the checksums of a folder's files as they are now, where none are kept: of a dataset of others, say.

    Returns:
        The file that lists them.

    Raises:
        DataError: It is none of LaMP's folders, or they are there already.
    """
    from lamp.data.lerobot.format import CHECKSUMS_PATH
    from lamp.data.lerobot.writer import keep_checksums as keep_of_dataset

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
    kind = _kind_of(path)
    return {"kind": kind.name, "path": str(path), **kind.describe(path)}


def _on_the_hub(hub: HubId) -> dict[str, Any]:
    from lamp.train.checkpoint_metadata import parse_description
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
