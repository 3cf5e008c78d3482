"""LeRobot's batches as LaMP reads them. Nothing here needs LeRobot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamp.errors import MismatchError
from lamp.train.config import PolicyTraining
from lamp.types import Encoded, Observations, PolicyBatch
from lerobot_policy_lamp.building import CameraKey

STATE, ACTION, PADDED, TASK = "observation.state", "action", "action_is_pad", "task"


def observations_of(batch: Mapping[str, Any], cameras: Sequence[CameraKey], instruction: str = "") -> Observations:
    """Images as they were recorded, and instructions.

    Args:
        batch: LeRobot's.
        cameras: Which images, in order.
        instruction: For samples that have none.

    Raises:
        MismatchError: A camera or the instruction is missing, or an image has another form.
    """
    images = {camera.name: _pictures(batch, camera.key) for camera in cameras}
    size = len(next(iter(images.values())))
    tasks = batch.get(TASK) or [""] * size
    told = [text or instruction for text in ([tasks] * size if isinstance(tasks, str) else tasks)]
    if len(told) != size or not all(isinstance(text, str) and text.strip() for text in told):
        raise MismatchError(
            f"the batch's {TASK!r} is {tasks!r}; expected an instruction for each of its {size} samples: from the dataset's "
            "episodes, from the environment's task_description, or for all of them with --policy.instruction."
        )
    return Observations(images=images, instructions=tuple(told))


def _pictures(batch: Mapping[str, Any], key: str) -> UInt8[Tensor, "b h w 3"]:
    picture = batch.get(key)
    if not isinstance(picture, Tensor) or picture.ndim != 4 or picture.shape[1] != 3:
        found = list(picture.shape) if isinstance(picture, Tensor) else "missing"
        have = ", ".join(name for name in batch if "image" in name) or "none"
        raise MismatchError(
            f"images {key!r}: {found}; expected (batch, 3, height, width). The batch has the images {have}."
        )
    if picture.dtype != torch.uint8:
        picture = (picture.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return picture.permute(0, 2, 3, 1).contiguous()


def state_of(batch: Mapping[str, Any], width: int, size: int) -> Float[Tensor, "b s"]:
    """The normalised state; of width 0 where the policy sees none.

    Raises:
        MismatchError: It has another width than the policy was made for.
    """
    if width == 0:
        return torch.zeros(size, 0)
    state = batch.get(STATE)
    if not isinstance(state, Tensor) or state.shape != (size, width):
        found = list(state.shape) if isinstance(state, Tensor) else "missing"
        raise MismatchError(f"{STATE}: {found}; expected ({size}, {width}), as the policy was made for.")
    return state.float()


def training_batch(
    batch: Mapping[str, Any], encoded: Encoded, settings: PolicyTraining, width: int, generator: torch.Generator
) -> PolicyBatch:
    """What a step of Stage 2 needs, with what the recipe hides from the policy hidden and its state noisy.

    Args:
        batch: LeRobot's, normalised.
        encoded: The backbone's tokens of it.
        settings: The recipe's.
        width: Of the state.
        generator: Source of the noise, and of what is hidden.
    """
    size, device = len(encoded.mask), encoded.mask.device
    state = state_of(batch, width, size).to(device)
    if settings.state_noise:
        state = state + settings.state_noise * _drawn(torch.randn, state.shape, generator).to(device)
    kept = seen = None
    if settings.token_dropout:
        kept = _drawn(torch.rand, encoded.mask.shape, generator).to(device) >= settings.token_dropout
    if settings.prior_dropout:
        seen = _drawn(torch.rand, (size,), generator).to(device) >= settings.prior_dropout
    actions = batch[ACTION].float().to(device)
    padded = batch.get(PADDED, torch.zeros(actions.shape[:2], dtype=torch.bool))
    return PolicyBatch(
        encoded=encoded,
        kept=kept,
        state=state,
        actions=actions,
        action_mask=~padded.to(device),
        prior_seen=seen,
    )


def _drawn(draw: Any, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return draw(tuple(shape), generator=generator)
