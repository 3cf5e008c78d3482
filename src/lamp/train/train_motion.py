"""`lamp train motion`: Stage 1 from data to a motion checkpoint, and its measurement on held-out episodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

import lamp.version
from lamp.configuration import to_json
from lamp.data.episode_selection import ALL_EPISODES
from lamp.data.feature_cache.encode import BackboneIdentity, FrozenBackbone
from lamp.data.motion_dataset import AnyMotionSamples, MixedMotionSamples, MotionSamples, flow_std, shuffled_pairing
from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import Preconditioning
from lamp.json_files import to_line
from lamp.model.lamp import LaMP, required
from lamp.sceneflow.normalization import RELEASED_BOUNDS, BoundsRule, MotionBounds
from lamp.seeding import seed_everything
from lamp.train.backbones import find_backbone, live_backbone
from lamp.train.checkpoint import Expected, load_checkpoint
from lamp.train.checkpoint_metadata import FILE_NAME as DESCRIPTION
from lamp.train.checkpoint_metadata import Description, FlowRecord, read_description
from lamp.train.config import LoopConfig, MotionTraining
from lamp.train.datasets import SAME_RATE, Sources
from lamp.train.distributed import DistributedContext, distributed_context
from lamp.train.finetune import FineTune, Normalizers
from lamp.train.flow_datasets import FlowDataset, flow_store, is_timed, match_step_time, open_flow_datasets
from lamp.train.flow_metrics import FILE_NAME, FlowReport, measure_flow
from lamp.train.run_folder import CHECKPOINT, RunStage, TrainingResult, run_stage
from lamp.train.stages import MotionStage
from lamp.train.validation import spread


def train_motion(
    config: MotionTraining,
    data: Path,
    out: Path,
    *,
    fresh: bool = False,
    backbone: FrozenBackbone | None = None,
    features: Path | None = None,
    start: Path | None = None,
    normalizers: Normalizers = "keep",
    run: RunStage = run_stage,
) -> TrainingResult:
    """Trains the Motion Expert, then measures it on the held-out episodes (`out/flow.json`).

    Continues the unfinished run that `out` holds.

    Args:
        data: The dataset's folder, with scene flow (`lamp flow build`) and the backbone's features (`lamp cache features`).
        fresh: Start again, and remove what an earlier run left in `out`.
        backbone: The frozen backbone, where the caller has it; only its key, width and description are read.
        features: The folder that feature caches are in; None: the dataset's own.
        start: A motion checkpoint to begin with (fine-tuning).
        normalizers: Whether a fine-tune keeps the checkpoint's bounds or finds them in the new data.
        run: What is done once everything is prepared, such as a `Planner`.

    Raises:
        DataError: Something is missing or damaged.
        MismatchError: Things that do not belong together, such as a scene flow of another grid.
    """
    torch.set_num_threads(config.loop.threads)
    distributed = distributed_context(config.loop.device)
    here = replace(config, loop=replace(config.loop, device=distributed.device(config.loop.device)))
    live = None if config.cache_features else live_backbone(config.backbone, here.loop.device, backbone)
    identity: BackboneIdentity = live or backbone or find_backbone(config.backbone)
    datasets = open_flow_datasets(config, data, identity, features, live)
    config = replace(config, flow_stride=datasets[0].stride)
    here = replace(config, loop=here.loop)
    tuned = None
    if start is not None:
        tuned = FineTune.read(start, normalizers, kind="motion", key=identity.key, backbone=identity.description)
    scaled = _with_kept_bounds(config, datasets[0], tuned)
    samples, clamped = _with_bounds(scaled if fresh else _with_recorded_bounds(scaled, out), datasets, distributed)
    if config.targets == "shuffled":
        of = samples.part_of(np.arange(len(samples)))
        samples.pairing = shuffled_pairing((of << 32) + samples.episode, config.loop.seed)
    config = _with_data_std(config, samples, None if fresh else out, tuned, distributed)
    here = replace(config, loop=here.loop)
    held_out = [(one, one.sources.split.validation) for one in datasets if one.sources.split.validation]
    parts = [one.samples(config, episodes, samples.bounds) for one, episodes in held_out]
    validation = _mix(parts) if parts else None
    seed_everything(config.loop.seed, "weights")
    model = LaMP(config.model)
    if tuned is not None:
        tuned.load_into(model)
    model = model.to(here.loop.device)
    stage = MotionStage(model, here, samples, validation, distributed.share)
    description = _describe(config, datasets, samples, clamped)
    description = replace(description, started_from=tuned.record if tuned else None)
    result = run(stage, here.loop, description, out, fresh=fresh, distributed=distributed)
    report = out / FILE_NAME
    if distributed.is_main and result.outcome.finished and validation is not None and not report.exists():
        trained, _ = load_checkpoint(result.checkpoint, device=here.loop.device)
        indices = spread(len(validation), config.final_samples)
        measure_flow(
            trained, validation, indices, loop=replace(here.loop, batch_size=stage.loader.micro_batch_samples)
        ).write(report)
    return result


def _mix(parts: Sequence[MotionSamples]) -> AnyMotionSamples:
    return MixedMotionSamples(parts) if len(parts) > 1 else parts[0]


def _with_kept_bounds(config: MotionTraining, own: FlowDataset, tuned: FineTune | None) -> MotionTraining:
    """The same training, with the bounds of a checkpoint that it begins with and keeps the normalisers of.

    Raises:
        MismatchError: Its flow steps take another time.
    """
    if tuned is None or tuned.normalizers == "refit" or tuned.description.flow is None:
        return config
    flow = tuned.description.flow
    if flow.retiming != config.retiming:
        raise MismatchError(
            f"{tuned.path} was trained with {flow.retiming}, and this run has {config.retiming}; expected the same, or "
            "--normalizers refit"
        )
    now, before = own.step_s, flow.stride / flow.fps
    if is_timed(config) and abs(now - before) > SAME_RATE * before:
        raise MismatchError(
            f"a flow step of {own.sources.dataset.root} takes {now:.3g} s, one of {tuned.path} {before:.3g} s, and its bounds "
            "are of such steps; expected the same: choose --flow-stride, or give --normalizers refit"
        )
    return replace(config, bounds=flow.bounds)


def _with_recorded_bounds(config: MotionTraining, out: Path) -> MotionTraining:
    """The same training, with the bounds that the run in `out` has found, where there is one: it goes on with its scale."""
    path = out / CHECKPOINT
    if isinstance(config.bounds, MotionBounds) or not (path / DESCRIPTION).is_file():
        return config
    recorded = read_description(path)
    training = recorded.motion_training
    if training is None or recorded.flow is None or training.bounds != config.bounds:
        return config
    return replace(config, bounds=recorded.flow.bounds)


def _with_data_std(
    config: MotionTraining,
    samples: AnyMotionSamples,
    out: Path | None,
    tuned: FineTune | None,
    distributed: DistributedContext,
) -> MotionTraining:
    """The same training with the spread of its own normalised increments in the preconditioning, where it asks for that.

    A run that is continued keeps what it found, and a fine-tune what its checkpoint was trained with.

    Args:
        out: The run's folder, where it may be continued.
    """
    if not config.fit_data_std or config.motion.preconditioning is None:
        return config
    known = None if tuned is None else tuned.description.model.motion
    if known is None and out is not None and (out / CHECKPOINT / DESCRIPTION).is_file():
        before = read_description(out / CHECKPOINT)
        fitted_alike = before.motion_training
        known = before.model.motion if fitted_alike is not None and fitted_alike.fit_data_std else None
    if known is not None:
        preconditioning = known.preconditioning
    else:
        preconditioning = Preconditioning(data_std=distributed.from_main(lambda: flow_std(samples.parts)))
    motion = replace(config.motion, preconditioning=preconditioning)
    return replace(config, model=replace(config.model, motion=motion))


def evaluate_flow(
    checkpoint: Path,
    data: Path,
    episodes: Sequence[int] | None = None,
    *,
    frames: int | None = None,
    loop: LoopConfig | None = None,
) -> FlowReport:
    """Measures a motion checkpoint on episodes of a dataset.

    Args:
        checkpoint: A Stage-1 checkpoint or run.
        data: A dataset with scene flow and the features of the checkpoint's backbone.
        episodes: Which; by default those that the checkpoint was not trained on, if `data` is what it was trained on.
        frames: At most this many frames, evenly spread; all by default.
        loop: Batch size, precision, device and seed; those of the training by default.

    Raises:
        ConfigError: No episode is given and none was held out, or the dataset has no such episode.
        MismatchError: The checkpoint and the data do not fit.
    """
    model, description = load_checkpoint(checkpoint, expected=Expected(kind="motion"))
    config = description.motion_training
    if config is None:
        raise MismatchError(
            f"{checkpoint} was imported, and its scene flow's sampling is not known; expected one that `lamp train motion` wrote."
        )
    key, recorded = (
        required(description.backbone.key, "the backbone's key"),
        required(description.flow, "scene flow's record"),
    )
    settings = loop or config.loop
    live = None if config.cache_features else live_backbone(config.backbone, settings.device)
    everything = replace(config.split, episodes=ALL_EPISODES, held_out=None)
    sources = Sources.open(
        data,
        key,
        everything,
        token_width=config.model.token_width,
        embodiment=config.embodiment,
        live=live,
        pictures_only=True,
    )
    chosen = tuple(description.data.validation_episodes if episodes is None else episodes)
    last = len(sources.dataset) - 1
    if not chosen:
        raise ConfigError(f"no episode to measure {checkpoint} on: none was held out; name some of 0 to {last}.")
    for episode in chosen:
        if not 0 <= episode <= last:
            raise ConfigError(f"episode {episode} is not in {data}; it has 0 to {last}.")
    # Another dataset's flow steps are brought to the time that those of the training took.
    store = flow_store(replace(config, flow_frames=recorded.stride), sources, config.scene_flow, own=False)
    steps, rest = divmod(recorded.stride, store.description.sampling.stride)
    here = FlowDataset(sources=sources, store=store, stride=config.flow_stride if rest else steps)
    if config.also:
        here = match_step_time(here, recorded.stride / recorded.fps, "resampled", timed=is_timed(config))
    samples = here.samples(config, chosen, recorded.bounds)
    indices = spread(len(samples), frames or len(samples))
    return measure_flow(model.to(settings.device), samples, indices, loop=settings)


def _with_bounds(
    config: MotionTraining, datasets: Sequence[FlowDataset], distributed: DistributedContext
) -> tuple[AnyMotionSamples, tuple[float, float, float]]:
    """The training samples, and which share of their increments is clamped. Both take a pass over all scene flow, where bounds
    are to be found in the data, which is in all datasets together: of several processes the main one makes it.
    """
    rule = config.bounds
    # Until the bounds of the data are known, any will do.
    parts = [one.samples(config, one.sources.split.train, RELEASED_BOUNDS) for one in datasets]
    bounds = distributed.from_main(lambda: rule.fit(chain.from_iterable(part.flows() for part in parts)))
    for part in parts:
        part.bounds = bounds
    samples = _mix(parts)
    if distributed.is_main and isinstance(rule, BoundsRule) and (floored := rule.floored(bounds)):
        moved = "image fractions" if "depth" not in floored else "image fractions, metres in depth"
        print(
            f"increments of scene flow along {', '.join(floored)} are smaller than bounds.smallest, {rule.smallest:g} ({moved}), "
            "and are divided by that: motions as small as these are hardly learnt. Where they are more than noise, give "
            f"--bounds.smallest and --bounds.moving-threshold (now {rule.moving_threshold:g}) of their size",
            file=sys.stderr,
        )
    return samples, distributed.from_main(samples.clamp_rate)


def _describe(
    config: MotionTraining,
    datasets: Sequence[FlowDataset],
    samples: AnyMotionSamples,
    clamped: tuple[float, float, float],
) -> Description:
    motion = config.motion
    parts = samples.parts
    stores = [to_line(to_json(one.store.description)) for one in datasets]
    own, *others = [
        one.sources.record(samples=len(part), also=[store])
        for one, part, store in zip(datasets, parts, stores, strict=True)
    ]
    sources, rest = datasets[0].sources, [other.fingerprint for other in others]
    flow = FlowRecord(
        camera=samples.camera,
        grid=motion.grid,
        horizon=motion.horizon,
        stride=samples.frames_per_step,
        fps=sources.dataset.fps,
        bounds=samples.bounds,
        clamped=clamped,
        supervision=config.supervision,
        also=tuple(others),
        retiming=config.retiming,
    )
    return Description(
        kind="motion",
        model=config.model,
        backbone=sources.backbone,
        flow=flow,
        policy=None,
        motion_source=None,
        training=config,
        data=sources.record(samples=len(samples), also=[stores[0], *rest]) if others else own,
        step=0,
        averaged=config.loop.ema is not None,
        exactly_reproducible=config.loop.time_budget_s is None,
        code=lamp.version.code_version(),
        packages=lamp.version.package_versions(),
    )
