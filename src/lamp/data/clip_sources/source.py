"""What every source of clips is: a collection of recordings, each read in windows, so that none is ever in memory as a whole.

What is wrong with a recording is said when it is opened or read, and concerns that recording alone.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float64

from lamp.errors import DataError
from lamp.sceneflow.estimate.interfaces import Clip

T = TypeVar("T")
TEXTS = ("lang.txt", "instruction.txt", "language.txt")


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


def instruction_in(recording: Path, settings: SourceSettings, name: str) -> str:
    """The instruction in a text beside a recording, of its name or of its folder, or that of the settings.

    Raises:
        DataError: There is none.
    """
    texts = [recording.with_suffix(".txt"), *(recording.parent / text for text in TEXTS)]
    found = [text.read_text(errors="replace").split("confidence:")[0] for text in texts if text.is_file()]
    return instruction_of([*found, settings.instruction or ""], name)


def unique_names(found: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Recordings by names that may be those of files, in their order; names that become one get a number."""
    named: dict[str, T] = {}
    for raw, recording in found:
        base = "_".join(re.sub(r"[^\w.+-]", "_", part).strip(".") or "_" for part in raw.split("/"))
        name, number = base, 2
        while name in named:  # "a b" and "a_b" are one name, and "a.mp4" and "a.mkv"
            name, number = f"{base}-{number}", number + 1
        named[name] = recording
    return dict(sorted(named.items()))
