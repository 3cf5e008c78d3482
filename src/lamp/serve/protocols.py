"""Protocols of the websocket, told apart by each message: openpi's and starVLA's, and what others share with them.

All carry maps in the same codec. openpi's requests are flat and its errors a text frame that closes the connection;
starVLA's are an envelope around a list of examples, and so are its errors. Whichever it is, a message becomes a request: act,
reset, ping. vla-eval's protocol and vLLM-Omni's endpoint are in `vla_eval` and `vllm_omni`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from lamp.errors import MismatchError
from lamp.serve.action_conventions import DatasetUnits, Units
from lamp.serve.message_values import Message, NoiseSeed, described, flag_from, map_from, seed_from, size_of, word_from
from lamp.serve.policy_spec import PolicySpec
from lamp_client.client import LARGEST_ACTION, PROTOCOL_VERSION
from lamp_client.errors import InvalidValueError, WireError
from lamp_client.layouts import RequestLayout, frame_request, image_from, prompt_from, state_from
from lamp_client.types import ActionChunk, Committed, GripperUnits, Observation

STARVLA_TYPES = ("ping", "infer", "predict_action", "reset")


@dataclass(frozen=True, kw_only=True)
class ErrorReply:
    """How an error is told: the frame, and the code that closes the connection; None keeps it open."""

    frame: str | dict[str, Any]
    close: int | None


@runtime_checkable
class WireProtocol(Protocol):
    """How messages of one kind are read and answered."""

    @property
    def name(self) -> str: ...

    def matches(self, message: Message) -> bool:
        """Whether the message is in this protocol."""
        ...

    def read(self, message: Message) -> PolicyRequest:
        """Reads what is asked for, whatever is wrong with it raising one of the client's or LaMP's errors."""
        ...

    def make_reply(
        self, message: Message, request: PolicyRequest, answers: Sequence[ActReply], prev_total_ms: float | None
    ) -> dict[str, Any] | None:
        """The reply; None where none is due."""
        ...

    def error_reply(self, message: Message, problem: str, *, busy: bool = False) -> ErrorReply:
        """The reply to what cannot be answered; `busy` where the same would be answered later."""
        ...


@dataclass(frozen=True, kw_only=True)
class OpenPi:
    """openpi's protocol, with a few keys of ours under `lamp/`."""

    spec: PolicySpec
    units: Units
    layouts: tuple[RequestLayout, ...]
    """The most likely first."""
    name: str = "openpi"

    @classmethod
    def of(cls, spec: PolicySpec, units: Units) -> OpenPi:
        """Lists the requests from which this policy's observations can be made."""
        return cls(spec=spec, units=units, layouts=layouts_for(spec))

    def matches(self, message: Message) -> bool:
        return True

    def read(self, message: Message) -> PolicyRequest:
        """
        Raises:
            WireError: A key is missing.
            InvalidValueError: A value has another shape or type.
            MismatchError: The observation does not fit the policy.
        """
        seed = seed_from(message.get("lamp/noise_seed"), "lamp/noise_seed")
        if flag_from(message, "lamp/reset") or "__ctrl__" in message:
            return ResetRequest(noise_seed=seed)
        observation = self.spec.fitted(self.layout(message).observation(message))
        observation = replace(observation, committed=self._committed(message))
        return ActRequest(observations=(observation,), noise_seed=seed, foresight=flag_from(message, "lamp/foresight"))

    def _committed(self, message: Message) -> Committed | None:
        """What is left of the client's chunk; None where it begins anew."""
        actions, delay = message.get("lamp/committed"), message.get("lamp/delay")
        if actions is None:
            if delay is not None:
                raise WireError("the request has 'lamp/delay' and no 'lamp/committed'; expected both, or neither.")
            return None
        if not self.spec.about.get("real_time") or self.units.action_units != "dataset":
            raise MismatchError(
                "'lamp/committed' is given, and this server's policy does not go on from committed actions; the greeting of one "
                "that does says `real_time`, for which --units dataset is needed."
            )
        match actions:
            case np.ndarray() if actions.dtype.kind in "fiu" and actions.ndim == 2:
                pass
            case _:
                raise InvalidValueError(
                    f"'lamp/committed' is {described(actions)}; expected an array of numbers (actions, values)."
                )
        if actions.shape[1] != self.spec.action_width or not 1 <= len(actions) <= self.spec.chunk:
            raise InvalidValueError(
                f"'lamp/committed' is of shape {actions.shape}; expected 1 to {self.spec.chunk} actions of "
                f"{self.spec.action_width} values."
            )
        if (beyond := ~(np.abs(actions) <= LARGEST_ACTION)).any():
            raise InvalidValueError(
                f"'lamp/committed' holds {actions[beyond][0]}; expected numbers up to {LARGEST_ACTION:g}."
            )
        match delay:
            case bool():
                pass
            case int() | np.integer():
                return Committed(actions=actions.astype(np.float32), delay=int(delay))
        raise InvalidValueError(f"'lamp/delay' is {str(delay)[:40]!r}; expected a number of steps.")

    def layout(self, message: Message) -> RequestLayout:
        """The layout of which the request has most keys, and of those with the same keys the one whose state fits."""

        def fit(layout: RequestLayout) -> tuple[int, int]:
            fitting = sum(size_of(message[key]) == size for key, size in layout.state if key in message)
            return sum(key in message for key in layout.keys), fitting

        return max(self.layouts, key=fit)

    def make_reply(
        self, message: Message, request: PolicyRequest, answers: Sequence[ActReply], prev_total_ms: float | None
    ) -> dict[str, Any]:
        if not answers:
            return {"lamp/reset": True}
        (answer,) = answers
        chunk = answer.chunk
        timing = {f"{name}_ms": value for name, value in chunk.timing_ms.items()} | {"infer_ms": answer.infer_ms}
        server = {"infer_ms": answer.infer_ms, "queue_ms": answer.queue_ms, "batch": answer.batch}
        reply: dict[str, Any] = {"actions": self.units(chunk.actions), "policy_timing": timing, "server_timing": server}
        if prev_total_ms is not None:
            server["prev_total_ms"] = prev_total_ms
        # openpi's own client slices every array of a reply by the step, so nothing but actions is there unasked.
        if request.foresight and chunk.foresight is not None:
            reply["lamp/foresight"] = chunk.foresight
        if chunk.gate is not None:
            reply["lamp/gate"] = chunk.gate
        return reply

    def error_reply(self, message: Message, problem: str, *, busy: bool = False) -> ErrorReply:
        return ErrorReply(frame=problem, close=1013 if busy else 1011)


@dataclass(frozen=True, kw_only=True)
class StarVla:
    """starVLA's envelope. Its clients adapt actions to the environment themselves (`Units.for_starvla`)."""

    spec: PolicySpec
    max_examples: int
    units: Units = field(default_factory=DatasetUnits)
    name: str = "starvla"

    def matches(self, message: Message) -> bool:
        match message:
            case {"examples": _} | {"payload": {}}:
                return True
            case {"type": str(kind)}:
                return kind in STARVLA_TYPES
        return False

    def read(self, message: Message) -> PolicyRequest:
        """
        Raises:
            WireError: The type or a key is unknown.
            InvalidValueError: A value has another shape or type.
            MismatchError: An example does not fit the policy.
        """
        kind = word_from(message, "type", STARVLA_TYPES, absent="infer")
        if kind == "ping":
            return PingRequest()
        payload = message.get("payload", message)
        payload = map_from(payload, "'payload' is {}; expected a map with 'examples'.")
        seed = seed_from(payload.get("lamp/noise_seed"), "lamp/noise_seed")
        if kind == "reset":
            return ResetRequest(noise_seed=seed)
        self._check_key(payload.get("unnorm_key"))
        observations = tuple(self._observation(example, n) for n, example in enumerate(self._examples(payload)))
        return ActRequest(observations=observations, noise_seed=seed, foresight=flag_from(payload, "lamp/foresight"))

    def _examples(self, payload: Message) -> list[Message]:
        examples = payload.get("examples")
        match examples:
            case list() if 1 <= len(examples) <= self.max_examples:
                wrong = "an example is no map; expected 'image', 'lang' and 'state'."
                return [map_from(example, wrong) for example in examples]
        raise WireError(f"'examples' is {described(examples)}; expected a list of 1 to {self.max_examples} maps.")

    def _check_key(self, key: Any) -> None:
        if key is not None and (type(key) is not str or key != self.spec.dataset):
            raise MismatchError(f"unnorm_key is {str(key)[:60]!r}; expected {self.spec.dataset!r}, or none.")

    def _observation(self, example: Message, number: int) -> Observation:
        images, names = example.get("image"), [camera.name for camera in self.spec.cameras]
        match images:
            case np.ndarray() if len(names) == 1:
                images = [images]
            case list() if len(images) == len(names):
                pass
            case _:
                raise InvalidValueError(
                    f"example {number} has {described(images)} for 'image'; expected {len(names)}: {', '.join(names)}."
                )
        if self.spec.state_width and example.get("state") is None:
            raise InvalidValueError(f"example {number} has no 'state'; expected {self.spec.state_width} numbers.")
        named = dict(zip(names, images, strict=True))
        instruction = example.get("lang", None if self.spec.takes_language else "")
        return observation_from(self.spec, named, example.get("state", []), instruction, ("state", "lang"))

    def make_reply(
        self, message: Message, request: PolicyRequest, answers: Sequence[ActReply], prev_total_ms: float | None
    ) -> dict[str, Any]:
        reply = {"status": "ok", "ok": True, "type": "inference_result", "request_id": _request_id(message)}
        if request.name:
            return reply | {"type": request.name}
        data: dict[str, Any] = {
            "actions": np.stack([self.units.for_starvla(answer.chunk.actions) for answer in answers])
        }
        flows = [answer.chunk.foresight for answer in answers]
        if request.foresight and all(flow is not None for flow in flows):
            data["lamp/foresight"] = np.stack([flow for flow in flows if flow is not None])
        timing = {name: max(getattr(answer, name) for answer in answers) for name in ("infer_ms", "queue_ms", "batch")}
        if prev_total_ms is not None:
            timing["prev_total_ms"] = prev_total_ms
        return reply | {"data": data, "server_timing": timing}

    def error_reply(self, message: Message, problem: str, *, busy: bool = False) -> ErrorReply:
        frame = {
            "status": "error",
            "ok": False,
            "type": "inference_result",
            "request_id": _request_id(message),
            "error": {"message": problem, "busy": busy},
        }
        return ErrorReply(frame=frame, close=None)


def observation_from(
    spec: PolicySpec, images: Mapping[str, Any], state: Any, instruction: Any, names: tuple[str, str]
) -> Observation:
    """Makes the policy's observation of a client's images, whatever it calls them.

    Args:
        spec: The policy's.
        images: By the policy's names of its cameras; or by others, in any order as long as the wrist's says so or comes last.
        state: The state, or the whole features that it is taken from.
        instruction: The instruction.
        names: What the request calls the state and the instruction, for errors.

    Raises:
        InvalidValueError: A value has another shape or type.
        MismatchError: The images are too few, or do not fit.
    """
    cameras = [camera.name for camera in spec.cameras]
    if not set(cameras) <= images.keys():
        given = sorted(images, key=lambda name: "wrist" in name or "hand" in name)  # stable: others keep their order
        if len(given) < len(cameras):
            raise MismatchError(f"the observation has {len(given)} images: {', '.join(given)[:200]}. {spec.expected}")
        others = [name for name in cameras if name != spec.wrist]
        found = dict(zip(others, given, strict=False)) | ({spec.wrist: given[-1]} if spec.wrist else {})
        images = {name: images[found[name]] for name in cameras}
    width = spec.recorded_state_width if size_of(state) == spec.recorded_state_width else spec.state_width
    observation = Observation(
        images={name: image_from(images[name], name) for name in cameras},
        state=state_from(state, names[0], width),
        instruction=prompt_from(instruction, names[1], needed=spec.takes_language),
    )
    return spec.fitted(observation)


def _request_id(message: Message) -> Any:
    """The request's own, as long as it is a plain, short value."""
    match message:
        case {"request_id": str() | int() as given} if len(str(given)) <= 200:
            return given
    return "default"


def layouts_for(spec: PolicySpec) -> tuple[RequestLayout, ...]:
    """The requests from which this policy's observations can be made: openpi's LIBERO and DROID keys, and LeRobot's."""
    found: list[RequestLayout] = []
    wrist, width = spec.wrist, spec.state_width
    if len(spec.cameras) <= 2:
        for reference_key, wrist_key, state in (
            ("observation/image", "observation/wrist_image", (("observation/state", width),)),
            ("observation/exterior_image_1_left", "observation/wrist_image_left", _joints(width)),
        ):
            images = ((spec.reference, reference_key), *([(wrist, wrist_key)] if wrist else []))
            if state:
                found.append(RequestLayout(images=images, state=state, needs_prompt=spec.takes_language))
    names = [camera.name for camera in spec.cameras]
    found.append(frame_request(names, width, needs_prompt=spec.takes_language))
    if spec.recorded_state_width != width:
        found.append(frame_request(names, spec.recorded_state_width, needs_prompt=spec.takes_language))
    if spec.state_features and set(names) <= set(spec.camera_features):
        # A frame of the very dataset that the policy was trained on.
        images = tuple((name, spec.camera_features[name]) for name in names)
        state = tuple(spec.state_features.items())
        frame = frame_request(names, width, needs_prompt=spec.takes_language)
        found.append(replace(frame, images=images, state=state))
    return tuple(found)


def _joints(width: int) -> tuple[tuple[str, int], ...]:
    """DROID's state of joints and gripper."""
    return (("observation/joint_position", width - 1), ("observation/gripper_position", 1)) if width >= 2 else ()


def greeting(spec: PolicySpec, units: Units, limits: Mapping[str, int]) -> dict[str, Any]:
    """What a client is told on connecting; each protocol finds its own keys in it."""
    limited = spec.action_limits if units.action_units == "dataset" else None
    return {
        "lamp": {"protocol": PROTOCOL_VERSION},
        "policy": "lamp",
        "action_units": units.action_units,
        **GripperUnits.metadata_entry(units.sent),
        "cameras": {camera.name: [camera.height, camera.width] for camera in spec.cameras},
        "state_width": spec.state_width,
        "recorded_state_width": spec.recorded_state_width,
        "action_width": spec.action_width,
        **({} if limited is None else {"action_low": list(limited[0]), "action_high": list(limited[1])}),
        "takes_language": spec.takes_language,
        "chunk": spec.chunk,
        "execute": spec.execute,
        "requests": [list(layout.keys) for layout in layouts_for(spec)],
        "limits": dict(limits),
        "action_chunk_size": spec.chunk,
        "available_unnorm_keys": [spec.dataset],
        "default_unnorm_key": spec.dataset,
        **{name: value for name, value in spec.about.items() if name != "real_time" or units.action_units == "dataset"},
    }


def seeds_for(request: ActRequest, drawn: NoiseSeed) -> list[NoiseSeed]:
    """A seed for each observation: the given one, or `drawn`; numbered where there are several."""
    seed = request.noise_seed or drawn
    if len(request.observations) == 1:
        return [seed]
    return [(*seed, number) for number in range(len(request.observations))]


@dataclass(frozen=True, kw_only=True)
class ActRequest:
    """Asks for a chunk of actions for each observation."""

    name: ClassVar[str] = ""
    """What starVLA calls the reply to a request that asks for no actions."""
    observations: tuple[Observation, ...]
    noise_seed: NoiseSeed | None = None
    """None: the client's episode gives it, or chance."""
    foresight: bool = False
    """Whether the predicted flow is to come with the actions."""
    begins: bool = False
    """Whether it begins an episode."""


@dataclass(frozen=True, kw_only=True)
class ResetRequest:
    """Begins an episode."""

    name: ClassVar[str] = "reset"
    foresight: ClassVar[bool] = False

    noise_seed: NoiseSeed | None = None
    """Of the episode: its calls are numbered, so that it can be repeated. None: chance."""


@dataclass(frozen=True, kw_only=True)
class PingRequest:
    """Asks whether anybody is there."""

    name: ClassVar[str] = "ping"
    foresight: ClassVar[bool] = False


PolicyRequest = ActRequest | ResetRequest | PingRequest


@dataclass(frozen=True, kw_only=True)
class ActReply:
    """A chunk, and what it took."""

    chunk: ActionChunk
    infer_ms: float
    queue_ms: float
    batch: int
    """Observations that were computed together."""
