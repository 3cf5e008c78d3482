"""What a backbone must offer for its tokens to be kept, and encoding an episode's pictures.

There are two kinds of frozen backbone. A `FeatureBackbone` looks at each image and reads each instruction by itself, so that
tokens of either can be kept and put together later. A `SequenceBackbone`, such as a vision-language model, makes one sequence
of them in which each token depends on those before it: it encodes whole observations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lamp.errors import DataError
from lamp.types import Encoded, Observations, Padding

TOKENS, LENGTHS = "tokens", "lengths"
"""In a shard: the tokens, and how many of them each frame has, where instructions of one episode differ in that."""
IMAGES_AT_ONCE, OBSERVATIONS_AT_ONCE = 16, 8
StorageFormat = Literal["default", "float16", "bfloat16", "float32"]
"""How tokens are kept. By default, float16 where images and instructions are encoded apart (2^-11 of a value at most is lost to
rounding); sequences in the backbone's own format, to the bit. bfloat16 keeps any size of number, and loses up to 2^-8."""
ADVICE = "keep them with --storage bfloat16, or float32"
FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class DescribedBackbone(Protocol):
    """What is known of any backbone before its weights are loaded."""

    @property
    def key(self) -> str:
        """Identifies weights and settings; different tokens mean a different key."""
        ...

    @property
    def width(self) -> int:
        """Channels of a token."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """JSON values; among them ``cameras``, a list of [name, size in px] in the order of their tokens."""
        ...


@runtime_checkable
class FeatureBackbone(DescribedBackbone, Protocol):
    """A frozen backbone whose tokens of one image or instruction do not depend on the others.

    It must be picklable, to be sent to worker processes.
    """

    def image_tokens(self, camera: str, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b n d"]:
        """Tokens of a camera's images."""
        ...

    def text_tokens(self, instructions: Sequence[str]) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Tokens of instructions, and which of them are real."""
        ...


@runtime_checkable
class SequenceIdentity(DescribedBackbone, Protocol):
    """What is known of a `SequenceBackbone` before its weights are loaded."""

    @property
    def padding(self) -> Padding:
        """On which side `encode` pads."""
        ...

    @property
    def length(self) -> int | None:
        """Tokens of every padded sequence; None: as many as the longest of its batch has."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The number format of its tokens."""
        ...


@runtime_checkable
class SequenceBackbone(SequenceIdentity, Protocol):
    """A frozen backbone whose tokens of images and instruction depend on each other.

    How many tokens an observation has depends on its instruction alone: each camera's images have one size.
    """

    def encode(self, observations: Observations) -> Encoded:
        """Tokens of whole observations, zero where there is padding."""
        ...


@runtime_checkable
class Adaptable(Protocol):
    """A backbone that may have been trained along, so that a frozen Motion Expert does not read the policy's tokens."""

    def encode_for_prior(self, observations: Observations) -> Encoded | None:
        """What it reads; None where that is what `encode` gives."""
        ...


FrozenBackbone = FeatureBackbone | SequenceBackbone
"""What tokens can be cached of, and what a policy can act with."""
BackboneIdentity = FeatureBackbone | SequenceIdentity
"""What has to be known of a backbone to describe a cache."""


@runtime_checkable
class PartlyConstant(Protocol):
    """A backbone some of whose channels (position, type) are the same for every image: only the others are stored."""

    @property
    def varying_channels(self) -> slice:
        """The channels that depend on the image."""
        ...

    def constant_tokens(self, camera: str) -> Float[Tensor, "n d"]:
        """A camera's tokens with the right values in all other channels."""
        ...


@runtime_checkable
class Sized(Protocol):
    """A backbone, or the identity of one, that knows how much of its tokens will be kept."""

    def values_of(self, instruction: str) -> int:
        """How many numbers are kept of one observation with this instruction."""
        ...


def camera_names(backbone: BackboneIdentity) -> tuple[str, ...]:
    """A backbone's cameras, in the order of their tokens."""
    return tuple(name for name, _ in backbone.description["cameras"])


@dataclass(kw_only=True)
class Rounding:
    """What storing tokens in fewer bits has cost so far."""

    square: float = 0.0
    """Sum of the squared errors."""
    size: float = 0.0
    """Sum of the squared values."""
    largest: float = 0.0

    def stored(self, tokens: Float[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n"]:
        """Returns the tokens in a number format."""
        kept = tokens.to(dtype)
        if dtype != tokens.dtype:
            lost = (tokens.float() - kept.float()).abs()
            self.square += float(lost.double().square().sum())
            self.largest = max(self.largest, float(lost.max()) if lost.numel() else 0.0)
        self.size += float(tokens.double().square().sum())
        return kept.cpu()

    def header(self) -> dict[str, str]:
        """For a shard's header: the error's root mean square relative to the tokens', and the largest error."""
        return {
            "rounding": f"{(self.square / self.size) ** 0.5 if self.size else 0.0:.3g}",
            "largest": f"{self.largest:.3g}",
        }


def storage_dtype(storage: StorageFormat, *, apart: bool) -> torch.dtype | None:
    """The number format of stored tokens, for images and instructions that are encoded apart or not; None: the backbone's."""
    if storage == "default":
        return torch.float16 if apart else None
    return FORMATS[storage]


@torch.no_grad()
def encode_episode(
    backbone: FrozenBackbone,
    images: Mapping[str, UInt8[Tensor, "n _ _ 3"]],
    instructions: Sequence[str],
    storage: StorageFormat,
    rounding: Rounding,
) -> dict[str, Tensor]:
    """Returns what is kept of the tokens of an episode's frames.

    Args:
        images: All frames of each camera.
        instructions: Each frame's.
        rounding: Accumulates the rounding error.

    Raises:
        DataError: A token is not finite, or is too large for the format.
    """
    if isinstance(backbone, FeatureBackbone):
        return _image_parts(backbone, images, storage, rounding)
    return _sequences(backbone, images, instructions, storage, rounding)


def _image_parts(
    backbone: FeatureBackbone, images: Mapping[str, Tensor], storage: StorageFormat, rounding: Rounding
) -> dict[str, Tensor]:
    varying = backbone.varying_channels if isinstance(backbone, PartlyConstant) else slice(None)
    dtype = FORMATS["float16" if storage == "default" else storage]
    tokens: dict[str, Tensor] = {}
    for camera, of_camera in images.items():
        parts = [
            rounding.stored(backbone.image_tokens(camera, part)[..., varying], dtype)
            for part in of_camera.split(IMAGES_AT_ONCE)
        ]
        tokens[camera] = torch.cat(parts).contiguous()
        if not tokens[camera].isfinite().all():
            raise DataError(f"the backbone's tokens of camera {camera} are not finite numbers as {dtype}; {ADVICE}")
    return tokens


def _sequences(
    backbone: SequenceBackbone,
    images: Mapping[str, Tensor],
    instructions: Sequence[str],
    storage: StorageFormat,
    rounding: Rounding,
) -> dict[str, Tensor]:
    """The real tokens of an episode's frames, by default to the bit as the backbone gives them."""
    sequences: dict[int, Float[Tensor, "n d"]] = {}
    for instruction in dict.fromkeys(instructions):
        # Frames of one instruction have sequences of one length.
        frames = [frame for frame, text in enumerate(instructions) if text == instruction]
        for start in range(0, len(frames), OBSERVATIONS_AT_ONCE):
            some = frames[start : start + OBSERVATIONS_AT_ONCE]
            part = {camera: of_camera[some] for camera, of_camera in images.items()}
            encoded = backbone.encode(Observations(images=part, instructions=(instruction,) * len(some)))
            tokens = encoded.tokens[encoded.mask].unflatten(0, (len(some), -1))
            if not tokens.isfinite().all():
                raise DataError(f"the backbone's tokens of {instruction!r} are not finite numbers; use it in float32")
            dtype = storage_dtype(storage, apart=False) or tokens.dtype
            kept = rounding.stored(tokens, dtype)
            if not kept.isfinite().all():
                raise DataError(f"the backbone's tokens of {instruction!r} are not finite numbers as {dtype}; {ADVICE}")
            sequences.update(zip(some, kept, strict=True))
    ordered = [sequences[frame] for frame in range(len(instructions))]
    lengths = torch.tensor([len(tokens) for tokens in ordered])
    whole = {TOKENS: torch.nn.utils.rnn.pad_sequence(ordered, batch_first=True)}
    return whole if len(lengths.unique()) == 1 else whole | {LENGTHS: lengths}
