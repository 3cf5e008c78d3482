"""Recording everything a robot sees and does: appended while it runs, whole up to the last frame whatever happens.

A recording is a folder with one file an episode, a sequence of messages of the wire's codec, each behind its length and
checksum. `lamp import-recording` makes a LeRobot dataset of it; this package stays free of video and table libraries.
"""

from __future__ import annotations

import json
import math
import os
import queue
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client import wire
from lamp_client.errors import InvalidValueError, LampClientError, WireError
from lamp_client.types import DEPTH, ActionChunk, Observation

FORMAT = "lamp-recording"
VERSION = 1
SUFFIX = ".lamprec"

DEPTH_UNIT = 1e-4
"""In which depth is kept, as 16-bit numbers [m]: up to 6.5 m."""

_HEAD = struct.Struct("<4sII")
"""Mark, length of the message, its CRC-32."""
_MARK = b"LREC"
_HIGHEST_FPS = 1000
_LONGEST_NAME = 100
"""Of a camera or an episode [bytes of UTF-8]."""
_LIMITS = wire.Limits(items=1_000_000)


class RecordingError(LampClientError):
    """A recording that cannot be written or read."""


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """An episode as it was recorded."""

    name: str
    instruction: str
    """With which it began; each frame has its own, for it may change."""
    fps: float
    frames: tuple[dict[str, Any], ...]
    """Per step: `images`, `state`, `action`, `time_s`, `instruction`, and where there are: `extra` (`Observation.extra`),
    `executed`, `call`, `chunk`, `gate`, `timing_ms`."""
    metadata: Mapping[str, Any]
    """Metadata that the recorder was given: robot, policy ..."""
    policy: Mapping[str, Any]
    """The policy's metadata; empty where the recorder was given none."""
    success: bool | None
    """How it ended; None where nobody said."""
    complete: bool
    """Whether its end was recorded; False where the program was killed."""
    timed: bool = True
    """Whether `time_s` is the time in which the robot moved; older recordings of simulators have the computer's there."""


@dataclass(kw_only=True)
class Recorder:
    """Writes episodes to a folder, in a thread of its own, so that a disk that is slow does not make a robot late.

    Call `begin`, `add` for every step, `end`. What could not become a dataset later is refused at once: cameras, sizes and
    widths are those of the first step that is in the folder.

    Raises:
        InvalidValueError: `fps` is no rate.
    """

    folder: Path
    fps: float
    """Steps per second that the loop is meant to make; the time of each is recorded too."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Plain values to keep: robot, policy, operator ..."""
    compress: bool = True
    """Compress images, without loss."""
    ahead: int = 256
    """Frames that may wait for the disk; a robot that is faster for so long has to wait."""
    path: Path | None = field(default=None, init=False)
    """The file of the episode that was begun last."""
    _queue: queue.Queue[bytes | dict[str, Any] | None] = field(init=False, repr=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)
    _failed: Exception | None = field(default=None, init=False, repr=False)
    _started: float = field(default=0.0, init=False, repr=False)
    _steps: int = field(default=0, init=False, repr=False)
    _calls: int = field(default=-1, init=False, repr=False)
    _chunk: ActionChunk | None = field(default=None, init=False, repr=False)
    _instruction: str = field(default="", init=False, repr=False)
    _last_instruction: str = field(default="", init=False, repr=False)
    """The instruction of the observation before."""
    _time_s: float = field(default=-math.inf, init=False, repr=False)
    _shapes: _Shapes | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.fps, bool) or not isinstance(self.fps, (int, float)) or not 0 < self.fps <= _HIGHEST_FPS:
            raise InvalidValueError(
                f"fps is {self.fps!r}; expected steps per second, above 0 and up to {_HIGHEST_FPS}."
            )

    def begin(self, instruction: str, name: str | None = None, *, policy: Mapping[str, Any] | None = None) -> str:
        """Begins an episode and returns its name, by default the time of day.

        Args:
            instruction: The task in words.
            name: Name of the episode; None: made of the date and time.
            policy: The policy's metadata: an import reads from it in which units its actions are.
        """
        if self._thread is not None:
            self.end()
        name = name or time.strftime("%Y%m%d-%H%M%S") + f"-{time.time_ns() // 1000 % 1_000_000:06d}"
        check_name(name, "an episode")
        if not isinstance(instruction, str):
            raise InvalidValueError(f"the instruction is {type(instruction).__name__}; expected it in words.")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}{SUFFIX}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise RecordingError(
                f"an episode named {name!r} is in {self.folder} already; choose another name."
            ) from None
        self.path = path
        self._instruction, self._last_instruction, self._time_s = instruction, "", -math.inf
        self._queue, self._failed, self._steps, self._calls, self._chunk = queue.Queue(self.ahead), None, 0, -1, None
        self._thread = threading.Thread(target=self._write, args=(descriptor,), name="lamp-recorder", daemon=True)
        self._thread.start()
        self._started = time.monotonic()
        self._put(
            {
                "format": FORMAT, "version": VERSION, "instruction": instruction, "fps": float(self.fps),
                "begun": time.time(), "timed": True, "metadata": json.dumps(dict(self.metadata), default=str),
                "policy": json.dumps(dict(policy or {}), default=str),
            }
        )  # fmt: skip
        return name

    def add(
        self,
        observation: Observation,
        action: np.ndarray,
        *,
        executed: np.ndarray | None = None,
        chunk: ActionChunk | None = None,
        time_s: float | None = None,
    ) -> None:
        """Records a step.

        Args:
            observation: What was seen before the action.
            action: What the executor chose, in the policy's units.
            executed: What was sent to the robot in the same units, where it differs.
            chunk: The chunk in use; its content is recorded when it is new.
            time_s: When that was, in the world in which the robot moves [s since the episode's beginning]; None: now. A
                simulator has its own time.

        Raises:
            RecordingError: the disk refuses, or no episode has begun.
            InvalidValueError: the step could not be part of a dataset: it has other cameras, sizes or widths than those before,
                values that are not finite, no instruction.
        """
        if self._thread is None:
            raise RecordingError("no episode has begun; call begin first.")
        if self._failed is not None:
            raise RecordingError(f"the recording in {self.folder} cannot be written: {self._failed}.")
        time_s = time.monotonic() - self._started if time_s is None else float(time_s)
        self._check(observation, action, executed, time_s)
        frame: dict[str, Any] = {
            "time_s": time_s,
            "images": {name: np.array(image) for name, image in observation.images.items()},
            "state": np.array(observation.state),
            "action": np.array(action, dtype=np.float32),
        }
        if observation.extra:
            frame["extra"] = {name: _kept(name, values) for name, values in observation.extra.items()}
        if observation.instruction and observation.instruction != self._last_instruction:
            frame["instruction"] = self._last_instruction = observation.instruction
        if executed is not None:
            frame["executed"] = np.array(executed, dtype=np.float32)
        if chunk is not None:
            if chunk is not self._chunk:
                self._chunk, self._calls = chunk, self._calls + 1
                frame["chunk"] = chunk.actions
                frame["timing_ms"] = {name: float(value) for name, value in chunk.timing_ms.items()}
            frame["call"] = self._calls
            frame["gate"] = chunk.gate
        self._steps += 1
        self._put(frame)

    def end(self, *, success: bool | None = None) -> None:
        """Ends the episode and waits until it is on the disk.

        Raises:
            RecordingError: the disk refuses.
        """
        if self._thread is None:
            return
        self._put({"end": True, "steps": self._steps, "success": success})
        self._put(None)
        self._thread.join()
        self._thread = None
        if self._failed is not None:
            raise RecordingError(f"the recording in {self.folder} cannot be written: {self._failed}.")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _check(self, observation: Observation, action: np.ndarray, executed: np.ndarray | None, time_s: float) -> None:
        """Compares a step with what makes a dataset, and with the steps before."""
        instruction = observation.instruction
        if not isinstance(instruction, str) or not (self._instruction.strip() or instruction.strip()):
            what = repr(instruction) if isinstance(instruction, str) else type(instruction).__name__
            raise InvalidValueError(
                f"the instruction is {what}; expected what the robot is to do, in begin(instruction) or in the observation."
            )
        if not math.isfinite(time_s) or time_s < self._time_s:
            raise InvalidValueError(f"the step's time is {time_s:g} s, after {self._time_s:g} s; expected a later one.")
        for name, values in (("state", observation.state), ("action", action), ("executed", executed)):
            numbers = None if values is None else np.asarray(values)
            if numbers is None:
                continue
            if numbers.ndim != 1 or numbers.dtype.kind not in "fiub":
                kind = f"{numbers.dtype} {numbers.shape}"
                raise InvalidValueError(f"{name} is {kind}; expected a vector of numbers.")
            if not np.isfinite(numbers).all():
                raise InvalidValueError(f"{name} holds values that are not finite; a dataset takes finite ones only.")
        shapes = _Shapes.of(observation.images, observation.state, action, action if executed is None else executed)
        before = self._shapes
        if before is None:
            for camera in shapes.images:
                check_name(camera, "a camera")
            before = recorded_shapes(self.folder) or shapes
        before.check(shapes, self.folder)
        self._shapes = before
        self._time_s = time_s

    def _put(self, message: dict[str, Any] | None) -> None:
        self._queue.put(message)

    def _write(self, descriptor: int) -> None:
        """Runs in the recorder's thread."""
        with os.fdopen(descriptor, "wb") as file:
            while (message := self._queue.get()) is not None:
                if self._failed is not None:
                    continue
                try:
                    file.write(_record(message, compress=self.compress))
                    file.flush()
                except Exception as error:  # raised at the next step; a thread that ended would leave the robot waiting
                    self._failed = error
            try:
                os.fsync(file.fileno())
            except OSError as error:
                self._failed = self._failed or error


@dataclass(frozen=True, kw_only=True)
class _Shapes:
    """What all steps of a recording have in common."""

    images: Mapping[str, tuple[int, ...]]
    state: int
    action: int
    executed: int

    @classmethod
    def of(cls, images: Mapping[str, Any], state: Any, action: Any, executed: Any) -> _Shapes:
        sizes = {name: tuple(np.shape(image)) for name, image in images.items()}
        return cls(images=sizes, state=np.size(state), action=np.size(action), executed=np.size(executed))

    def check(self, other: _Shapes, folder: Path) -> None:
        """
        Raises:
            InvalidValueError: A step is not like those before.
        """
        where = f"those in {folder} before"
        if set(other.images) != set(self.images):
            raise InvalidValueError(
                f"the step has the cameras {', '.join(sorted(other.images))}; {where} have {', '.join(sorted(self.images))}.",
                hint="Record into another folder.",
            )
        for name, size in self.images.items():
            height, width, *_ = other.images[name]
            if other.images[name] != size:
                raise InvalidValueError(
                    f"camera {name!r} is {width}x{height}; {where} are {size[1]}x{size[0]}.",
                    hint="Record into another folder.",
                )
            if not height or not width:
                raise InvalidValueError(f"camera {name!r} is {width}x{height}; expected a picture.")
        for name in ("state", "action", "executed"):
            if getattr(self, name) != getattr(other, name):
                raise InvalidValueError(
                    f"the {name} has {getattr(other, name)} values; {where} have {getattr(self, name)}.",
                    hint="Record into another folder.",
                )


def check_name(name: str, what: str) -> None:
    """Checks that a name can be part of a file's.

    Raises:
        InvalidValueError: It cannot.
    """
    fits = (
        isinstance(name, str)
        and 0 < len(name.encode("utf-8", "replace")) <= _LONGEST_NAME
        and name.isprintable()
        and not name.startswith((".", "-", " "))
        and not name.endswith((".", " "))
        and not set(name) & set('/\\:*?"<>|')
    )
    if not fits:
        raise InvalidValueError(
            f"{str(name)[:80]!r} cannot name {what}; expected a file's name: no separators, no dot or dash in front, up to "
            f"{_LONGEST_NAME} bytes."
        )


def recorded_shapes(folder: Path) -> _Shapes | None:
    """The shapes of the newest step that can be read in a recording; None where there is none."""
    for name in reversed(recorded_names(folder)):
        try:
            frame = next((frame for frame in _messages(folder / f"{name}{SUFFIX}") if "action" in frame), None)
            if frame is not None:
                frame = _with_images(frame, pixels=False)
                action = frame["action"]
                return _Shapes.of(frame["images"], frame["state"], action, frame.get("executed", action))
        except (LampClientError, KeyError, TypeError, ValueError, OSError):
            continue
    return None


def _kept(name: str, values: np.ndarray) -> np.ndarray:
    """A copy; of depth, in units of `DEPTH_UNIT`, 0 where it is unknown or too far for that."""
    if not name.startswith(DEPTH):
        return np.array(values)
    units = np.nan_to_num(np.asarray(values, dtype=np.float32) / np.float32(DEPTH_UNIT), posinf=0.0, neginf=0.0)
    return np.where((units < 0) | (units > np.iinfo(np.uint16).max), 0, np.rint(units)).astype(np.uint16)


def _record(message: Any, *, compress: bool) -> bytes:
    images = message.get("images") if isinstance(message, dict) else None
    if images and compress:
        message = {**message, "images": {name: _compressed(image) for name, image in images.items()}}
        depths = {name: value for name, value in message.get("extra", {}).items() if name.startswith(DEPTH)}
        if depths:
            message["extra"] = {**message["extra"], **{name: _compressed(value) for name, value in depths.items()}}
    encoded = wire.pack(message, limits=_LIMITS)
    return _HEAD.pack(_MARK, len(encoded), zlib.crc32(encoded)) + encoded


def _compressed(image: np.ndarray) -> dict[str, Any]:
    return {"shape": list(image.shape), "zlib": zlib.compress(image.tobytes(), 1)}


def recorded_names(folder: Path) -> list[str]:
    """Names of the episodes in a recording, in their order."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))


def read_episode(folder: Path, name: str, *, pixels: bool = True) -> RecordedEpisode:
    """Reads an episode; one whose end is missing is read as far as it goes.

    Args:
        pixels: Whether to decompress the images; otherwise they have their shapes, and nothing in them.

    Raises:
        RecordingError: it is missing, or no recording, or damaged.
    """
    path = folder / f"{name}{SUFFIX}"
    try:
        return _read(path, name, pixels=pixels)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, zlib.error) as error:
        raise RecordingError(
            f"{path} is damaged, or no recording: {type(error).__name__}: {str(error)[:200]}."
        ) from error
    except WireError as error:
        raise RecordingError(f"{path} is damaged, or no recording: {error}") from error


def _read(path: Path, name: str, *, pixels: bool) -> RecordedEpisode:
    messages = list(_messages(path))
    if not messages or messages[0].get("format") != FORMAT:
        raise RecordingError(f"{path} is no recording; expected the format {FORMAT!r}.")
    head = messages[0]
    if head.get("version") != VERSION:
        raise RecordingError(f"{path} has version {head.get('version')}; this code reads version {VERSION}.")
    last = messages[-1] if messages[-1].get("end") else None
    frames = _with_instructions([message for message in messages[1:] if "action" in message], str(head["instruction"]))
    return RecordedEpisode(
        name=name,
        instruction=str(head["instruction"]),
        fps=float(head["fps"]),
        frames=tuple(_with_images(frame, pixels=pixels) for frame in frames),
        metadata=json.loads(head["metadata"]),
        policy=json.loads(head.get("policy", "{}")),
        success=last.get("success") if last else None,
        complete=last is not None and last.get("steps") == len(frames),
        timed=head.get("timed") is True,
    )


def _with_instructions(frames: list[dict[str, Any]], begun: str) -> list[dict[str, Any]]:
    """Gives each frame its instruction; the first one goes by the words that the episode began with."""
    first, instruction, completed = (
        next((str(frame["instruction"]) for frame in frames if "instruction" in frame), ""),
        "",
        [],
    )
    for frame in frames:
        instruction = str(frame.get("instruction", instruction))
        completed.append({**frame, "instruction": begun if begun and instruction in ("", first) else instruction})
    return completed


def _messages(path: Path) -> Iterator[dict[str, Any]]:
    """The messages of a file, up to where it was cut short."""
    if not path.is_file():
        raise RecordingError(f"cannot read the recording {path}: there is no such file.")
    with open(path, "rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            mark, size, checksum = _HEAD.unpack(head)
            encoded = file.read(size) if mark == _MARK and size <= _LIMITS.message_bytes else b""
            if mark != _MARK or len(encoded) != size or zlib.crc32(encoded) != checksum:
                return
            message = wire.unpack(encoded, limits=_LIMITS)
            if isinstance(message, dict):
                yield message


def _with_images(frame: dict[str, Any], *, pixels: bool = True) -> dict[str, Any]:
    images = {}
    for name, image in frame["images"].items():
        if isinstance(image, dict):
            height, width, colours = shape = tuple(image["shape"])
            size = height * width * colours
            if colours != 3 or min(shape) < 1 or size > _LIMITS.array_bytes:
                raise ValueError(f"an image of shape {shape}")
            if pixels:
                unpacked = zlib.decompressobj().decompress(image["zlib"], size)
                image = np.frombuffer(unpacked, np.uint8).reshape(shape)
            else:
                image = np.broadcast_to(np.uint8(0), shape)
        images[name] = image
    frame = {**frame, "images": images}
    if "extra" in frame:
        frame["extra"] = {name: _extra(name, value, pixels=pixels) for name, value in frame["extra"].items()}
    return frame


def _extra(name: str, value: Any, *, pixels: bool) -> np.ndarray:
    if not name.startswith(DEPTH):
        return np.asarray(value)
    if isinstance(value, dict):
        height, width = shape = tuple(value["shape"])
        size = 2 * height * width
        if min(shape) < 1 or size > _LIMITS.array_bytes:
            raise ValueError(f"depth of shape {shape}")
        if not pixels:
            return np.broadcast_to(np.float32(0), shape)
        value = np.frombuffer(zlib.decompressobj().decompress(value["zlib"], size), np.uint16).reshape(shape)
    return np.asarray(value, dtype=np.float32) * np.float32(DEPTH_UNIT)
