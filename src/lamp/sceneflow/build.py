"""`lamp flow build DIR`: scene flow for every recorded episode of a dataset, in parallel, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from lamp.errors import ConfigError, DataError, unknown, unreadable
from lamp.files import locked, remove_leftovers
from lamp.progress import Progress
from lamp.sceneflow.exact_flow import Occlusion, RayCast, Sampling, episode_flow
from lamp.sceneflow.normalization import BoundsRule, MotionBounds
from lamp.sceneflow.rendering import BodyDepthRenderer, LoadScene, SimulationScene, load_scene
from lamp.sceneflow.sim_states import Playback, read_header, read_recording, recording_paths
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription, lock_of, remove
from lamp.sceneflow.stores import (
    PictureHashes,
    changed_episodes,
    folder_for,
    made_from,
    replaced_pictures,
    store_folders,
)
from lamp.sceneflow.tracks import Supervision, flow_from_tracks, moving_points
from lamp.types import Camera, SceneFlow, Tracks
from lamp_client.child_processes import ProcessPool, available_cores

ESTIMATOR = "simulation 1"


@dataclass(frozen=True, kw_only=True)
class FlowBuildConfig:
    """Builds the scene-flow store of a dataset from its recorded simulation; a stopped build goes on where it was."""

    data: Path
    """The dataset; the store is made at DATA/sceneflow, or beside it where a store of other settings is there."""
    grid: tuple[int, int] = (20, 20)
    """Rows and columns of keypoints over the image."""
    horizon: int = 32
    """Flow steps."""
    stride: int = 1
    """Frames a flow step."""
    every: int = 1
    """Take every n-th frame that has an image of its own as a reference frame."""
    cameras: tuple[str, ...] = ("agentview",)
    """Cameras of the dataset; the first is the one models use by default."""
    occlusion: Occlusion = field(default_factory=RayCast)
    """How a moving camera's occlusion is found; a still camera compares depths with its own later images."""
    image_size: tuple[int, int] = (256, 256)
    """Width and height in px of the images whose pixel centres the points start from."""
    mirrored: bool = True
    """The images are mirrored left to right, as LIBERO's customarily are."""
    workers: int = field(default_factory=available_cores)
    """Processes."""
    only: Annotated[tuple[int, ...] | None, tyro.conf.Suppress] = None
    """Episodes whose scene flow is built; that of others stays as it is. None: all."""
    overwrite: bool = False
    """Remove the store of these settings first; or the dataset's only store, whatever its settings."""

    def __post_init__(self) -> None:
        if not self.cameras or min(self.every, self.workers, *self.image_size) < 1:
            raise ConfigError(
                f"cameras {self.cameras}, every {self.every}, workers {self.workers}, image size {self.image_size}: "
                "expected at least one of each"
            )

    @property
    def sampling(self) -> Sampling:
        """Grid, horizon and stride."""
        return Sampling(grid=self.grid, horizon=self.horizon, stride=self.stride)

    @property
    def description(self) -> StoreDescription:
        """The description of the store to build."""
        return StoreDescription(
            sampling=self.sampling,
            cameras=self.cameras,
            image_size=self.image_size,
            mirrored=self.mirrored,
            every=self.every,
            estimator=f"{ESTIMATOR}, {type(self.occlusion).__name__}",
            source=self.data.resolve().name,
        )


@dataclass(frozen=True, kw_only=True)
class FlowBuildReport:
    """What a build did, and statistics of the store."""

    built: int
    """Episodes built by this call."""
    kept: int
    """Episodes that were there already."""
    frames: int
    """Reference frames built by this call, over all cameras."""
    seconds: float
    frames_per_core_second: float
    """Reference frames per second of a worker's processor time, set-up included."""
    moving_share: float
    """Share of points that move within the horizon, over a sample of the store."""
    bounds: MotionBounds
    """Bounds that the default rule gives for increments as stored, over a sample of the store."""
    clamp_rate: tuple[float, float, float]
    """Share of increments that these bounds clamp."""

    def __str__(self) -> str:
        rate = self.frames / max(self.seconds, 1e-9)
        return (
            f"scene flow of {self.built} episodes ({self.frames} frames) built in {self.seconds:.0f} s, {rate:.1f} frames/s, "
            f"{self.frames_per_core_second:.1f} a core; {self.kept} episodes were there. {self.moving_share:.1%} of the "
            f"points move; bounds +-{', '.join(f'{end:.4f}' for end in self.bounds.high)} clamp "
            f"{', '.join(f'{rate:.2%}' for rate in self.clamp_rate)} of du, dv, dd"
        )


@dataclass(frozen=True, kw_only=True)
class _BuildJob:
    """Episodes of one task, for one worker."""

    config: FlowBuildConfig
    load_scene: LoadScene
    metadata: dict[str, Any]
    frames: dict[int, np.ndarray]
    """Reference frames by episode."""
    path: Path
    """The store."""
    pictures: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """Hashes of each episode's pictures, by camera, where they are known."""


def build(
    config: FlowBuildConfig, *, load_scene: LoadScene = load_scene, pictures: PictureHashes | None = None
) -> FlowBuildReport:
    """Builds what is missing of a dataset's scene-flow store.

    Args:
        pictures: Finds an episode's pictures, so that the store notes them and an episode whose pictures have been replaced is
            built again.
        load_scene: Builds the simulator of a recording; a module's function, since it is pickled for worker processes.

    Raises:
        DataError: There is no recorded simulation, or another build is at work.
        MismatchError: A store is there that was built otherwise, or the recording does not fit the simulator.
    """
    recordings = recording_paths(config.data)
    if config.only is not None:
        recordings = {episode: path for episode, path in recordings.items() if episode in config.only}
        if not recordings:
            raise DataError(
                f"none of the {len(config.only)} selected episodes of {config.data} has a recorded simulation"
            )
    config = as_recorded(config)
    if config.overwrite:
        folders = store_folders(config.data)
        old = folders[0] if len(folders) == 1 else folder_for(config.data, config.description)
        with locked(lock_of(old), _busy(old)):
            remove(old)
    path = folder_for(config.data, config.description)
    with locked(lock_of(path), _busy(path)), _removed_if_empty(path):
        store = SceneFlowStore.create(path, config.description)
        remove_leftovers(path)
        whole = [episode for episode in recordings if store.is_whole(episode)]
        stale = {
            *changed_episodes(store, config.data, whole),
            *(replaced_pictures(store, whole, pictures) if pictures else ()),
        }
        missing = sorted(recordings.keys() - (set(whole) - stale))
        headers = {episode: read_header(recordings[episode]) for episode in missing}
        frames = reference_frames(
            config.data, {episode: length for episode, (_, length) in headers.items()}, config.every
        )
        metadata = {episode: own for episode, (own, _) in headers.items()}
        shown = {episode: dict(pictures(episode)) for episode in missing} if pictures else {}
        jobs = [replace(job, pictures=shown) for job in _jobs(config, load_scene, metadata, frames, path)]
        start = time.perf_counter()
        cpu_s = _run(jobs, store, frames, min(config.workers, len(jobs)))
        seconds = time.perf_counter() - start
        for camera in config.cameras:
            store.all_frames(store.episodes, camera)  # for the index, so that whoever opens the store need not
    count = sum(map(len, frames.values())) * len(config.cameras)
    report = FlowBuildReport(
        built=len(missing),
        kept=len(recordings) - len(missing),
        frames=count,
        seconds=seconds,
        frames_per_core_second=count / max(cpu_s, 1e-9),
        **_measures(store),
    )
    print(report)
    return report


def as_recorded(config: FlowBuildConfig) -> FlowBuildConfig:
    """The settings with what the recording says of its pictures, where it does: LIBERO's do not, and the defaults are theirs.

    Raises:
        DataError: A recorded simulation cannot be read.
    """
    try:
        path = next(iter(recording_paths(config.data).values()))
    except DataError:
        return config  # `build` says what is missing
    metadata, _ = read_header(path)
    if "mirrored" not in metadata:
        return config
    try:
        width, height = (int(side) for side in metadata["image_size"])
        cameras = tuple(str(name) for name in metadata["cameras"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} does not say its cameras and `image_size`, as it says `mirrored`: {error}") from error
    if config.cameras != FlowBuildConfig(data=config.data).cameras:
        cameras = config.cameras
    return replace(config, cameras=cameras, mirrored=bool(metadata["mirrored"]), image_size=(width, height))


@contextmanager
def _removed_if_empty(path: Path) -> Iterator[None]:
    """Removes a store without episodes: one that an earlier build left, or that this build makes and cannot begin to fill."""
    empty = not any(path.glob("episode-[0-9]*"))
    if empty:
        remove(path)
    try:
        yield
    finally:
        if empty and [item.name for item in path.glob("*")] == ["zarr.json"]:
            remove(path)


def _busy(path: Path) -> str:
    return f"another `lamp flow build` is at work on {path}; wait for it or stop it"


def _jobs(
    config: FlowBuildConfig,
    load_scene: LoadScene,
    metadata: dict[int, dict[str, Any]],
    frames: dict[int, np.ndarray],
    path: Path,
) -> list[_BuildJob]:
    """Splits episodes by task, since a task's simulator takes seconds to build, and so that all workers are busy."""
    tasks: dict[str, list[int]] = {}
    for episode, values in metadata.items():
        tasks.setdefault(f"{values.get('suite')}/{values.get('task')}", []).append(episode)
    pieces = math.ceil(config.workers / max(len(tasks), 1))
    jobs = []
    for episodes in tasks.values():
        for part in (episodes[i::pieces] for i in range(min(pieces, len(episodes)))):
            own = {episode: frames[episode] for episode in part}
            jobs.append(
                _BuildJob(config=config, load_scene=load_scene, metadata=metadata[part[0]], frames=own, path=path)
            )
    return jobs


def _run(jobs: list[_BuildJob], store: SceneFlowStore, frames: dict[int, np.ndarray], workers: int) -> float:
    """Does the jobs and returns the processor time they took in s."""
    with Progress("scene flow", sum(map(len, frames.values())), "frames") as progress:
        if workers <= 1:
            done, start = 0, time.process_time()
            for job in jobs:
                for count in _episodes(job):
                    progress.update(done := done + count)
            return time.process_time() - start
        with ProcessPool(workers, torch.set_num_threads, (1,)) as pool:
            pending = all_futures = {pool.submit(_work, job) for job in jobs}
            try:
                while pending:
                    finished, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    progress.update(sum(len(frames[episode]) for episode in store.episodes if episode in frames))
            except BrokenProcessPool:
                raise DataError(
                    "a worker process was killed, perhaps for want of memory; run the command again to go on, "
                    f"with fewer than --workers {workers}"
                ) from None
            return sum(future.result() for future in all_futures)


def _work(job: _BuildJob) -> float:
    """A job in a process of its own; returns its processor time in s."""
    start = time.process_time()
    for _ in _episodes(job):
        pass
    return time.process_time() - start


def _episodes(job: _BuildJob) -> Iterator[int]:
    """Builds and writes each episode of a job; gives the number of its reference frames."""
    config = job.config
    store = SceneFlowStore(job.path)
    recordings = recording_paths(config.data)
    scene = job.load_scene(job.metadata)
    for camera in config.cameras:
        if camera not in scene.cameras:
            raise unknown("camera", camera, scene.cameras)
    width, height = config.image_size
    with BodyDepthRenderer(
        scene.model, width=width, height=height, mirrored=config.mirrored, geom_groups=scene.geom_groups
    ) as renderer:
        for episode, frames in job.frames.items():
            origin = made_from(recordings[episode], job.pictures.get(episode))
            playback = Playback(scene.model, read_recording(recordings[episode]))
            store.write(
                episode,
                {name: _flow(playback, renderer, scene, name, frames, config) for name in config.cameras},
                made_from=origin,
            )
            yield len(frames)


def _flow(
    playback: Playback,
    renderer: BodyDepthRenderer,
    scene: SimulationScene,
    camera: str,
    frames: np.ndarray,
    config: FlowBuildConfig,
) -> CameraFlow:
    found = list(
        episode_flow(playback, renderer, scene.cameras[camera], frames.tolist(), config.sampling, config.occlusion)
    )
    tracks = Tracks(
        **{name: torch.stack([getattr(t, name) for t, _ in found]) for name in ("points", "visible", "valid")}
    )
    cameras = Camera(
        intrinsics=torch.stack([c.intrinsics for _, c in found]),
        world_from_cam=torch.stack([c.world_from_cam for _, c in found]),
    )
    return CameraFlow(frames=frames, tracks=tracks, camera=cameras)


def _measures(store: SceneFlowStore) -> dict[str, Any]:
    """Share of moving points, default bounds and their clamp rate, over a sample of at most 64 x 8 reference frames."""
    flows = list(_sample(store))
    bounds = BoundsRule().fit(flows)
    shares = [moving_points(flow).float().mean().item() for flow in flows]
    rates = np.array([bounds.clamp_rate(flow) for flow in flows]).reshape(-1, 3).mean(axis=0)
    du, dv, dd = rates.tolist()
    return {"moving_share": float(np.mean(shares)), "bounds": bounds, "clamp_rate": (du, dv, dd)}


def _sample(store: SceneFlowStore) -> Iterator[SceneFlow]:
    episodes = store.episodes
    for episode in episodes[:: max(len(episodes) // 64, 1)]:
        frames = store.frames(episode)
        tracks, camera = store.read(episode, frames[:: max(len(frames) // 8, 1)])
        yield flow_from_tracks(tracks, camera, supervision=Supervision(hidden_points=True))


def reference_frames(root: Path, lengths: dict[int, int], every: int) -> dict[int, np.ndarray]:
    """Every n-th frame whose image is its own (`observation.fresh`), by episode; all are where the dataset does not say.

    Raises:
        DataError: The dataset's frames are unreadable, or do not fit the recordings.
    """
    fresh = {episode: np.ones(length, bool) for episode, length in lengths.items()}
    columns = ["episode_index", "frame_index", "observation.fresh"]
    for file in sorted(root.glob("data/chunk-*/file-*.parquet")):
        try:
            if columns[-1] not in pq.read_schema(file).names:
                continue
            table = pq.read_table(file, columns=columns)
        except (OSError, pa.ArrowException) as error:
            damaged = DataError(f"cannot read {file} ({error}); restore the dataset or collect it again")
            raise unreadable(file, error, damaged) from None
        episodes, frames, values = (np.array(table[name].to_pylist()).reshape(len(table)) for name in columns)
        for episode in np.unique(episodes).tolist():
            if episode not in fresh:
                continue
            rows = episodes == episode
            if rows.sum() != lengths[episode]:
                raise DataError(
                    f"episode {episode} has {rows.sum()} frames in {file} but {lengths[episode]} in its recorded simulation; "
                    "expected as many; collect it again"
                )
            fresh[episode][frames[rows]] = values[rows]
    return {episode: np.flatnonzero(mask)[::every] for episode, mask in fresh.items()}
