"""An instruction and camera images as Qwen3-VL reads them: one turn of a chat, and the patches of the vision tower.

<|im_start|>user
<|vision_start|><|image_pad|>...<|vision_end|> (once an image) PROMPT<|im_end|>
<|im_start|>assistant

Nothing is generated; the last tokens are where an answer would begin. Patches are equal, bit for bit, to those of the model's own
image processor through PIL: bicubic resizing is done in PIL's integer arithmetic, a batch at a time and on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lamp.errors import ConfigError, DataError

INSTRUCTION = "{instruction}"
BARE_PROMPT = INSTRUCTION
"""The instruction and nothing else."""
RELEASE_PROMPT = (
    "Your task is {instruction}. To identify the key objects for your task. "
    "Locate their bounding boxes in [x1,y1,x2,y2] format."
)
"""What the authors' weights were trained with; the text is theirs, and no box is ever asked back."""
IMAGE = "<|image_pad|>"
CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE)


def check_prompt(prompt: str) -> None:
    """
    Raises:
        ConfigError: The prompt has no place for the instruction, or several.
    """
    if prompt.count(INSTRUCTION) != 1:
        raise ConfigError(
            f"prompt {prompt!r} given; {INSTRUCTION} expected in it exactly once, such as {BARE_PROMPT!r}."
        )


class PromptTokenizer:
    """Turns instructions into token ids.

    Args:
        file: `tokenizer.json` of the model's folder.
        prompt: Text around the instruction.

    Raises:
        DataError: The file is no tokenizer, or not Qwen's.
    """

    def __init__(self, file: Path, prompt: str) -> None:
        from tokenizers import Tokenizer

        check_prompt(prompt)
        self.prompt = prompt
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more particular
            raise DataError(f"{file} is not a tokenizer ({error}); restore the model's folder.") from None
        ids = {name: self._tokenizer.token_to_id(name) for name in CONTROL}
        absent = [name for name, token_id in ids.items() if token_id is None]
        if absent:
            raise DataError(f"{file} has no token {', '.join(absent)}; expected the tokenizer of a Qwen3-VL model.")
        self._ids = {name: token_id for name, token_id in ids.items() if token_id is not None}
        # Whatever a user writes is read as text, also where it looks like a control token.
        self._tokenizer.encode_special_tokens = True

    @property
    def image_id(self) -> int:
        """The id that stands where a token of an image goes."""
        return self._ids[IMAGE]

    def read(self, instruction: str) -> list[int]:
        """Returns the ids of the prompt's text alone."""
        return self._tokenizer.encode(self.prompt.replace(INSTRUCTION, instruction), add_special_tokens=False).ids

    def turn(self, instruction: str, images: Sequence[int]) -> Int[Tensor, " n"]:
        """Returns the ids of the whole turn; `images` says how many tokens each image has."""
        im_start, im_end, vision_start, vision_end, image = (self._ids[name] for name in CONTROL)
        user, line, assistant = (
            self._tokenizer.encode(text, add_special_tokens=False).ids for text in ("user\n", "\n", "assistant\n")
        )
        shown = [token for count in images for token in (vision_start, *[image] * count, vision_end)]
        text = self.read(instruction)
        return torch.tensor([im_start, *user, *shown, *text, im_end, *line, im_start, *assistant])

    def turn_length(self, images: Sequence[int], text: int) -> int:
        """Tokens of a turn whose prompt has `text` tokens."""
        return len(self.turn("", images)) - len(self.read("")) + text


PRECISION = 22
"""Bits after the point of PIL's resampling weights."""


@dataclass(frozen=True, kw_only=True)
class PatchRule:
    """What a model's preprocessor settings make of an image."""

    patch: int
    """Side of a patch. [px]"""
    merge: int
    """Patches along each side of one token."""
    temporal: int
    """Frames in a patch; a still image is repeated."""
    pixels: tuple[int, int]
    """Least and largest number of pixels of an image after resizing."""
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> PatchRule:
        """Reads the settings of a model's folder through the class that applies them."""
        from transformers import Qwen2VLImageProcessorPil

        processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return cls(
            patch=processor.patch_size,
            merge=processor.merge_size,
            temporal=processor.temporal_patch_size,
            pixels=(processor.size["shortest_edge"], processor.size["longest_edge"]),
            scale=processor.rescale_factor,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
        )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the model sees an image: whole tokens, within `pixels`, nearly the same shape."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        least, largest = self.pixels
        return smart_resize(height, width, factor=self.patch * self.merge, min_pixels=least, max_pixels=largest)

    def grid(self, side: int) -> tuple[int, int]:
        """Rows and columns of patches of a square image."""
        height, width = self.resized(side, side)
        return height // self.patch, width // self.patch

    def tokens(self, side: int) -> int:
        """Tokens of a square image."""
        rows, columns = self.grid(side)
        return rows * columns // self.merge**2

    def patches(self, images: UInt8[Tensor, "b h w 3"], side: int) -> Float[Tensor, "b n p"]:
        """Returns the normalised patches of images that enter the model as squares of `side` pixels.

        Images of another size are brought to that first; the model's own rule is then applied to it.
        """
        images = resize(resize(images, (side, side)), self.resized(side, side))
        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        # In double precision up to here, as the processor does: a product in float32 differs in the last bit.
        x = ((images.double() * self.scale).float() - mean) / std
        (rows, columns), merge, patch = self.grid(side), self.merge, self.patch
        x = x.reshape(len(x), rows // merge, merge, patch, columns // merge, merge, patch, 3)
        x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)[:, :, :, :, :, :, None]
        x = x.expand(*x.shape[:6], self.temporal, patch, patch)
        return x.flatten(5).flatten(1, 4)


def resize(images: UInt8[Tensor, "b h w 3"], size: tuple[int, int]) -> UInt8[Tensor, "b rows columns 3"]:
    """Bicubic resizing as PIL does it: first along rows, then along columns, rounded to whole values after each.

    PIL takes columns first where an image shrinks in height and grows in width, and for some tall images; this does not.
    """
    rows, columns = size
    if images.shape[2] != columns:
        images = _resampled(images.transpose(1, 2), columns).transpose(1, 2)
    if images.shape[1] != rows:
        images = _resampled(images, rows)
    return images


def _resampled(images: UInt8[Tensor, "b old w 3"], size: int) -> UInt8[Tensor, "b new w 3"]:
    places, weights = _kernel(images.shape[1], size, images.device)
    values = images.int()
    total = torch.full((), 1 << (PRECISION - 1), dtype=torch.int32, device=images.device)
    for place, weight in zip(places, weights, strict=True):
        total = total + values[:, place] * weight[:, None, None]
    return (total >> PRECISION).clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _kernel(old: int, new: int, device: torch.device) -> tuple[Int[Tensor, "taps new"], Int[Tensor, "taps new"]]:
    """Which old pixels make each new one, and their weights in units of 2^-PRECISION, which sum to nearly one."""
    scale = old / new
    stretch = max(scale, 1.0)  # when shrinking, the kernel grows with the distance between new pixels
    taps = 2 * math.ceil(2 * stretch) + 1
    places, weights = torch.zeros(taps, new, dtype=torch.int64), torch.zeros(taps, new, dtype=torch.int32)
    for index in range(new):
        centre = (index + 0.5) * scale
        first, last = max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), old)
        raw = [_cubic((place - centre + 0.5) / stretch) for place in range(first, last)]
        for tap, value in enumerate(raw):
            share = value / sum(raw) * (1 << PRECISION)
            places[tap, index], weights[tap, index] = first + tap, int(share + math.copysign(0.5, share))
    return places.to(device), weights.to(device)


def _cubic(x: float) -> float:
    """The cubic kernel of two pixels' reach with slope -1/2 at one, which is PIL's."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0
