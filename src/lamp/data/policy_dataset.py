"""Stage-2 samples: observations with the actions that follow them; the split of episodes; several datasets mixed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from lamp.data.augmentation import sample_views
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.feature_cache.cache import Features, HiddenStates
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.live_features import concatenate_encoded
from lamp.data.mixture import FeatureSamples, Mixture
from lamp.data.motion_dataset import MotionSamples
from lamp.data.normalizers import Normaliser, StateTransform
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.types import Motion, PolicyBatch


@dataclass(frozen=True, kw_only=True)
class EpisodeSplit:
    """Which episodes are trained on and which are held out."""

    train: tuple[int, ...]
    validation: tuple[int, ...]

    def without(self, episodes: Collection[int]) -> EpisodeSplit:
        """The same split of the other episodes."""
        gone = set(episodes)
        train, validation = (tuple(one for one in part if one not in gone) for part in (self.train, self.validation))
        return EpisodeSplit(train=train, validation=validation)


def split_episodes(tasks: Sequence[str], *, validation_share: float, seed: int = 0) -> EpisodeSplit:
    """Holds out a share of every task's episodes, chosen by the seed.

    Args:
        validation_share: Above 0, at least one episode is held out (of a task with more than one), and of each task about
            this share; but never all of a task's.

    Raises:
        ConfigError: The share is not in [0, 1).
    """
    if not 0 <= validation_share < 1:
        raise ConfigError(
            f"a validation share of {validation_share} is not possible; expected 0 <= share < 1, such as 0.1"
        )
    generator = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for episode, task in enumerate(tasks):
        groups.setdefault(task, []).append(episode)
    shuffled = [generator.permutation(np.array(group)) for group in groups.values()]
    # Rounding the running total, not each task's share, keeps the whole near the share when tasks have few episodes.
    due, held = 0.0, []
    for group in shuffled:
        due += len(group) * validation_share
        count = min(max(round(due) - len(held), 0), len(group) - 1)
        held += group[:count].tolist()
    if not held and validation_share > 0:
        held = next((group[:1].tolist() for group in shuffled if len(group) > 1), [])
    train = sorted(set(range(len(tasks))) - set(held))
    return EpisodeSplit(train=tuple(train), validation=tuple(sorted(held)))


@dataclass(frozen=True, kw_only=True)
class PolicyScaling:
    """How states and actions are mapped to what the model sees."""

    state_transform: StateTransform
    state: Normaliser
    actions: Normaliser

    def scaled_state(self, raw: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n p"]:
        """Raw states to what the model sees."""
        return self.state.normalise(self.state_transform.apply(raw))


MAX_FITTED_ROWS = 1 << 23
"""Actions that normalisers are fitted to at most, where each is a part of several chunks: evenly spread chunks, beyond that."""


def states_and_actions(
    dataset: LeRobotDataset, episodes: Sequence[int], chunk: int, embodiment: Embodiment = OWN, step: int = 1
) -> tuple[Float32[np.ndarray, "n s"], Float32[np.ndarray, "m a"]]:
    """Raw states and learnt actions of some episodes, one after another, to fit normalisers to.

    Where an action differs from chunk to chunk, it is taken once for each chunk of the given length that it is part of; of a
    dataset with more than `MAX_FITTED_ROWS` of these, every n-th frame's chunk is taken.

    Args:
        chunk: Actions of a chunk.
        embodiment: What of the dataset is state and action, and what is learnt of the actions.
        step: Frames for each action of a chunk.
    """
    states = np.concatenate([embodiment.states(dataset, episode) for episode in episodes])
    if embodiment.per_frame:
        return states, np.concatenate([embodiment.actions(dataset, episode) for episode in episodes])
    every = max(1, -(-len(states) * chunk // MAX_FITTED_ROWS))
    parts, passed = [], 0
    for episode in episodes:
        chunks = embodiment.chunks(dataset, episode, chunk * step)[:, step - 1 :: step]
        inside = np.arange(len(chunks))[:, None] + _action_offsets(chunk, step) < len(chunks)
        taken = slice(-passed % every, None, every)
        parts.append(chunks[taken][inside[taken]])
        passed += len(chunks)
    return states, np.concatenate(parts)


def _action_offsets(chunk: int, step: int) -> Int64[np.ndarray, " h"]:
    """How many frames after its observation each target of a chunk was given: at a lower rate, the last of each step's."""
    return np.arange(1, chunk + 1) * step - 1


class PolicyTargets:
    """Normalised states, and the action chunks that follow them, of some frames of some episodes: arrays, by sample."""

    def __init__(
        self,
        dataset: LeRobotDataset,
        *,
        episodes: Sequence[int],
        frames: Sequence[Int64[np.ndarray, "..."]],
        chunk: int,
        scaling: PolicyScaling,
        embodiment: Embodiment = OWN,
        step: int = 1,
    ):
        """
        Args:
            frames: Of each episode, the frames that are samples.
            chunk: Actions per sample, H + 1 in the paper's count.
            embodiment: What of the dataset is state and action, and what is learnt of the actions.
            step: Frames for each action of a chunk: more than 1 brings a dataset of targets to a lower rate.

        Raises:
            ConfigError: The chunk is empty.
            DataError: There are no episodes to take, or one has no instruction, or a value that is not finite.
        """
        if chunk < 1:
            raise ConfigError(f"a chunk of {chunk} actions is not possible; expected at least 1")
        if not episodes:
            raise DataError(f"no episodes of {dataset.root} to take samples from; expected at least one")
        self.chunk, self.scaling, self.embodiment = chunk, scaling, embodiment
        self._relative = None if embodiment.per_frame else embodiment.kind
        self._action_offsets = _action_offsets(chunk, step)
        self.episode: Int64[np.ndarray, " n"] = np.repeat(np.asarray(episodes, np.int64), [len(of) for of in frames])
        """The episode of each sample."""
        self.frame: Int64[np.ndarray, " n"] = np.concatenate(frames).astype(np.int64)
        """Its frame in that episode."""
        self.instructions, self.instruction_index = dataset.instruction_index(episodes, frames)
        """All instructions of the samples, and the index of each sample's: that of its frame, however far the chunk goes."""
        blank_indices = [index for index, text in enumerate(self.instructions) if not text.strip()]
        blank = np.isin(self.instruction_index, blank_indices)
        if blank.any():
            first = int(blank.argmax())
            raise DataError(
                f"{dataset.root}: episode {self.episode[first]} has no task text at frame {self.frame[first]}; leave it out, or "
                "give it an instruction"
            )
        states, actions, first, last, ends, start = [], [], [], [], [], 0
        for episode, of_episode in zip(episodes, frames, strict=True):
            states.append(embodiment.states(dataset, episode)[of_episode])
            actions.append(embodiment.actions(dataset, episode))
            first.append(start + of_episode)
            length, overridden = len(actions[-1]), dataset.overridden(episode)
            # The actions that follow from a frame end with the next overridden one, or with the episode.
            end = np.where(overridden, np.arange(1, len(overridden) + 1), length)
            ends.append(start + np.minimum.accumulate(end[::-1])[::-1][of_episode])
            start += length
            last.append(np.full(len(of_episode), start - 1))
        self._raw_states = np.concatenate(states)
        self._states = torch.from_numpy(scaling.scaled_state(self._raw_states))
        self._actions = np.concatenate(actions)
        if self._relative is None:
            self._actions = scaling.actions.normalise(self._actions)
        self._first, self._last, self._ends = map(np.concatenate, (first, last, ends))

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def targets(self) -> PolicyTargets:
        """States and actions."""
        return self

    def states(self, indices: Int64[np.ndarray, " b"]) -> Float[Tensor, "b s"]:
        """The states of some samples, as the model sees them."""
        return self._states[torch.from_numpy(indices)]

    def chunks(self, indices: Int64[np.ndarray, " b"]) -> tuple[Float[Tensor, "b h a"], Bool[Tensor, "b h"]]:
        """Normalised action chunks, and which of their actions count; past the episode's end the last is held.

        An action counts within the episode, and up to the first one that was overridden: those after it answer a push that
        the observation cannot tell of.
        """
        places = self._first[indices][:, None] + self._action_offsets
        mask = torch.from_numpy(places < self._ends[indices][:, None])
        actions = self._actions[np.minimum(places, self._last[indices][:, None])]
        if self._relative is not None:
            related = self._relative.relate(actions, self._raw_states[indices])
            actions = self.scaling.actions.normalise(related.astype(np.float32))
        return torch.from_numpy(actions), mask


class PolicySamples(PolicyTargets, FeatureSamples):
    """(observation, state, action chunk) for every fresh frame of some episodes, in memory but for the features."""

    def __init__(
        self,
        dataset: LeRobotDataset,
        features: Features,
        *,
        episodes: Sequence[int],
        chunk: int,
        scaling: PolicyScaling,
        embodiment: Embodiment = OWN,
        motion_hidden: HiddenStates | None = None,
        view_seed: int | None = None,
        step: int = 1,
    ):
        """Arguments and errors are those of `PolicyTargets`, and:

        Args:
            features: The backbone's tokens of all fresh frames of the dataset.
            motion_hidden: z_m for every sample, for several noise draws; may be set later.
            view_seed: Of the choice, for each sample and epoch, among the picture and its augmented views; None: the pictures
                themselves, as validation needs them.
        """
        rows = [features.index.of_episode(episode) for episode in episodes]
        super().__init__(
            dataset,
            episodes=episodes,
            frames=[features.index.frame[of.start : of.stop] for of in rows],
            chunk=chunk,
            scaling=scaling,
            embodiment=embodiment,
            step=step,
        )
        self.features, self.episodes = features, tuple(episodes)
        self.rows: Int64[np.ndarray, " n"] = np.concatenate([np.arange(of.start, of.stop) for of in rows])
        """The row of each sample in the features' index."""
        self._view_seed = view_seed if features.augmentation.views else None
        self._views: tuple[int, Int64[np.ndarray, " n"]] | None = None
        self._hidden: HiddenStates | None = None
        self.motion_hidden = motion_hidden
        self._prior_seen: Bool[Tensor, " n"] | None = None
        self.scene_flow: MotionSamples | None = None
        """The scene flow of the same dataset, where batches are to bring it (`with_flow`)."""
        self._flow_at: Int64[np.ndarray, " n"] | None = None

    @property
    def dataset(self) -> LeRobotDataset:
        return self.features.dataset

    @property
    def motion_hidden(self) -> HiddenStates | None:
        """z_m precomputed for every sample, for several noise draws."""
        return self._hidden

    @motion_hidden.setter
    def motion_hidden(self, hidden: HiddenStates | None) -> None:
        """
        Raises:
            MismatchError: It was made for another number of samples.
        """
        if hidden is not None and (len(hidden) != len(self) or hidden.draws < 1):
            raise MismatchError(f"the hidden states cover {len(hidden)} samples; expected {len(self)}, one entry each")
        self._hidden = hidden

    def with_flow(self, flow: MotionSamples) -> None:
        """Lets batches bring the scene flow that follows; where a frame has none, nothing supervises.

        Raises:
            DataError: No frame has any.
        """
        ours, theirs = ((one.episode << 32) + one.frame for one in (self, flow))
        order = np.argsort(theirs)
        at = order[np.minimum(np.searchsorted(theirs, ours, sorter=order), len(theirs) - 1)]
        self.scene_flow, self._flow_at = flow, np.where(theirs[at] == ours, at, -1)
        if (self._flow_at < 0).all():
            raise DataError(f"{flow.store.path} holds scene flow of none of the frames that are trained on")

    def _motion(self, indices: Int64[np.ndarray, " b"]) -> Motion | None:
        if self.scene_flow is None or self._flow_at is None:
            return None
        at = self._flow_at[indices]
        motion = self.scene_flow.bounds.motion(self.scene_flow.flow(np.maximum(at, 0)))
        known = torch.from_numpy(at >= 0)[:, None, None, None]
        return Motion(values=motion.values.where(known, 0.0), mask=motion.mask & known)

    def show_prior_in(self, episodes: Sequence[int]) -> None:
        """Lets only the samples of these episodes see the motion prior."""
        self._prior_seen = torch.from_numpy(np.isin(self.episode, np.asarray(episodes, np.int64)))

    def views(self, indices: Int64[np.ndarray, " b"], *, epoch: int) -> Int64[np.ndarray, " b"] | None:
        """In which view samples are seen in an epoch: 0 the picture itself; None where none is augmented."""
        if self._view_seed is None:
            return None
        if self._views is None or self._views[0] != epoch:
            views = sample_views(len(self), self.features.augmentation.views, seed=self._view_seed, epoch=epoch)
            self._views = epoch, views
        return self._views[1][indices]

    @property
    def view_count(self) -> int:
        """Augmented views that samples may be seen in, besides the pictures themselves."""
        return 0 if self._view_seed is None else self.features.augmentation.views

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> PolicyBatch:
        """Collates samples, each in the view of this epoch; where z_m is cached, each epoch takes the next of its draws."""
        actions, mask = self.chunks(indices)
        views, hidden = self.views(indices, epoch=epoch), None
        if self._hidden is not None:
            z_m = self._hidden.take(indices, (indices + epoch) % self._hidden.draws, views)
            hidden = torch.from_numpy(z_m.astype(np.float32))
        return PolicyBatch(
            encoded=self.features.encoded(self.rows[indices], views),
            state=self.states(indices),
            actions=actions,
            action_mask=mask,
            motion_hidden=hidden,
            motion=self._motion(indices),
            prior_seen=None if self._prior_seen is None else self._prior_seen[torch.from_numpy(indices)],
        )


class MixedSamples(Mixture[PolicySamples]):
    """Samples of Stage 2; each is scaled by its dataset's own normalisers."""

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> PolicyBatch:
        """Collates samples, in the order of the indices.

        Raises:
            MismatchError: Only some of the datasets have z_m cached.
        """
        batches, order = self._each(indices, lambda part, of_part: part.batch(of_part, epoch=epoch))
        if len(batches) == 1:
            return batches[0]
        hidden = [batch.motion_hidden for batch in batches if batch.motion_hidden is not None]
        if hidden and len(hidden) < len(batches):
            raise MismatchError("only some of the mixed datasets have motion_hidden; expected all or none")
        seen = [
            torch.ones(len(one.state), dtype=torch.bool) if one.prior_seen is None else one.prior_seen
            for one in batches
        ]
        return PolicyBatch(
            encoded=concatenate_encoded([batch.encoded for batch in batches], order, self.parts[0].features.padding),
            state=torch.cat([batch.state for batch in batches])[order],
            actions=torch.cat([batch.actions for batch in batches])[order],
            action_mask=torch.cat([batch.action_mask for batch in batches])[order],
            motion_hidden=torch.cat(hidden)[order] if hidden else None,
            prior_seen=torch.cat(seen)[order] if any(one.prior_seen is not None for one in batches) else None,
        )

    def _traits(self, part: PolicySamples) -> dict[str, object]:
        actions, state = part.scaling.actions.width, part.scaling.state.width
        return {"chunk": part.chunk, "action width": actions, "state width": state}
