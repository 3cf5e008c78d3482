"""From a recipe, a dataset's features and perhaps a motion prior to what is built. Nothing here needs LeRobot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamp.configuration import from_json, to_json
from lamp.data.lerobot.format import short_names
from lamp.errors import ConfigError, MismatchError, unknown
from lamp.json_files import to_line
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.small import STRIDE, SmallBackboneConfig
from lamp.recipes import training
from lamp.train.backbones import BackboneConfig
from lamp.train.checkpoint import Expected, load_checkpoint, motion_weights
from lamp.train.checkpoint_metadata import Description, checkpoint_folder, read_description
from lamp.train.config import PolicyTraining
from lamp.train.publishing import find_checkpoint
from lamp.types import Encoded, Observations, PolicyBatch

IMAGES = ("observation.images.", "observation.")
"""What LeRobot writes before the name of a camera."""


@dataclass(frozen=True, kw_only=True)
class CameraKey:
    """A camera by its name in LaMP, and where LeRobot has its images."""

    name: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that builds the policy again. It is kept in the policy's configuration, so that a recipe may change meanwhile."""

    model: LaMPConfig
    backbone: BackboneConfig
    backbone_key: str | None = None
    """Content hash of the backbone that it was trained with; None: it was not built yet."""
    cameras: tuple[CameraKey, ...]
    """In the order in which the backbone has them."""

    def to_text(self) -> str:
        return to_line(to_json(self))

    @classmethod
    def from_text(cls, text: str) -> Plan:
        """Reads what `to_text` wrote.

        Raises:
            ConfigError: It was written by other code, or edited.
        """
        try:
            obj = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the policy's plan is not JSON ({error}); expected it as it was saved.") from None
        return from_json(cls, obj, where="the policy's plan")


def settings_of(recipe: str, *, motion: str | None) -> PolicyTraining:
    """How a recipe trains the policy, with a motion prior or without.

    Raises:
        ConfigError: There is no such recipe, or it has no training, or trains an oracle.
    """
    chosen = training(recipe)
    if chosen.policy.prior == "oracle":
        raise ConfigError(
            f"recipe {recipe!r} trains an oracle, with prior 'oracle': `lamp train policy` does that; expected a recipe without."
        )
    return chosen.policy_with(motion) if motion and chosen.policy.model.motion is not None else chosen.without_motion


def make_plan(
    recipe: str,
    *,
    images: Sequence[str],
    cameras: Mapping[str, str],
    state_width: int,
    action_width: int,
    chunk: int | None = None,
    motion: str | None = None,
    vlm: str | None = None,
) -> Plan:
    """Fits a recipe to a dataset.

    Args:
        recipe: Its sizes and its backbone are taken.
        images: The dataset's image features.
        cameras: LaMP's names of the cameras, in order, and the image feature of each; empty: all images, by their own names.
        state_width: Values of the state; 0 where there is none.
        action_width: Values of an action.
        chunk: Actions in a chunk; None: the recipe's.
        motion: A Stage-1 checkpoint, a folder or a hub id, whose Motion Expert and backbone are taken. None: no motion prior.
        vlm: A folder or hub id in place of the vision-language model that the recipe names.

    Raises:
        ConfigError: The recipe, a camera or the chunk does not fit.
        DataError: There is no such checkpoint.
        MismatchError: The checkpoint is no motion prior, or was trained with other cameras.
    """
    policy = settings_of(recipe, motion=motion)
    named = _named(images, cameras)
    prior = None if motion is None else _motion(motion)
    backbone = _backbone_of(prior, motion) if prior and motion else _with_cameras(policy.backbone, named)
    if vlm is not None:
        if isinstance(backbone, SmallBackboneConfig):
            raise ConfigError(f"recipe {recipe!r} has no vision-language model to replace by {vlm}; expected no vlm.")
        backbone = replace(backbone, model=vlm, commit=None)
    camera_names = [name for name, _ in backbone.cameras]
    if missing := [name for name in camera_names if name not in named]:
        raise MismatchError(
            f"the motion prior was trained with the cameras {camera_names}; {missing[0]!r} is not among {list(named)}. Say which "
            f"image it is: cameras = {{{missing[0]!r}: one of {list(images)}}}."
        )
    model = _fitted(policy, prior, state_width=state_width, action_width=action_width, chunk=chunk)
    keys = tuple(CameraKey(name=name, key=named[name]) for name in camera_names)
    return Plan(model=_of_cameras(model, backbone), backbone=backbone, cameras=keys)


def _named(images: Sequence[str], cameras: Mapping[str, str]) -> dict[str, str]:
    if not images:
        raise ConfigError(
            "the dataset has no images; expected at least one feature such as observation.images.agentview."
        )
    for key in cameras.values():
        if key not in images:
            raise unknown("image feature", key, images)
    return dict(cameras) or short_names(images, IMAGES)


def _motion(source: str) -> Description:
    folder = find_checkpoint(source)
    description = read_description(folder)
    Expected(kind="motion").check(folder, description)
    return description


def _backbone_of(prior: Description, source: str) -> BackboneConfig:
    """The settings of the backbone that a motion prior was trained on: it can be used with no other."""
    backbone = prior.training.backbone_in(checkpoint_folder(find_checkpoint(source)))
    if backbone is None:
        raise MismatchError(
            f"{source} was imported and holds no settings of its backbone; expected it imported with them."
        )
    return backbone


def _with_cameras(backbone: BackboneConfig, named: Mapping[str, str]) -> BackboneConfig:
    """The recipe's image sizes for cameras that it knows; of the others, the first is taken for the reference camera."""
    sizes, first, last = dict(backbone.cameras), backbone.cameras[0][1], backbone.cameras[-1][1]
    cameras = tuple((name, sizes.get(name, last if index else first)) for index, name in enumerate(named))
    return replace(backbone, cameras=cameras)


def _fitted(
    policy: PolicyTraining, prior: Description | None, *, state_width: int, action_width: int, chunk: int | None
) -> LaMPConfig:
    model = policy.model
    assert model.action is not None
    action = replace(model.action, chunk=chunk or model.action.chunk, state_dim=state_width, action_dim=action_width)
    if prior is None:
        return replace(model, action=action)
    motion = prior.model.motion
    assert motion is not None
    if motion.token_width != model.token_width:
        raise MismatchError(
            f"the motion prior reads tokens {motion.token_width} wide, the recipe's policy {model.token_width}; expected a "
            "recipe for the same backbone."
        )
    if model.motion is None or not isinstance(model.guidance, GuidanceConfig):
        raise ConfigError("the recipe has no motion guidance; expected one with, or no motion checkpoint.")
    # Which layer z_m is read from is Stage 2's choice.
    motion = replace(motion, hidden_layer=model.motion.hidden_layer)
    guidance = replace(model.guidance, motion_width=motion.width)
    return replace(model, motion=motion, guidance=guidance, action=action)


def _of_cameras(model: LaMPConfig, backbone: BackboneConfig) -> LaMPConfig:
    """Positions for as many tokens as the cameras give, and pooling of just these; a vision-language model's are left to the
    recipe."""
    if not isinstance(backbone, SmallBackboneConfig):
        return model
    assert model.action is not None
    tokens = sum((side // STRIDE) ** 2 for _, side in backbone.cameras) + backbone.text_tokens
    positions = max(model.action.positions, model.action.chunk + tokens)
    pooling = replace(model.pooling, grids=backbone.grids) if model.pooling else None
    return replace(model, action=replace(model.action, positions=positions), pooling=pooling)


def load_motion(model: LaMP, source: str, backbone_key: str) -> None:
    """Puts a Stage-1 checkpoint's weights into a policy that was planned for it.

    Raises:
        DataError: It is damaged.
        MismatchError: It was trained on another backbone.
    """
    expected = Expected(kind="motion", backbone_key=backbone_key)
    trained, _ = load_checkpoint(find_checkpoint(source), expected=expected)
    model.load_state_dict(motion_weights(trained.state_dict()), strict=False)


STATE, ACTION, PADDED, TASK = "observation.state", "action", "action_is_pad", "task"


def observations_of(batch: Mapping[str, Any], cameras: Sequence[CameraKey], instruction: str = "") -> Observations:
    """Images as they were recorded, and instructions.

    Args:
        cameras: The images to take, in this order.
        instruction: Of samples that have none.

    Raises:
        MismatchError: A camera or the instruction is missing, or an image has another form.
    """
    images = {camera.name: _pictures(batch, camera.key) for camera in cameras}
    size = len(next(iter(images.values())))
    tasks = batch.get(TASK) or [""] * size
    texts = [text or instruction for text in ([tasks] * size if isinstance(tasks, str) else tasks)]
    if len(texts) != size or not all(isinstance(text, str) and text.strip() for text in texts):
        raise MismatchError(
            f"the batch's {TASK!r} is {tasks!r}; expected an instruction for each of its {size} samples: from the dataset's "
            "episodes, from the environment's task_description, or for all of them with --policy.instruction."
        )
    return Observations(images=images, instructions=tuple(texts))


def _pictures(batch: Mapping[str, Any], key: str) -> UInt8[Tensor, "b h w 3"]:
    picture = batch.get(key)
    if not isinstance(picture, Tensor) or picture.ndim != 4 or picture.shape[1] != 3:
        shape = list(picture.shape) if isinstance(picture, Tensor) else "missing"
        have = ", ".join(name for name in batch if "image" in name) or "none"
        raise MismatchError(
            f"images {key!r}: {shape}; expected (batch, 3, height, width). The batch has the images {have}."
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
        actual = list(state.shape) if isinstance(state, Tensor) else "missing"
        raise MismatchError(f"{STATE}: {actual}; expected ({size}, {width}), as the policy was made for.")
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
