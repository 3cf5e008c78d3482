"""The scene flow that runs learn from: a dataset's store, the time that a flow step takes, and what comes of both: samples of
Stage 1, of a policy's flow head, and the true motion that an oracle knows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lamp.data.feature_cache.encode import BackboneIdentity, FrozenBackbone
from lamp.data.feature_cache.shards import EpisodeFingerprints
from lamp.data.motion_dataset import MotionSamples, TrueMotion
from lamp.data.observation_encoder import check_instructions
from lamp.errors import ConfigError, MismatchError
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.sceneflow.normalization import BoundsRule, MotionBounds
from lamp.sceneflow.retiming import ByTime
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.stores import FlowRequirements, check_current, find_store, store_folders
from lamp.train.checkpoint_metadata import FlowRecord
from lamp.train.config import MixedIn, MotionTraining, PolicyTraining, RateMixing
from lamp.train.datasets import SAME_RATE, Sources, dataset_names
from lamp.train.distributed import DistributedContext, distributed_context


@dataclass(frozen=True, kw_only=True)
class FlowDataset:
    """A dataset that scene flow is learnt from, and how many of its stored flow steps make one of the model's."""

    sources: Sources
    store: SceneFlowStore
    stride: int

    @property
    def step_s(self) -> float:
        """How long a flow step of the model is. [s]"""
        return self.stride * self.store.description.sampling.stride / self.sources.dataset.fps

    def samples(
        self, config: MotionTraining, episodes: Sequence[int], bounds: BoundsRule | MotionBounds
    ) -> MotionSamples:
        """Samples of some episodes."""
        return motion_samples(
            replace(config, flow_stride=self.stride), self.sources, episodes, bounds, store=self.store
        )


def open_flow_datasets(
    config: MotionTraining, data: Path, identity: BackboneIdentity, features: Path | None, live: FrozenBackbone | None
) -> list[FlowDataset]:
    """Opens all datasets, the run's own first.

    Raises:
        MismatchError: Their flow steps take different times, and are not to be mixed so.
    """
    opened: list[FlowDataset] = []
    parts = (MixedIn(data=str(data), embodiment=config.embodiment), *config.also)
    for part, name in zip(parts, dataset_names([part.data for part in parts], features), strict=True):
        sources = Sources.open(
            Path(part.data),
            identity.key,
            part.split(config.split, own=not opened),
            token_width=config.model.token_width,
            embodiment=part.embodiment,
            features=features,
            wanted=identity.description,
            live=live,
            pictures_only=True,
        )
        sources = replace(sources, name=name)
        needed = config
        if opened and config.rates != "recorded":
            needed = replace(config, flow_frames=max(1, round(opened[0].step_s * sources.dataset.fps)))
        store = flow_store(needed, sources, config.scene_flow, own=not opened)
        whole = not opened or not is_timed(config) or (config.flow_frames or 1) % store.description.sampling.stride == 0
        stride = at_stride(config, store).flow_stride if whole else config.flow_stride
        now = FlowDataset(sources=sources, store=store, stride=stride)
        opened.append(match_step_time(now, opened[0].step_s, config.rates, timed=is_timed(config)) if opened else now)
        # Together with those before it: the instructions of all datasets have to be told apart.
        instructions = [text for one in opened for text in one.sources.dataset.tasks]
        check_instructions(identity, instructions, ", ".join(str(one.sources.dataset.root) for one in opened))
    if len(opened) > 1 and distributed_context(config.loop.device).is_main:
        durations = ", ".join(f"{one.sources.dataset.root} {one.step_s:.3g} s" for one in opened)
        print(f"a flow step takes, in {durations}", file=sys.stderr)
    return opened


def match_step_time(one: FlowDataset, step_s: float, rates: RateMixing, *, timed: bool) -> FlowDataset:
    """Lets a dataset's flow steps take the same time as the first one's, where they are `timed`.

    Raises:
        MismatchError: They do not, and must not differ or cannot be made to agree.
    """
    if not timed or rates == "recorded" or abs(one.step_s - step_s) <= SAME_RATE * step_s:
        return one
    root, fps, stored = one.sources.dataset.root, one.sources.dataset.fps, one.store.description.sampling.stride
    stride = max(1, round(step_s * fps / stored))
    matched = replace(one, stride=stride)
    if rates == "resampled" and abs(matched.step_s - step_s) <= SAME_RATE * step_s:
        return matched
    difference = (
        f"a flow step of {root} ({fps:g} frames a second) takes {one.step_s:.3g} s, "
        f"one of the first dataset {step_s:.3g} s"
    )
    if rates == "resampled":
        frames = step_s * fps
        built = f"`lamp flow build {root} --stride {round(frames)}`" if abs(frames - round(frames)) < 0.01 else ""
        raise MismatchError(
            f"{difference}, which is not a whole number of its stored steps of {stored} frames; "
            f"expected one: {f'build its scene flow with {built}' if built else 'no stride of whole frames makes it'}, "
            "or give --rates recorded to mix them as they are"
        )
    raise MismatchError(
        f"{difference}; expected the same: give --rates resampled to take as many stored steps as make up that time, or --rates "
        "recorded to mix them as they are"
    )


def is_timed(config: MotionTraining) -> bool:
    """Whether a flow step is a time, and not a piece of way."""
    return isinstance(config.retiming, ByTime)


def at_stride(config: MotionTraining, store: SceneFlowStore) -> MotionTraining:
    """The training with as many of a store's flow steps per step of the model as make its `flow_frames`.

    Raises:
        MismatchError: The stored steps do not add up to them.
    """
    if not is_timed(config):
        return replace(config, flow_stride=1)
    if config.flow_frames is None:
        return config
    stored = store.description.sampling.stride
    if config.flow_frames % stored:
        raise MismatchError(
            f"{store.path} has a flow step every {stored} frames, the recipe one every {config.flow_frames}; build another "
            f"beside it with `lamp flow build {store.path.parent} --stride {config.flow_frames}`, or give --flow-stride"
        )
    return replace(config, flow_stride=config.flow_frames // stored)


def flow_store(
    config: MotionTraining, sources: Sources, name: str | None = None, *, own: bool = True
) -> SceneFlowStore:
    """The store of a dataset that has what a training needs.

    Args:
        name: Its name, where one was chosen.
        own: It was chosen for this dataset, and not for another: it then settles only which of several that fit is taken.

    Raises:
        ConfigError: There is none of that name, or several fit and none is named.
        DataError: There is none at all.
        MismatchError: None of several fits, or the dataset has changed since it was made.
    """
    motion = config.motion
    needs = FlowRequirements(grid=motion.grid, camera=sources.features.cameras[0])
    if is_timed(config):
        needs = replace(needs, horizon=motion.horizon, stride=config.flow_stride, frames=config.flow_frames)
    return current_store(needs, sources, name, own=own)


def current_store(
    needs: FlowRequirements, sources: Sources, name: str | None = None, *, own: bool = True
) -> SceneFlowStore:
    """The store of a dataset that has what is needed, made from the recordings that are there now.

    Arguments and errors are those of `flow_store`.
    """
    data = sources.dataset.root
    try:
        store = find_store(data, needs, name if own else None)
    except ConfigError:
        if own or name not in [folder.name for folder in store_folders(data)]:
            raise
        store = find_store(data, needs, name)
    shown = [camera for camera in store.description.cameras if camera in sources.dataset.cameras]
    prints = EpisodeFingerprints(sources.dataset, shown, sources.features.folder.parent)
    check_current(store, data, len(sources.dataset), prints.pictures)
    return store


def motion_samples(
    config: MotionTraining,
    sources: Sources,
    episodes: Sequence[int],
    bounds: BoundsRule | MotionBounds,
    *,
    store: SceneFlowStore,
) -> MotionSamples:
    """Takes the scene flow of some episodes from a store.

    Raises:
        DataError: There is no scene flow, or not of all episodes.
        MismatchError: It has another grid or camera, or is too short.
    """
    motion = config.motion
    store.check(grid=motion.grid, span=motion.horizon * config.flow_stride if is_timed(config) else 1)
    camera = sources.features.cameras[0]
    if camera not in store.description.cameras:
        have = ", ".join(store.description.cameras)
        raise MismatchError(
            f"{store.path} has the cameras {have}; expected the backbone's first, {camera!r}: build it for that."
        )
    return MotionSamples(
        sources.features,
        store,
        episodes=episodes,
        horizon=motion.horizon,
        stride=config.flow_stride,
        retiming=config.retiming,
        bounds=bounds,
        supervision=config.supervision,
        camera=camera,
    )


def flow_of_policy(
    config: PolicyTraining, sources: Sources, distributed: DistributedContext
) -> Callable[[Sequence[int]], MotionSamples]:
    """Reads the scene flow that a policy's flow head learns: of some episodes, normalised by what the training episodes have.

    Raises:
        ConfigError: The model has no flow head, or which store is meant is not clear.
        DataError: There is no scene flow, or not of all episodes.
        MismatchError: It has another grid or camera, or is too short.
    """
    head, flow = config.model.flow_head, config.flow
    if head is None:
        raise ConfigError("the model has no flow head, so there is no scene flow to read.")
    shape = MotionExpertConfig(
        token_width=config.model.token_width,
        grid=head.grid,
        horizon=head.horizon,
        patch=head.patch,
        frames_per_token=1,
    )
    wanted = MotionTraining(
        model=LaMPConfig(token_width=config.model.token_width, motion=shape, guidance=None, action=None),
        loop=config.loop,
        flow_stride=flow.stride,
        flow_frames=flow.frames,
        supervision=flow.supervision,
    )
    store = flow_store(wanted, sources, config.scene_flow)
    wanted = at_stride(wanted, store)

    def samples(episodes: Sequence[int], bounds: BoundsRule | MotionBounds) -> MotionSamples:
        return motion_samples(wanted, sources, episodes, bounds, store=store)

    bounds = distributed.from_main(lambda: samples(sources.split.train, flow.bounds).bounds)
    return partial(samples, bounds=bounds)


def true_motion(config: PolicyTraining, sources: Sources, flow: FlowRecord, *, own: bool = True) -> TrueMotion:
    """The true motion of a dataset, as a Motion Expert would have predicted it.

    Args:
        flow: What the Motion Expert predicts.
        own: The dataset is the training's own, whose store `config.scene_flow` names.

    Raises:
        ConfigError: There is no store of the name that was chosen, or several fit and none is named.
        DataError: There is no scene flow, or not of every frame.
        MismatchError: None fits, or the flow steps take another time than the Motion Expert's.
    """
    flow.check_timed("an oracle")
    dataset, camera = sources.dataset, sources.features.cameras[0]
    exact = flow.stride * dataset.fps / flow.fps
    frames = max(1, round(exact))
    if abs(frames - exact) > SAME_RATE * exact:
        raise MismatchError(
            f"a flow step of the motion checkpoint takes {flow.stride / flow.fps:.3g} s, {exact:.3g} frames of {dataset.root}; "
            "expected a whole number of them: an oracle needs a dataset of a rate that fits"
        )
    needs = FlowRequirements(grid=flow.grid, horizon=flow.horizon, frames=frames, camera=camera, every=1)
    store = current_store(needs, sources, config.scene_flow, own=own)
    stored = store.description.sampling.stride
    if frames % stored or camera not in store.description.cameras:
        raise MismatchError(
            f"{store.path} has a flow step every {stored} frames, in {', '.join(store.description.cameras)}; the motion "
            f"checkpoint predicts one every {frames}, in {camera}: `lamp flow build {dataset.root} --stride {frames} --cameras "
            f"{camera}` makes another beside it"
        )
    store.check(grid=flow.grid, span=flow.horizon * (frames // stored))
    motion = TrueMotion(
        store=store,
        camera=camera,
        horizon=flow.horizon,
        stride=frames // stored,
        bounds=flow.bounds,
        supervision=flow.supervision,
    )
    motion.check(dataset, (*sources.split.train, *sources.split.validation))
    return motion
