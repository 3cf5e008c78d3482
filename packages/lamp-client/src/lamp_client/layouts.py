"""How an observation is laid out in an openpi request, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError, WireError
from lamp_client.images import resize
from lamp_client.types import Observation


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

    def request(self, observation: Observation) -> dict[str, Any]:
        """Lays an observation out.

        Raises:
            InvalidValueError: if a camera is missing or the state has another length.
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
        message[self.prompt] = observation.instruction
        return message

    def observation(self, message: Mapping[Any, Any]) -> Observation:
        """Reads a request back.

        Raises:
            WireError: if a key is missing.
            InvalidValueError: if a value has another shape or type.
        """
        needed = [key for _, key in self.images] + [key for key, _ in self.state] + [self.prompt]
        missing = [key for key in needed if key not in message]
        if missing:
            raise WireError(
                f"the request lacks {', '.join(map(repr, missing))}; expected {', '.join(map(repr, needed))}."
            )
        parts = []
        for key, size in self.state:
            part = np.asarray(message[key], dtype=np.float32).reshape(-1)
            if len(part) != size:
                raise InvalidValueError(f"{key!r} has {len(part)} values; expected {size}.")
            parts.append(part)
        return Observation(
            images={camera: np.asarray(message[key]) for camera, key in self.images},
            state=np.concatenate(parts),
            instruction=str(message[self.prompt]),
        )


LIBERO_REQUEST = RequestLayout(
    images=(("agentview", "observation/image"), ("wrist", "observation/wrist_image")),
    state=(("observation/state", 8),),
)
DROID_REQUEST = RequestLayout(
    images=(("exterior", "observation/exterior_image_1_left"), ("wrist", "observation/wrist_image_left")),
    state=(("observation/joint_position", 7), ("observation/gripper_position", 1)),
)
