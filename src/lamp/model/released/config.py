"""`config.yaml` of a release: what the published code reads of it, and what it must say for our arithmetic to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lamp.errors import ConfigError
from lamp.flow_matching import Beta
from lamp.model.lamp import Arrival, Departure, LaMPConfig
from lamp.model.released.sizes import POLICY, Part, ReleasedSizes
from lamp.sceneflow.normalization import RELEASED_BOUNDS

NOISE_SCALE = 0.999
FIXED: dict[str, Any] = {
    "framework.name": "LaMP",
    "framework.action_model.mlp_ratio": 4.0,
    "framework.action_model.use_adaln": False,
    "framework.action_model.use_proprio": True,
    "framework.action_model.past_action_window_size": 0,
    "framework.action_model.noise_s": NOISE_SCALE,
    "framework.action_model.num_timestep_buckets": 1000,
    "framework.motion_expert.enabled": True,
    "framework.motion_expert.use_guidance": True,
    "framework.motion_expert.motion_dim": 3,
    "framework.motion_expert.patch_size": 2,
    "framework.motion_expert.patch_size_t": 1,
    "framework.motion_expert.use_rotary_embeddings": False,
}
"""What must stand there, or nothing: the default of the published code is the same."""
NEEDED = (
    "framework.name",
    "framework.qwenvl.base_vlm",
    "framework.motion_expert",
    "framework.action_model",
    "datasets.vla_data.image_size",
)
SIZES = {
    "vl": "framework.qwenvl.vl_hidden_dim",
    "latent": "framework.motion_expert.latent_dim",
    "pack": "framework.motion_expert.put_frames_in_channels",
    "grid": "framework.motion_expert.spatial_size",
    "T": "framework.motion_expert.num_motion_frames",
    "cond": "framework.motion_expert.max_text_seq_length",
    "m_heads": "framework.motion_expert.num_attention_heads",
    "m_hd": "framework.motion_expert.attention_head_dim",
    "m_layers": "framework.motion_expert.num_layers",
    "g_heads": "framework.motion_expert.guidance_heads",
    "act_dim": "framework.action_model.hidden_size",
    "act_heads": "framework.action_model.num_heads",
    "act_depth": "framework.action_model.depth",
    "A": "framework.action_model.action_dim",
    "S": "framework.action_model.state_dim",
    "dim_time": "framework.action_model.dim_time",
    "maxlen": "framework.action_model.max_len_seq",
}
"""Where each size stands; `H` is one more than `LAST_ACTION`."""
LAST_ACTION = "framework.action_model.future_action_window_size"
PROMPT = "datasets.vla_data.CoT_prompt"
IMAGE_SIZE = "datasets.vla_data.image_size"
PRECISION = "framework.qwenvl.dtype"
BFLOAT16, FLOAT32 = "bfloat16", "float32"


@dataclass(frozen=True, kw_only=True)
class ReleasedConfig:
    """What a release's configuration says, in typed form."""

    sizes: ReleasedSizes
    base_vlm: str
    """Hub id of the VLM."""
    revision: str | None
    bfloat16: bool
    """Whether the VLM computes in bfloat16; else in float32."""
    prompt: str | None
    """With `{instruction}` in it; None: the bare instruction."""
    side: int
    """To which images are resized, square, before the VLM's own preprocessing. [px]"""
    steps: int
    """N of both solvers."""
    hidden_at: Arrival | Departure
    dropout: float
    """Of the guidance's attention, in training."""
    action_tau: Beta
    mask_z: bool
    """Whether the policy sees the height of the hand as 0."""
    bounds_low: tuple[float, float, float]
    bounds_high: tuple[float, float, float]
    """Increments that -1 and 1 stand for."""

    def model(self, parts: frozenset[Part] = POLICY) -> LaMPConfig:
        """Returns our configuration of the model's parts."""
        config = self.sizes.config(parts, dropout=self.dropout)
        return replace(config, solver_steps=self.steps, hidden_at=self.hidden_at, action_tau=self.action_tau)


class _Reader:
    """Values of a nested mapping by dotted paths, with errors that name them."""

    def __init__(self, obj: Mapping[str, Any], where: str) -> None:
        self.obj, self.where = obj, where

    def get(self, path: str, default: Any = None) -> Any:
        value: Any = self.obj
        for key in path.split("."):
            match value:
                case {**entries} if key in entries:
                    value = entries[key]
                case _:
                    return default
        return default if value is None else value

    def whole(self, path: str, default: int) -> int:
        value = self.get(path, default)
        if type(value) is not int:
            raise ConfigError(f"{self.where}: {path} is {value!r}; expected a whole number.")
        return value

    def number(self, path: str, default: float) -> float:
        value = self.get(path, default)
        if type(value) not in (int, float):
            raise ConfigError(f"{self.where}: {path} is {value!r}; expected a number.")
        return float(value)

    def text(self, path: str) -> str | None:
        value = self.get(path)
        if value is not None and type(value) is not str:
            raise ConfigError(f"{self.where}: {path} is {value!r}; expected text.")
        return value

    def axes(self, path: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        values = self.get(path, default)
        match values:
            case [int() | float() as u, int() | float() as v, int() | float() as d] if bool not in map(type, values):
                return float(u), float(v), float(d)
        raise ConfigError(f"{self.where}: {path} is {values!r}; expected 3 numbers.")

    def square(self, path: str) -> int:
        """The side of a square, given as width and height."""
        values = self.get(path)
        match values:
            case [width, height] if type(width) is type(height) is int and width == height:
                return width
        raise ConfigError(f"{self.where}: {path} is {values!r}; expected twice the same whole number: [224, 224].")


def read_config(obj: Mapping[str, Any], where: str) -> ReleasedConfig:
    """Reads a release's configuration; keys that the published code does not read are left alone.

    Raises:
        ConfigError: Something is missing, of the wrong kind, or asks for arithmetic that is not the published weights'.
    """
    read = _Reader(obj, where)
    _check(read)
    # Of the state's width alone, the published code's default is not the published weights' value.
    sizes = {name: read.whole(path, 0 if name == "S" else getattr(ReleasedSizes, name)) for name, path in SIZES.items()}
    sizes["H"] = read.whole(LAST_ACTION, ReleasedSizes.H - 1) + 1
    steps, hidden_at = _solver(read)
    return ReleasedConfig(
        sizes=ReleasedSizes.of(sizes),
        base_vlm=str(read.text("framework.qwenvl.base_vlm")),
        revision=read.text("framework.qwenvl.revision"),
        bfloat16=_is_bfloat16(read),
        prompt=read.text(PROMPT),
        side=read.square(IMAGE_SIZE),
        steps=steps,
        hidden_at=hidden_at,
        dropout=read.number("framework.motion_expert.guidance_dropout", 0.1),
        action_tau=Beta(
            alpha=read.number("framework.action_model.noise_beta_alpha", 1.5),
            beta=read.number("framework.action_model.noise_beta_beta", 1.0),
            scale=NOISE_SCALE,
        ),
        mask_z=read.get("framework.action_model.use_mask_z", False) is True,
        bounds_low=read.axes("framework.motion_expert.action_min", RELEASED_BOUNDS.low),
        bounds_high=read.axes("framework.motion_expert.action_max", RELEASED_BOUNDS.high),
    )


def _check(read: _Reader) -> None:
    missing = [path for path in NEEDED if read.get(path) is None]
    if missing:
        raise ConfigError(f"{read.where} lacks {', '.join(missing)}; expected the config.yaml of a released model.")
    differing = [
        f"{path} is {read.get(path)!r}, {value!r} expected"
        for path, value in FIXED.items()
        if read.get(path, value) != value
    ]
    if differing:
        raise ConfigError(f"{read.where} describes a model that is not the published weights': {'; '.join(differing)}.")


def _is_bfloat16(read: _Reader) -> bool:
    precision = read.get(PRECISION, BFLOAT16)
    if precision not in (BFLOAT16, FLOAT32):
        raise ConfigError(f"{read.where}: {PRECISION} is {precision!r}; expected {BFLOAT16} or {FLOAT32}.")
    return precision == BFLOAT16


def _solver(read: _Reader) -> tuple[int, Arrival | Departure]:
    """The number of steps, and at which end of the first z_m is read.

    Raises:
        ConfigError: The two solvers differ, or z_m is read after more than one step.
    """
    motion = read.whole("framework.motion_expert.motion_infer_steps", 10)
    action = read.whole("framework.action_model.num_inference_timesteps", 10)
    tau = read.number("framework.motion_expert.tau_v_infer", 0.1)
    if motion != action or motion < 1:
        raise ConfigError(
            f"{read.where}: motion_infer_steps is {motion}, num_inference_timesteps {action}; expected the same, such as 10."
        )
    if tau == 0:
        return motion, Departure()
    if abs(tau * motion - 1) < 1e-6:
        return motion, Arrival()
    raise ConfigError(f"{read.where}: tau_v_infer is {tau}; expected 0 or one step, {1 / motion:g}.")


def to_raw(config: ReleasedConfig, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `read_config`: writes what it reads into a copy of `raw`, whose other entries stay."""
    result = _deep_copy(raw)
    values: dict[str, Any] = {
        **FIXED,
        **{path: getattr(config.sizes, name) for name, path in SIZES.items()},
        LAST_ACTION: config.sizes.H - 1,
        PROMPT: config.prompt,
        IMAGE_SIZE: [config.side, config.side],
        "framework.qwenvl.base_vlm": config.base_vlm,
        "framework.qwenvl.revision": config.revision,
        PRECISION: BFLOAT16 if config.bfloat16 else FLOAT32,
        "framework.action_model.use_mask_z": config.mask_z,
        "framework.action_model.noise_beta_alpha": config.action_tau.alpha,
        "framework.action_model.noise_beta_beta": config.action_tau.beta,
        "framework.action_model.num_inference_timesteps": config.steps,
        "framework.motion_expert.motion_infer_steps": config.steps,
        "framework.motion_expert.tau_v_infer": 0.0 if isinstance(config.hidden_at, Departure) else 1 / config.steps,
        "framework.motion_expert.guidance_dropout": config.dropout,
        "framework.motion_expert.action_min": list(config.bounds_low),
        "framework.motion_expert.action_max": list(config.bounds_high),
    }
    for path, value in values.items():
        *parents, last = path.split(".")
        place = result
        for key in parents:
            place = place.setdefault(key, {})
        if value is not None:
            place[last] = value
    return result


def _deep_copy(obj: Any) -> Any:
    match obj:
        case {}:
            return {key: _deep_copy(value) for key, value in obj.items()}
        case list():
            return [_deep_copy(value) for value in obj]
    return obj
