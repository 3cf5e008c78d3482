"""Pictures beside each other: episode strips, prediction beside truth; their PNG files, and pictures inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lamp.errors import DataError
from lamp.files import atomic_write_bytes

PAPER = (250, 250, 248)
INK = (60, 62, 66)
MEDIA = {".jpg": "image/jpeg", ".mp4": "video/mp4"}
CAPTION = "Description"
"""The PNG text chunk that holds a picture's caption."""


def evenly(count: int, shown: int) -> list[int]:
    """Picks `shown` of `count` frames, evenly spaced, the first and the last among them."""
    if count <= shown:
        return list(range(count))
    return [round(index * (count - 1) / (shown - 1)) for index in range(shown)] if shown > 1 else [0]


def row_of(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], captions: Sequence[str] | None = None, *, gap: int = 8
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Sets images of the same height beside each other, with captions below where given."""
    heights = {image.shape[0] for image in images}
    if len(heights) != 1:
        raise ValueError(f"images of heights {sorted(heights)}: expected at least one image and one height")
    height = heights.pop()
    below = 26 if captions else 0
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, height + below), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    left = 0
    for index, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (left, 0))
        if captions:
            pen.text((left + 2, height + 5), captions[index], fill=INK, font=font)
        left += image.shape[1] + gap
    return np.asarray(sheet)


def strip(frames: Sequence[UInt8[np.ndarray, "h w 3"]], *, shown: int = 8, gap: int = 4) -> UInt8[np.ndarray, "_ _ 3"]:
    """Shows an episode as a row of evenly spaced frames."""
    return row_of([frames[index] for index in evenly(len(frames), shown)], gap=gap)


def encode_png(image: UInt8[np.ndarray, "h w 3"], caption: str = "") -> bytes:
    """Encodes an image as PNG, with a caption inside the file."""
    buffer, text = io.BytesIO(), PngInfo()
    if caption:
        text.add_itxt(CAPTION, caption)
    Image.fromarray(image).save(buffer, format="PNG", optimize=True, pnginfo=text)
    return buffer.getvalue()


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"], caption: str = "") -> None:
    atomic_write_bytes(path, encode_png(image, caption))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable picture ({error}); expected a whole PNG or JPEG file") from None


def read_caption(path: Path) -> str:
    """Returns the caption inside a picture's file; empty where there is none.

    Raises:
        DataError: The file is damaged.
    """
    with _opened(path) as image:
        return str(image.info.get(CAPTION, ""))


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a picture's pixels.

    Raises:
        DataError: The file is damaged.
    """
    with _opened(path) as image:
        return np.asarray(image.convert("RGB"))


def data_uri(content: bytes, suffix: str) -> str:
    """A file's content as part of a page."""
    return f"data:{MEDIA[suffix]};base64,{base64.b64encode(content).decode()}"


def jpeg_uri(image: UInt8[np.ndarray, "h w 3"], quality: int = 86) -> str:
    """An image as part of a page, as JPEG, which keeps pages of photographs small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, optimize=True)
    return data_uri(buffer.getvalue(), ".jpg")
