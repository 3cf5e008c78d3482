"""The scene-flow store: raw tracks on disk, Zarr v3, readable frame by frame.

``DIR/sceneflow/zarr.json`` describes the store, ``DIR/sceneflow/episode-000000/<camera>/`` holds one episode:

- ``points`` (frame, keypoint, moment, 3) float32: u, v as fractions of the image's width and height, depth in m,
- ``visible``, ``valid`` (frame, keypoint, moment) bool: as in `lamp.types.Tracks`,
- ``intrinsics`` (frame, 3, 3) and ``world_from_cam`` (frame, 4, 4) float64: the reference camera,
- ``frames`` (frame,) int32: the present frame of each entry, ascending.

One chunk holds one reference frame (a random read takes about 1 ms, and larger chunks save no space), one shard an episode.
An episode's folder appears whole or not at all, and lists the sizes of its files, and in `checksums.json` their hashes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from jaxtyping import Int
from typing_extensions import TypedDict
from zarr.codecs import BloscCodec, Crc32cCodec

from lamp.checksums import CHECKSUMS, checksums_of, files_in, read_checksums, with_own, write_checksums
from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError, DataError, MismatchError, missing, unknown
from lamp.files import atomic_path, link_or_copy, remove_folder, safe_file_name, sha256_of
from lamp.json_files import read_json_as, to_line
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.index import IndexEntry, StoreIndex
from lamp.types import Camera, Tracks

FORMAT = "lamp-sceneflow"
VERSION = 1
UNITS = {"u": "fraction of image width", "v": "fraction of image height", "d": "m along the optical axis"}
AXES = {"points": ["frame", "keypoint", "moment", "uvd"], "visible": ["frame", "keypoint", "moment"]}


@dataclass(frozen=True, kw_only=True)
class StoreDescription:
    """What is stored, the same for every episode."""

    sampling: Sampling
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    """Width and height in px of the images whose pixel centres the grid points are on."""
    mirrored: bool
    """Whether the images are mirrored left to right, as LIBERO's customarily are."""
    every: int
    """Reference frames are every n-th of the frames with an image of their own."""
    estimator: str
    """How the scene flow was found, with a version."""
    source: str
    """Name of the dataset it belongs to."""

    def differences(self, other: StoreDescription) -> dict[str, tuple[Any, Any]]:
        """Settings of which the other has another value, by name, with both. Whose scene flow it is, is no setting."""
        ours, theirs = (to_json(replace(one, source="")) for one in (self, other))
        return {name: (value, theirs[name]) for name, value in ours.items() if theirs[name] != value}


class GroupAttributes(TypedDict, total=False):
    """What is read again of an episode's attributes."""

    made_from: dict[str, Any] | None


class GroupMetadata(TypedDict, total=False):
    """`zarr.json` of a store or of an episode in it, as zarr writes it."""

    attributes: GroupAttributes


class SceneFlowStore:
    """Random access to a scene-flow store.

    Raises:
        DataError: There is none, or it cannot be read.
        MismatchError: It is of another format or version.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / "zarr.json").is_file():
            raise _no_store(self.path)
        with readable(self.path):
            attributes = dict(zarr.open_group(self.path, mode="r", zarr_format=3).attrs)
        if attributes.get("format") != FORMAT or attributes.get("version") != VERSION:
            raise MismatchError(
                f"{self.path} is {attributes.get('format')!r} version {attributes.get('version')!r}; "
                f"expected {FORMAT!r} version {VERSION}"
            )
        self.description: StoreDescription = from_json(
            StoreDescription, attributes.get("description"), where=f"description of {self.path}"
        )
        self._episode = lru_cache(maxsize=512)(self._open_episode)
        self._index = StoreIndex(self.path)

    def __reduce__(self) -> tuple[type[SceneFlowStore], tuple[Path]]:
        """Another process opens it itself."""
        return SceneFlowStore, (self.path,)

    @classmethod
    def create(cls, path: Path, description: StoreDescription) -> SceneFlowStore:
        """Makes an empty store, or opens the one that is there if it is described alike.

        Raises:
            MismatchError: There is one that is described otherwise.
        """
        path = Path(path)
        if (path / "zarr.json").exists():
            store = cls(path)
            store._check_same(description)
            return store
        path.mkdir(parents=True, exist_ok=True)
        attributes = {"format": FORMAT, "version": VERSION, "units": UNITS, "axes": AXES}
        with atomic_path(path / "zarr.json") as staged:
            group = zarr.create_group(staged.parent, zarr_format=3)
            group.update_attributes(with_own(attributes | {"description": to_json(description)}))
        return cls(path)

    @property
    def episodes(self) -> tuple[int, ...]:
        """Indices of the stored episodes."""
        return tuple(sorted(int(path.name.removeprefix("episode-")) for path in self.path.glob("episode-[0-9]*")))

    def frames(self, episode: int, camera: str | None = None) -> Int[np.ndarray, " f"]:
        """Stored reference frames of an episode, ascending."""
        return self._entry(episode, self._camera(camera)).frames

    def all_frames(self, episodes: Sequence[int], camera: str | None = None) -> list[Int[np.ndarray, " f"]]:
        """The same of many episodes; what had to be read for it is kept in the store's index."""
        found = [self._entry(episode, self._camera(camera)).frames for episode in episodes]
        self.keep_index()
        return found

    def keep_index(self) -> None:
        """Writes what had to be read of episodes to the store's index."""
        self._index.keep()

    def made_from(self, episode: int) -> Mapping[str, Any]:
        """What the dataset held of an episode when its scene flow was made; empty where that was not noted."""
        return self._entry(episode, self.description.cameras[0]).made_from

    def _entry(self, episode: int, camera: str) -> IndexEntry:
        folder = self._folder(episode)
        found = self._index.get(episode, camera, folder)
        if found is None:
            opened = self._episode(episode, camera)
            with readable(folder):
                stored = read_json_as(folder / "zarr.json", GroupMetadata, "description of an episode")
            made_from = stored.get("attributes", {}).get("made_from") or {}
            found = self._index.add(episode, camera, folder, opened.frames, made_from)
        return found

    def read(
        self, episode: int, frames: Sequence[int] | np.ndarray, camera: str | None = None
    ) -> tuple[Tracks, Camera]:
        """Tracks of some reference frames of an episode, in the order asked for, and their reference cameras (float32).

        Args:
            frames: Reference frames, all of them stored.
            camera: Name of the camera; the store's first by default.

        Raises:
            ConfigError: The camera is not stored.
            DataError: The episode or a frame is not stored, or the file is corrupt.
        """
        stored = self._episode(episode, self._camera(camera))
        rows = stored.rows(np.asarray(frames, dtype=np.int64))
        points, visible, valid = (stored.entries(name, rows) for name in ("points", "visible", "valid"))
        intrinsics, pose = (
            torch.from_numpy(array[rows]).float() for array in (stored.intrinsics, stored.world_from_cam)
        )
        tracks = Tracks(
            points=torch.from_numpy(points), visible=torch.from_numpy(visible), valid=torch.from_numpy(valid)
        )
        return tracks, Camera(intrinsics=intrinsics, world_from_cam=pose)

    def write(
        self, episode: int, flows: Mapping[str, CameraFlow], *, made_from: Mapping[str, Any] | None = None
    ) -> None:
        """Adds or replaces an episode; a reader sees it whole or not at all.

        Args:
            flows: Its scene flow, by camera.
            made_from: Identifies the recording that it was made from (`lamp.sceneflow.stores.made_from`).
        """
        if tuple(flows) != self.description.cameras:
            raise ConfigError(f"scene flow in {tuple(flows)}; expected {self.description.cameras}")
        with atomic_path(self._folder(episode)) as staged:
            group = zarr.create_group(staged, zarr_format=3)
            for camera, flow in flows.items():
                write_camera(group.create_group(safe_file_name(camera)), flow)
            sizes = {
                str(path.relative_to(staged)): path.stat().st_size for path in staged.glob("*/**/*") if path.is_file()
            }
            group.update_attributes({"episode": episode, "files": sizes, "made_from": dict(made_from or {})})
            write_checksums(staged / CHECKSUMS, checksums_of(staged, files_in(staged)))
        self._episode.cache_clear()

    def adopt(self, episode: int, other: SceneFlowStore, its_episode: int, *, made_from: Mapping[str, Any]) -> None:
        """Adds an episode of another store of the same settings as it is: its arrays are linked or copied, not decoded.

        Raises:
            DataError: The other's episode is not whole.
        """
        source, own = other._folder(its_episode), ("zarr.json", CHECKSUMS)
        if not other.is_whole(its_episode):
            raise DataError(f"{source} is damaged; `lamp flow validate {other.path}` says how: build it again")
        with atomic_path(self._folder(episode)) as staged:
            for path in files_in(source):
                target = staged / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.relative_to(source).as_posix() in own:  # these are changed in place
                    shutil.copyfile(path, target)
                else:
                    link_or_copy(path, target)
            zarr.open_group(staged, mode="r+", zarr_format=3).update_attributes(
                {"episode": episode, "made_from": dict(made_from)}
            )
            listed = read_checksums(staged / CHECKSUMS) if (staged / CHECKSUMS).is_file() else {}
            unlisted = files_in(staged, without=(CHECKSUMS, *listed))
            new = checksums_of(staged, [staged / "zarr.json", *unlisted])
            write_checksums(staged / CHECKSUMS, {**listed, **new})

    def fingerprint(self, episode: int) -> str:
        """A hash of what is stored of an episode, by the checksums of its files."""
        folder = self._folder(episode)
        if (folder / CHECKSUMS).is_file():
            return sha256_of(folder / CHECKSUMS)[:16]
        found = checksums_of(folder, files_in(folder))  # written by somebody else
        return hashlib.sha256(to_line({name: one.sha256 for name, one in found.items()}).encode()).hexdigest()[:16]

    def is_whole(self, episode: int) -> bool:
        """Whether an episode is stored with all its files."""
        try:
            for camera in self.description.cameras:
                self._open_episode(episode, camera)
        except DataError:
            return False
        return True

    def check(self, *, grid: tuple[int, int], span: int) -> None:
        """Checks the store against what a model needs.

        Args:
            grid: Rows and columns of keypoints.
            span: Stored flow steps that the model's horizon covers: its horizon times the retiming stride.

        Raises:
            MismatchError: They do not fit.
        """
        sampling = self.description.sampling
        if tuple(grid) != sampling.grid or span > sampling.horizon:
            raise MismatchError(
                f"{self.path} holds a {sampling.grid[0]}x{sampling.grid[1]} grid over {sampling.horizon} flow steps of "
                f"{sampling.stride} frames, but {grid[0]}x{grid[1]} over {span} is needed; choose a model that fits, or build "
                f"another beside it with `lamp flow build {self.path.parent} --grid {grid[0]} {grid[1]} --horizon {span}`"
            )

    def describe(self) -> dict[str, Any]:
        """What `lamp info` shows."""
        episodes = self.episodes
        frames = sum(map(len, self.all_frames(episodes)))
        size = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        per_frame = size / max(frames * len(self.description.cameras), 1)
        counts = {
            "episodes": len(episodes),
            "reference_frames": frames,
            "bytes": size,
            "bytes_per_frame": round(per_frame),
        }
        return {"format": f"{FORMAT} {VERSION}", **counts, **asdict(self.description)}

    def _folder(self, episode: int) -> Path:
        return self.path / f"episode-{episode:06d}"

    def _camera(self, camera: str | None) -> str:
        cameras = self.description.cameras
        if camera is not None and camera not in cameras:
            raise unknown("camera of the scene-flow store", camera, cameras)
        return camera or cameras[0]

    def _open_episode(self, episode: int, camera: str) -> StoredEpisode:
        folder = self._folder(episode)
        if not folder.is_dir():
            raise DataError(
                f"episode {episode} is not in the scene-flow store {self.path} ({len(self.episodes)} episodes are); "
                f"run `lamp flow build {self.path.parent}` to add it, or train on what is there: {_flag(self.episodes)}"
            )
        with readable(folder):
            check_files(folder)
            return StoredEpisode.open(folder, camera)

    def _check_same(self, wanted: StoreDescription) -> None:
        # A dataset that was copied or renamed keeps its store.
        if other := self.description.differences(wanted):
            values = "; ".join(f"{name} {there} there, {asked} asked for" for name, (there, asked) in other.items())
            raise MismatchError(
                f"the scene-flow store {self.path} was built otherwise ({values}); ask for the same, or --overwrite"
            )


def _no_store(path: Path) -> DataError:
    """Says what is missing, and what makes it: only recorded simulations give scene flow by themselves."""
    data = path.parent
    if not data.is_dir():
        return missing(data, "dataset", "a dataset's folder", folder=True)
    is_dataset = (data / "meta" / "info.json").is_file()
    if not is_dataset or any(data.glob("simulation/episode-*.safetensors")):
        but = "" if is_dataset else f"; and {data} is no dataset: it has no meta/info.json"
        return DataError(f"no scene-flow store at {path}; expected `lamp flow build {data}` to make it{but}")
    return DataError(
        f"no scene-flow store at {path}. {data} holds video without recorded simulation: `lamp flow build {data}` estimates its "
        "scene flow (docs/scene_flow.md). Or train without a motion prior: "
        f"`lamp train policy --recipe small_no_motion --data {data}`."
    )


def lock_of(path: Path) -> Path:
    """The file that is locked while a store is built."""
    return path.with_name(f".{path.name}.lock")


def remove(path: Path) -> None:
    """Removes a store, all at once."""
    remove_folder(path)


MAX_FRAMES_PER_SHARD = 1024


@dataclass(frozen=True, kw_only=True)
class CameraFlow:
    """An episode's scene flow in one camera."""

    frames: Int[np.ndarray, " f"]
    tracks: Tracks
    """With the frames as only batch axis."""
    camera: Camera


@dataclass(frozen=True, kw_only=True)
class StoredEpisode:
    """An opened episode and camera: small arrays in memory, large ones on disk."""

    folder: Path
    frames: np.ndarray
    intrinsics: np.ndarray
    world_from_cam: np.ndarray
    large: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, camera: str) -> StoredEpisode:
        group = zarr.open_group(folder / safe_file_name(camera), mode="r", zarr_format=3)
        small = {name: np.asarray(_array(group, name)[...]) for name in ("frames", "intrinsics", "world_from_cam")}
        return cls(folder=folder, large={name: _array(group, name) for name in ("points", "visible", "valid")}, **small)

    def rows(self, frames: np.ndarray) -> np.ndarray:
        """Entries of the given frames."""
        rows = np.searchsorted(self.frames, frames).clip(max=len(self.frames) - 1)
        missing = frames[self.frames[rows] != frames]
        if len(missing):
            raise DataError(
                f"frame {missing[0]} has no scene flow in {self.folder}; stored are {len(self.frames)} frames from "
                f"{self.frames[0]} to {self.frames[-1]}"
            )
        return rows

    def entries(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a large array; many of them are read in one go."""
        array = self.large[name]
        with readable(self.folder):
            if len(rows) * 4 > len(self.frames):
                return np.asarray(array[...])[rows]
            return np.stack([np.asarray(array[int(row)]) for row in rows]) if len(rows) else np.asarray(array[:0])


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]


def write_camera(group: zarr.Group, flow: CameraFlow) -> None:
    """Writes the arrays of one camera into its group."""
    tracks = {"points": flow.tracks.points, "visible": flow.tracks.visible, "valid": flow.tracks.valid}
    for name, tensor in tracks.items():
        values = tensor.numpy(force=True)
        group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(1, *values.shape[1:]),
            shards=(min(max(len(values), 1), MAX_FRAMES_PER_SHARD), *values.shape[1:]),
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
            dimension_names=["frame", "keypoint", "moment", "uvd"][: values.ndim],
        )[...] = values
    small = {"intrinsics": flow.camera.intrinsics.double(), "world_from_cam": flow.camera.world_from_cam.double()}
    for name, tensor in small.items():
        group.create_array(name, data=tensor.numpy(force=True), compressors=[Crc32cCodec()])
    group.create_array("frames", data=flow.frames.astype(np.int32), compressors=[Crc32cCodec()])


def check_files(folder: Path) -> None:
    """Zarr reads a missing shard as zeros; the sizes written last tell it from a whole one."""
    sizes: Any = zarr.open_group(folder, mode="r", zarr_format=3).attrs["files"]
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise ValueError(f"{name} has {found or 'no'} bytes, {size} were written")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever Zarr raises over broken files into one line."""
    try:
        yield
    except (DataError, MismatchError, ConfigError):
        raise
    except Exception as error:
        raise DataError(
            f"cannot read the scene flow in {path} ({type(error).__name__}: {error}); "
            "remove that folder and run `lamp flow build` again"
        ) from None


def _flag(episodes: Sequence[int]) -> str:
    """The flag of a training that takes these episodes, or the first of them."""
    first = episodes[0] if episodes else 0
    run = next((n for n, episode in enumerate(episodes) if episode != first + n), len(episodes))
    some = f"{first}:{first + run}" if run > 1 else ",".join(map(str, episodes[:8]))
    return f"`--episodes {some}`"
