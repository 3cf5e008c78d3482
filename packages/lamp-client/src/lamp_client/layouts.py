"""How an observation is laid out in an openpi request, and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError, WireError
from lamp_client.types import Observation

MAX_PROMPT = 2000
"""Characters of an instruction."""
LARGEST_STATE = 1e9
"""Of a state's values; metres, radians and encoders' ticks are far below."""


@dataclass(frozen=True, kw_only=True)
class RequestLayout:
    """Names the keys of a request."""

    images: tuple[tuple[str, str], ...]
    """(camera, key), the reference camera first."""
    state: tuple[tuple[str, int], ...]
    """(key, number of values), in the order of the state."""
    prompt: str = "prompt"
    image_size: int | None = 224
    """Images are resized to this square before they are sent [px]; None sends them as they are."""
    needs_prompt: bool = True
    """Whether the instruction must not be blank; False for a policy whose demonstrations had none."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a request."""
        return (*(key for _, key in self.images), *(key for key, _ in self.state), self.prompt)

    def request(self, observation: Observation) -> dict[str, Any]:
        """Lays an observation out.

        Raises:
            InvalidValueError: if a camera is missing, the state has another length or the instruction is empty.
        """
        message: dict[str, Any] = {}
        for camera, key in self.images:
            if camera not in observation.images:
                has = ", ".join(observation.images)
                raise InvalidValueError(
                    f"the observation has no camera {camera!r}, which the request needs; it has {has}."
                )
            image = observation.images[camera]
            message[key] = image if self.image_size is None else resize(image, self.image_size)
        expected = sum(size for _, size in self.state)
        if len(observation.state) != expected:
            raise InvalidValueError(f"the state has {len(observation.state)} values; the request takes {expected}.")
        start = 0
        for key, size in self.state:
            message[key] = observation.state[start : start + size]
            start += size
        message[self.prompt] = prompt_from(observation.instruction, "instruction", needed=self.needs_prompt)
        return message

    def observation(self, message: Mapping[Any, Any]) -> Observation:
        """Reads a request back.

        Raises:
            WireError: if a key is missing.
            InvalidValueError: if a value has another shape or type.
        """
        spared = () if self.needs_prompt else (self.prompt,)
        missing = [key for key in self.keys if key not in message and key not in spared]
        if missing:
            has = ", ".join(repr(key)[:60] for key in list(message)[:12]) or "nothing"
            raise WireError(
                f"the request lacks {', '.join(map(repr, missing))}; it has {has}. "
                f"Expected {', '.join(map(repr, self.keys))}."
            )
        return Observation(
            images={camera: image_from(message[key], key) for camera, key in self.images},
            state=np.concatenate([state_from(message[key], key, size) for key, size in self.state]),
            instruction=prompt_from(message.get(self.prompt, ""), self.prompt, needed=self.needs_prompt),
        )


LIBERO_REQUEST = RequestLayout(
    images=(("agentview", "observation/image"), ("wrist", "observation/wrist_image")),
    state=(("observation/state", 8),),
)
DROID_REQUEST = RequestLayout(
    images=(("exterior", "observation/exterior_image_1_left"), ("wrist", "observation/wrist_image_left")),
    state=(("observation/joint_position", 7), ("observation/gripper_position", 1)),
)


def frame_request(cameras: Sequence[str], state_width: int, *, needs_prompt: bool = True) -> RequestLayout:
    """The keys of a LeRobot frame, for any cameras: `observation.images.CAMERA`, `observation.state`, `task`.

    Images are sent as they are: the server resizes them to what its policy needs.
    """
    return RequestLayout(
        images=tuple((camera, f"observation.images.{camera}") for camera in cameras),
        state=(("observation.state", state_width),),
        prompt="task",
        image_size=None,
        needs_prompt=needs_prompt,
    )


def image_from(value: Any, where: str) -> np.ndarray:
    """Reads an image.

    Raises:
        InvalidValueError: it is none.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        kind = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InvalidValueError(f"{where!r} is {kind}; expected a uint8 array (height, width, 3).")
    if not value.size:
        raise InvalidValueError(f"{where!r} is an empty image {value.shape}; expected uint8 (height, width, 3).")
    return value


def state_from(value: Any, where: str, size: int) -> np.ndarray:
    """Reads so many finite numbers as (size,) float32, from an array, a number or a list.

    Raises:
        InvalidValueError: they are others.
    """
    # Lists are walked and not handed to NumPy, which would make room for the longest text in every place.
    numbers = np.asarray(_numbers_in(value, where, size)) if isinstance(value, list) else np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        kind = str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__
        raise InvalidValueError(f"{where!r} is {kind}; expected {size} numbers.")
    if numbers.size != size:
        raise InvalidValueError(f"{where!r} has {numbers.size} values; expected {size}.")
    if not np.isfinite(numbers).all():
        raise InvalidValueError(f"{where!r} holds values that are not finite; expected {size} finite numbers.")
    if (np.abs(numbers.astype(np.float64)) > LARGEST_STATE).any():
        raise InvalidValueError(f"{where!r} holds values beyond {LARGEST_STATE:g}; expected {size} smaller numbers.")
    return numbers.astype(np.float32).reshape(-1)


def _numbers_in(values: list[Any], where: str, size: int) -> list[float]:
    """The numbers of a list, inner lists' too."""
    numbers: list[float] = []
    waiting = [*reversed(values)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size <= size:
            numbers += value.reshape(-1).tolist()
        elif isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
            numbers.append(float(value))
        else:
            raise InvalidValueError(f"{where!r} is a list with a {type(value).__name__}; expected {size} numbers.")
    return numbers


def prompt_from(value: Any, where: str, *, needed: bool = True) -> str:
    """Reads an instruction; where none is `needed`, it may be empty.

    Raises:
        InvalidValueError: it is no text, blank, or very long.
    """
    if not isinstance(value, str):
        raise InvalidValueError(f"{where!r} is {type(value).__name__}; expected the instruction as text.")
    if len(value) > MAX_PROMPT:
        raise InvalidValueError(f"{where!r} has {len(value)} characters; expected at most {MAX_PROMPT}.")
    # Spaces and signs that are not seen, such as a byte order mark, are no instruction either.
    if needed and not any(letter.isprintable() and not letter.isspace() for letter in value):
        raise InvalidValueError(
            f"{where!r} is {value[:40]!r}, empty; expected the instruction in words, as in training."
        )
    return str(value)


def resize(image: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Resizes (H, W, 3) uint8 to (`height`, `width`, 3) with a triangle filter that is widened when shrinking.

    Without a width the result is square. In NumPy alone, since the client has no image library.
    """
    size = (height, height if width is None else width)
    if image.shape[:2] == size:
        return image
    rows, columns = (_resize_weights(source, target) for source, target in zip(image.shape[:2], size, strict=True))
    resized = np.einsum("yh,hwc->ywc", rows, image.astype(np.float32))
    resized = np.einsum("xw,ywc->yxc", columns, resized)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _resize_weights(source: int, target: int) -> np.ndarray:
    """(target, source) rows that sum to 1: how much each source pixel contributes."""
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(source)[None, :] + 0.5 - centres[:, None]) / reach
    weights = np.maximum(1.0 - distances, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
