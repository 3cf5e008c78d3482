"""Version 1 of the protocol of vla-eval, Ai2's evaluation harness.

Its messages are `hello`, `observation`, `action`, `episode_start`, `episode_end` and `error`. The harness asks for one action at
every step, so a chunk waits here until it has been executed. Its client speaks first, and takes the first message that it
receives for the answer to its `hello`: the server's greeting is one (`hello_fields`), and a `hello` is not answered again.
"""

from __future__ import annotations

import io
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

import lamp
from lamp.errors import MismatchError
from lamp.serve.action_conventions import Units
from lamp.serve.message_values import Message, array_from, map_from, word_from
from lamp.serve.policy_spec import PolicySpec
from lamp.serve.protocols import (
    ActReply,
    ActRequest,
    ErrorReply,
    PingRequest,
    PolicyRequest,
    ResetRequest,
    observation_from,
)
from lamp_client.errors import InvalidValueError, WireError
from lamp_client.types import Observation
from lamp_client.wire import Limits

VERSION = 1
TYPES = ("hello", "observation", "action", "episode_start", "episode_end", "error")
IMAGE_FORMATS = ("PNG", "JPEG")
NOTHING = PingRequest()
"""What a message asks that needs no policy."""


@dataclass(kw_only=True)
class VlaEval:
    """One client's conversation: it remembers the actions that it has not been sent yet."""

    spec: PolicySpec
    units: Units
    limits: Limits
    name: str = "vla-eval"
    waiting: deque[np.ndarray] = field(default_factory=deque)

    def matches(self, message: Message) -> bool:
        # starVLA's envelope has a type and a payload, too, but no number and time.
        return {"type", "payload", "seq", "timestamp"} <= message.keys()

    def read(self, message: Message) -> PolicyRequest:
        """
        Raises:
            WireError: The type is unknown, or a key is missing.
            InvalidValueError: A value has another shape or type.
            MismatchError: The observation does not fit the policy, or the client speaks another version.
        """
        kind, payload = (
            word_from(message, "type", TYPES),
            map_from(message["payload"], "'payload' is {}; expected a map."),
        )
        version = payload.get("protocol_version", VERSION)
        if kind == "hello" and (type(version) is not int or version != VERSION):
            raise MismatchError(f"vla-eval's protocol is of version {str(version)[:20]}; this server speaks {VERSION}.")
        if kind == "episode_start":
            self.waiting.clear()
            return ResetRequest()
        if kind != "observation" or self.waiting:
            return NOTHING
        return ActRequest(observations=(self._observation(payload),))

    def _observation(self, payload: Message) -> Observation:
        match payload:
            case {"images": {} as images} if images:
                pass
            case _:
                raise WireError("the observation has no 'images'; expected a map from camera to image.")
        state = payload.get("states", payload.get("state"))
        return observation_from(
            self.spec,
            {str(name)[:80]: image_from_marker(image, self.limits) for name, image in images.items()},
            [] if state is None else array_from(state),
            payload.get("task_description", ""),
            ("states", "task_description"),
        )

    def make_reply(
        self, message: Message, request: PolicyRequest, answers: Sequence[ActReply], prev_total_ms: float | None
    ) -> dict[str, Any] | None:
        if message["type"] != "observation":
            return None
        for answer in answers:
            self.waiting.extend(self.units(answer.chunk.actions)[: self.spec.execute])
        action = np.ascontiguousarray(self.waiting.popleft(), np.float32)
        # An array in vla-eval's form, whose keys are text.
        marker = {"__ndarray__": True, "data": action.tobytes(), "dtype": action.dtype.str, "shape": [len(action)]}
        return _envelope("action", {"actions": marker}, message)

    def error_reply(self, message: Message, problem: str, *, busy: bool = False) -> ErrorReply:
        return ErrorReply(frame=_envelope("error", {"error": problem, "busy": busy}, message), close=None)


def _envelope(kind: str, payload: dict[str, Any], message: Message) -> dict[str, Any]:
    seq = message.get("seq")
    return {"type": kind, "payload": payload, "seq": seq if type(seq) is int else 0, "timestamp": time.time()}


def hello_fields(spec: PolicySpec, units: Units) -> dict[str, Any]:
    """The keys that make the greeting a `hello`: what the harness is to observe, and what the actions are.

    The harness sets its benchmarks' parameters by `observation_params` where its configuration does not, and warns where
    `action_spec` is not what the benchmark executes.
    """
    # Robosuite's quaternion as it is, without making its sign positive: as the demonstrations' states were recorded.
    params = {
        "send_wrist_image": spec.wrist is not None,
        "send_state": bool(spec.state_width),
        "quat_no_antipodal": True,
    }
    payload = {
        "harness_version": f"lamp-vla {lamp.__version__}",
        "protocol_version": VERSION,
        "model_server": "LaMP",
        "capabilities": {},
        "observation_params": params,
        "action_spec": action_spec(spec, units),
        "observation_spec": {"language": {"name": "language", "dims": 0, "format": "language"}},
    }
    return {"type": "hello", "payload": payload, "seq": 0, "timestamp": time.time()}


def action_spec(spec: PolicySpec, units: Units) -> dict[str, Any]:
    """The actions in vla-eval's words; `raw` where they are no changes of a pose with a gripper."""
    grippers = {
        (-1.0, 1.0): "binary_close_positive",
        (1.0, -1.0): "binary_close_negative",
        (0.0, 1.0): "binary_close_01",
    }
    sent = units.sent
    if spec.action_width != 7 or spec.kind != "delta" or len(sent) != 1 or sent[0].dim % 7 != 6:
        return {"actions": {"name": "raw", "dims": spec.action_width, "format": "raw"}}
    opened, closed = sent[0].opened, sent[0].closed
    gripper = {"name": "gripper", "dims": 1, "format": grippers.get((opened, closed), "continuous_01")}
    parts = {"position": "delta_xyz", "rotation": "axis_angle"}
    return {
        **{name: {"name": name, "dims": 3, "format": form} for name, form in parts.items()},
        "gripper": {**gripper, "range": sorted((opened, closed))},
    }


def image_from_marker(value: Any, limits: Limits) -> Any:
    """An image that came as PNG, JPEG or raw bytes in vla-eval's map, or as an array.

    Raises:
        WireError: The format is none of these.
        InvalidValueError: The bytes are no such image, or it has more pixels than an array may.
    """
    match value:
        case {"__image__": _} if word_from(value, "format", ("png", "jpeg", "raw")) != "raw":
            pass
        case _:
            return array_from(value)
    try:
        with Image.open(io.BytesIO(value["data"]), formats=IMAGE_FORMATS) as image:
            # Told by the header, before any pixel is made.
            if 3 * math.prod(image.size) > limits.array_bytes:
                width, height = image.size
                raise InvalidValueError(f"an image is {width}x{height}; the limit is {limits.array_bytes} bytes.")
            return np.asarray(image.convert("RGB"))
    except (OSError, KeyError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidValueError(
            f"an image cannot be read: {type(error).__name__}: {str(error)[:120]}; expected PNG, JPEG or raw."
        ) from None
