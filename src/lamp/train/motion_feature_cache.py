"""z_m of samples, computed once: Stage 2 then trains without the Motion Expert.

It is kept in shards, one an episode: beside the dataset's features, by `lamp cache features --motion`, for any run that follows;
else in the run's own folder while it lasts. Each sample gets several noise draws; each draw has its own address (seed, draw,
episode, frame), so the noise depends neither on the batches in which z_m was computed nor on which process did.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor
from typing_extensions import TypedDict

from lamp.configuration import to_json
from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.build import BuildPlan, build_with_progress
from lamp.data.feature_cache.cache import Features, HiddenStates
from lamp.data.feature_cache.manifest import HIDDEN, HIDDEN_MANIFEST, FeatureStore, advice, differences
from lamp.data.feature_cache.shards import EpisodeFingerprints, ShardState, check_space, one_error_when_full
from lamp.data.feature_cache.work_sharing import BuildProgress, Workers
from lamp.data.motion_dataset import TrueMotion
from lamp.data.policy_dataset import PolicySamples
from lamp.errors import DataError
from lamp.json_files import read_json_as, to_line, write_json
from lamp.model.lamp import ORACLE_TAU, LaMP, LaMPConfig, required
from lamp.sceneflow.store import SceneFlowStore
from lamp.seeding import generator_at
from lamp.train.config import LoopConfig, PolicyTraining
from lamp.types import Encoded

SAMPLES_AT_ONCE = 32
MOTION = " --motion CHECKPOINT"
FORMAT, VERSION = "lamp-hidden", 1


@dataclass(frozen=True, kw_only=True)
class HiddenStateSettings:
    """Everything that z_m of a frame depends on, but the frame."""

    motion: str
    """Hash of the Motion Expert's weights."""
    model: LaMPConfig
    loop: LoopConfig
    features: str
    """Key of the backbone."""
    true_motion: TrueMotion | None = None
    """Of which an oracle's z_m is; None: it is of noise."""

    @property
    def as_json(self) -> dict[str, Any]:
        """The same as JSON values, to compare with those that are stored."""
        expert = {"motion weights": self.motion, "motion_expert": to_json(self.model.motion)}
        if self.model.path is not None:
            expert |= {"path": to_json(self.model.path)}
        rest = {"precision": to_json(self.loop.precision), "features": self.features}
        if self.true_motion is not None:
            return expert | rest | {"prior": "oracle", "tau": ORACLE_TAU, "scene flow": self.true_motion.as_json}
        noise = {"hidden_at": to_json(self.model.hidden_at), "solver_steps": self.model.solver_steps}
        return expert | noise | rest | {"seed": self.loop.seed}

    @property
    def key(self) -> str:
        """A hash of them."""
        return hashlib.sha256(to_line(self.as_json).encode()).hexdigest()[:16]


def hidden_settings(
    config: PolicyTraining, motion: str, features: str, true_motion: TrueMotion | None = None
) -> HiddenStateSettings:
    """What z_m depends on in a training.

    Args:
        motion: Hash of the Motion Expert's weights.
        features: Key of the backbone.
        true_motion: What an oracle knows.
    """
    return HiddenStateSettings(
        motion=motion, model=config.model, loop=config.loop, features=features, true_motion=true_motion
    )


@dataclass(frozen=True, kw_only=True)
class HiddenStateTask:
    """Computes z_m of episodes."""

    store: FeatureStore
    features: Features
    model: LaMP
    settings: HiddenStateSettings
    draws: int
    device: list[str]
    """One: where the model is."""

    @property
    def folder(self) -> Path:
        """The store's."""
        return self.store.folder

    def load(self, device: str | None) -> None:
        """Moves the model."""
        if device is not None:
            self.device[:] = [device]
        self.model.to(self.device[0]).eval()

    def is_done(self, episode: int) -> bool:
        """Whether an episode's z_m is there."""
        return self.store.is_current(episode)

    def make(self, episode: int) -> None:
        """Computes what an episode's shards lack."""
        frames = np.flatnonzero(self.store.dataset.fresh(episode))
        rows = self.features.index.rows(episode, frames)
        for shards, numbers in (
            (self.store.pictures, range(1)),
            (self.store.views, range(1, self.store.augmentation.views + 1)),
        ):
            if shards is None or shards.state(episode) is ShardState.CURRENT:
                continue
            hidden = torch.stack([self._of_view(episode, frames, rows, view) for view in numbers])
            if not hidden.isfinite().all():
                otherwise = "train without --prior" if self.settings.true_motion else "set cached_hidden_draws to 0"
                raise DataError(
                    f"episode {episode} of {self.store.dataset.root}: a hidden state of the Motion Expert does not fit into "
                    f"16-bit floats; {otherwise}."
                )
            values = hidden[0] if shards is self.store.pictures else hidden
            shards.write(episode, {HIDDEN: values}, draws=str(self.draws), views=str(len(numbers)))

    def _of_view(self, episode: int, frames: np.ndarray, rows: np.ndarray, view: int) -> Float16[Tensor, "draws f m d"]:
        parts = []
        for start in range(0, len(frames), SAMPLES_AT_ONCE):
            some = slice(start, start + SAMPLES_AT_ONCE)
            if self.settings.true_motion is not None:
                motions, find = [self.settings.true_motion.of(episode, frames[some])], self.model.oracle_hidden
            else:
                motions = [self._noise(draw, episode, frames[some], view) for draw in range(self.draws)]
                find = self.model.motion_hidden
            parts.append(self._of_rows(rows[some], view, motions, find))
        return torch.cat(parts, dim=1)

    def _noise(self, draw: int, episode: int, frames: np.ndarray, view: int) -> Float[Tensor, "b k t 3"]:
        of_view = ("view", view) if view else ()
        addresses = [(self.settings.loop.seed, "hidden", draw, episode, frame, *of_view) for frame in frames.tolist()]
        return torch.stack([motion_noise(self.model, *address) for address in addresses])

    @torch.inference_mode()
    def _of_rows(
        self, rows: np.ndarray, view: int, motions: Sequence[Tensor], find: Callable[[Encoded, Tensor], Tensor]
    ) -> Float16[Tensor, "draws b m d"]:
        """Computes z_m of some rows exactly as inference does, from each of some motions."""
        device = self.device[0]
        encoded = self.features.encoded(rows, np.full(len(rows), view)).to(device)
        with self.settings.loop.precision.autocast(device):
            hidden = [find(encoded, motion.to(device)).float().cpu() for motion in motions]
        return torch.stack(hidden).half()


def motion_noise(model: LaMP, *address: int | str) -> Float[Tensor, "k t 3"]:
    """Draws the initial motion noise m^0 of one sample."""
    return model.motion_noise(1, generator_at(*address))[0]


def cache_hidden_states(
    work: HiddenStateTask,
    episodes: Sequence[int],
    workers: Workers,
    *,
    planned: Callable[[BuildPlan], None] | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
) -> None:
    """Computes z_m of some episodes where it is not there yet. Other processes may do the same at the same time.

    Args:
        workers: Number of processes, or their devices.
        planned: Called with the plan before anything is made.
        progress: Called as episodes are done.

    Raises:
        DataError: What is to be made does not fit on the disk, or a value into 16-bit floats.
    """
    store, (tokens, width) = work.store, required(work.model.config.hidden_shape, "Motion Expert")
    todo = [episode for episode in episodes if not store.is_current(episode)]
    frames = {episode: int(store.dataset.fresh(episode).sum()) for episode in episodes}
    count, views = sum(frames[episode] for episode in todo), store.augmentation.views
    size = count * (1 + views) * work.draws * tokens * width * torch.float16.itemsize
    if planned is not None and todo:
        planned(BuildPlan(folder=store.folder, episodes=len(todo), frames=count, views=views, size=size))
    check_space(store.folder, size)
    with one_error_when_full(store.folder):
        write_json(
            store.folder / HIDDEN_MANIFEST, {"format": FORMAT, "version": VERSION, "settings": work.settings.as_json}
        )
    build_with_progress(work, todo, frames, workers, progress)


def hidden_states_folder(
    folder: Path, features: Features, settings: HiddenStateSettings, draws: int, augmentation: Augmentation
) -> FeatureStore:
    """The shards of z_m with these settings, in a folder for z_m with any."""
    least, known, flags = {"draws": draws}, features.fingerprints, MOTION
    if settings.true_motion is not None:
        known, flags = FingerprintsWithFlow(known, settings.true_motion.store), MOTION + " --prior oracle"
    return FeatureStore(features.dataset, folder / settings.key, augmentation, least, flags, known)


class FingerprintsWithFlow(EpisodeFingerprints):
    """Hashes of a dataset's episodes together with their stored scene flow."""

    def __init__(self, pictures: EpisodeFingerprints, flow: SceneFlowStore) -> None:
        self._pictures, self._flow = pictures, flow

    def __getitem__(self, episode: int) -> str:
        return f"{self._pictures[episode]}-{self._flow.fingerprint(episode)}"

    def find(self, episodes: Collection[int]) -> None:
        """Finds the hashes of some episodes' pictures."""
        self._pictures.find(episodes)


def hidden_states_of(
    model: LaMP,
    samples: PolicySamples,
    settings: HiddenStateSettings,
    *,
    draws: int,
    run: Path,
    progress: Callable[[BuildProgress], None] | None = None,
) -> HiddenStates:
    """z_m of some samples: what is stored beside the features, or what is computed now and kept in the run's folder.

    Args:
        draws: Noise draws of each sample.
        run: The folder for what is computed now.
        progress: Called as episodes are done.

    Raises:
        DataError: What is stored is corrupt; or a value does not fit into 16-bit floats.
        MismatchError: What is stored was made from other data.
    """
    features = samples.features
    augmentation = features.augmentation if samples.view_count else NO_AUGMENTATION
    store = hidden_states_folder(features.folder / HIDDEN, features, settings, draws, augmentation)
    if (store.folder / HIDDEN_MANIFEST).exists():
        store.check(episodes=samples.episodes)
    else:
        _warn_of_stale_caches(features.folder / HIDDEN, settings, features)
        folder = run / hashlib.sha256(str(features.folder).encode()).hexdigest()[:8]
        store = hidden_states_folder(folder, features, settings, draws, augmentation)
        device = settings.loop.device
        work = HiddenStateTask(
            store=store, features=features, model=model, settings=settings, draws=draws, device=[device]
        )
        cache_hidden_states(work, samples.episodes, Workers(), progress=progress)
    place = samples.rows - features.index.first[samples.episode]
    return HiddenStates(store, episode=samples.episode, place=place, draws=draws)


class StoredHiddenStates(TypedDict):
    """What is read again of the description of stored z_m."""

    settings: dict[str, Any]


def _warn_of_stale_caches(kept: Path, settings: HiddenStateSettings, features: Features) -> None:
    """Says that z_m is stored, but with other settings only: what is computed anew had perhaps been meant to be read."""
    stale: list[tuple[Path, list[str]]] = []
    for path in sorted(kept.glob(f"*/{HIDDEN_MANIFEST}")):
        stored = read_json_as(path, StoredHiddenStates, "description of hidden states")["settings"]
        if stored.get("prior") != settings.as_json.get("prior"):
            continue  # nobody takes an oracle's for another
        stale.append((path.parent, differences(stored, settings.as_json)))
    if stale:
        folder, changes = min(stale, key=lambda one: len(one[1]))
        flags = MOTION if settings.true_motion is None else MOTION + " --prior oracle"
        print(
            f"z_m is computed for this run alone; {folder} holds another: {'; '.join(changes)}. "
            f"{advice(features.dataset, flags)} keeps this run's for those that follow.",
            file=sys.stderr,
        )
