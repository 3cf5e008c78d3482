"""vLLM-Omni's robot endpoint, `/v1/realtime/robot/openpi`, which LeRobot's `vllm` policy asks.

On connecting, the server says what the policy takes and gives (`policy_server_config`), the schema of the actions included: a
reply is a map from the names in `action_keys` to (h, 1) arrays, and nothing else. Errors are maps, and the connection stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamp.serve.action_conventions import Units
from lamp.serve.message_values import Message, array_from, seed_from, word_from
from lamp.serve.policy_spec import PolicySpec
from lamp.serve.protocols import ActReply, ActRequest, ErrorReply, OpenPi, PolicyRequest, ResetRequest, observation_from
from lamp_client.types import Observation

PATH = "/v1/realtime/robot/openpi"
POSE_KEYS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
"""LeRobot's names of seven values that change a pose and a gripper."""


@dataclass(kw_only=True)
class VllmOmni:
    """One client's conversation: it remembers the session, whose change begins an episode."""

    spec: PolicySpec
    units: Units
    openpi: OpenPi
    """Reads observations that are laid out by openpi's keys."""
    name: str = "vllm-omni"
    session: str | None = None

    def matches(self, message: Message) -> bool:
        return True

    def read(self, message: Message) -> PolicyRequest:
        """
        Raises:
            WireError: The endpoint is unknown, or a key is missing.
            InvalidValueError: A value has another shape or type.
            MismatchError: The observation does not fit the policy.
        """
        if word_from(message, "endpoint", ("infer", "reset"), absent="infer") == "reset":
            self.session = None
            return ResetRequest()
        seed, observation = seed_from(message.get("seed"), "seed"), self._observation(message)
        # After what may refuse the request: a session whose first one is refused begins with the next.
        session = str(message.get("session_id", "default"))[:200]
        begins, self.session = session != self.session, session
        return ActRequest(observations=(observation,), noise_seed=seed, begins=begins)

    def _observation(self, message: Message) -> Observation:
        if "images" not in message:
            layout = {key: array_from(value) for key, value in message.items()}
            return self.spec.fitted(self.openpi.layout(layout).observation(layout))
        match message["images"]:
            case {} as images:
                pass
            case list() as several:
                images = dict(enumerate(several))
            case one:
                images = {0: one}
        return observation_from(
            self.spec,
            {str(name)[:80]: array_from(image) for name, image in images.items()},
            _state(message),
            message.get("prompt", ""),
            ("state", "prompt"),
        )

    def make_reply(
        self, message: Message, request: PolicyRequest, answers: Sequence[ActReply], prev_total_ms: float | None
    ) -> dict[str, Any]:
        if not answers:
            return {"status": "reset successful"}
        actions = self.units(answers[0].chunk.actions)
        return {key: actions[:, place : place + 1] for place, key in enumerate(action_keys(self.spec))}

    def error_reply(self, message: Message, problem: str, *, busy: bool = False) -> ErrorReply:
        return ErrorReply(frame={"type": "error", "message": problem}, close=None)


def _state(message: Message) -> Any:
    """The state's values in order: a flat one as it is, named parts by where `modality_config` places them, or as they come."""
    match message.get("state", []):
        case {} as state:
            keys = list(state)
        case flat:
            return array_from(flat)
    starts: dict[Any, int] = {}
    match message:
        case {"modality_config": {"state": {} as places}}:
            for key in keys:
                match places.get(key):
                    case {"start": start} if type(start) is int:
                        starts[key] = start
    if len(starts) == len(keys):
        keys = sorted(keys, key=starts.__getitem__)
    return [array_from(state[key]) for key in keys]


def action_keys(spec: PolicySpec) -> list[str]:
    """A name for each of an action's values: LeRobot's where it is a change of a pose with a gripper, else the dataset's."""
    if spec.action_width == len(POSE_KEYS) and spec.kind == "delta":
        return list(POSE_KEYS)
    names = [str(name) for name in spec.about.get("action_names") or ()]
    usable = len(names) == len(set(names)) == spec.action_width
    return names if usable else [f"action_{place}" for place in range(spec.action_width)]


def policy_server_config(spec: PolicySpec, units: Units) -> dict[str, Any]:
    """What a client of this endpoint is told on connecting."""
    reference, pose = spec.cameras[0], action_keys(spec) == list(POSE_KEYS)
    return {
        "image_resolution": [reference.height, reference.width],
        "n_external_cameras": len(spec.cameras) - (spec.wrist is not None),
        "needs_wrist_camera": spec.wrist is not None,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "state_dim": spec.state_width,
        "action_space": f"{spec.kind}_pose_{units.action_units}" if pose else f"{spec.kind}_{units.action_units}",
        "action_keys": action_keys(spec),
        "action_horizon": spec.chunk,
        "default_action_horizon": spec.execute,
        **{key: spec.about[key] for key in ("fps", "checkpoint") if key in spec.about},
    }
