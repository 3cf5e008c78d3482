"""Intel RealSense cameras. Never run on a camera: see docs/rig.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError, MissingSoftwareError
from lamp_client.rig.description import CameraDescription, RigDescription
from lamp_client.rig.devices import CameraFrame, RigError

_WAIT_MS = 1000
_FOCAL_TOLERANCE = 0.03


def _pyrealsense() -> Any:
    try:
        import pyrealsense2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingSoftwareError(
            "pyrealsense2 is not installed.", hint="pip install 'lamp-client[realsense]'"
        ) from error
    return pyrealsense2


@dataclass(kw_only=True)
class RealSenseCamera:
    """Colour, and depth aligned to it.

    Args:
        source: Waits for the next set of frames; None: the camera's pipeline, made on connecting.
    """

    name: str
    description: CameraDescription
    source: Callable[[], Any] | None = None
    module: Callable[[], Any] = _pyrealsense
    on_demand: bool = field(default=False, init=False)
    _align: Any = field(default=None, init=False)
    _pipeline: Any = field(default=None, init=False)

    @classmethod
    def described(cls, rig: RigDescription, camera: str) -> RealSenseCamera:
        """
        Raises:
            InvalidValueError: the description does not fit this driver.
        """
        description = rig.cameras[camera]
        if description.settings:
            raise InvalidValueError(
                f"the camera {camera!r} has settings {', '.join(description.settings)}; this driver takes none."
            )
        return cls(name=camera, description=description)

    def connect(self) -> None:
        """See `lamp_client.rig.devices.Camera`."""
        rs = self.module()
        if self.description.depth:
            self._align = rs.align(rs.stream.color)
        if self.source is not None:
            return
        # Starting a pipeline without a camera would wait for 15 s, so it is looked for first.
        found = [device.get_info(rs.camera_info.serial_number) for device in rs.context().query_devices()]
        serial = self.description.serial
        if not found or (serial and serial not in found):
            there = ", ".join(found) or "none"
            raise RigError(
                f"the camera {self.name!r} ({serial or 'any serial number'}) is not there; connected: {there}.",
                hint="Is it plugged into a USB 3 port, and not in use?",
            )
        config, pipeline, each = rs.config(), rs.pipeline(), self.description
        config.enable_device(serial or found[0])
        rate = round(each.fps)
        config.enable_stream(rs.stream.color, each.width, each.height, rs.format.rgb8, rate)
        if each.depth:
            config.enable_stream(rs.stream.depth, each.width, each.height, rs.format.z16, rate)
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            raise RigError(
                f"the camera {self.name!r} does not send {each.width}x{each.height} at {rate} pictures a second: {error}.",
                hint="rs-enumerate-devices lists what it can.",
            ) from error
        self._pipeline, self.source = pipeline, lambda: pipeline.wait_for_frames(_WAIT_MS)
        try:
            self._check_calibration(profile.get_stream(rs.stream.color).as_video_stream_profile().get_intrinsics())
        except RigError:
            self.close()
            raise

    def frame(self) -> CameraFrame:
        """See `lamp_client.rig.devices.Camera`."""
        if self.source is None:
            raise RigError(f"the camera {self.name!r} is not connected.")
        try:
            frames = self.source()
        except RuntimeError as error:
            raise RigError(f"the camera {self.name!r} sends nothing: {error}.") from error
        if self._align is not None:
            frames = self._align.process(frames)
        colour = frames.get_color_frame()
        if not colour:
            raise RigError(f"the camera {self.name!r} sent no colour picture.")
        depth = None
        if self._align is not None:
            frame = frames.get_depth_frame()
            if not frame:
                raise RigError(f"the camera {self.name!r} sent no depth picture.")
            depth = np.asanyarray(frame.get_data()).astype(np.float32) * np.float32(frame.get_units())
        # The buffer belongs to the library, and is used again.
        return CameraFrame(image=np.array(colour.get_data()), number=int(colour.get_frame_number()), depth=depth)

    def close(self) -> None:
        if self._pipeline is not None:
            self._pipeline.stop()
            self._pipeline = self.source = None

    def _check_calibration(self, intrinsics: Any) -> None:
        calibration = self.description.calibration
        if calibration is None or calibration.focal is None:
            return
        for measured, said in zip(calibration.focal, (intrinsics.fx, intrinsics.fy), strict=True):
            if abs(measured / said - 1) > _FOCAL_TOLERANCE:
                raise RigError(
                    f"the camera {self.name!r} has a focal length of {said:.0f} px, and its calibration {measured:.0f} px.",
                    hint="The calibration is of another camera or picture size: measure it again.",
                )
