"""Stage-1 samples: observations with the scene flow that follows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lamp.configuration import to_json
from lamp.data.feature_cache.cache import Features
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.live_features import concatenate_encoded
from lamp.data.mixture import FeatureSamples, Mixture
from lamp.errors import DataError
from lamp.sceneflow.normalization import BoundsRule, MotionBounds
from lamp.sceneflow.retiming import ByTime, Retiming
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.tracks import Supervision, flow_from_tracks, retime
from lamp.types import Camera, Encoded, MotionBatch, SceneFlow, Tracks


@dataclass(frozen=True, kw_only=True)
class TrueMotion:
    """The scene flow that follows each frame of a dataset, as the Motion Expert would see it: what an oracle knows."""

    store: SceneFlowStore
    camera: str
    horizon: int
    """Flow steps."""
    stride: int
    """Stored flow steps for each of them."""
    bounds: MotionBounds
    supervision: Supervision

    def of(self, episode: int, frames: Int64[np.ndarray, " f"]) -> Float[Tensor, "f k t 3"]:
        """Normalised increments from some frames on, 0 where they are not known (past the episode's end, hidden)."""
        tracks, camera = self.store.read(episode, frames, self.camera)
        retimed = retime(tracks, stride=self.stride, horizon=self.horizon)
        return self.bounds.motion(flow_from_tracks(retimed, camera, supervision=self.supervision)).values

    def check(self, dataset: LeRobotDataset, episodes: Sequence[int]) -> None:
        """
        Raises:
            DataError: The store lacks an episode, or a frame with a picture of its own.
        """
        stored = self.store.all_frames(episodes, self.camera)
        for episode, frames in zip(episodes, stored, strict=True):
            lacking = np.setdiff1d(np.flatnonzero(dataset.fresh(episode)), frames)
            if len(lacking):
                raise DataError(
                    f"{self.store.path} has no scene flow from frame {lacking[0]} of episode {episode} on; an oracle needs that "
                    f"of every frame with a picture of its own: `lamp flow build {dataset.root} --every 1` with the store's "
                    "other settings makes another beside it"
                )

    @property
    def as_json(self) -> dict[str, Any]:
        """What the motion of a frame depends on, but the recording."""
        described = {"store": to_json(replace(self.store.description, source="")), "camera": self.camera}
        settings = {"horizon": self.horizon, "stride": self.stride, "bounds": to_json(self.bounds)}
        return described | settings | {"supervision": to_json(self.supervision)}


MEMORY_LIMIT = 6 << 30
"""Scene flow is kept in memory up to this many bytes, and read again each time beyond."""


class MotionSamples(FeatureSamples):
    """(observation, scene flow) for every stored frame of some episodes.

    An episode's scene flow is read and retimed at the first access to one of its samples.
    """

    def __init__(
        self,
        features: Features,
        store: SceneFlowStore,
        *,
        episodes: Sequence[int],
        horizon: int,
        stride: int = 1,
        retiming: Retiming | None = None,
        bounds: MotionBounds | BoundsRule,
        supervision: Supervision | None = None,
        camera: str | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ):
        """
        Args:
            features: The backbone's tokens of all fresh frames of the dataset.
            horizon: Flow steps of a sample.
            stride: Stored flow steps per flow step of a sample, where these are of time.
            retiming: What a flow step of a sample is; by default, so much time.
            bounds: What maps to [-1, 1], or the rule to find it from these episodes.
            camera: The reference camera; the store's first by default.
            memory_limit: Bytes of scene flow to keep.

        Raises:
            DataError: There are no episodes to take, or the store lacks one, or holds frames that are not fresh.
            MismatchError: The store's horizon is too short.
        """
        if not episodes:
            raise DataError(f"no episodes of {store.path} to take samples from; expected at least one")
        self.features, self.store, self.horizon, self.stride = features, store, horizon, stride
        self.retiming: Retiming = retiming or ByTime()
        self.episodes = tuple(episodes)
        self.camera = camera or store.description.cameras[0]
        self._supervision, self._memory_limit = supervision, memory_limit
        self._kept: dict[int, SceneFlow] = {}
        self._kept_bytes = 0
        stored = [frames.astype(np.int64) for frames in store.all_frames(episodes, self.camera)]
        self.frame: Int64[np.ndarray, " n"] = np.concatenate(stored)
        """The present frame of each sample, in its episode."""
        self.episode: Int64[np.ndarray, " n"] = np.repeat(np.asarray(episodes, np.int64), [len(of) for of in stored])
        """The episode of each sample."""
        self.rows: Int64[np.ndarray, " n"] = np.concatenate(
            [features.index.rows(episode, frames) for episode, frames in zip(episodes, stored, strict=True)]
        )
        self.pairing: Int64[np.ndarray, " n"] | None = None
        """The sample whose motion stands in the place of each one's own (`shuffled_pairing`); None: its own."""
        self._first = dict(zip(episodes, np.cumsum([0, *map(len, stored[:-1])]).tolist(), strict=True))
        """The first sample of each episode."""
        if len(self.rows) == 0:
            raise DataError(f"the scene flow of {store.path} holds no frames of episodes {self.episodes}")
        # Even with given bounds: a store that is too short should be refused here, not at some batch.
        self._retimed(*store.read(episodes[0], self.frame[:1], self.camera))
        self.bounds: MotionBounds = bounds.fit(self.flows())

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads what it needs itself."""
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0}

    @property
    def scene_flow(self) -> MotionSamples:
        """The scene flow that batches bring, as in `PolicySamples`."""
        return self

    @property
    def frames_per_step(self) -> int:
        """Frames of the dataset for each flow step."""
        return self.stride * self.store.description.sampling.stride

    def flows(self) -> Iterator[SceneFlow]:
        """The scene flow of each episode."""
        return (self._episode_flow(episode) for episode in self.episodes)

    def encoded(self, indices: Int64[np.ndarray, " b"]) -> Encoded:
        """The backbone's tokens of some samples."""
        return self.features.encoded(self.rows[indices])

    def _retimed(self, tracks: Tracks, camera: Camera) -> Tracks:
        return self.retiming.tracks(tracks, camera, stride=self.stride, horizon=self.horizon)

    def _episode_flow(self, episode: int) -> SceneFlow:
        if episode in self._kept:
            return self._kept[episode]
        frames = self.store.frames(episode, self.camera)
        tracks, camera = self.store.read(episode, frames, self.camera)
        flow = flow_from_tracks(self._retimed(tracks, camera), camera, supervision=self._supervision)
        # Slices of what was read would keep all of it in memory.
        flow = flow.changed(lambda tensor: tensor.clone())
        size = sum(tensor.nbytes for tensor in (flow.start, flow.increments, flow.visible, flow.mask))
        if self._kept_bytes + size <= self._memory_limit:
            self._kept[episode] = flow
            self._kept_bytes += size
        return flow

    def flow(self, indices: Int64[np.ndarray, " b"]) -> SceneFlow:
        """The scene flow of some samples, in image fractions and metres."""
        parts, order = [], []
        for episode, places in self._by_episode(indices):
            order.append(places)
            local = torch.from_numpy(indices[places] - self._first[episode])
            parts.append(self._episode_flow(episode).changed(lambda tensor, local=local: tensor[local]))
        return concatenate_flow(parts, torch.from_numpy(np.argsort(np.concatenate(order))))

    def _by_episode(self, indices: Int64[np.ndarray, " b"]) -> Iterator[tuple[int, Int64[np.ndarray, "..."]]]:
        """Each episode that some samples are of, and where in the indices these are."""
        episodes = self.episode[indices]
        order = np.argsort(episodes, kind="stable")
        taken, cuts = np.unique(episodes[order], return_index=True)
        yield from zip(taken.tolist(), np.split(order, cuts[1:]), strict=True)

    def earlier(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """The samples one flow step (of these samples) before, -1 where there is none or steps are not of time."""
        step = self.frames_per_step
        before = np.full(len(indices), -1, np.int64)
        if not isinstance(self.retiming, ByTime):
            return before
        for episode, places in self._by_episode(indices):
            first, count = self._first[episode], len(self.store.frames(episode, self.camera))
            present, wanted = self.frame[first : first + count], self.frame[indices[places]] - step
            near = np.searchsorted(present, wanted)
            before[places] = np.where(present[np.minimum(near, count - 1)] == wanted, first + near, -1)
        return before

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> MotionBatch:
        """Collates samples; every epoch is alike."""
        shown = indices if self.pairing is None else self.pairing[indices]
        return MotionBatch(encoded=self.encoded(indices), motion=self.bounds.motion(self.flow(shown)))

    def clamp_rate(self) -> tuple[float, float, float]:
        """Share of these samples' supervising increments that lie beyond the bounds, per axis."""
        return clamp_rate([self])


def shuffled_pairing(groups: Int64[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    """Pairs each sample with one of another group (episode), and each is some other's partner.

    Where one group has more than half of the samples, some of them are paired within it.
    """
    generator, count = np.random.default_rng((0x5AFF1E, seed)), len(groups)
    partner = generator.permutation(count)
    for one in np.flatnonzero(groups[partner] == groups).tolist():
        # Exchange partners with some sample that both exchanges suit.
        start = int(generator.integers(count))
        other = np.roll(np.arange(count), -start)
        suits = (groups[partner[other]] != groups[one]) & (groups[partner[one]] != groups[other])
        if groups[partner[one]] == groups[one] and suits.any():
            exchanged = int(other[np.argmax(suits)])
            partner[one], partner[exchanged] = partner[exchanged], partner[one]
    return partner


def clamp_rate(parts: Sequence[MotionSamples]) -> tuple[float, float, float]:
    """Share of the samples' supervising increments that lie beyond their bounds, per axis."""
    clamped, counted = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for part in parts:
        for flow in part.flows():
            count = flow.mask.sum((0, 1, 2)).double()
            clamped += torch.tensor(part.bounds.clamp_rate(flow), dtype=torch.float64) * count
            counted += count
    du, dv, dd = (clamped / counted.clamp(min=1)).tolist()
    return du, dv, dd


LEAST_STD = 0.01
"""A spread of normalised increments is taken to be at least this: less is a camera that saw nothing move."""


def flow_std(parts: Sequence[MotionSamples]) -> tuple[float, float, float]:
    """Standard deviation of the samples' supervising increments, normalised by their bounds, per axis."""
    count, first, second = (torch.zeros(3, dtype=torch.float64) for _ in range(3))
    for part in parts:
        for flow in part.flows():
            values = part.bounds.motion(flow).values.double()  # zero where masked
            count += flow.mask.sum((0, 1, 2))
            first += values.sum((0, 1, 2))
            second += values.square().sum((0, 1, 2))
    mean = first / count.clamp(min=1)
    std = (second / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt().clamp(min=LEAST_STD)
    du, dv, dd = (float(f"{value:.4g}") for value in std.tolist())
    return du, dv, dd


def concatenate_flow(parts: Sequence[SceneFlow], order: Tensor) -> SceneFlow:
    """Puts batches together, then into an order."""
    joined = (torch.cat(tensors)[order] for tensors in zip(*(part.tensors() for part in parts), strict=True))
    return parts[0].changed(lambda _: next(joined))


class MixedMotionSamples(Mixture[MotionSamples]):
    """Samples of Stage 1, all with the same bounds: the Motion Expert's outputs mean the same motion in every dataset."""

    def __init__(self, parts: Sequence[MotionSamples]) -> None:
        super().__init__(parts)
        first = self.parts[0]
        self.bounds, self.horizon, self.frames_per_step = first.bounds, first.horizon, first.frames_per_step
        self.camera, self.store = first.camera, first.store
        self.pairing: Int64[np.ndarray, " n"] | None = None
        """As in `MotionSamples`, over all datasets."""
        self.episode: Int64[np.ndarray, " n"] = np.concatenate([part.episode for part in self.parts])
        """The episode of each sample, in its own dataset."""
        self.frame: Int64[np.ndarray, " n"] = np.concatenate([part.frame for part in self.parts])

    def _traits(self, part: MotionSamples) -> dict[str, object]:
        grid = part.store.description.sampling.grid
        return {"grid": grid, "flow steps": part.horizon, "bounds": part.bounds}

    def flow(self, indices: Int64[np.ndarray, " b"]) -> SceneFlow:
        return concatenate_flow(*self._each(indices, MotionSamples.flow))

    def encoded(self, indices: Int64[np.ndarray, " b"]) -> Encoded:
        encoded, order = self._each(indices, MotionSamples.encoded)
        return concatenate_encoded(encoded, order, self.parts[0].features.padding)

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> MotionBatch:
        shown = indices if self.pairing is None else self.pairing[indices]
        return MotionBatch(encoded=self.encoded(indices), motion=self.bounds.motion(self.flow(shown)))

    def earlier(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        out = np.full(len(indices), -1, np.int64)
        for of, at in self._places(indices):
            before = self.parts[of].earlier(indices[at] - self._starts[of])
            out[at] = np.where(before < 0, -1, before + self._starts[of])
        return out

    def clamp_rate(self) -> tuple[float, float, float]:
        """Share of the supervising increments of all datasets that lie beyond the bounds, per axis."""
        return clamp_rate(self.parts)


AnyMotionSamples = MotionSamples | MixedMotionSamples
