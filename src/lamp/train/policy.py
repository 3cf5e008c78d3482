"""`lamp train policy`: Stage 2 from data (and a motion checkpoint) to a policy's checkpoint."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import lamp.version
from lamp.configuration import to_json
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.features import FrozenBackbone
from lamp.data.mixture import MixedSamples
from lamp.data.samples import PolicySamples, PolicyScaling, stacked
from lamp.errors import ConfigError, MismatchError
from lamp.files import to_line
from lamp.model.lamp import LaMP
from lamp.train.backbones import backbone_key
from lamp.train.checkpoint import Expected, load_checkpoint, motion_weights
from lamp.train.configs import MixedIn, PolicyTraining, UnseenEpisodes
from lamp.train.description import Description, FlowRecord, MotionSource, OtherDataset, PolicyRecord
from lamp.train.hidden import HiddenCache
from lamp.train.metrics import Progress
from lamp.train.randomness import seed_everything
from lamp.train.running import HIDDEN, RunStage, TrainingResult, first_difference, run_stage
from lamp.train.sources import Sources
from lamp.train.stages import PolicyStage
from lamp.train.tensors import content_hash

GRIPPER_MARGIN = 0.01
"""How far a gripper's values may lie outside [0, 1]: rounding."""


def train_policy(
    config: PolicyTraining,
    data: Path,
    out: Path,
    motion_checkpoint: Path | None = None,
    *,
    fresh: bool = False,
    backbone: FrozenBackbone | None = None,
    run: RunStage = run_stage,
) -> TrainingResult:
    """Trains guidance and Action Expert; continues the unfinished run that `out` holds.

    Args:
        config: Everything about the run.
        data: The dataset's folder, with the backbone's features (`lamp cache features`), as those that are mixed in have.
        out: Where the run is kept.
        motion_checkpoint: Stage 1's; None together with `config.model.motion = None` trains the policy without motion.
        fresh: Start again, and remove what an earlier run left in `out`.
        backbone: The frozen backbone, where the caller has it; only its key is asked.
        run: What is done once everything is prepared, such as a `Planner`.

    Raises:
        ConfigError: Motion checkpoint and configuration do not agree on whether there is a motion prior.
        DataError: Something is missing or damaged.
        MismatchError: Things that do not belong together.
    """
    torch.set_num_threads(config.loop.threads)
    key = backbone.key if backbone else backbone_key(config.backbone)
    datasets = _open(config, data, key)
    sources = datasets[0].sources
    model, motion = build_model(config, sources, motion_checkpoint)
    samples = _mixed([one.samples(config, one.sources.split.train) for one in datasets])
    validation = _mixed([one.samples(config, one.sources.split.validation) for one in datasets])
    assert samples is not None
    if motion is not None and isinstance(config.prior_on, UnseenEpisodes):
        for one, part in zip(datasets, _parts(samples), strict=True):
            part.show_prior_in(_unseen(one.sources, motion))
    description = _describe(config, datasets, _parts(samples), motion)
    stage = PolicyStage(model.to(config.loop.device), config, samples, validation)

    def prepare() -> None:
        if config.cached_hidden_draws:
            for of_all, draws in ((samples, config.cached_hidden_draws), (validation, 1)):
                for part in _parts(of_all):
                    _cache_hidden(model, part, draws, config, description, out)

    result = run(stage, config.loop, description, out, fresh=fresh, prepare=prepare)
    if result.outcome.finished:
        shutil.rmtree(out / HIDDEN, ignore_errors=True)  # large, and of no use any more
    return result


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """One of the datasets of a run."""

    sources: Sources
    embodiment: Embodiment
    scaling: PolicyScaling

    def samples(self, config: PolicyTraining, episodes: Sequence[int]) -> PolicySamples | None:
        """Samples of some episodes; None where there are none."""
        assert config.model.action is not None
        if not episodes:
            return None
        return PolicySamples(
            self.sources.dataset,
            self.sources.features,
            episodes=episodes,
            chunk=config.model.action.chunk,
            scaling=self.scaling,
            embodiment=self.embodiment,
        )


def _open(config: PolicyTraining, data: Path, key: str) -> list[TrainedOn]:
    """Opens all datasets, the policy's own first, and fits the normalisers of each to its training episodes."""
    found = []
    own = MixedIn(data=str(data), embodiment=config.embodiment)
    for part in (own, *config.also):
        sources = Sources.open(
            Path(part.data), key, config.split, token_width=config.model.token_width, embodiment=part.embodiment
        )
        scaling = fit_scaling(config, sources, part.embodiment)
        found.append(TrainedOn(sources=sources, embodiment=part.embodiment, scaling=scaling))
    return found


def _mixed(parts: Sequence[PolicySamples | None]) -> PolicySamples | MixedSamples | None:
    present = [part for part in parts if part is not None]
    return MixedSamples(present) if len(present) > 1 else next(iter(present), None)


def _parts(samples: PolicySamples | MixedSamples | None) -> tuple[PolicySamples, ...]:
    if samples is None:
        return ()
    return samples.parts if isinstance(samples, MixedSamples) else (samples,)


@dataclass(frozen=True, kw_only=True)
class MotionOrigin:
    """What is known of the Motion Expert that is built in."""

    source: MotionSource
    flow: FlowRecord


def build_model(
    config: PolicyTraining, sources: Sources, motion_checkpoint: Path | None
) -> tuple[LaMP, MotionOrigin | None]:
    """Builds the model, with the weights of the motion checkpoint in its Motion Expert.

    Raises:
        ConfigError: There is a checkpoint and no Motion Expert in the configuration, or the other way round.
        MismatchError: The checkpoint has another Motion Expert or backbone.
    """
    if (motion_checkpoint is None) != (config.model.motion is None):
        has, lacks = (
            ("a Motion Expert", "checkpoint") if motion_checkpoint is None else ("a checkpoint", "Motion Expert")
        )
        raise ConfigError(
            f"there is {has} but no {lacks}: give --motion CHECKPOINT with a recipe that has a motion prior, "
            "or neither of both for a policy without motion."
        )
    seed_everything(config.loop.seed, "weights")
    model = LaMP(config.model)
    if motion_checkpoint is None or config.model.motion is None:
        return model, None
    wanted = config.model.motion
    expected = Expected(
        kind="motion",
        backbone_key=sources.features.key,
        backbone=sources.backbone.description,
        grid=wanted.grid,
        horizon=wanted.horizon,
    )
    trained, description = load_checkpoint(motion_checkpoint, expected=expected)
    assert description.model.motion is not None
    # Which layer z_m is read from is Stage 2's choice: Stage 1 trains them all alike.
    given = replace(description.model.motion, hidden_layer=wanted.hidden_layer)
    found = first_difference(to_json(given), to_json(wanted), "model.motion")
    if found is not None:
        name, have, asked = found
        raise MismatchError(
            f"motion checkpoint {motion_checkpoint} has {name} = {have!r}; the recipe asks for {asked!r}."
        )
    weights = motion_weights(trained.state_dict())
    model.load_state_dict(weights, strict=False)
    assert description.flow is not None
    source = MotionSource(sha256=content_hash(weights), step=description.step, data=description.data)
    return model, MotionOrigin(source=source, flow=description.flow)


def fit_scaling(config: PolicyTraining, sources: Sources, embodiment: Embodiment = OWN) -> PolicyScaling:
    """Fits the normalisers to the training episodes.

    Raises:
        MismatchError: The data's state or action width is not the model's, or its gripper is not 0 to 1.
    """
    action, root = config.model.action, sources.dataset.root
    assert action is not None
    raw, actions = stacked(sources.dataset, sources.split.train, action.chunk, embodiment)
    states = config.state_transform.apply(raw)
    for name, found, wanted in (("state", states, action.state_dim), ("action", actions, action.action_dim)):
        if found.shape[1] != wanted:
            raise MismatchError(
                f"{root} has {name}s of {found.shape[1]} values (after the state transform); "
                f"the model's {name}_dim is {wanted}: expected the same."
            )
    binary: Sequence[int] = () if config.gripper is None else (config.gripper % actions.shape[1],)
    for dimension in binary:
        low, high = float(actions[:, dimension].min()), float(actions[:, dimension].max())
        if not -GRIPPER_MARGIN <= low <= high <= 1 + GRIPPER_MARGIN:
            raise MismatchError(
                f"{root}: the gripper, dimension {dimension} of the action, goes from {low:g} to {high:g}; expected 0 to 1. "
                "Give the embodiment its convention, or set gripper to None to learn it as any other dimension."
            )
    return PolicyScaling(
        state_transform=config.state_transform,
        state=config.state_fit.fit(states),
        actions=config.action_fit.fit(actions, binary=binary),
    )


def _unseen(sources: Sources, motion: MotionOrigin) -> tuple[int, ...]:
    episodes = sources.unseen_by(motion.source.data)
    if not episodes:
        raise ConfigError(
            "prior_on is UnseenEpisodes, but Stage 1 was trained on every episode that Stage 2 has: train it with a larger "
            "split.validation_share (0.5) or on other data, or choose AllEpisodes."
        )
    return episodes


def _cache_hidden(
    model: LaMP, samples: PolicySamples, draws: int, config: PolicyTraining, description: Description, out: Path
) -> None:
    assert description.motion_source is not None
    depends = {
        "motion": description.motion_source.sha256,
        "motion_expert": to_json(config.model.motion),
        "data": _fingerprint_of(samples, description),
        "episodes": samples.episodes,
        "hidden_at": to_json(config.model.hidden_at),
        "solver_steps": config.model.solver_steps,
        "precision": to_json(config.loop.precision),
        "draws": draws,
        "seed": config.loop.seed,
    }
    cache = HiddenCache(folder=out / HIDDEN, key=hashlib.sha256(to_line(depends).encode()).hexdigest()[:16])
    progress = Progress("motion hidden states")
    try:
        samples.motion_hidden = cache.fill(
            model.eval(),
            samples,
            draws=draws,
            loop=config.loop,
            report=lambda done, total: progress.show(
                f"{done}/{total} samples, {draws} draws each", force=done == total
            ),
        )
    finally:
        progress.close()


def _fingerprint_of(samples: PolicySamples, description: Description) -> str:
    """Of the dataset that the samples are of; the run's own has the run's."""
    assert description.policy is not None
    root = samples.features.dataset.root
    others = {other.root: other.data.fingerprint for other in description.policy.others}
    return others.get(str(root), description.data.fingerprint)


def _describe(
    config: PolicyTraining, datasets: Sequence[TrainedOn], parts: Sequence[PolicySamples], motion: MotionOrigin | None
) -> Description:
    assert config.model.action is not None
    own, *others = [
        OtherDataset(
            root=str(one.sources.dataset.root),
            data=one.sources.record(samples=len(part)),
            state_width=one.embodiment.states(one.sources.dataset, 0).shape[1],
            scaling=one.scaling,
            fps=one.sources.dataset.fps,
            embodiment=one.embodiment,
        )
        for one, part in zip(datasets, parts, strict=True)
    ]
    policy = PolicyRecord(
        state_width=own.state_width,
        scaling=own.scaling,
        chunk=config.model.action.chunk,
        execute=config.execute,
        fps=own.fps,
        embodiment=own.embodiment,
        others=tuple(others),
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
        data=sources.record(samples=sum(map(len, parts)), also=[other.data.fingerprint for other in others]),
        step=0,
        averaged=config.loop.ema is not None,
        exactly_reproducible=config.loop.time_budget_s is None,
        code=lamp.version.code_version(),
        packages=lamp.version.package_versions(),
    )
