"""`lamp train policy`: Stage 2 from data (and a motion checkpoint) to a policy's checkpoint."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import lamp.version
from lamp.configuration import to_json
from lamp.data.embodiment import Embodiment, action_units, collected_in_libero
from lamp.data.feature_cache.cache import FrozenBackbone
from lamp.data.feature_cache.shards import content_hash
from lamp.data.image_dataset import ImageSamples
from lamp.data.motion_dataset import TrueMotion
from lamp.data.normalizers import ByDeviation, NoState, floors
from lamp.data.policy_dataset import PolicySamples, PolicyScaling
from lamp.errors import ConfigError, MismatchError
from lamp.json_files import to_line
from lamp.model.lamp import LaMP, required
from lamp.model.qwen3_vl import Qwen3VLBackbone
from lamp.seeding import seed_everything
from lamp.train.backbones import BuildProgressPrinter, find_backbone
from lamp.train.breakdown import action_names
from lamp.train.checkpoint import Expected, load_checkpoint, motion_weights
from lamp.train.checkpoint_metadata import (
    Description,
    FlowRecord,
    MotionSource,
    OtherDataset,
    PolicyRecord,
    read_description,
)
from lamp.train.config import PolicyTraining, UnseenEpisodes
from lamp.train.datasets import Sources, TrainingDataset, adapted_backbone, mixed, open_datasets
from lamp.train.distributed import distributed_context
from lamp.train.finetune import FineTune, Normalizers
from lamp.train.flow_datasets import flow_of_policy, true_motion
from lamp.train.lora import AdaptedStage
from lamp.train.motion_feature_cache import hidden_settings, hidden_states_of
from lamp.train.run_folder import HIDDEN, RunStage, TrainingResult, first_difference, run_stage
from lamp.train.stages import PolicyStage
from lamp.train.validation import spread


def train_policy(
    config: PolicyTraining,
    data: Path,
    out: Path,
    motion_checkpoint: Path | None = None,
    *,
    fresh: bool = False,
    backbone: FrozenBackbone | None = None,
    features: Path | None = None,
    start: Path | None = None,
    normalizers: Normalizers = "keep",
    run: RunStage = run_stage,
) -> TrainingResult:
    """Trains guidance and Action Expert; continues the unfinished run that `out` holds.

    Args:
        data: The dataset's folder, with the backbone's features (`lamp cache features`), as those that are mixed in have.
        motion_checkpoint: Stage 1's; None together with `config.model.motion = None` trains the policy without motion.
        fresh: Start again, and remove what an earlier run left in `out`.
        backbone: The frozen backbone, where the caller has it; only its key, width and description are read.
        features: The folder that feature caches are in; None: each dataset's own.
        start: A policy's checkpoint to begin with (fine-tuning); its Motion Expert then need not be given.
        normalizers: Whether a fine-tune keeps the checkpoint's normalisers or fits them to the new data.
        run: What is done once everything is prepared, such as a `Planner`.

    Raises:
        ConfigError: Motion checkpoint and configuration do not agree on whether there is a motion prior.
        DataError: Something is missing or damaged.
        MismatchError: Things that do not belong together.
    """
    torch.set_num_threads(config.loop.threads)
    distributed = distributed_context(config.loop.device)
    here = replace(config, loop=replace(config.loop, device=distributed.device(config.loop.device)))
    tuned = _start_checkpoint(config, start, normalizers, backbone)
    config = _with_fitted_prior(config, motion_checkpoint, tuned)
    here = replace(config, loop=here.loop)
    if backbone is None:
        _check_pooling(config)
    datasets = open_datasets(here, data, backbone, features, _reused_scalings(tuned))
    sources = datasets[0].sources
    model, motion = build_model(config, sources, motion_checkpoint, tuned)
    parts = [one.samples(config, one.sources.split.train, augmented=True) for one in datasets]
    held_out = [(one, one.sources.split.validation) for one in datasets if one.sources.split.validation]
    samples = mixed(parts)
    validation = mixed([one.samples(config, episodes) for one, episodes in held_out]) if held_out else None
    if motion is not None and isinstance(config.prior_on, UnseenEpisodes):
        for one, part in zip(datasets, samples.cached, strict=True):
            part.show_prior_in(_unseen_episodes(one.sources, motion))
    if tuned is None:
        fit_baseline(model, parts)
    flow_read: tuple[str, ...] = ()
    if config.model.flow_head:
        flow_of = flow_of_policy(config, sources, distributed)
        for part in (*samples.cached, *(validation.cached if validation is not None else ())):
            flow = flow_of(part.episodes)
            part.with_flow(flow)
            flow_read = (to_line(to_json(flow.store.description)),)
    description = _describe(config, datasets, parts, motion, flow_read)
    description = replace(description, started_from=tuned.record if tuned else None)
    if distributed.is_main:
        for one in datasets:
            _warn_of_small_actions(one, config)
    true_motions: list[TrueMotion | None] = [None] * len(datasets)
    if config.prior == "oracle" and motion is not None:
        true_motions = [true_motion(config, one.sources, motion.flow, own=one is datasets[0]) for one in datasets]
    model = model.to(here.loop.device)
    if (adapted := adapted_backbone(here, backbone)) is not None:
        seed_everything(config.loop.seed, "adapters")  # they change nothing yet, and are the same in every process
        vlm = backbone if isinstance(backbone, Qwen3VLBackbone) else adapted.load()
        stage = AdaptedStage(model, vlm.to(here.loop.device), here, samples, validation, distributed.share)
        for name, value in (tuned.adapter if tuned else {}).items():
            stage.parameters()[name].data.copy_(value)
    else:
        stage = PolicyStage(model, here, samples, validation, distributed.share)

    def prepare() -> None:
        if config.stored_draws:
            known = {id(one.sources.cache): motion for one, motion in zip(datasets, true_motions, strict=True)}
            for of_all, draws in ((samples, config.stored_draws), (validation, 1)):
                for part in of_all.cached if of_all is not None else ():
                    _cache_hidden(model, part, draws, here, description, out, known[id(part.features)])
        stage.fit_hidden_statistics()

    result = run(stage, here.loop, description, out, fresh=fresh, prepare=prepare, distributed=distributed)
    if result.outcome.finished and distributed.is_main:
        shutil.rmtree(out / HIDDEN, ignore_errors=True)  # large, and of no use any more
    return result


def _with_fitted_prior(
    config: PolicyTraining, motion_checkpoint: Path | None, tuned: FineTune | None
) -> PolicyTraining:
    """The same training with the preconditioning that Stage 1 found in its data, where it was to find one there."""
    motion = config.model.motion
    if motion is None or motion.preconditioning is None:
        return config
    if tuned is not None:
        known = tuned.description.model.motion  # whether it was found or given is not noted there
    elif motion_checkpoint is not None:
        recorded = read_description(motion_checkpoint)
        training = recorded.motion_training
        known = recorded.model.motion if training is not None and training.fit_data_std else None
    else:
        known = None
    if known is None or known.preconditioning is None:
        return config
    return replace(config, model=replace(config.model, motion=replace(motion, preconditioning=known.preconditioning)))


def _check_pooling(config: PolicyTraining) -> None:
    pooling, backbone = config.model.pooling, config.backbone
    if pooling and backbone.grids is not None and pooling.grids != backbone.grids:
        raise ConfigError(
            f"model.pooling.grids is {pooling.grids}; expected {backbone.grids}, the tokens of the backbone's cameras "
            f"{', '.join(f'{name} at {side} px' for name, side in backbone.cameras)}: set it beside backbone.cameras, or "
            "model.pooling None."
        )


def _start_checkpoint(
    config: PolicyTraining, start: Path | None, normalizers: Normalizers, backbone: FrozenBackbone | None
) -> FineTune | None:
    if start is None:
        return None
    identity = adapted_backbone(config, backbone) or backbone or find_backbone(config.backbone)
    return FineTune.read(start, normalizers, kind="policy", key=identity.key, backbone=identity.description)


def _reused_scalings(tuned: FineTune | None) -> Callable[[Sources, Embodiment, bool], PolicyScaling | None]:
    def kept(sources: Sources, embodiment: Embodiment, own: bool) -> PolicyScaling | None:
        if tuned is None:
            return None
        return tuned.scaling_of(sources.name, embodiment, own=own)

    return kept


def _warn_of_small_actions(one: TrainingDataset, config: PolicyTraining) -> None:
    """Warns of actions that are not divided by their own spread, and of a floor that was made for other data."""
    fitted = one.scaling.actions
    if not fitted.floored:
        return
    names = action_names(one.sources.dataset.features, one.embodiment, fitted.width)
    root = one.sources.dataset.root
    message = f"{root.name}: actions that hardly move are divided by more than they do: {floors(fitted, names)}"
    least = config.action_fit.least if isinstance(config.action_fit, ByDeviation) else 0.0
    if (
        least
        and not collected_in_libero(one.sources.dataset)
        and 2 * len(fitted.floored) > fitted.width - len(fitted.binary)
    ):
        message += (
            f". Most do, as the recipe's action_fit.least of {least:g} is for other units: small motions are learnt badly; "
            "`lamp recipe fit` makes a recipe for these"
        )
    print(message, file=sys.stderr)


MOST_FITTED = 50_000
"""Samples of a dataset that a baseline is fitted to."""


@dataclass(frozen=True, kw_only=True)
class MotionOrigin:
    """What is known of the Motion Expert that is built in."""

    source: MotionSource
    flow: FlowRecord


def build_model(
    config: PolicyTraining, sources: Sources, motion_checkpoint: Path | None, tuned: FineTune | None = None
) -> tuple[LaMP, MotionOrigin | None]:
    """Builds the model, with the weights of the motion checkpoint in its Motion Expert, or all of a checkpoint to begin with.

    Raises:
        ConfigError: There is a checkpoint and no Motion Expert in the configuration, or the other way round.
        MismatchError: The checkpoint has another Motion Expert or backbone.
    """
    if tuned is not None:
        return _fine_tuned_model(config, sources, motion_checkpoint, tuned)
    if (motion_checkpoint is None) != (config.model.motion is None):
        has, lacks = (
            ("a Motion Expert", "checkpoint") if motion_checkpoint is None else ("a checkpoint", "Motion Expert")
        )
        raise ConfigError(
            f"there is {has} but no {lacks}: give --motion CHECKPOINT with a recipe that has a motion prior, "
            "or neither for a policy without motion."
        )
    seed_everything(config.loop.seed, "weights")
    model = LaMP(config.model)
    if motion_checkpoint is None:
        return model, None
    weights, origin = read_motion(config, sources, motion_checkpoint)
    model.load_state_dict(weights, strict=False)
    return model, origin


def _fine_tuned_model(
    config: PolicyTraining, sources: Sources, motion_checkpoint: Path | None, tuned: FineTune
) -> tuple[LaMP, MotionOrigin | None]:
    seed_everything(config.loop.seed, "weights")
    model, description = LaMP(config.model), tuned.description
    tuned.load_into(model)
    if description.model.motion is None or description.flow is None:
        if motion_checkpoint is not None:
            raise MismatchError(f"checkpoint {tuned.path} has no motion prior; expected none here: leave out --motion")
        return model, None
    expert = content_hash(motion_weights(tuned.weights))
    source = description.motion_source or MotionSource(sha256=expert, step=description.step, data=description.data)
    if motion_checkpoint is not None:
        _, origin = read_motion(config, sources, motion_checkpoint)
        if origin.source.sha256 != source.sha256:
            raise MismatchError(
                f"motion checkpoint {motion_checkpoint} has another Motion Expert than {tuned.path}, whose guidance and Action "
                "Expert have learnt from its own; leave out --motion, or train without --from"
            )
    return model, MotionOrigin(source=source, flow=description.flow)


def read_motion(
    config: PolicyTraining, sources: Sources, motion_checkpoint: Path
) -> tuple[dict[str, Tensor], MotionOrigin]:
    """Reads the Motion Expert's weights from a checkpoint.

    Raises:
        ConfigError: There is no Motion Expert in the configuration.
        MismatchError: The checkpoint has another Motion Expert or backbone.
    """
    wanted = config.model.motion
    if wanted is None:
        raise ConfigError(f"{motion_checkpoint} is given, and the recipe has no Motion Expert; expected one that has.")
    expected = Expected(
        kind="motion",
        backbone_key=sources.frozen_key,
        backbone=sources.backbone.description,
        grid=wanted.grid,
        horizon=wanted.horizon,
    )
    trained, description = load_checkpoint(motion_checkpoint, expected=expected)
    # Which layer z_m is read from is Stage 2's choice: Stage 1 trains them all alike.
    given = replace(required(description.model.motion, "Motion Expert"), hidden_layer=wanted.hidden_layer)
    difference = first_difference(to_json(given), to_json(wanted), "model.motion")
    if difference is not None:
        name, have, needed = difference
        raise MismatchError(
            f"motion checkpoint {motion_checkpoint} has {name} = {have!r}; the recipe asks for {needed!r}."
        )
    weights = motion_weights(trained.state_dict())
    source = MotionSource(sha256=content_hash(weights), step=description.step, data=description.data)
    flow = required(description.flow, "record of the scene flow")
    if (training := description.motion_training) is not None:  # earlier versions noted it there alone
        flow = replace(flow, supervision=training.supervision)
    return weights, MotionOrigin(source=source, flow=flow)


def _unseen_episodes(sources: Sources, motion: MotionOrigin) -> tuple[int, ...]:
    episodes = sources.unseen_by(motion.source.data, *motion.flow.also)
    if not episodes:
        raise ConfigError(
            "prior_on is UnseenEpisodes, but Stage 1 was trained on every episode that Stage 2 has: train it with a larger "
            "split.validation_share (0.5) or on other data, or choose AllEpisodes."
        )
    return episodes


def _cache_hidden(
    model: LaMP,
    samples: PolicySamples,
    draws: int,
    config: PolicyTraining,
    description: Description,
    out: Path,
    known: TrueMotion | None,
) -> None:
    motion = required(description.motion_source, "record of the Motion Expert")
    settings = hidden_settings(config, motion.sha256, samples.features.key, known)
    what = f"{draws} draws of each" if known is None else "of the TRUE motion (oracle)"
    with BuildProgressPrinter(f"motion hidden states, {what}") as build_progress:
        samples.motion_hidden = hidden_states_of(
            model, samples, settings, draws=draws, run=out / HIDDEN, progress=build_progress.progress
        )


def _state_width(config: PolicyTraining, one: TrainingDataset) -> int:
    """How many values of a state the policy has to be given; none where neither it nor its actions look at them."""
    if isinstance(config.state_transform, NoState) and one.embodiment.per_frame:
        return 0
    return int(one.embodiment.states(one.sources.dataset, 0).shape[1])


def _describe(
    config: PolicyTraining,
    datasets: Sequence[TrainingDataset],
    parts: Sequence[PolicySamples | ImageSamples],
    motion: MotionOrigin | None,
    flow_read: Sequence[str],
) -> Description:
    own, *others = [
        OtherDataset(
            root=str(one.sources.dataset.root),
            data=one.sources.record(samples=len(part)),
            state_width=_state_width(config, one),
            scaling=one.scaling,
            fps=one.fps,
            embodiment=one.embodiment,
            state_features=one.embodiment.state_features(one.sources.dataset),
        )
        for one, part in zip(datasets, parts, strict=True)
    ]
    dataset = datasets[0].sources.dataset
    policy = PolicyRecord(
        state_width=own.state_width,
        scaling=own.scaling,
        chunk=config.action.chunk,
        execute=config.execute,
        fps=own.fps,
        embodiment=own.embodiment,
        state_features=own.state_features,
        others=tuple(others),
        action_names=action_names(dataset.features, own.embodiment, own.scaling.actions.width),
        action_units=action_units(own.embodiment, dataset, own.scaling.actions.width),
    )
    sources = datasets[0].sources
    return Description(
        kind="policy",
        model=config.model,
        backbone=sources.backbone,
        flow=motion.flow if motion else None,
        policy=policy,
        motion_source=motion.source if motion else None,
        training=config,
        data=sources.record(
            samples=sum(map(len, parts)), also=[*(other.data.fingerprint for other in others), *flow_read]
        ),
        step=0,
        averaged=config.loop.ema is not None,
        exactly_reproducible=config.loop.time_budget_s is None,
        code=lamp.version.code_version(),
        packages=lamp.version.package_versions(),
    )


def fit_baseline(model: LaMP, parts: Sequence[PolicySamples | ImageSamples]) -> None:
    """Fits what the Action Expert's velocity starts at, where it starts at something, to the training samples."""
    expert = model.action_expert
    if expert is None or expert.baseline is None or expert.config.baseline is None:
        return
    states, actions, masks, episodes, first = [], [], [], [], 0
    for part in parts:
        targets = part.targets
        rows = spread(len(targets), MOST_FITTED)
        chunk, mask = targets.chunks(rows)
        states.append(targets.states(rows))
        actions.append(chunk)
        masks.append(mask)
        episodes.append(torch.from_numpy(targets.episode[rows] + first))
        first += int(targets.episode.max()) + 1
    expert.baseline.fit(
        torch.cat(states), torch.cat(actions), torch.cat(masks), torch.cat(episodes), expert.config.baseline.least_std
    )
