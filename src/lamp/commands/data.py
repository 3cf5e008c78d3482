"""Commands that make, read and check data: demonstrations, scene flow, features, recordings."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from lamp.commands.command import (
    Command,
    SelectionFlags,
    experiment_named,
    follow_motion,
    mixed_in,
    need,
    training_named,
)
from lamp.errors import ConfigError
from lamp.flags import parse, parse_beside, value_of, with_flag

if TYPE_CHECKING:
    from lamp.commands.feature_caches import CacheRequest
    from lamp.sceneflow.build import FlowBuildConfig


@dataclass(frozen=True, kw_only=True)
class CollectFlags:
    """Records demonstrations of LIBERO tasks with a scripted expert; a stopped collection goes on where it was."""

    recipe: str | None = None
    """Where the other flags' defaults come from: a name that `lamp recipe list` shows."""


def _collect(arguments: Sequence[str]) -> None:
    from lamp.collect.collect import collect
    from lamp.collect.jobs import CollectConfig

    settings = None
    if name := value_of("--recipe", arguments):
        need("--out", arguments, "collect")
        settings = experiment_named(name).collect
    _, config = parse_beside(CollectFlags, CollectConfig, arguments, "collect", settings)
    print(collect(config))


@dataclass(frozen=True, kw_only=True)
class FlowFlags(SelectionFlags):
    """Computes a dataset's 3-D scene flow from its recorded simulation; a stopped build goes on where it was. With `--out
    STORE`, or for a dataset without simulation, it is estimated from video: `lamp flow build SOURCE --out STORE --help` lists
    the flags of that."""

    recipe: str | None = None
    """Where the other flags' defaults come from: a name that `lamp recipe list` shows, or a file of `lamp recipe fit`."""


def _flow_build(arguments: Sequence[str]) -> None:
    from lamp.data.feature_cache.shards import picture_hashes
    from lamp.sceneflow.build import FlowBuildConfig, as_recorded, build

    settings, words = None, with_flag(arguments, "--data")
    if _is_video(arguments):
        from lamp.data.flow_from_video import VideoFlowConfig, build_from_video

        build_from_video(parse(VideoFlowConfig, arguments, "flow build", leading="--source"))
        return
    if name := value_of("--recipe", arguments):
        need("--data", words, "flow build")
        settings = _flow_settings(name)
    flags, config = parse_beside(FlowFlags, FlowBuildConfig, words, "flow build", settings, leading="--data")
    if not flags.selection.is_everything:
        from lamp.data.lerobot.reader import LeRobotDataset

        config = replace(config, only=flags.selection.select(LeRobotDataset(config.data)))
    config = as_recorded(config)
    build(config, pictures=picture_hashes(config.data, config.cameras))


def _is_video(arguments: Sequence[str]) -> bool:
    """Whether scene flow is to be estimated: by flags, or because there is nothing but video."""
    if value_of("--out", arguments) is not None or value_of("--source", arguments) is not None:
        return True
    data = value_of("--data", with_flag(arguments, "--data"))
    if data is None:
        return False
    return (Path(data) / "meta" / "info.json").is_file() and not any(Path(data).glob("simulation/episode-*"))


@dataclass(frozen=True, kw_only=True)
class StoreFlags:
    """Reads scene-flow stores whole and reports every fault; the exit code is 1 if there is one."""

    store: tyro.conf.Positional[Path]
    """A store, or a dataset with one or several."""
    json: bool = False
    """Print JSON."""


def _flow_validate(arguments: Sequence[str]) -> None:
    flags = parse(StoreFlags, arguments, "flow validate")
    from lamp.sceneflow.validate import find_stores, validate

    faults = validate(flags.store)
    names = ", ".join(folder.name for folder in find_stores(flags.store))
    if flags.json:
        print(json.dumps({"ok": not faults, "faults": [vars(fault) for fault in faults]}, indent=2))
    else:
        print("\n".join(map(str, faults)) if faults else f"{names}: no fault")
    if faults:
        raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class StatisticsFlags(StoreFlags):
    """Summarises scene-flow stores in numbers: episodes, query frames, shares of points, bounds, and clips that failed."""


def _flow_stats(arguments: Sequence[str]) -> None:
    flags = parse(StatisticsFlags, arguments, "flow stats")
    from lamp.sceneflow.validate import statistics

    stores = statistics(flags.store)
    if flags.json:
        print(json.dumps(stores, indent=2))
    else:
        print("\n\n".join("\n".join(f"{name}: {value}" for name, value in one.items()) for one in stores))


@dataclass(frozen=True, kw_only=True)
class MergeFlags:
    """Makes one scene-flow store of several of the same settings, with their datasets where they lie in any: nothing is decoded,
    and the result appears whole or not at all. Its manifest says where each clip came from."""

    stores: tyro.conf.Positional[tuple[Path, ...]]
    """Stores, or datasets with one."""
    out: Path
    """The dataset, or store, to make."""
    json: bool = False
    """Print JSON."""


def _flow_merge(arguments: Sequence[str]) -> None:
    flags = parse(MergeFlags, arguments, "flow merge")
    from lamp.data.merge_flow import merge

    report = merge(flags.stores, flags.out)
    print(json.dumps({**vars(report), "path": str(report.path)}, indent=2) if flags.json else report)


def _flow_score(arguments: Sequence[str]) -> None:
    from lamp.sceneflow.estimate.score import FlowScoreConfig, score

    config = parse(FlowScoreConfig, arguments, "flow score", leading="--episodes")
    if any(config.episodes.glob("simulation/episode-*")) or not config.episodes.is_dir():
        score(config)
        return
    from lamp.data.robot_check import check_by_robot

    check_by_robot(config)


def _flow_settings(name: str) -> FlowBuildConfig:
    """The scene flow that a recipe's motion prior learns.

    Raises:
        ConfigError: It has no motion prior.
    """
    from lamp.sceneflow.build import FlowBuildConfig

    chosen = training_named(name)
    if chosen.flow is not None:
        return chosen.flow
    if chosen.motion is None or chosen.motion.model.motion is None:
        raise ConfigError(f"recipe {chosen.name!r} has no motion prior; expected one that `lamp train motion` takes")
    training, expert = chosen.motion, chosen.motion.model.motion
    camera = training.backbone.cameras[0][0]
    frames = training.flow_frames or training.flow_stride
    return FlowBuildConfig(data=Path(), grid=expert.grid, horizon=expert.horizon, stride=frames, cameras=(camera,))


@dataclass(frozen=True, kw_only=True)
class CacheFlags:
    """Computes the frozen backbone's tokens of a dataset's images and instructions; `lamp train` does the same if needed."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """The datasets, each DIR or DIR=EMBODIMENT."""
    recipe: str = "demo"
    """The recipe whose backbone it is; its settings can be changed by their own flags."""
    embodiment: str | None = None
    """How datasets record their robot where they do not say: lamp, libero, bridge, droid ..., or a JSON file; by default, as
    the recipe says (docs/data.md)."""
    out: Path | None = None
    """The folder for the caches of all datasets, `--features` of a training; by default each is in its dataset."""
    motion: Path | None = None
    """Stage 1's checkpoint or run: also computes z_m, --cached-hidden-draws of each frame. All settings of the training that is
    to read them then have flags here."""
    processes: int | None = None
    """Worker processes; by default one a core, or for a large backbone one a GPU. The same command may run several times at
    once, here or where else the folder is mounted: each then makes a share."""
    devices: tuple[str, ...] = ()
    """Where the workers compute, in turn: cuda:0 cuda:1 ..."""
    storage: Literal["default", "float16", "bfloat16", "float32"] = "default"
    """How tokens are kept: float16 by default for the embedded backbone, the backbone's own format for a large one."""
    leave_out_corrupt: bool = False
    """Leave out episodes whose pictures cannot be read, and name them, rather than stop; training then leaves them out too."""
    check: bool = False
    """Compute nothing: read what is there, compare it with its checksums and the data, and name every fault; exit code 1 if
    there is one."""
    json: bool = False
    """With --check, print JSON."""


def _cache_features(arguments: Sequence[str]) -> None:
    from lamp.commands.feature_caches import check_caches, fill_caches

    flags, request = _cache_request(arguments)
    if not flags.check:
        for folder in fill_caches(request):
            print(f"{folder} is complete (lamp info {folder})")
        return
    from lamp.description_text import to_text

    reports = [report.to_json() for report in check_caches(request)]
    print(json.dumps(reports, indent=2) if flags.json else "\n".join(map(to_text, reports)))
    if not all(report["ok"] for report in reports):
        raise SystemExit(1)


def _cache_request(arguments: Sequence[str]) -> tuple[CacheFlags, CacheRequest]:
    from lamp.commands.feature_caches import CacheRequest
    from lamp.data.feature_cache.work_sharing import Workers
    from lamp.train.backbones import Caching
    from lamp.train.config import FeatureSettings, PolicyTraining

    policy, motion = (
        training_named(value_of("--recipe", arguments) or CacheFlags.recipe).policy,
        value_of("--motion", arguments),
    )
    settings = FeatureSettings(backbone=policy.backbone, augmentation=policy.augmentation)
    if motion is not None:
        settings = follow_motion(policy, Path(motion))
    kind = PolicyTraining if motion is not None else FeatureSettings
    flags, settings = parse_beside(CacheFlags, kind, arguments, "cache features", settings)
    processes = flags.processes or len(flags.devices)
    workers = Workers(processes=processes, devices=flags.devices) if processes else None
    return flags, CacheRequest(
        datasets=tuple(mixed_in(text, flags.embodiment, policy.embodiment) for text in flags.data),
        settings=settings,
        motion=flags.motion,
        root=flags.out,
        caching=Caching(
            workers=workers, storage=flags.storage, on_corrupt="leave_out" if flags.leave_out_corrupt else "refuse"
        ),
    )


@dataclass(frozen=True, kw_only=True)
class CacheListFlags:
    """Lists a dataset's caches and scene-flow stores: names, sizes, what each is of, and which recipes can use it."""

    data: tyro.conf.Positional[Path]
    """The dataset."""
    out: Path | None = None
    """The folder that caches of all datasets are in, `--out` of `lamp cache features`; by default they are in the dataset."""
    json: bool = False
    """Print JSON."""


def _caches(data: Path, out: Path | None) -> Path:
    """The folder of a dataset's caches.

    Raises:
        DataError: There is no such dataset.
    """
    from lamp.data.feature_cache.shards import FEATURES
    from lamp.errors import DataError

    if not data.is_dir():
        raise DataError(f"no dataset at {data}: there is no such folder; expected one whose features were cached")
    return data / FEATURES if out is None else out / data.resolve().name


def _cache_list(arguments: Sequence[str]) -> None:
    flags = parse(CacheListFlags, arguments, "cache list")
    from lamp.data.feature_cache.report import list_caches, list_stores
    from lamp.description_text import to_text
    from lamp.info import cache_line

    folder = _caches(flags.data, flags.out)
    stores = list_stores(flags.data)
    entries = [*list_caches(folder), *stores]
    lines = [cache_line(entry) for entry in entries]
    if flags.json:
        print(json.dumps({"folder": str(folder), "caches": lines}, indent=2, ensure_ascii=False))
    elif not entries:
        print(f"no caches in {folder} (lamp cache features {flags.data} makes one)")
    else:
        print(to_text({line.pop("name"): line for line in lines}))
        print(f"{sum(entry.size for entry in entries if entry not in stores) / 1e6:.1f} MB in {folder}")
        if stores:
            print(f"{sum(entry.size for entry in stores) / 1e6:.1f} MB of scene flow in {flags.data}")


@dataclass(frozen=True, kw_only=True)
class CacheRemoveFlags:
    """Removes caches of a dataset: whole ones with their augmented views and z_m, such a part alone, or scene-flow stores."""

    data: tyro.conf.Positional[Path]
    """The dataset."""
    names: tyro.conf.Positional[tuple[str, ...]]
    """As `lamp cache list` gives them; the beginning of one is enough where no other begins so."""
    out: Path | None = None
    """As for `lamp cache list`."""


def _cache_remove(arguments: Sequence[str]) -> None:
    flags = parse(CacheRemoveFlags, arguments, "cache remove")
    from lamp.data.feature_cache.report import remove_caches
    from lamp.errors import ConfigError

    if not flags.names:
        raise ConfigError(f"no cache is named; expected names that `lamp cache list {flags.data}` gives")
    for entry in remove_caches(_caches(flags.data, flags.out), flags.names, flags.data):
        print(f"removed {entry.name} ({entry.kind}, {entry.episodes} episodes, {entry.size / 1e6:.1f} MB)")


@dataclass(frozen=True, kw_only=True)
class DataCheckFlags:
    """Reads a whole LeRobot dataset, v2.0, v2.1 or v3.0, and reports every fault it finds: exit code 1 if there is one."""

    data: tyro.conf.Positional[Path]
    """The dataset: a folder, or a hub id."""
    workers: int = 1
    """Processes that read."""
    quick: bool = False
    """Count the videos' pictures without decoding them."""
    recipe: str | None = None
    """Instructions that this recipe's backbone cannot tell apart, or has no room for, are faults. By default, those that the
    small backbone cannot are listed as remarks."""
    json: bool = False
    """Print JSON."""


def _data_check(arguments: Sequence[str]) -> None:
    flags = parse(DataCheckFlags, arguments, "data check")
    from lamp.data.check import check_dataset
    from lamp.data.check.faults import DatasetFault

    report = check_dataset(flags.data, workers=flags.workers, quick=flags.quick)
    unread = _unreadable_instructions(flags)
    if flags.recipe is not None:
        faults = [DatasetFault(problem=problem, file="meta", key="task") for problem in unread]
        report = replace(report, faults=(*report.faults, *faults))
    if flags.json:
        content = dict(report.to_json()) | ({} if flags.recipe is not None else {"remarks": unread})
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print(report.to_text())
        if flags.recipe is None:
            for line in unread:
                print(f"no fault of the data, but for recipes with the small backbone (demo): {line}")
    if not report.ok:
        raise SystemExit(1)


def _unreadable_instructions(flags: DataCheckFlags) -> list[str]:
    """What a backbone cannot read of the dataset's instructions; nothing where they cannot be listed, a fault already."""
    from lamp.data.lerobot import LeRobotDataset
    from lamp.data.observation_encoder import unreadable
    from lamp.errors import DataError, MissingDependencyError
    from lamp.model.small import SmallBackboneConfig

    backbone = SmallBackboneConfig() if flags.recipe is None else training_named(flags.recipe).policy.backbone
    try:
        unreadable_instructions = unreadable(backbone.tokenizer(), LeRobotDataset(flags.data).tasks)
    except (DataError, MissingDependencyError):
        if flags.recipe is not None:
            raise
        return []
    return [] if unreadable_instructions is None else unreadable_instructions.problems


@dataclass(frozen=True, kw_only=True)
class RecordingFlags:
    """Makes a LeRobot dataset of what a robot or simulator recorded; again, it takes up what was recorded since."""

    recording: tyro.conf.Positional[Path]
    """The recorder's folder."""
    out: Path
    """The dataset."""
    robot_type: str = "panda"
    """As written in the dataset's description."""
    successes_only: bool = False
    """Leave out episodes that nobody called a success."""
    fps: float | None = None
    """Frames per second of the dataset; by default what the recording declares, if its frames were really taken so."""
    resample: Literal["none", "absolute"] = "none"
    """absolute: take the frames nearest to the moments of that rate, with their actions, which must be absolute targets."""


def _import_recording(arguments: Sequence[str]) -> None:
    flags = parse(RecordingFlags, arguments, "import-recording")
    from lamp.data.import_recording import import_recording
    from lamp.progress import Progress

    with Progress("import", unit="episodes") as bar:
        imported = import_recording(
            flags.recording,
            flags.out,
            robot_type=flags.robot_type,
            successes_only=flags.successes_only,
            progress=lambda done, total: bar.update(done, total=total),
            fps=flags.fps,
            resample=flags.resample,
        )
    for line in (*(f"left out {line}" for line in imported.skipped), *imported.notes):
        print(line, file=sys.stderr)
    print(f"{flags.out}: {imported.episodes} new episodes, {imported.frames} frames")
    if imported.embodiment is not None:
        print(
            f"what their states and actions mean is in {imported.embodiment}: train with --also {flags.out}={imported.embodiment}"
        )


COMMANDS: dict[str, Command] = {
    "collect": Command(summary="record demonstrations of LIBERO tasks with a scripted expert", run=_collect),
    "flow build": Command(
        summary="compute the 3-D scene flow of a dataset",
        run=_flow_build,
        elsewhere="scene flow is kept in the dataset: copy that",
    ),
    "flow score": Command(
        summary="measure how well scene flow is estimated from video, against a simulator's exact one",
        run=_flow_score,
        elsewhere="--out FILE",
    ),
    "flow validate": Command(summary="find every fault of a scene-flow store", run=_flow_validate),
    "flow merge": Command(summary="make one scene-flow store of several", run=_flow_merge, elsewhere="--out STORE"),
    "flow stats": Command(summary="summarise a scene-flow store in numbers", run=_flow_stats),
    "cache features": Command(summary="compute the frozen backbone's features of a dataset", run=_cache_features),
    "cache list": Command(summary="list a dataset's caches, their sizes and what they serve", run=_cache_list),
    "cache remove": Command(summary="remove caches of a dataset", run=_cache_remove),
    "data check": Command(summary="find every fault of a LeRobot dataset", run=_data_check),
    "import-recording": Command(summary="make a dataset of what a robot recorded", run=_import_recording),
}
