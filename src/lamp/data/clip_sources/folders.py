"""Clips of folders of videos and images, of raw trajectories of BridgeData V2, and of RealSense cameras as Open3D saves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from lamp.data.clip_sources.calibration import CALIBRATION, UNITS, Calibration
from lamp.data.clip_sources.frames import as_colours, frames_of, images_in
from lamp.data.clip_sources.source import ClipReader, ClipSource, SourceSettings, instruction_in, unique_names
from lamp.data.robot_calibration import read_joints
from lamp.errors import DataError
from lamp.files import path_inside
from lamp.sceneflow.estimate.interfaces import Clip
from lamp.sceneflow.estimate.registration import DepthCamera

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
COLOUR_FOLDERS = ("rgb", "color", "colour", "images", "image")
BRIDGE_FPS = 5.0
BRIDGE_FOCAL = {"colour": 615 / 640, "depth": 380 / 640}
"""Nominal focal lengths of BridgeData V2's RealSense cameras, in fractions of the image's width: it comes without
calibration."""


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
      TIFF or ``.npy`` in metres, or a video ``depth.mkv`` of more than 8 bits; what Open3D saves of a RealSense camera
      (``camera_intrinsic.json`` or ``intrinsic.json`` beside the two folders) says its own calibration;
    - any other video by itself, with ``NAME.depth.mkv`` or ``NAME_depth/`` beside it, and ``NAME.txt`` with its instruction.
    """

    def __init__(self, path: Path, settings: SourceSettings, *, only: Path | None = None) -> None:
        self.path, self.settings = path, settings
        wanted = (one for one in self._recordings() if only is None or one.colours == only)
        found = unique_names((self._name(one), one) for one in wanted)
        if not found:
            raise DataError(
                f"{path} holds no recordings; expected LeRobot datasets (meta/info.json), videos ({', '.join(VIDEOS)}), folders "
                f"of images named {', '.join(COLOUR_FOLDERS)}, raw trajectories of BridgeData V2 (images0) or DROID "
                "(metadata_*.json), or RealSense recordings (.bag)"
            )
        self.recordings = found
        self.names: Sequence[str] = list(self.recordings)

    def open(self, name: str) -> ClipReader:
        return FolderClip(name, self.recordings[name], self.settings)

    def _name(self, recording: Recording) -> str:
        place = recording.colours.relative_to(self.path)
        parts = [*place.parent.parts, place.stem]
        if parts[-1] in (*COLOUR_FOLDERS, "images0"):
            parts = parts[:-1] or [self.path.resolve().name]
        return "/".join(parts)

    def _recordings(self) -> Iterator[Recording]:
        folders = [self.path, *sorted(item for item in self.path.rglob("*") if item.is_dir() and item.name[0] != ".")]
        for folder in folders:
            if folder.name == "images0" and any(folder.glob("im_*")):
                depth = folder.with_name("depth_images0")
                yield Recording(
                    colours=folder, depth=depth if depth.is_dir() else None, folder=folder.parent, bridge=True
                )
            elif folder.name in COLOUR_FOLDERS and images_in(folder):
                yield Recording(colours=folder, depth=_depth_beside(folder), folder=folder.parent)
            for video in sorted(item for item in folder.iterdir() if item.suffix.lower() in VIDEOS and item.is_file()):
                if video.stem.lower() != "depth" and not video.stem.lower().endswith((".depth", "_depth")):
                    yield Recording(colours=video, depth=_depth_beside(video), folder=folder)


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
        calibration = Calibration.read(recording.folder, settings, saved=True)
        if recording.bridge:
            calibration = _bridge_calibration(calibration)
        self._calibration = calibration
        self._colours = frames_of(recording.colours, name)
        self._depth = None if recording.depth is None or settings.depth == "none" else frames_of(recording.depth, name)
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
        self.instruction = instruction_in(recording.colours, settings, name)

    def joints(self, place: str) -> Float64[np.ndarray, "n j"]:
        return read_joints(path_inside(self._folder, place, "joints of calibration.json"), self.name)

    def window(self, first: int, last: int) -> Clip:
        rgb = np.stack([as_colours(value, self.name) for value in self._colours.read(first, last)])
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
