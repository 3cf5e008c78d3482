"""A recipe for somebody's own dataset: another recipe with its cameras, state, action and rate, as a file to read and change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lamp.configuration import to_json
from lamp.data.embodiment import LIBERO, LIBERO_OPENPI, collected_in_libero
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.normalizers import ByDeviation, HardlyMoved, NormaliserFit, Unchanged, floors
from lamp.data.observation_encoder import check_instructions
from lamp.data.policy_dataset import states_and_actions
from lamp.errors import ConfigError
from lamp.json_files import write_json
from lamp.model.token_pooling import TokenPooling
from lamp.recipes.fit_robot import (
    WITHOUT,
    FitConfig,
    grippers_of,
    quaternions_of,
    robot_of,
    transform_of,
    width_of,
    with_kind,
)
from lamp.recipes.kinds import AnyRecipe, Recipe, TrainingRecipe
from lamp.train.backbones import BackboneConfig
from lamp.train.breakdown import action_names
from lamp.train.config import MotionTraining, PolicyTraining

LONGEST = 128
"""Tokens of an instruction that a recipe makes room for by itself."""
LIBERO_FPS = 20.0
"""Of what `lamp collect` records, for which the recipes with a collection are made."""


def fit(config: FitConfig, base: AnyRecipe) -> tuple[TrainingRecipe, str]:
    """Writes the recipe and returns it, and in words what it says.

    Raises:
        ConfigError: The base is a model alone, or something that is asked for is not in the dataset.
        DataError: The dataset cannot be read.
    """
    if not isinstance(base, Recipe | TrainingRecipe):
        raise ConfigError(
            f"recipe {base.name!r} is a model alone; expected one with training, such as demo or paper_real"
        )
    robot, dataset = robot_of(config)
    if base.policy.model.action is None:
        raise ConfigError(
            f"recipe {base.name!r} has no Action Expert; expected one with it, such as demo or paper_real"
        )
    grippers, gripper_text = grippers_of(config, robot, dataset)
    robot, actions_text = with_kind(config, robot, dataset, grippers)
    transform = transform_of(config, robot)
    states, actions = (width_of(dataset, parts) for parts in (robot.state, robot.action))
    seen = _with_room(_seen(base.policy.backbone, list(robot.cameras or ())), dataset.tasks)
    check_instructions(seen.tokenizer(), dataset.tasks, dataset.root)
    # A floor in the units of LIBERO's actions is right for those, and for no others.
    least = None if _is_libero(config, dataset) else 0.0
    policy = replace(
        base.policy_with(None),
        embodiment=robot,
        state_transform=transform,
        gripper=(grippers[0] if len(grippers) == 1 else grippers) if grippers else None,
        state_fit=_own_spread(base.policy.state_fit, HardlyMoved(), least),
        action_fit=_own_spread(base.policy.action_fit, HardlyMoved(at_most=10.0), least),
    )
    expert = replace(base.policy.model.action, action_dim=actions, state_dim=transform.width(states))
    motion = None
    if base.motion is not None:
        motion = replace(
            base.motion,
            backbone=seen,
            embodiment=robot,
            flow_frames=_flow_frames(base, base.motion, dataset.fps),
            fit_data_std=least is not None,
        )
    fitted = TrainingRecipe(
        name=config.out.stem,
        summary=f"{base.name}, for {dataset.root.name}",
        motion=motion,
        policy=replace(
            policy, model=replace(policy.model, action=expert, pooling=_pooling(base.policy, seen)), backbone=seen
        ),
        gpus=getattr(base, "gpus", 1),
    )
    cameras = ", ".join(f"{name} <- {feature}" for name, feature in (robot.cameras or {}).items())
    report = {
        "cameras": cameras,
        "state": f"{expert.state_dim} values shown to the policy",
        "action": f"{actions} values, chunks of {expert.chunk}, of which {policy.execute} are executed",
        "actions": actions_text,
        "gripper": gripper_text,
        "scaling": _scaling(fitted.policy, expert.chunk, dataset),
        "rate": f"{dataset.fps:g} fps: a chunk is {expert.chunk / dataset.fps:.2g} s",
    }
    if robot.state and config.state != WITHOUT and (quaternions := quaternions_of(robot, dataset)):
        report["rotation"] = quaternions
    if motion is not None and motion.model.motion is not None:
        steps, frames = motion.model.motion.horizon, motion.flow_frames or 1
        report["motion"] = f"{steps} flow steps of {frames} frames: {steps * frames / dataset.fps:.2g} s ahead"
    write_json(config.out, to_json(fitted))
    return fitted, "\n".join(f"{name:<8} {value}" for name, value in report.items())


def _own_spread(rule: NormaliserFit, hardly_moved: HardlyMoved, least: float | None) -> NormaliserFit:
    """A recipe's rule for data of any units; a `least` of None keeps the recipe's own."""
    if isinstance(rule, ByDeviation):
        return replace(rule, least=rule.least if least is None else least, hardly_moved=hardly_moved)
    return rule if isinstance(rule, Unchanged) else replace(rule, hardly_moved=hardly_moved)


def _is_libero(config: FitConfig, dataset: LeRobotDataset) -> bool:
    """Whether actions are LIBERO's, in [-1, 1], for which the recipes with a collection are made."""
    return config.embodiment in (LIBERO.name, LIBERO_OPENPI.name) or collected_in_libero(dataset)


def _scaling(policy: PolicyTraining, chunk: int, dataset: LeRobotDataset) -> str:
    """In words, how states and actions are scaled: what is not divided by its own spread is named."""
    robot = policy.embodiment
    states, actions = states_and_actions(dataset, range(len(dataset)), chunk, robot)
    names = action_names(dataset.features, robot, actions.shape[1])
    binary = policy.gripper_dims(actions.shape[1])
    shown = policy.state_transform.apply(states)
    rows = []
    for what, called, fitted in (
        ("action", names, policy.action_fit.fit(actions, binary=binary)),
        ("state", [str(index) for index in range(shown.shape[1])], policy.state_fit.fit(shown)),
    ):
        divisors = floors(fitted, called)
        rows.append(f"{what} hardly moves in, and is divided there, {divisors}" if divisors else "")
    exceptions = "; ".join(row for row in rows if row)
    return f"each value by its own spread{'; but ' + exceptions if exceptions else ''}"


def _flow_frames(base: Recipe | TrainingRecipe, motion: MotionTraining, fps: float) -> int:
    """Frames of the dataset in a flow step of the model: the seconds of the base's, where its rate is known, else its frames."""
    if base.flow is not None:
        frames, known = base.flow.stride * motion.flow_stride, LIBERO_FPS
    else:
        frames, known = motion.flow_frames or motion.flow_stride, motion.embodiment.fps
    return frames if known is None else max(1, round(frames * fps / known))


def _with_room(backbone: BackboneConfig, instructions: Sequence[str]) -> BackboneConfig:
    """The backbone with room for the longest instruction, where it does not have it and can have it."""
    reader = backbone.tokenizer()
    room = None if reader is None else reader.text_room
    if reader is None or room is None:
        return backbone
    longest = max((len(reader.instruction_ids(text)) for text in instructions), default=0)
    return backbone if longest <= room or longest > LONGEST else replace(backbone, text_tokens=longest)


def _pooling(policy: PolicyTraining, seen: BackboneConfig) -> TokenPooling | None:
    """The recipe's pooling, of these cameras' tokens."""
    pooling = policy.model.pooling
    return replace(pooling, grids=seen.grids) if pooling and seen.grids is not None else pooling


def _seen(backbone: BackboneConfig, cameras: list[str]) -> BackboneConfig:
    """The backbone with these cameras: the first at the size of its first, the others at that of its last."""
    first, last = backbone.cameras[0][1], backbone.cameras[-1][1]
    return replace(backbone, cameras=tuple((name, last if index else first) for index, name in enumerate(cameras)))
