"""`lamp flow build SOURCE --out STORE`: scene flow estimated from video, for every clip of a source, in parallel and resumable.

Each clip is one task for one worker: it is read in windows that overlap by the horizon, and what is found is written at once. A
clip that fails is noted with its error, and the others go on. With `--out` a dataset without actions is made, images,
instructions and scene flow, from which Stage 1 learns; without, the scene flow of a LeRobot dataset is put beside its
demonstrations.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from lamp.configuration import to_json
from lamp.data.clip_flow import WINDOW, Filters, FlowRequest, estimate
from lamp.data.clip_sources import ClipReader, ClipSource, LeRobotSource, SourceSettings, find_source
from lamp.data.flow_executor import run_here, run_on_cluster
from lamp.data.lerobot.staging import EpisodeData, recorded_names
from lamp.data.lerobot.writer import LeRobotWriter
from lamp.errors import ConfigError, DataError, LampError, MismatchError
from lamp.files import locked, remove_folder, remove_leftovers, safe_file_name
from lamp.json_files import append_line, to_line
from lamp.progress import Progress
from lamp.sceneflow.estimate.optical_flow import working_size
from lamp.sceneflow.estimate.settings import ChainSettings
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription, lock_of
from lamp.sceneflow.stores import FOLDER, folder_for
from lamp.sceneflow.validate import MANIFEST
from lamp_client.child_processes import available_cores

VERSION = 1
MADE_BY = "lamp flow build"
"""What the description of a dataset says that was made here."""
SEGMENT = 600
"""Frames of an episode that is made of a longer clip."""
ESTIMATED = ".estimated"
"""Scene flow of clips that are not part of the dataset yet."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, kw_only=True)
class VideoFlowConfig(SourceSettings, ChainSettings):
    """Estimates scene flow from video, best with depth; a stopped build goes on where it was."""

    source: Path
    """A LeRobot dataset, a folder of videos or images, a video, or raw trajectories of BridgeData V2."""
    out: Path | None = None
    """The dataset to make, of images, instructions and scene flow; by default the scene flow is put into SOURCE, a LeRobot
    dataset."""
    name: str | None = None
    """What the camera is called in STORE, as the motion prior's is; by default as in the dataset, or `front`."""
    grid: tuple[int, int] = (20, 20)
    """Rows and columns of keypoints over the image."""
    horizon: int = 32
    """Flow steps."""
    stride: int = 1
    """Frames a flow step."""
    every: int = 1
    """Take every n-th frame as a reference frame."""
    clips: int | None = None
    """At most so many clips."""
    filters: Filters = field(default_factory=Filters)
    workers: int = field(default_factory=available_cores)
    """Processes of this machine."""
    executor: Literal["local", "ray"] = "local"
    """Where clips are worked on: in processes of this machine, or as tasks of a Ray cluster, one CPU each, whose machines see
    SOURCE and STORE under the same paths."""
    ray: str = "auto"
    """The cluster's address, of --executor ray, such as 10.0.0.1:6379; auto on one of its machines."""

    def __post_init__(self) -> None:
        if min(self.every, self.workers) < 1 or (self.clips is not None and self.clips < 1):
            raise ConfigError(
                f"every {self.every}, workers {self.workers}, clips {self.clips}: expected at least one of each"
            )
        self.make_chain()

    @property
    def sampling(self) -> Sampling:
        """Grid, horizon and stride."""
        return Sampling(grid=self.grid, horizon=self.horizon, stride=self.stride)

    @property
    def settings(self) -> SourceSettings:
        """What the source is told."""
        return SourceSettings(**{name: getattr(self, name) for name in SourceSettings.__dataclass_fields__})


class NothingLeftError(DataError):
    """The filters leave nothing of a clip."""

    def __init__(self, name: str, counts: Counter[str]):
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()) if count)
        super().__init__(f"nothing of {name} is left by the filters ({reasons or 'it has no query frames'})")
        self.counts = dict(counts)


@dataclass(frozen=True, kw_only=True)
class ClipReport:
    """What became of a clip."""

    clip: str
    error: str | None = None
    frames: int = 0
    query_frames: int = 0
    """Stored."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Query frames left out, and points not known, by reason."""
    depth_share: float = 0.0
    """Of the points at query frames."""
    seconds: float = 0.0
    """Processor time."""


@dataclass(frozen=True, kw_only=True)
class VideoFlowReport:
    """What a build did."""

    built: int
    kept: int
    """Clips that were there already."""
    failed: dict[str, str]
    """Clips that could not be used, with the reason."""
    query_frames: int
    seconds: float
    left_out: dict[str, int]
    path: Path

    def __str__(self) -> str:
        lines = [
            f"scene flow of {self.built} clips ({self.query_frames} query frames) in {self.seconds:.0f} s, "
            f"{self.query_frames / max(self.seconds, 1e-9):.1f} query frames/s; {self.kept} were there, "
            f"{len(self.failed)} failed: {self.path}"
        ]
        if self.left_out:
            lines.append("left out: " + ", ".join(f"{name} {count}" for name, count in sorted(self.left_out.items())))
        lines += [f"failed: {name}: {error}" for name, error in list(self.failed.items())[:20]]
        return "\n".join(lines)


def build_from_video(config: VideoFlowConfig) -> VideoFlowReport:
    """Builds what is missing.

    Raises:
        ConfigError: The source is a folder of videos, and no `out` was given.
        DataError: There is nothing to read, or no clip can be used, or another build is at work.
    """
    source = find_source(config.source, config.settings)
    _source.cache_clear()
    if config.out is None and not isinstance(source, LeRobotSource):
        raise ConfigError(f"{config.source} is no LeRobot dataset to put scene flow into; say where with --out STORE")
    if config.out is None and isinstance(source, LeRobotSource) and source.dataset.lamp.get("made_by") == MADE_BY:
        raise ConfigError(
            f"{config.source} was made of recordings by `{MADE_BY}`, without their depth; name these as the source"
        )
    target = config.out or config.source
    if config.out is not None and config.out.resolve().is_relative_to(config.source.resolve()):
        raise ConfigError(f"--out {config.out} lies in the source {config.source}; expected a folder of its own")
    config.prepare()
    names = list(source.names)[: config.clips]
    settled = _Settled.find(source, names, config)
    path = target / FOLDER if config.out else folder_for(target, settled.description)
    target.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(path), f"another `lamp flow build` is at work on {path}; wait for it or stop it"):
        store = SceneFlowStore.create(path, settled.description)
        remove_leftovers(path)
        if config.out is not None:
            _finish(target, store, config, settled.fps)
        there = _names_there(target, store, config, names)
        missing = [name for name in names if name not in there]
        start = time.perf_counter()
        reports = _run(config, settled, path, missing)
        if config.out is not None:
            _finish(target, store, config, settled.fps)
    failed = {report.clip: report.error for report in reports if report.error is not None}
    left_out = sum((Counter(report.left_out) for report in reports), Counter[str]())
    report = VideoFlowReport(
        built=len(reports) - len(failed),
        kept=len(there),
        failed=failed,
        query_frames=sum(report.query_frames for report in reports),
        seconds=time.perf_counter() - start,
        left_out=dict(left_out),
        path=target,
    )
    print(report)
    if not there and failed and len(failed) == len(reports):
        raise DataError(
            f"none of the {len(failed)} clips of {config.source} could be used; the reasons are in {path / MANIFEST}"
        )
    return report


@dataclass(frozen=True, kw_only=True)
class _Settled:
    """What is the same for all clips of a store."""

    description: StoreDescription
    size: tuple[int, int]
    """Of the images, px."""
    fps: float

    @classmethod
    def find(cls, source: ClipSource, names: Sequence[str], config: VideoFlowConfig) -> _Settled:
        """What the first clip that can be read has."""
        for name in names:
            try:
                reader = source.open(name)
                size = reader.window(0, 1 + (reader.length > 1)).size
            except (LampError, ValueError, OSError):
                continue
            camera = source.camera if isinstance(source, LeRobotSource) else "front"
            description = StoreDescription(
                sampling=config.sampling,
                cameras=(config.name or camera,),
                image_size=working_size(*size, config.make_chain().image_limit),
                mirrored=False,
                every=config.every,
                estimator=f"{config.make_chain().name} {VERSION}",
                source=config.source.resolve().name,
            )
            return cls(description=description, size=size, fps=reader.fps)
        source.open(names[0]).window(0, 2)  # says what is wrong with it
        raise DataError(f"no clip of {config.source} can be read")


def _names_there(target: Path, store: SceneFlowStore, config: VideoFlowConfig, names: Sequence[str]) -> set[str]:
    """Clips whose scene flow is whole."""
    if config.out is None:
        return {name for number, name in enumerate(names) if store.is_whole(number)}
    done = LeRobotWriter(target).names()
    return {name for name in names if _own(name) in done or f"{_own(name)}+end" in done}


def _own(name: str) -> str:
    """What a clip is called in the dataset; its parts, where it is long, have more behind a plus sign."""
    return safe_file_name(name)


def _run(config: VideoFlowConfig, settled: _Settled, path: Path, names: Sequence[str]) -> list[ClipReport]:
    """Works on the clips, and notes each as soon as it is over."""
    reports: list[ClipReport] = []
    # Other machines see the same files under the same absolute paths.
    there = replace(config, source=config.source.resolve(), out=None if config.out is None else config.out.resolve())
    jobs = {name: (there, settled, path.resolve(), name) for name in names}
    with Progress("scene flow", len(jobs), "clips") as progress:

        def tick() -> None:
            progress.update(progress.done)

        if config.executor == "ray" and jobs:
            gpus = 1.0 if config.models() and (config.device or "").startswith("cuda") else 0.0
            found = run_on_cluster(_work, jobs, config.ray, _died, tick, gpus=gpus)
        else:
            found = run_here(_work, jobs, config.workers, _died, tick)
        for _, report in found:
            reports.append(report)
            append_line(path / MANIFEST, to_line(to_json(report)))
            failed = sum(one.error is not None for one in reports)
            free = shutil.disk_usage(path).free / 1e9
            progress.update(len(reports), note=f"{failed} failed, {free:.0f} GB free")
    return reports


def _died(name: str, why: str) -> ClipReport:
    return ClipReport(clip=name, error=why)


def _work(config: VideoFlowConfig, settled: _Settled, path: Path, name: str) -> ClipReport:
    """One clip, whatever happens to it; only a full disk stops everything."""
    start = time.process_time()
    try:
        report = _clip(_source(config.source, config.settings).open(name), config, settled, path)
        return replace(report, clip=name, seconds=round(time.process_time() - start, 2))
    except NothingLeftError as error:
        return ClipReport(clip=name, error=str(error), left_out=error.counts)
    except LampError as error:
        return ClipReport(clip=name, error=str(error))
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        return ClipReport(clip=name, error=f"{type(error).__name__}: {error}")
    except Exception as error:
        return ClipReport(clip=name, error=f"{type(error).__name__}: {error}")


@lru_cache(maxsize=1)
def _source(path: Path, settings: SourceSettings) -> ClipSource:
    """A worker opens its source once."""
    return find_source(path, settings)


def _clip(reader: ClipReader, config: VideoFlowConfig, settled: _Settled, path: Path) -> ClipReport:
    (camera,) = settled.description.cameras
    if abs(reader.fps - settled.fps) > 0.01 * settled.fps:
        raise MismatchError(
            f"{reader.name} has {reader.fps:g} frames a second; the others {settled.fps:g}: build it apart"
        )
    counts, known = Counter[str](), list[float]()
    chain = config.make_chain()
    request = FlowRequest(
        sampling=config.sampling, every=config.every, filters=config.filters, partial=config.robot == "only"
    )
    if config.out is None:
        flow = estimate(reader, chain, request, counts, known, size=settled.size)
        if not len(flow.frames):
            raise NothingLeftError(reader.name, counts)
        report = _report(reader, flow, counts, known)
        origin = {"clip": to_json(replace(report, clip=reader.name))}
        SceneFlowStore(path).write(int(reader.name.removeprefix("episode-")), {camera: flow}, made_from=origin)
        return report
    writer, target = LeRobotWriter(config.out, fps=settled.fps, robot_type="video"), config.out
    span = config.horizon * config.stride
    starts = range(0, max(reader.length - span, 1), SEGMENT)
    stored = 0
    for first in starts:
        ends = first == starts[-1]
        last = reader.length if ends else first + SEGMENT + span
        part = _own(reader.name) if len(starts) == 1 else f"{_own(reader.name)}+{'end' if ends else f'{first:07d}'}"
        if part in writer.names():  # a build was stopped within this clip
            stored += 1
            continue
        queries = None if ends else SEGMENT
        flow = estimate(
            reader, chain, request, counts, known, size=settled.size, first=first, last=last, queries=queries
        )
        if not len(flow.frames):
            if ends and not stored:
                raise NothingLeftError(reader.name, counts)
            continue
        stored += len(flow.frames)
        apart = SceneFlowStore.create(target / ESTIMATED / part, settled.description)
        report = _report(reader, flow, counts, known)
        apart.write(0, {camera: flow}, made_from={"clip": to_json(replace(report, clip=reader.name))})
        images = _images(reader, first, last)
        data = EpisodeData(
            frames={"observation.fresh": np.ones(last - first, bool)}, images={camera: images}, task=reader.instruction
        )
        writer.add_episode(data, part)
    return replace(_report(reader, None, counts, known), query_frames=stored)


def _images(reader: ClipReader, first: int, last: int) -> np.ndarray:
    return np.concatenate([images for images in _pieces(reader, first, last)])


def _pieces(reader: ClipReader, first: int, last: int) -> Iterator[np.ndarray]:
    """Images, a window at a time; a window has two frames at least."""
    while first < last:
        until = last if last - first <= WINDOW + 1 else first + WINDOW
        yield reader.window(first, until).rgb
        first = until


def _report(reader: ClipReader, flow: CameraFlow | None, counts: Counter[str], known: list[float]) -> ClipReport:
    return ClipReport(
        clip=reader.name,
        frames=reader.length,
        query_frames=0 if flow is None else len(flow.frames),
        left_out=dict(counts),
        depth_share=round(float(np.mean(known or [0.0])), 4),
    )


def _finish(target: Path, store: SceneFlowStore, config: VideoFlowConfig, fps: float) -> None:
    """Makes staged clips episodes of the dataset, and moves their scene flow into its store; may be called again at any
    time."""
    (camera,) = store.description.cameras
    writer = LeRobotWriter(target, fps=fps, robot_type="video")
    if not writer.names():
        return
    writer.finalize({"made_by": MADE_BY, "source": config.source.resolve().name, "chain": config.make_chain().name})
    for episode, name in enumerate(recorded_names(target)):
        apart = target / ESTIMATED / name
        if store.is_whole(episode) or not (apart / "zarr.json").is_file():
            continue
        found = SceneFlowStore(apart)
        store.adopt(episode, found, 0, made_from=found.made_from(0))
        remove_folder(apart)
    store.all_frames(store.episodes, camera)
    if (target / ESTIMATED).is_dir() and not any((target / ESTIMATED).iterdir()):
        (target / ESTIMATED).rmdir()
