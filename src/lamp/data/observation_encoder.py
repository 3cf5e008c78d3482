"""From observations to tokens while acting: the same tokens that the feature cache holds, whichever kind of backbone it is."""

from __future__ import annotations

import logging
from collections import OrderedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lamp.data.feature_cache.encode import Adaptable, FrozenBackbone, SequenceBackbone, camera_names
from lamp.data.instructions import InstructionTokenizer
from lamp.errors import MismatchError
from lamp.types import Encoded, Observations

INSTRUCTIONS_KEPT = 1024
log = logging.getLogger("lamp")


class ObservationEncoder:
    """Encodes observations; instructions that are read apart from images are read once and kept.

    Args:
        backbone: The frozen backbone.
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        self.backbone = backbone
        self.instruction_cache: OrderedDict[str, tuple[Float[Tensor, "n d"], Bool[Tensor, " n"], bool]] = OrderedDict()
        """Text tokens and mask of the instructions seen lately, and whether all are real; the least recently used goes first."""

    def encode(self, observations: Observations) -> Encoded:
        """Returns the backbone's tokens: cameras in order, then the instruction.

        Raises:
            MismatchError: A camera is missing.
        """
        cameras = camera_names(self.backbone)
        missing = [camera for camera in cameras if camera not in observations.images]
        if missing:
            have = ", ".join(observations.images) or "none"
            raise MismatchError(f"no camera {missing[0]!r}; it has {have}. Expected {', '.join(cameras)}.")
        if isinstance(self.backbone, SequenceBackbone):
            return self.backbone.encode(observations)
        images = [self.backbone.image_tokens(camera, observations.images[camera]) for camera in cameras]
        read = [self._read(instruction) for instruction in observations.instructions]
        text, text_mask, whole = zip(*read, strict=True)
        device = images[0].device
        tokens = torch.cat([*images, torch.stack(text).to(device)], dim=1)
        seen = torch.ones(len(tokens), sum(part.shape[1] for part in images), dtype=torch.bool, device=device)
        mask = torch.cat([seen, torch.stack(text_mask).to(device)], dim=1)
        return Encoded(tokens=tokens, mask=mask, whole=all(whole))

    def encode_for_prior(self, observations: Observations) -> Encoded | None:
        """What the Motion Expert reads where that are other tokens than `encode`'s: those without the backbone's adapters."""
        return self.backbone.encode_for_prior(observations) if isinstance(self.backbone, Adaptable) else None

    def _read(self, instruction: str) -> tuple[Tensor, Tensor, bool]:
        assert not isinstance(self.backbone, SequenceBackbone)
        if instruction not in self.instruction_cache:
            tokens, mask = self.backbone.text_tokens([instruction])
            if isinstance(self.backbone, InstructionTokenizer) and (
                unknown := self.backbone.unknown_words(instruction)
            ):
                words = ", ".join(map(repr, unknown))
                log.warning(
                    "instruction %r: the backbone does not know %s, and takes no meaning from it", instruction, words
                )
            # Asked once an instruction, so that nobody has to ask the device while it acts.
            self.instruction_cache[instruction] = (tokens[0], mask[0], bool(mask[0].all()))
            if len(self.instruction_cache) > INSTRUCTIONS_KEPT:
                self.instruction_cache.popitem(last=False)
        self.instruction_cache.move_to_end(instruction)
        return self.instruction_cache[instruction]
