"""Clips of RealSense recordings, as librealsense's viewer and recorder write them (extra `realsense`).

Older SDKs record ROS 1 bags (``.bag``), newer ones ROS 2 bags (``.db3``); the SDK reads them, brings depth into the colour image
by the recorded calibration (`rs2::align`), and says intrinsics and the depth's unit. Played back without regard to real time, no
frames are dropped for want of speed. https://github.com/IntelRealSense/librealsense/blob/master/src/media/readme.md
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from lamp.data.clip_sources.calibration import Calibration, pinhole
from lamp.data.clip_sources.frames import even_rate
from lamp.data.clip_sources.source import ClipReader, ClipSource, SourceSettings, instruction_in, unique_names
from lamp.errors import DataError, import_extra
from lamp.sceneflow.estimate.interfaces import Clip

BAGS = (".bag", ".db3")
NOTHING = (-1.0, np.empty(0), np.empty(0))
WARM_UP = 0.25
"""s at the beginning that are left out, in which the SDK drops other frames each time, until it has paired both streams."""
PATIENCE = 5000
"""ms that the SDK may take for a frame; then the recording is over."""


def import_realsense() -> Any:
    """
    Raises:
        MissingDependencyError: It is not installed.
    """
    return import_extra(
        "pyrealsense2",
        "RealSense recordings are read by pyrealsense2, which cannot be imported ({}); install it: pip install "
        "'lamp-vla[realsense]'",
    )


class RealSenseSource(ClipSource):
    """Recordings in a folder, at any depth, or one of them."""

    def __init__(self, path: Path, settings: SourceSettings) -> None:
        import_realsense()
        root = path if path.is_dir() else path.parent
        files = [path] if root != path else [file for kind in BAGS for file in path.rglob(f"*{kind}")]
        self.path, self.settings = root, settings
        self.recordings = unique_names(("_".join(file.relative_to(root).with_suffix("").parts), file) for file in files)
        self.names = list(self.recordings)

    def open(self, name: str) -> ClipReader:
        return RealSenseClip(name, self.recordings[name], self.settings)


class RealSenseClip(ClipReader):
    """A recording, played back from beginning to end; a window may begin before the end of the last one."""

    def __init__(self, name: str, path: Path, settings: SourceSettings) -> None:
        self.name, self.path, self._settings = name, path, settings
        times = [time for time, _, _ in self._played(images=False)]
        ready = min(times, default=0.0) + WARM_UP
        times = [time for time in times if time > ready]
        if len(times) < 2:
            raise DataError(
                f"{path} has {len(times)} frames with colour and depth after its first {WARM_UP:g} s; motion needs at least 2: "
                "record both streams at one rate"
            )
        self._times = np.array(times)
        given = Calibration.read(path.parent, settings)
        self.fps = given.fps or even_rate(self._times, f"{name}: {path.name}")
        self.length = len(times)
        self.instruction = instruction_in(path, settings, name)
        self._calibration = self._camera if given.intrinsics is None else given
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._next, self._frames = 0, iter(())

    def joints(self, place: str) -> Float64[np.ndarray, "n j"]:
        raise DataError(f"{self.name}: {self.path.name} holds no joint states; expected images beside a joints file")

    def window(self, first: int, last: int) -> Clip:
        if first < min(self._kept, default=self._next) or self._next == 0:
            self._kept, self._next, self._frames = {}, 0, self._played()
        self._kept = {index: value for index, value in self._kept.items() if index >= first}
        while self._next < last:
            time, rgb, depth = next((one for one in self._frames if one[0] >= self._times[0]), NOTHING)
            if time != self._times[self._next]:
                raise DataError(
                    f"{self.name}: {self.path.name} gives other frames when it is read again (number {self._next}); copy it to a "
                    "local disk, or convert it to folders of images"
                )
            if self._next >= first:
                self._kept[self._next] = rgb, depth
            self._next += 1
        rgb, depth = (np.stack(values) for values in zip(*(self._kept[at] for at in range(first, last)), strict=True))
        return self._calibration.clip(rgb, depth, self, first, last)

    def _played(self, *, images: bool = True) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
        """Time [s], colours and depth [m], registered to them, of each frame that has both."""
        rs = import_realsense()
        config, pipeline = rs.config(), rs.pipeline()
        try:
            config.enable_device_from_file(str(self.path), False)
            profile = pipeline.start(config)
        except RuntimeError as error:
            raise DataError(f"cannot read the RealSense recording {self.path} ({error})") from None
        try:
            profile.get_device().as_playback().set_real_time(False)
            streams = [stream.stream_type() for stream in profile.get_streams()]
            if rs.stream.color not in streams or rs.stream.depth not in streams:
                raise DataError(f"{self.path} has not both colour and depth; record both streams")
            self._camera = self._intrinsics(profile.get_stream(rs.stream.color))
            align = rs.align(rs.stream.color)
            while True:
                there, frames = pipeline.try_wait_for_frames(PATIENCE)
                if not there:
                    return
                colour, depth = frames.get_color_frame(), frames.get_depth_frame()
                if not colour or not depth:
                    continue
                time = colour.get_timestamp() / 1000
                if not images:
                    yield time, *NOTHING[1:]
                    continue
                aligned = align.process(frames)
                colour, depth = aligned.get_color_frame(), aligned.get_depth_frame()
                metres = np.asanyarray(depth.get_data()).astype(np.float32) * np.float32(depth.get_units())
                yield time, self._colours(rs, colour), metres
        finally:
            pipeline.stop()

    def _intrinsics(self, profile: Any) -> Calibration:
        """The colour camera's; its distortion, which RealSense cameras rectify or hardly have, is not corrected."""
        lens = profile.as_video_stream_profile().intrinsics
        values = {
            "fx": lens.fx,
            "fy": lens.fy,
            "cx": lens.ppx,
            "cy": lens.ppy,
            "width": lens.width,
            "height": lens.height,
        }
        matrix, size = pinhole(values)
        return Calibration(file=f"the calibration in {self.path.name}", intrinsics=matrix, size=size).told(
            self._settings
        )

    def _colours(self, rs: Any, frame: Any) -> np.ndarray:
        kind, data = frame.profile.format(), np.asanyarray(frame.get_data())
        if kind not in (rs.format.rgb8, rs.format.bgr8):
            raise DataError(f"{self.name}: the colours of {self.path.name} are stored as {kind}; expected rgb8 or bgr8")
        return data.copy() if kind == rs.format.rgb8 else np.ascontiguousarray(data[..., ::-1])
