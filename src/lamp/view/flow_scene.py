"""`lamp view flow`: stored scene flow as a 3-D scene over time in the viewer rerun, true beside estimated.

Everything is in the frame of the query frame's camera, which the store holds still; images that are mirrored are turned back, for
rerun's cameras have no negative focal length.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, DataError, MismatchError, import_extra, unknown
from lamp.files import atomic_path
from lamp.sceneflow.motion_mask import MOVING, leaves_start
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.stores import settings, store_folders
from lamp.types import Camera, Tracks

EXACT = "simulation"
"""How the estimator of exact scene flow begins."""
COLOURS = {"true": (40, 200, 80), "estimated": (255, 110, 30)}
HIDDEN = (120, 120, 120)
INSTALL = "pip install 'lamp-vla[rerun]'"


@dataclass(frozen=True, kw_only=True)
class FlowViewConfig:
    """Shows the scene flow of one frame in the viewer rerun: points and their trails in 3-D and in the image, hidden ones grey;
    where there is exact scene flow beside an estimate, both and the error over time."""

    clip: Path
    """A dataset with scene flow."""
    episode: int = 0
    """Episode of the dataset."""
    frame: int | None = None
    """Frame of the episode; the nearest one with scene flow is shown. None takes the one with most motion."""
    scene_flow: str | None = None
    """The store that is shown, by its name in `lamp cache list`; by default the estimated one, or the only one."""
    against: str | None = None
    """The store that is taken for true beside it; by default an exact one, where there is one."""
    save: Path | None = None
    """Write an .rrd file, which `rerun FILE` opens, and show nothing."""
    web: bool = False
    """Serve the viewer to a browser, until Ctrl-C."""
    port: int = 9090
    """Of the web viewer; the data come over the next one."""

    def __post_init__(self) -> None:
        if self.save is not None and (self.web or self.save.suffix != ".rrd"):
            raise ConfigError(f"--save {self.save}: expected a file FILE.rrd, and either --save or --web")
        if not 1 <= self.port < 65535:
            raise ConfigError(f"--port {self.port}: expected 1 to 65534")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One store's tracks of the frame that is shown."""

    image: Float[np.ndarray, "k t1 2"]
    """(u, v), not mirrored."""
    space: Float[np.ndarray, "k t1 3"]
    """In the camera's frame [m]; NaN where depth is not known."""
    visible: Bool[np.ndarray, "k t1"]
    valid: Bool[np.ndarray, "k t1"]
    camera: Float[np.ndarray, "3 3"]
    """Intrinsics in image fractions, not mirrored."""

    @classmethod
    def of(cls, tracks: Tracks, camera: Camera) -> Layer:
        """Of one frame's tracks."""
        points, matrix = tracks.points[0].double().numpy(), camera.intrinsics[0].double().numpy()
        y = (points[..., 1] - matrix[1, 2]) / matrix[1, 1]
        x = (points[..., 0] - matrix[0, 2] - matrix[0, 1] * y) / matrix[0, 0]
        space = np.stack([x, y, np.ones_like(x)], axis=-1) * points[..., 2:]
        image, own = points[..., :2].copy(), matrix.copy()
        if matrix[0, 0] < 0:
            image[..., 0], own[0, 0], own[0, 2] = 1 - image[..., 0], -matrix[0, 0], 1 - matrix[0, 2]
        return cls(
            image=image, space=space, visible=tracks.visible[0].numpy(), valid=tracks.valid[0].numpy(), camera=own
        )

    @property
    def moves(self) -> Bool[np.ndarray, " k"]:
        """Which points leave their start."""
        away = torch.from_numpy(self.image - self.image[:, :1])[:, 1:]
        return leaves_start(away, torch.from_numpy(self.valid[:, 1:]), MOVING).numpy()


@dataclass(frozen=True, kw_only=True)
class FlowScene:
    """What is shown."""

    title: str
    images: UInt8[np.ndarray, "t1 h w 3"]
    """At each moment, not mirrored."""
    layers: Mapping[str, Layer]
    """`true`, `estimated`, or both."""

    def errors(self) -> tuple[Float[np.ndarray, " t1"], Float[np.ndarray, " t1"]] | None:
        """Median distances of estimated from true moving points that are seen: px of this image, and mm; NaN where there are
        none."""
        if len(self.layers) < 2:
            return None
        true, other = self.layers["true"], self.layers["estimated"]
        size = (self.images.shape[2], self.images.shape[1])
        counted = true.visible & true.valid & other.valid & true.moves[:, None]
        px = np.where(counted, np.linalg.norm((true.image - other.image) * size, axis=-1), np.nan)
        mm = np.where(counted, np.linalg.norm(true.space - other.space, axis=-1) * 1000, np.nan)
        return _medians(px), _medians(mm)


def _medians(values: Float[np.ndarray, "k t1"]) -> Float[np.ndarray, " t1"]:
    """The median over known points at each moment; NaN where there is none."""
    return np.array([np.median(own) if len(own := column[np.isfinite(column)]) else np.nan for column in values.T])


def view_flow(config: FlowViewConfig) -> str:
    """Shows, serves or writes a scene, and says what.

    Raises:
        ConfigError: There is no such episode or store.
        DataError: There is no scene flow.
        MismatchError: The two stores have different points or steps.
        MissingDependencyError: rerun is not installed.
    """
    rerun = import_rerun()
    scene = read_scene(config)
    stream = rerun.RecordingStream("lamp_flow", recording_id=scene.title.replace(" ", "-"))
    blueprint = _blueprint(rerun, scene)
    if config.save is not None:
        with atomic_path(config.save) as staged:
            stream.save(staged, default_blueprint=blueprint)
            _log(rerun, stream, scene)
            stream.flush()
            stream.disconnect()
        return f"{config.save}: {scene.title}; `rerun {config.save}` shows it"
    if not config.web:
        stream.spawn(default_blueprint=blueprint)
        _log(rerun, stream, scene)
        stream.flush()
        return scene.title
    address = stream.serve_grpc(grpc_port=config.port + 1, default_blueprint=blueprint)
    _log(rerun, stream, scene)
    rerun.serve_web_viewer(web_port=config.port, open_browser=False, connect_to=address)
    print(f"{scene.title}: http://127.0.0.1:{config.port}/?url={address.replace('+', '%2B')} until Ctrl-C", flush=True)
    while True:
        time.sleep(3600)


def import_rerun() -> Any:
    """
    Raises:
        MissingDependencyError: It is not installed.
    """
    otherwise = "lamp view flow: the package rerun-sdk cannot be imported ({}); install it: " + (
        f"{INSTALL}. Without it, `lamp view` draws a picture"
    )
    import_extra("rerun.blueprint", otherwise)
    return import_extra("rerun", otherwise)


def read_scene(config: FlowViewConfig) -> FlowScene:
    """Reads what is shown.

    Errors are those of `view_flow`.
    """
    dataset = LeRobotDataset(config.clip)
    stores = _stores(config)
    first = next(iter(stores.values()))
    if config.episode not in first.episodes:
        raise ConfigError(
            f"episode {config.episode} has no scene flow in {first.path}; it has that of {len(first.episodes)} episodes, "
            f"{first.episodes[0] if first.episodes else '-'} to {first.episodes[-1] if first.episodes else '-'}"
        )
    if len(stores) == 2:
        _check_comparable(*stores.values())
    frames = first.frames(config.episode)
    if len(stores) == 2:
        frames = np.intersect1d(frames, stores["true"].frames(config.episode))
    if not len(frames):
        raise DataError(f"episode {config.episode} has no frame with scene flow in {' and '.join(map(str, stores))}")
    frame = (
        int(frames[np.abs(frames - config.frame).argmin()])
        if config.frame is not None
        else _liveliest(first, config.episode, frames)
    )
    camera = first.description.cameras[0]
    if camera not in dataset.cameras:
        raise unknown("camera of the dataset", camera, dataset.cameras)
    read = {role: store.read(config.episode, [frame], camera) for role, store in stores.items()}
    moments = frame + first.description.sampling.stride * np.arange(first.description.sampling.horizon + 1)
    held = np.minimum(moments, dataset.episode(config.episode).length - 1)
    distinct, place = np.unique(held, return_inverse=True)
    images = dataset.frames(camera, config.episode, distinct)[place]
    mirrored = bool(read[next(iter(read))][1].intrinsics[0, 0, 0] < 0)
    return FlowScene(
        title=f"{config.clip.resolve().name} episode {config.episode} frame {frame}",
        images=np.ascontiguousarray(images[:, :, ::-1] if mirrored else images),
        layers={role: Layer.of(tracks, pose) for role, (tracks, pose) in read.items()},
    )


def _stores(config: FlowViewConfig) -> dict[str, SceneFlowStore]:
    """The stores that are shown, by their part; the one that was asked for first."""
    folders = {folder.name: folder for folder in store_folders(config.clip)}
    if not folders:
        SceneFlowStore(config.clip / "sceneflow")  # says what is missing
    for name in (config.scene_flow, config.against):
        if name is not None and name not in folders:
            raise unknown(f"scene-flow store of {config.clip}", name, folders)
    known = {name: SceneFlowStore(folder) for name, folder in folders.items()}
    exact = [name for name, store in known.items() if store.description.estimator.startswith(EXACT)]
    estimated = [name for name in known if name not in exact]
    shown = config.scene_flow or next(iter([*estimated, *exact]))
    true = config.against
    if true is None and shown not in exact:
        alike = [name for name in exact if _alike(known[shown], known[name])]
        true = alike[0] if alike else None
    found = {"true" if shown in exact and true is None else "estimated": known[shown]}
    return found if true is None else {**found, "true": known[true]}


def _alike(one: SceneFlowStore, other: SceneFlowStore) -> bool:
    first, second = one.description, other.description
    return first.sampling == second.sampling and first.cameras[0] in second.cameras


def _check_comparable(one: SceneFlowStore, other: SceneFlowStore) -> None:
    if not _alike(one, other):
        raise MismatchError(
            f"{one.path.name} ({settings(one.description)}) and {other.path.name} ({settings(other.description)}) cannot be "
            "compared; expected the same points, steps and camera"
        )


def _liveliest(store: SceneFlowStore, episode: int, frames: np.ndarray) -> int:
    """The frame after which the points move most in all."""
    tracks, _ = store.read(episode, frames)
    away = (tracks.points[..., :2] - tracks.points[..., :1, :2]).norm(dim=-1)
    moved = torch.where(tracks.valid, away, torch.zeros(())).nan_to_num().amax(dim=2).sum(dim=1)
    return int(frames[int(moved.argmax())])


def _blueprint(rerun: Any, scene: FlowScene) -> Any:
    parts = rerun.blueprint
    views = [parts.Spatial2DView(origin="/world/camera/image", name="image")]
    if len(scene.layers) == 2:
        views.append(parts.TimeSeriesView(origin="/error", name="error"))
    space = parts.Spatial3DView(origin="/world", name="scene flow")
    return parts.Blueprint(parts.Horizontal(space, parts.Vertical(*views), column_shares=[2, 1]), collapse_panels=True)


def _log(rerun: Any, stream: Any, scene: FlowScene) -> None:
    """Gives everything to the viewer, step by step."""
    _, height, width = scene.images.shape[:3]
    layer = next(iter(scene.layers.values()))
    matrix = layer.camera
    stream.log("world", rerun.ViewCoordinates.RDF, static=True)
    stream.log(
        "world/camera/image",
        rerun.Pinhole(
            focal_length=[matrix[0, 0] * width, matrix[1, 1] * height],
            principal_point=[matrix[0, 2] * width, matrix[1, 2] * height],
            resolution=[width, height],
            image_plane_distance=0.25,
        ),
        static=True,
    )
    start, known = layer.image[:, 0], np.isfinite(layer.space[:, 0]).all(axis=-1) & layer.valid[:, 0]
    column, row = (
        np.clip(start[known, axis] * size, 0, size - 1).astype(int) for axis, size in ((0, width), (1, height))
    )
    cloud = rerun.Points3D(layer.space[known, 0], colors=scene.images[0, row, column], radii=0.004)
    stream.log("world/cloud", cloud, static=True)
    errors = scene.errors()
    for step in range(len(scene.images)):
        stream.set_time("step", sequence=step)
        stream.log("world/camera/image", rerun.Image(scene.images[step]).compress(jpeg_quality=85))
        for name, one in scene.layers.items():
            _log_layer(rerun, stream, name, one, step, (width, height))
        for name, values in zip(("px", "mm"), errors or (), strict=False):
            if np.isfinite(values[step]):
                stream.log(f"error/median_{name}", rerun.Scalars(float(values[step])))


def _log_layer(rerun: Any, stream: Any, name: str, layer: Layer, step: int, size: tuple[int, int]) -> None:
    """One store's points at a step, and the way that those that move have come."""
    shown = layer.valid[:, step] & layer.moves
    colours = np.where(layer.visible[shown, step, None], COLOURS[name], HIDDEN).astype(np.uint8)
    stream.log(f"world/camera/image/{name}", rerun.Points2D(layer.image[shown, step] * size, colors=colours, radii=1.5))
    spatial = np.isfinite(layer.space[:, step]).all(axis=-1) & shown
    colours = np.where(layer.visible[spatial, step, None], COLOURS[name], HIDDEN).astype(np.uint8)
    stream.log(f"world/{name}", rerun.Points3D(layer.space[spatial, step], colors=colours, radii=0.006))
    if step:
        trails = [layer.space[point, : step + 1] for point in np.flatnonzero(spatial)]
        trails = [trail[np.isfinite(trail).all(axis=-1)] for trail in trails]
        stream.log(f"world/{name}/trails", rerun.LineStrips3D(trails, colors=[*COLOURS[name], 140], radii=0.0015))
