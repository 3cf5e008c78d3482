"""What the stages of LaMP hand to each other.

Axes: ``b`` batch, ``k`` keypoint of the grid, ``t`` flow step, ``h`` action step, ``n`` token, ``d`` width, ``s`` state value,
``a`` action value. Image positions ``u`` and ``v`` are fractions of the image's width and height, measured from its top left
corner; depth ``d`` is in metres along the optical axis of the reference camera.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lamp.errors import DataError

Moved = TypeVar("Moved", bound="OnDevice")


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    match value:
        case OnDevice():
            return value.changed(change)
        case dict():
            return {key: _changed(item, change) for key, item in value.items()}
    return change(value)


class OnDevice:
    """A frozen dataclass of tensors that can move between devices."""

    def changed(self: Moved, change: Callable[[Any], Any]) -> Moved:
        """Returns a copy with each tensor or plain value in it changed."""
        changes = {field.name: _changed(getattr(self, field.name), change) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def to(self: Moved, device: torch.device | str) -> Moved:
        """Returns a copy whose tensors live on `device`."""
        return self.changed(lambda value: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value)

    def tensors(self) -> list[Tensor]:
        """Returns every tensor in it."""
        tensors: list[Tensor] = []

        def note(value: Any) -> Any:
            if isinstance(value, Tensor):
                tensors.append(value)
            return value

        self.changed(note)
        return tensors

    def rows(self: Moved, first: int, count: int) -> Moved:
        """Returns some rows of a batch: of every tensor, and of every tuple that has an entry a row."""
        chosen = slice(first, first + count)
        return self.changed(lambda value: value[chosen] if isinstance(value, Tensor | tuple) else value)


@dataclass(frozen=True, kw_only=True)
class Camera(OnDevice):
    """A pinhole camera at one moment.

    The intrinsic matrix maps camera coordinates (x right, y down, z forward, metres) to image FRACTIONS, so that it does not
    depend on the resolution. A negative focal length mirrors the image; LIBERO's customary 180-degree turn of an image that
    MuJoCo reads bottom-up is such a mirror.
    """

    intrinsics: Float[Tensor, "*b 3 3"]
    world_from_cam: Float[Tensor, "*b 4 4"]


@dataclass(frozen=True, kw_only=True)
class Tracks(OnDevice):
    """Absolute paths of grid points: where each point is now (step 0) and after each flow step, in the reference camera."""

    points: Float[Tensor, "*b k t1 3"]
    """(u, v, d) at t1 = t + 1 moments."""
    visible: Bool[Tensor, "*b k t1"]
    """Whether the point can be seen by the reference camera at that moment (inside the image and not occluded)."""
    valid: Bool[Tensor, "*b k t1"]
    """Whether the point is known at that moment: False past the episode's end, and where depth or tracking is missing."""


@dataclass(frozen=True, kw_only=True)
class SceneFlow(OnDevice):
    """Dense 3-D scene flow M (Section III-C): K grid points, T increments (du, dv, dd) in one reference camera."""

    start: Float[Tensor, "*b k 3"]
    """(u, v, d) of each grid point at the present frame."""
    increments: Float[Tensor, "*b k t 3"]
    """Step-to-step displacements: fractions of image width and height, and metres."""
    visible: Bool[Tensor, "*b k t"]
    """Whether the point can be seen at the END of the step."""
    mask: Bool[Tensor, "*b k t 3"]
    """What supervises: True where both ends of the step are known for that axis."""
    camera: Camera
    """The reference camera: the camera of the present frame, held still over the horizon."""


@dataclass(frozen=True, kw_only=True)
class Motion(OnDevice):
    """Scene flow as the Motion Expert sees it: increments mapped to [-1, 1] by the dataset's bounds, and what supervises."""

    values: Float[Tensor, "b k t 3"]
    mask: Bool[Tensor, "b k t 3"]


@dataclass(frozen=True, kw_only=True)
class Encoded(OnDevice):
    """z: the frozen backbone's tokens for the observation and the instruction."""

    tokens: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    """True where a token is real, False where it is padding."""
    whole: bool | None = None
    """Whether nothing is padding, where the host knows it: attention then goes without a mask, which is faster."""


@dataclass(frozen=True, kw_only=True)
class PriorBeside(OnDevice):
    """A motion prior that does not come through z's tokens."""

    values: Float[Tensor, " b *shape"]

    def withheld(self, seen: Bool[Tensor, " b"]) -> PriorBeside:
        """Returns it without what it has for samples that have not `seen` it."""
        hidden = ~seen.reshape(-1, *(1,) * (self.values.ndim - 1))
        return replace(self, values=self.values.masked_fill(hidden, 0.0))


@dataclass(frozen=True, kw_only=True)
class AddedMotion(PriorBeside):
    """The motion prior of the Add ablation: what each layer of the Action Expert adds to each action token."""

    values: Float[Tensor, "b l h d"]


@dataclass(frozen=True, kw_only=True)
class JoinedMotion(PriorBeside):
    """The motion prior of the Concat+MLP ablation: what stands beside each action token before the first layer."""

    values: Float[Tensor, "b h dm"]


@dataclass(frozen=True, kw_only=True)
class MotionTokens(PriorBeside):
    """The motion prior as tokens of the Action Expert's context, after z; their positions are in them."""

    values: Float[Tensor, "b c d"]
    seen: Bool[Tensor, " b"] | None = None
    """False where a sample's are withheld; None: nowhere."""

    def withheld(self, seen: Bool[Tensor, " b"]) -> MotionTokens:
        return replace(self, values=super().withheld(seen).values, seen=seen)


@dataclass(frozen=True, kw_only=True)
class Guided(OnDevice):
    """What the Action Expert is conditioned on: z_guided (Eq. 4), tokens of the same shape as `Encoded`."""

    tokens: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    motion: PriorBeside | None = None
    """The motion prior where it does not enter through z's tokens but beside them, or at the actions."""
    t_1: Float[Tensor, " b"] | None = None
    """The solver's first time after 0, for an Action Expert that sees it."""
    whole: bool | None = None
    """As in `Encoded`."""


@dataclass(frozen=True, kw_only=True)
class Observations(OnDevice):
    """A batch of raw observations on their way into a backbone."""

    images: dict[str, UInt8[Tensor, "b h w 3"]]
    """One entry a camera; cameras may differ in size."""
    instructions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TokenBatch(OnDevice):
    """What a training step of either stage is conditioned on."""

    encoded: Encoded
    kept: Bool[Tensor, "b n"] | None = None
    """Which tokens the trained part sees in this step (`token_dropout`); None: all. A frozen Motion Expert sees them all, as it
    does where a policy acts."""


@dataclass(frozen=True, kw_only=True)
class MotionBatch(TokenBatch):
    """A batch of Stage 1: tokens and the normalised scene flow that follows."""

    motion: Motion
    motion_hidden: ClassVar[None] = None
    """As in `PolicyBatch`: Stage 1 has no z_m of its own making to read."""


@dataclass(frozen=True, kw_only=True)
class PolicyBatch(TokenBatch):
    """A batch of Stage 2: tokens, the normalised state and the normalised actions that follow."""

    state: Float[Tensor, "b s"]
    actions: Float[Tensor, "b h a"]
    action_mask: Bool[Tensor, "b h"]
    """False past the end of the episode, and after an action that was overridden."""
    prior: Encoded | None = None
    """What a frozen Motion Expert is conditioned on where that is not `encoded`: the tokens without a backbone's adapters."""
    motion_hidden: Float[Tensor, "b m dm"] | None = None
    """z_m precomputed for this sample (one of several cached noise draws); None: the model computes it."""
    prior_seen: Bool[Tensor, " b"] | None = None
    """False where the motion prior is withheld from a sample; None: nowhere."""
    motion: Motion | None = None
    """The normalised scene flow that follows, for a policy that learns to predict it along (`FlowHead`)."""
    guided: bool | None = None
    """Whether any sample of the optimizer step sees the prior, those computed elsewhere included; None: this batch is all."""

    @property
    def for_prior(self) -> Encoded:
        """What the frozen Motion Expert is conditioned on: all tokens, whatever `kept` drops."""
        return self.encoded if self.prior is None else self.prior


@dataclass(frozen=True, kw_only=True)
class RightPadding:
    """Real tokens come first: the place of a token does not depend on how long its sequence is."""


@dataclass(frozen=True, kw_only=True)
class LeftPadding:
    """Real tokens come last, as generation wants it and the release has it."""


Padding = RightPadding | LeftPadding


def padded(sequences: Sequence[Float[Tensor, "_ d"]], padding: Padding, length: int | None = None) -> Encoded:
    """Puts sequences into one batch, with zeros where there is padding.

    Args:
        sequences: Real tokens, at least one sequence.
        length: Tokens of each padded sequence; None: as many as the longest has.

    Raises:
        DataError: A sequence is longer than that.
    """
    longest = max(len(sequence) for sequence in sequences)
    room = longest if length is None else length
    if longest > room:
        raise DataError(f"a sequence has {longest} tokens; at most {room} expected: raise the backbone's text_tokens.")
    tokens = sequences[0].new_zeros(len(sequences), room, sequences[0].shape[1])
    mask = torch.zeros(len(sequences), room, dtype=torch.bool, device=tokens.device)
    for row, sequence in enumerate(sequences):
        start = room - len(sequence) if isinstance(padding, LeftPadding) else 0
        tokens[row, start : start + len(sequence)] = sequence
        mask[row, start : start + len(sequence)] = True
    return Encoded(tokens=tokens, mask=mask)


def placed(
    tokens: Float[Tensor, "b n d"], real: Int[Tensor, " b"], padding: Padding, length: int, *, whole: bool | None = None
) -> Encoded:
    """As `padded`, for sequences that lie in one batch already, at its left; no tensor is asked for a value.

    Args:
        tokens: What stands past a sequence's end does not matter.
        real: Tokens of each sequence, at most `length`.
        length: Tokens of each padded sequence.
        whole: Whether every sequence fills it, where the caller knows.
    """
    place = torch.arange(length, device=tokens.device).expand(len(tokens), -1)
    source = place + real[:, None] - length if isinstance(padding, LeftPadding) else place
    mask = (source >= 0) & (source < real[:, None])
    index = source.clamp(0, tokens.shape[1] - 1)[..., None].expand(-1, -1, tokens.shape[2])
    return Encoded(tokens=tokens.gather(1, index).masked_fill(~mask[..., None], 0.0), mask=mask, whole=whole)
