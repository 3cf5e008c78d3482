"""`lamp cache features`: a dataset's features, several draws of z_m given a Stage-1 checkpoint, and what there is of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lamp.data.feature_cache.manifest import HIDDEN, FeatureStore, cache_folder, read_manifest
from lamp.data.feature_cache.report import CacheReport, check_store
from lamp.errors import ConfigError
from lamp.model.lamp import LaMP
from lamp.train.backbones import BuildProgressPrinter, Caching, ensure_features, find_backbone, gpu_workers
from lamp.train.config import FeatureSettings, MixedIn, PolicyTraining
from lamp.train.datasets import Sources, dataset_names
from lamp.train.flow_datasets import true_motion
from lamp.train.motion_feature_cache import HiddenStateTask, cache_hidden_states, hidden_settings, hidden_states_folder
from lamp.train.run_folder import check_device
from lamp.train.train_policy import read_motion
from lamp_client.child_processes import available_cores


@dataclass(frozen=True, kw_only=True)
class CacheRequest:
    """What is to be cached, or looked at."""

    datasets: tuple[MixedIn, ...]
    settings: FeatureSettings | PolicyTraining
    """Backbone and augmentation; for z_m, all that a training would have."""
    motion: Path | None = None
    """Stage 1's checkpoint, for z_m."""
    root: Path | None = None
    """The folder that caches are in; None: each dataset's own."""
    caching: Caching = field(default_factory=Caching)

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("no dataset is given; expected one or several: lamp cache features DIR ...")
        dataset_names([one.data for one in self.datasets], self.root)
        if self.motion is not None and not isinstance(self.settings, PolicyTraining):
            raise ConfigError("z_m depends on all settings of a training; expected those of a recipe's policy.")
        for device in self.caching.workers.devices if self.caching.workers else ():
            check_device(device)


def fill_caches(request: CacheRequest) -> list[Path]:
    """Computes what is missing or out of date, and returns the folders.

    Raises:
        DataError: A dataset cannot be read, or what is to be made does not fit on the disk.
        MismatchError: Dataset, backbone, checkpoint or what is stored do not belong together.
    """
    folders, settings = [], request.settings
    key = find_backbone(settings.backbone).key
    for one in request.datasets:
        dataset = one.embodiment.open(Path(one.data), pictures_only=True)
        ensure_features(
            dataset, settings.backbone, augmentation=settings.augmentation, root=request.root, caching=request.caching
        )
        folders.append(cache_folder(dataset, key, request.root))
        if request.motion is not None:
            folders.append(_fill_hidden(request, one, request.motion))
    return folders


def check_caches(request: CacheRequest) -> Iterator[CacheReport]:
    """Compares what is stored with the datasets, byte by byte.

    Raises:
        DataError: There is no such cache at all.
        MismatchError: There are only others.
    """
    backbone = find_backbone(request.settings.backbone)
    for one in request.datasets:
        dataset = one.embodiment.open(Path(one.data), pictures_only=True)
        folder = cache_folder(dataset, backbone.key, request.root)
        read_manifest(folder, backbone.key, dataset, backbone.description)
        store = FeatureStore(dataset, folder, request.settings.augmentation)
        yield check_store(store)
        if request.motion is not None:
            yield check_store(_hidden_work(request, one, request.motion).store, apart_from=store.left_out())


def _fill_hidden(request: CacheRequest, data: MixedIn, motion: Path) -> Path:
    work = _hidden_work(request, data, motion)
    left_out = set(work.features.left_out)
    episodes = [episode for episode in range(len(work.store.dataset)) if episode not in left_out]
    workers = request.caching.workers or gpu_workers(without=available_cores())
    build_progress = BuildProgressPrinter(f"z_m of {work.store.dataset.root}, {work.draws} draws")
    try:
        cache_hidden_states(work, episodes, workers, planned=build_progress.plan, progress=build_progress.progress)
    finally:
        build_progress.close()
    return work.store.folder


def _hidden_work(request: CacheRequest, data: MixedIn, motion: Path) -> HiddenStateTask:
    """What computes z_m of a dataset whose features are cached, for any training with the same settings.

    Raises:
        ConfigError: The number of draws is 0, or there is no Motion Expert.
        MismatchError: The checkpoint is of another Motion Expert or backbone.
    """
    config = request.settings
    assert isinstance(config, PolicyTraining)
    if config.stored_draws < 1:
        raise ConfigError(
            "--motion is given and no draws of z_m are asked for; expected --cached-hidden-draws 4 or so."
        )
    backbone = find_backbone(config.backbone)
    sources = Sources.open(
        Path(data.data),
        backbone.key,
        config.split,
        token_width=config.model.token_width,
        embodiment=data.embodiment,
        augmentation=config.augmentation,
        features=request.root,
        wanted=backbone.description,
    )
    weights, origin = read_motion(config, sources, motion)
    model = LaMP(replace(config.model, action=None)).requires_grad_(False).eval()
    model.load_state_dict(weights)
    known = true_motion(config, sources, origin.flow) if config.prior == "oracle" else None
    settings, features = hidden_settings(config, origin.source.sha256, backbone.key, known), sources.features
    draws = config.stored_draws
    return HiddenStateTask(
        store=hidden_states_folder(features.folder / HIDDEN, features, settings, draws, config.augmentation),
        features=features,
        model=model,
        settings=settings,
        draws=draws,
        device=["cpu"],
    )
