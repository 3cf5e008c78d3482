"""Where clips come from: LeRobot datasets, folders of videos or images with depth, raw trajectories of BridgeData V2.

A reader gives windows of a recording, so that no clip is ever in memory as a whole; what is wrong with a recording is said when
it is opened or read, and concerns that recording alone.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.video import naming_video_errors
from lamp.data.robot_calibration import RobotCalibration, read_joints
from lamp.data.stored_images import BROKEN, luma
from lamp.errors import ConfigError, DataError, missing, unknown
from lamp.files import path_inside
from lamp.json_files import read_json_object
from lamp.sceneflow.estimate.interfaces import Clip
from lamp.sceneflow.estimate.optical_flow import import_cv2
from lamp.sceneflow.estimate.registration import DepthCamera, misalignment, registered

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
COLOUR_FOLDERS = ("rgb", "color", "colour", "images", "image")
CALIBRATION = "calibration.json"
TEXTS = ("lang.txt", "instruction.txt", "language.txt")
UNITS = {"mm": 0.001, "m": 1.0}
BRIDGE_FPS = 5.0
BRIDGE_FOCAL = {"colour": 615 / 640, "depth": 380 / 640}
"""Nominal focal lengths of BridgeData V2's RealSense cameras, in fractions of the image's width: it comes without
calibration."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What a source may need to be told."""

    camera: str | None = None
    """Of a dataset: the camera whose images are used; by default the first."""
    depth: str | None = None
    """Of a dataset: its depth; by default the one that is named like the camera, or the only one. `none`: use no depth."""
    depth_unit: Literal["mm", "m"] | None = None
    """What 1 stands for in depth images of a folder that does not say so in its calibration.json."""
    fps: float | None = None
    """Frames a second, of folders of images."""
    instruction: str | None = None
    """The instruction of clips that come without."""
    fixed_camera: bool | None = None
    """Whether the camera stands still; by default as calibration.json says, else found in the images."""


class ClipReader(ABC):
    """One recording, read in windows."""

    name: str
    fps: float
    instruction: str
    length: int

    @abstractmethod
    def joints(self, place: str) -> Float64[np.ndarray, "n j"]:
        """The robot's joint states at every frame.

        Raises:
            DataError: They are not there.
        """

    @abstractmethod
    def window(self, first: int, last: int) -> Clip:
        """Frames `first` to before `last`.

        Raises:
            DataError: They are missing, damaged, or do not fit each other.
        """


class ClipSource(ABC):
    """A collection of recordings."""

    path: Path
    names: Sequence[str]

    @abstractmethod
    def open(self, name: str) -> ClipReader:
        """One of them.

        Raises:
            DataError: It is none that scene flow can be estimated from.
        """


def find_source(path: Path, settings: SourceSettings) -> ClipSource:
    """The source in a folder, by what lies there.

    Raises:
        ConfigError: It has not the camera or depth that was asked for.
        DataError: There is nothing to read clips from.
    """
    if (path / "meta" / "info.json").is_file():
        return LeRobotSource(path, settings)
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return FolderSource(path.parent, settings, only=path)
    if not path.is_dir():
        raise missing(path, "source", "a LeRobot dataset, a folder of videos or of images, or a video", folder=True)
    return FolderSource(path, settings)


class LeRobotSource(ClipSource):
    """The episodes of a LeRobot dataset, in one of its cameras."""

    def __init__(self, path: Path, settings: SourceSettings) -> None:
        self.path, self.settings = path, settings
        self.dataset = LeRobotDataset(path)
        cameras, depths = tuple(self.dataset.cameras), self.dataset.depth_cameras
        if not cameras:
            raise DataError(f"{path} has no cameras; scene flow from video needs images")
        self.camera: str = settings.camera or cameras[0]
        if self.camera not in cameras:
            raise unknown("camera", self.camera, cameras)
        if settings.depth not in (None, "none", *depths):
            raise unknown("depth", settings.depth, [*depths, "none"])
        alike = [name for name in depths if self.camera in name]
        found = alike[0] if len(alike) == 1 else depths[0] if len(depths) == 1 and len(cameras) == 1 else None
        self.depth: str | None = None if settings.depth == "none" else settings.depth or found
        if self.depth is None and depths and settings.depth != "none":
            raise ConfigError(
                f"{path} has the depth maps {', '.join(depths)}, none named as {self.camera} is; choose with --depth"
            )
        self.names: Sequence[str] = [f"episode-{episode:06d}" for episode in range(len(self.dataset))]

    def open(self, name: str) -> ClipReader:
        return LeRobotClip(self, int(name.removeprefix("episode-")))


class LeRobotClip(ClipReader):
    """An episode of a LeRobot dataset."""

    def __init__(self, source: LeRobotSource, episode: int) -> None:
        self._source, self._episode = source, episode
        dataset = source.dataset
        self.name, self.fps = f"episode-{episode:06d}", float(dataset.fps)
        self.length = dataset.episode(episode).length
        self.instruction = instruction_of(
            [*dataset.instructions(episode)[0], source.settings.instruction or ""], self.name
        )
        self._calibration = Calibration.read(source.path, source.settings)

    def joints(self, place: str) -> Float64[np.ndarray, "n j"]:
        dataset = self._source.dataset
        if place not in dataset.features:
            raise DataError(
                f"{dataset.root} has no feature {place!r} with joint states; it has {', '.join(sorted(dataset.features))}"
            )
        return dataset.column(place, self._episode).astype(np.float64).reshape(self.length, -1)

    def window(self, first: int, last: int) -> Clip:
        dataset, source = self._source.dataset, self._source
        indices = np.arange(first, last)
        rgb = dataset.frames(source.camera, self._episode, indices)
        depth = None if source.depth is None else dataset.depth(source.depth, self._episode, indices)
        if depth is not None and depth.shape[1:] != rgb.shape[1:3]:
            depth = self._calibration.fitted(depth, rgb, self.name)
        return self._calibration.clip(rgb, depth, self, first, last)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration.json beside a recording says of its cameras, all of it optional."""

    file: str = "no calibration"
    intrinsics: Float64[np.ndarray, "3 3"] | None = None
    size: tuple[int, int] | None = None
    """Of the images that it was made with, px."""
    world_from_cam: Float64[np.ndarray, "n 4 4"] | None = None
    fixed_camera: bool | None = None
    depth_unit: float | None = None
    """m"""
    depth_camera: DepthCamera | None = None
    """Where depth is not registered to the colours."""
    fps: float | None = None
    robot: RobotCalibration | None = None

    @classmethod
    def read(cls, folder: Path, settings: SourceSettings) -> Calibration:
        """The calibration in a folder, with what the user says above what it says.

        Raises:
            DataError: It is damaged, or no calibration.
        """
        unit = None if settings.depth_unit is None else UNITS[settings.depth_unit]
        found = cls()
        if (folder / CALIBRATION).is_file():
            content = read_json_object(folder / CALIBRATION, "calibration")
            try:
                found = cls._of(content, folder / CALIBRATION)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{folder / CALIBRATION}: no calibration ({type(error).__name__}: {error}); expected intrinsics with fx, "
                    "fy, cx, cy, width and height in px, or also world_from_cam, fixed_camera, fps, depth_unit, "
                    "depth_intrinsics, colour_from_depth and robot (docs/scene_flow.md)"
                ) from None
        changes = {"depth_unit": unit, "fixed_camera": settings.fixed_camera, "fps": settings.fps}
        return replace(found, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def _of(cls, content: dict[str, Any], file: Path) -> Calibration:
        known = {
            "intrinsics",
            "world_from_cam",
            "fixed_camera",
            "depth_unit",
            "depth_intrinsics",
            "colour_from_depth",
            "fps",
            "robot",
        }
        if strange := sorted(content.keys() - known):
            raise ValueError(f"unknown key {strange[0]!r}; known: {', '.join(sorted(known))}")
        unit = content.get("depth_unit")
        poses = content.get("world_from_cam")
        matrix, size = _pinhole(content["intrinsics"]) if "intrinsics" in content else (None, None)
        depth_camera = None
        if "depth_intrinsics" in content:
            pose = np.array(content.get("colour_from_depth", np.eye(4)), dtype=np.float64)
            depth_camera = DepthCamera(
                intrinsics=_pinhole(content["depth_intrinsics"])[0], colour_from_depth=_pose(pose)
            )
        return cls(
            file=str(file),
            robot=RobotCalibration.of(content["robot"], file.parent) if "robot" in content else None,
            intrinsics=matrix,
            size=size,
            world_from_cam=None if poses is None else _pose(np.array(poses, dtype=np.float64).reshape(-1, 4, 4)),
            fixed_camera=content.get("fixed_camera"),
            depth_unit=None if unit is None else UNITS[unit] if isinstance(unit, str) else float(unit),
            depth_camera=depth_camera,
            fps=None if content.get("fps") is None else float(content["fps"]),
        )

    def fitted(self, depth: Float32[np.ndarray, "n h w"], rgb: UInt8[np.ndarray, "n h2 w2 3"], name: str) -> np.ndarray:
        """Depth in the colour images: registered where the depth camera is known, else only brought to their size.

        Raises:
            DataError: It has other proportions than the images and nothing says how it lies in them.
        """
        size = (rgb.shape[2], rgb.shape[1])
        plain = depth
        if depth.shape[1:] != rgb.shape[1:3]:
            if self.depth_camera is None and abs(depth.shape[2] / depth.shape[1] - size[0] / size[1]) > 0.02:
                raise DataError(
                    f"{name}: depth of {depth.shape[2]}x{depth.shape[1]} px and images of {size[0]}x{size[1]} px have different "
                    f"proportions; say how the depth camera sees them: depth_intrinsics and colour_from_depth in {CALIBRATION}"
                )
            cv2 = import_cv2()
            plain = np.stack([cv2.resize(one, size, interpolation=cv2.INTER_NEAREST_EXACT) for one in depth])
        if self.depth_camera is None or self.intrinsics is None:
            return plain
        better = np.stack([registered(one, self.depth_camera, self.intrinsics, size) for one in depth])
        before, after = misalignment(rgb[0], plain[0]), misalignment(rgb[0], better[0])
        return plain if after > before + 0.5 else better

    def clip(
        self,
        rgb: UInt8[np.ndarray, "n h w 3"],
        depth: Float32[np.ndarray, "n2 h2 w2"] | None,
        reader: ClipReader,
        first: int,
        last: int,
    ) -> Clip:
        """A window with what is known of its camera.

        Raises:
            DataError: The calibration is of images of other proportions, or has poses for another number of frames.
        """
        width, height = rgb.shape[2], rgb.shape[1]
        if self.size is not None and abs(self.size[0] / self.size[1] - width / height) > 0.01:
            raise DataError(
                f"{reader.name}: {self.file} is of images of {self.size[0]}x{self.size[1]} px, and these are {width}x{height}; "
                "expected the same proportions: is it the calibration of another camera?"
            )
        if self.world_from_cam is not None and len(self.world_from_cam) not in (1, reader.length):
            raise DataError(
                f"{reader.name}: {self.file} has {len(self.world_from_cam)} poses for {reader.length} frames; expected one a "
                "frame, or one for a camera that stands still"
            )
        poses = self.world_from_cam
        if poses is not None:
            poses = np.repeat(poses, last - first, axis=0) if len(poses) == 1 else poses[first:last]
        robot = None
        if self.robot is not None:
            if self.intrinsics is None:
                raise DataError(
                    f"{reader.name}: {self.file} has a robot and no intrinsics; where its links are in the image cannot be said "
                    "without"
                )
            joints = reader.joints(self.robot.joints)
            if len(joints) != reader.length:
                raise DataError(
                    f"{reader.name} has {len(joints)} joint states for {reader.length} frames; expected one a frame"
                )
            robot = self.robot.motion(joints[first:last], reader.name)
            poses = robot.base_from_cam if poses is None else poses
        return Clip(
            rgb=rgb,
            depth=depth,
            robot=robot,
            fps=reader.fps,
            name=reader.name,
            instruction=reader.instruction,
            intrinsics=self.intrinsics,
            world_from_cam=poses,
            fixed_camera=self.fixed_camera,
        )


def _pinhole(values: dict[str, Any]) -> tuple[Float64[np.ndarray, "3 3"], tuple[int, int]]:
    """A pinhole in px as a matrix in image fractions, and the image's size."""
    width, height = int(values["width"]), int(values["height"])
    fx, fy, cx, cy = (float(values[name]) for name in ("fx", "fy", "cx", "cy"))
    if min(width, height) < 1 or not np.isfinite([fx, fy, cx, cy]).all() or fx == 0 or fy <= 0:
        raise ValueError(f"impossible intrinsics {values}")
    return np.array([[fx / width, 0, (cx + 0.5) / width], [0, fy / height, (cy + 0.5) / height], [0, 0, 1]]), (
        width,
        height,
    )


def _pose(matrix: np.ndarray) -> Float64[np.ndarray, "*b 4 4"]:
    rotation = matrix[..., :3, :3]
    if matrix.shape[-2:] != (4, 4) or not np.allclose(rotation @ np.swapaxes(rotation, -1, -2), np.eye(3), atol=1e-3):
        raise ValueError("a pose is no rigid 4x4 matrix")
    return matrix


def instruction_of(texts: Iterable[str], name: str) -> str:
    """The first text that says something.

    Raises:
        DataError: None does.
    """
    for text in texts:
        if text.strip():
            return " ".join(text.split())
    raise DataError(
        f"{name} has no instruction; expected one in its {' or '.join(TEXTS)}, in the dataset, or as --instruction"
    )


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Files of one recording in a folder."""

    colours: Path
    """A video, or a folder of images."""
    depth: Path | None
    """Likewise."""
    folder: Path
    """Where calibration and instruction lie."""
    bridge: bool = False


class FolderSource(ClipSource):
    """Recordings found in a folder, at any depth.

    - ``images0/im_0.jpg``, ``depth_images0/im_0.png``, ``lang.txt``: a raw trajectory of BridgeData V2;
    - a folder ``rgb`` (or color, images) of images, or a video ``rgb.mp4``, with ``depth`` beside it: 16-bit PNG or TIFF,
    floating-point
      TIFF or ``.npy`` in metres, or a video ``depth.mkv`` of more than 8 bits;
    - any other video by itself, with ``NAME.depth.mkv`` or ``NAME_depth/`` beside it, and ``NAME.txt`` with its instruction.
    """

    def __init__(self, path: Path, settings: SourceSettings, *, only: Path | None = None) -> None:
        self.path, self.settings = path, settings
        found: dict[str, Recording] = {}
        for recording in self._recordings():
            if only is None or recording.colours == only:
                name, number = self._name(recording), 2
                while name in found:  # "a b" and "a_b" are one name, and "a.mp4" and "a.mkv"
                    name, number = f"{self._name(recording)}-{number}", number + 1
                found[name] = recording
        if not found:
            raise DataError(
                f"{path} holds no recordings; expected a LeRobot dataset (meta/info.json), videos ({', '.join(VIDEOS)}), folders "
                f"of images named {', '.join(COLOUR_FOLDERS)}, or raw trajectories of BridgeData V2 (images0)"
            )
        self.recordings = dict(sorted(found.items()))
        self.names: Sequence[str] = list(self.recordings)

    def open(self, name: str) -> ClipReader:
        return FolderClip(name, self.recordings[name], self.settings)

    def _name(self, recording: Recording) -> str:
        place = recording.colours.relative_to(self.path)
        parts = [*place.parent.parts, place.stem]
        if parts[-1] in (*COLOUR_FOLDERS, "images0"):
            parts = parts[:-1] or [self.path.resolve().name]
        return "_".join(re.sub(r"[^\w.-]", "_", part).strip(".") or "_" for part in parts)

    def _recordings(self) -> Iterator[Recording]:
        folders = [self.path, *sorted(item for item in self.path.rglob("*") if item.is_dir() and item.name[0] != ".")]
        for folder in folders:
            if folder.name == "images0" and any(folder.glob("im_*")):
                depth = folder.with_name("depth_images0")
                yield Recording(
                    colours=folder, depth=depth if depth.is_dir() else None, folder=folder.parent, bridge=True
                )
            elif folder.name in COLOUR_FOLDERS and _images_in(folder):
                yield Recording(colours=folder, depth=_depth_beside(folder), folder=folder.parent)
            for video in sorted(item for item in folder.iterdir() if item.suffix.lower() in VIDEOS and item.is_file()):
                if video.stem.lower() != "depth" and not video.stem.lower().endswith((".depth", "_depth")):
                    yield Recording(colours=video, depth=_depth_beside(video), folder=folder)


def _images_in(folder: Path) -> list[Path]:
    """Images of a folder, in the order of the numbers in their names."""
    found = [item for item in folder.iterdir() if item.suffix.lower() in (*IMAGES, ".npy") and item.name[0] != "."]
    return sorted(found, key=lambda item: ([int(number) for number in re.findall(r"\d+", item.stem)], item.name))


def _depth_beside(colours: Path) -> Path | None:
    common = colours.stem in COLOUR_FOLDERS
    stems = ["depth"] if common else [f"{colours.stem}.depth", f"{colours.stem}_depth"]
    for stem in stems:
        for item in (colours.parent / stem, *(colours.parent / f"{stem}{suffix}" for suffix in VIDEOS)):
            if item.exists() and item != colours:
                return item
    return None


class FolderClip(ClipReader):
    """A recording in files."""

    def __init__(self, name: str, recording: Recording, settings: SourceSettings) -> None:
        self.name = name
        self._folder = recording.folder
        calibration = Calibration.read(recording.folder, settings)
        if recording.bridge:
            calibration = _bridge_calibration(calibration)
        self._calibration = calibration
        self._colours = _frames_of(recording.colours, name)
        self._depth = None if recording.depth is None or settings.depth == "none" else _frames_of(recording.depth, name)
        self.length = len(self._colours)
        if self._depth is not None and len(self._depth) != self.length:
            raise DataError(
                f"{name} has {self.length} images and {len(self._depth)} depth maps; expected as many of both"
            )
        fps = self._colours.fps or calibration.fps or (BRIDGE_FPS if recording.bridge else None)
        if fps is None:
            raise DataError(
                f"{name} is a folder of images, and nothing says how many there are a second; say it with --fps"
            )
        self.fps = float(fps)
        texts = [recording.colours.with_suffix(".txt"), *(recording.folder / text for text in TEXTS)]
        found = [text.read_text(errors="replace").split("confidence:")[0] for text in texts if text.is_file()]
        self.instruction = instruction_of([*found, settings.instruction or ""], name)

    def joints(self, place: str) -> Float64[np.ndarray, "n j"]:
        return read_joints(path_inside(self._folder, place, "joints of calibration.json"), self.name)

    def window(self, first: int, last: int) -> Clip:
        rgb = np.stack([_colours(value, self.name) for value in self._colours.read(first, last)])
        depth = None
        if self._depth is not None:
            maps = [self._metres(value) for value in self._depth.read(first, last)]
            if len({one.shape for one in maps}) > 1:
                raise DataError(
                    f"{self.name}: the depth maps change their size from {maps[0].shape}; expected one camera"
                )
            depth = self._calibration.fitted(np.stack(maps), rgb, self.name)
        return self._calibration.clip(rgb, depth, self, first, last)

    def _metres(self, value: np.ndarray) -> Float32[np.ndarray, "h w"]:
        if value.ndim != 2 or value.dtype == np.uint8:
            raise DataError(
                f"{self.name}: the depth is a picture of {value.dtype} and shape {value.shape}; expected 16-bit values or "
                "floating-point ones"
            )
        unit = self._calibration.depth_unit
        if unit is None:
            if value.dtype.kind != "f":
                raise DataError(
                    f"{self.name}: nothing says what the {value.dtype} values of the depth stand for; say it with "
                    f"--depth-unit mm or as depth_unit in {CALIBRATION}"
                )
            unit = 1.0
        return (value.astype(np.float64) * unit).astype(np.float32)


def _bridge_calibration(given: Calibration) -> Calibration:
    """Nominal where nothing better is given: millimetres, and depth in a camera of its own."""

    def pinhole(focal: float) -> Float64[np.ndarray, "3 3"]:
        return np.array([[focal, 0, 0.5], [0, focal * 640 / 480, 0.5], [0, 0, 1]])

    depth_camera = DepthCamera(intrinsics=pinhole(BRIDGE_FOCAL["depth"]), colour_from_depth=np.eye(4))
    return replace(
        given,
        intrinsics=pinhole(BRIDGE_FOCAL["colour"]) if given.intrinsics is None else given.intrinsics,
        depth_camera=given.depth_camera or depth_camera,
        depth_unit=given.depth_unit or UNITS["mm"],
    )


def _colours(value: np.ndarray, name: str) -> UInt8[np.ndarray, "h w 3"]:
    if value.dtype != np.uint8:
        raise DataError(f"{name}: an image holds {value.dtype} values; expected 8-bit colours")
    return value if value.ndim == 3 else np.repeat(value[..., None], 3, axis=2)


def _frames_of(path: Path, name: str) -> VideoFrames | ImageFrames:
    return ImageFrames(path, name) if path.is_dir() else VideoFrames(path, name)


@dataclass
class ImageFrames:
    """Images of a folder."""

    path: Path
    name: str
    fps: float | None = None
    _size: tuple[int, ...] | None = field(default=None, repr=False)

    @cached_property
    def files(self) -> list[Path]:
        return _images_in(self.path)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, first: int, last: int) -> list[np.ndarray]:
        """Some of the images, all of one size.

        Raises:
            DataError: One is damaged, or of another size.
        """
        found = []
        for file in self.files[first:last]:
            value = _read_image(file)
            self._size = self._size or value.shape[:2]
            if value.shape[:2] != self._size:
                raise DataError(
                    f"{self.name}: {file.name} is {value.shape[1]}x{value.shape[0]} px and those before are "
                    f"{self._size[1]}x{self._size[0]}; expected one size"
                )
            found.append(value)
        return found


def _read_image(file: Path) -> np.ndarray:
    try:
        if file.suffix.lower() == ".npy":
            return np.load(file, allow_pickle=False)
        with Image.open(file) as image:
            if image.mode.startswith("I") or image.mode == "F":
                value = np.asarray(image)
                return value.astype(np.uint16) if value.dtype.kind in "iu" and value.max(initial=0) < 1 << 16 else value
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except BROKEN as error:
        raise DataError(f"cannot read the image {file} ({error}); it is truncated or corrupt") from None


class VideoFrames:
    """Frames of a video at an even rate, read forwards; a window may begin before the end of the last one."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with naming_video_errors(path), av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} holds no video")
            stream = container.streams.video[0]
            times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            base = stream.time_base
            gray = stream.codec_context.format
        if len(times) < 2 or base is None:
            raise DataError(f"{path} holds {len(times)} frames; motion needs at least 2")
        steps = np.diff(times) * float(base)
        usual = float(np.median(steps))
        if usual <= 0 or np.abs(steps - usual).max() > max(0.02 * usual, 1.01 * float(base), 0.0011):
            raise DataError(
                f"{name}: {path.name} has a variable frame rate, {1000 * steps.min():.1f} to {1000 * steps.max():.1f} ms a "
                "frame; expected an even one (ffmpeg -i IN -vf fps=RATE OUT makes it so)"
            )
        self.fps: float | None = (len(times) - 1) / float((times[-1] - times[0]) * base)
        self._length, self._raw = len(times), gray is not None and gray.name.startswith("gray") and gray.name != "gray"
        self._kept: dict[int, np.ndarray] = {}
        self._next, self._frames = 0, iter(())

    def __len__(self) -> int:
        return self._length

    def read(self, first: int, last: int) -> list[np.ndarray]:
        """Some of the frames.

        Raises:
            DataError: The video is corrupt, or changes its size.
        """
        if first < min(self._kept, default=self._next):
            self._kept, self._next, self._frames = {}, 0, self._decoded()
        elif self._next == 0:
            self._frames = self._decoded()
        self._kept = {index: value for index, value in self._kept.items() if index >= first}
        while self._next < last:
            value = next(self._frames, None)
            if value is None:
                raise DataError(
                    f"{self.name}: {self.path.name} ends after {self._next} of its {self._length} frames; it is truncated or "
                    "corrupt"
                )
            if self._next >= first:
                self._kept[self._next] = value
            self._next += 1
        return [self._kept[index] for index in range(first, last)]

    def _decoded(self) -> Iterator[np.ndarray]:
        size: tuple[int, int] | None = None
        with naming_video_errors(self.path), av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise DataError(
                        f"{self.name}: the camera changes its resolution in {self.path.name}, from {size[0]}x{size[1]} to "
                        f"{frame.width}x{frame.height} px; expected one size"
                    )
                yield luma(frame, self.path) if self._raw else frame.to_ndarray(format="rgb24")
