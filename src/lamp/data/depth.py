"""Depth maps in metres, out of what datasets keep them as: quantised video, 16-bit or floating-point images.

As LeRobot writes them. A video holds 12-bit codes in its luma, spaced evenly in depth or in log(depth + shift) between
`depth_min` and `depth_max`; code 0 is what the sensor did not see. Images hold millimetres as integers, or metres as floating
point. What is not known is NaN. A value at `depth_max` may have been any larger one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float32, UInt16
from PIL import Image

from lamp.data.lerobot.format import DepthFeature
from lamp.errors import DataError

LARGEST_CODE = 4095
"""Of LeRobot's quantised depth, whatever the video's format."""
MILLIMETRE = 1e-3


def bits_of(kind: av.VideoFormat) -> int:
    """Of each value of a pixel format."""
    components: Sequence[Any] = kind.components
    return components[0].bits if components else 8


def luma(frame: av.VideoFrame, path: Path) -> UInt16[np.ndarray, "h w"]:
    """The codes that a frame holds, untouched by any conversion of colours.

    Raises:
        DataError: The frame has 8 bits, or colours.
    """
    kind = frame.format
    _check_bits(kind, path)
    plane = frame.planes[0]
    codes = np.frombuffer(bytes(plane), ">u2" if kind.is_big_endian else "<u2").reshape(
        plane.height, plane.line_size // 2
    )
    return codes[:, : plane.width].astype(np.uint16)


def _check_bits(kind: av.VideoFormat, path: Path) -> None:
    bits = bits_of(kind)
    if kind.is_rgb or bits <= 8:
        raise DataError(
            f"the video {path} is {kind.name}, of {bits} bits: it shows depth, but not in metres; expected "
            "gray12le or gray16le with more than 8 bits"
        )


def check_video_of_depth(kind: av.VideoFormat, depth: DepthFeature, path: Path) -> None:
    """
    Raises:
        DataError: A video of this pixel format holds no depth in metres.
    """
    _check_bits(kind, path)
    if depth.code is None and bits_of(kind) != 16:
        raise _no_code(depth, bits_of(kind), f"the video {path}")


def _no_code(depth: DepthFeature, bits: int, where: str) -> DataError:
    return DataError(
        f"{where} holds depth in {bits} bits, and the description of {depth.key} does not say which depth that is; expected "
        "info with video.depth_min, video.depth_max, video.shift and video.use_log, as LeRobot writes them"
    )


def metres_of_codes(
    codes: UInt16[np.ndarray, "n h w"], depth: DepthFeature, bits: int, where: str
) -> Float32[np.ndarray, "n h w"]:
    """Metres of a video's codes; NaN where nothing was seen.

    Args:
        codes: As `luma` gives them.
        depth: How they were made.
        bits: Of the video's format.
        where: Of which file, for errors.

    Raises:
        DataError: Nothing says what the codes mean, or they are no codes.
    """
    code = depth.code
    if code is None and bits == 16:
        found = codes.astype(np.float32) * np.float32(depth.unit or MILLIMETRE)
    elif code is None:
        raise _no_code(depth, bits, where)
    else:
        if codes.size and codes.max() > LARGEST_CODE:
            raise DataError(f"{where} holds the code {codes.max()}; expected 12-bit codes, 0 to {LARGEST_CODE}")
        share = np.arange(LARGEST_CODE + 1) / LARGEST_CODE
        if code.use_log:
            low, high = (math.log(end + code.shift) for end in (code.depth_min, code.depth_max))
            table = np.exp(low + share * (high - low)) - code.shift
        else:
            table = code.depth_min + share * (code.depth_max - code.depth_min)
        found = np.clip(table, code.depth_min, code.depth_max).astype(np.float32)[codes]
    found[codes == 0] = np.nan
    return found


def metres_of_image(image: Image.Image, depth: DepthFeature, where: str) -> Float32[np.ndarray, "h w"]:
    """Metres of a depth image; NaN where it is 0, negative or not finite.

    Raises:
        DataError: It is a picture of depth, of 8 bits or in colours.
    """
    if image.mode.startswith("I"):
        unit = depth.unit or MILLIMETRE
    elif image.mode == "F":
        unit = depth.unit or 1.0
    else:
        raise DataError(
            f"{where} is a picture of depth ({image.mode}, 8 bits), not depth in metres; expected 16-bit millimetres or "
            "floating-point metres"
        )
    found = (np.asarray(image).astype(np.float64) * unit).astype(np.float32)
    found[~(np.isfinite(found) & (found > 0))] = np.nan
    return found
