"""`lamp bench data`: samples a second of the loader, from videos, from frames decoded once, and from cached features; with
`--synthetic-episodes N`, the time and memory until the first batch of a dataset of N episodes."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lamp.bench.timing import describe_machine
from lamp.data.dataloader import BatchSource, DataLoader, Sampler
from lamp.data.feature_cache.cache import FeatureCache, FrozenBackbone
from lamp.data.feature_cache.encode import camera_names
from lamp.data.image_dataset import DecodedFrames, FrameSource, ImageSamples, Videos
from lamp.data.lerobot import EpisodeData, LeRobotDataset, LeRobotWriter, stage_episode
from lamp.data.lerobot.format import (
    CODEBASE_VERSION,
    DATA_PATH,
    EPISODES_PATH,
    INFO_PATH,
    TASKS_PATH,
    Feature,
    Slot,
    tasks_table,
    to_arrow,
)
from lamp.data.normalizers import ByDeviation, RawState
from lamp.data.observation_encoder import ObservationEncoder
from lamp.data.policy_dataset import PolicySamples, PolicyScaling, split_episodes, states_and_actions
from lamp.errors import ConfigError
from lamp.json_files import write_json
from lamp.train.backbones import BackboneConfig, build_backbone, ensure_features
from lamp_client.child_processes import available_cores

CHUNK = 16
EPISODES, FRAMES, SIDE = 6, 48, 256
"""Of the synthetic demonstrations."""
ROUNDS = 2
"""Turns of each source."""
DECODED_EPISODES = 24
"""At most this many episodes are decoded in advance: each frame takes 200 kB."""


def measure_loading(
    config: BackboneConfig, data: Path | None, *, workers: int, batch_size: int, seconds: float
) -> dict[str, Any]:
    """Measures every source in one run, and how much faster cached features are than decoding and encoding.

    Args:
        data: a dataset with the backbone's cameras, whose missing features are computed; None for a synthetic one.
        workers: number of loading processes; 0 loads in this one.
        seconds: time to measure each source, beyond the batches that fill the workers' queues.

    Raises:
        ConfigError: The time or the batch is empty.
    """
    if seconds <= 0 or batch_size < 1:
        raise ConfigError(f"{seconds} s with batches of {batch_size}; expected both above 0")
    torch.set_num_threads(1)
    backbone = build_backbone(config)
    with tempfile.TemporaryDirectory() as folder:
        dataset = (
            write_synthetic_demonstrations(Path(folder) / "data", camera_names(backbone))
            if data is None
            else LeRobotDataset(data)
        )
        ensure_features(dataset, config)
        sources = _sources(dataset, backbone, Path(folder) / "frames")
        rates = _rates(sources, workers=workers, batch_size=batch_size, seconds=seconds)
    return {
        "benchmark": "data",
        "ratio": rates["features"] / rates["video and encoding"],
        "ratio_is": "samples/s from cached features / samples/s from video with encoding",
        "target": 20.0,
        "samples_per_s": rates,
        "workers": workers,
        "batch_size": batch_size,
        "seconds": seconds,
        "dataset": "made up" if data is None else str(data),
        "frames": sum(episode.length for episode in dataset.episodes),
        "cameras": {name: list(dataset.image_sizes[name]) for name in camera_names(backbone)},
        "backbone": backbone.key,
        "cores": available_cores(),
        "machine": asdict(describe_machine(torch.device("cpu"), torch.float32)),
    }


def write_synthetic_demonstrations(root: Path, cameras: tuple[str, ...]) -> LeRobotDataset:
    """Writes demonstrations of a square that slides over noise, so that the videos do not compress to nothing."""
    for seed in range(EPISODES):
        random = np.random.default_rng(seed)
        ground = random.integers(0, 200, (SIDE // 8, SIDE // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        images = np.stack([ground] * FRAMES)
        for frame in range(FRAMES):
            images[frame, 80:140, 2 * frame : 2 * frame + 60] = 230
        values = random.normal(size=(FRAMES, 15)).astype(np.float32)
        values[:, -1] = values[:, -1] > 0  # a gripper: open or closed
        frames = {"observation.state": values[:, :8], "action": values[:, 8:]}
        episode = EpisodeData(frames=frames, images=dict.fromkeys(cameras, images), task=f"move square {seed % 2}")
        stage_episode(root, f"episode-{seed}", episode)
    LeRobotWriter(root).finalize()
    return LeRobotDataset(root)


def _sources(dataset: LeRobotDataset, backbone: FrozenBackbone, folder: Path) -> Mapping[str, BatchSource[Any]]:
    episodes = tuple(range(len(dataset)))
    scaling = _scaling(dataset, episodes)
    cameras, encoder = camera_names(backbone), ObservationEncoder(backbone)
    decoded = DecodedFrames(dataset, folder)
    decoded.build(cameras, episodes[:DECODED_EPISODES])

    def images(frames: FrameSource, selected: tuple[int, ...], *, encode: bool) -> ImageSamples:
        return ImageSamples(
            dataset=dataset,
            pictures=frames,
            cameras=cameras,
            episodes=selected,
            chunk=CHUNK,
            scaling=scaling,
            encode=encoder.encode if encode else None,
        )

    return {
        "video": images(Videos(dataset=dataset), episodes, encode=False),
        "video and encoding": images(Videos(dataset=dataset), episodes, encode=True),
        "decoded frames": images(decoded, episodes[:DECODED_EPISODES], encode=False),
        "features": PolicySamples(
            dataset, FeatureCache(dataset, backbone.key), episodes=episodes, chunk=CHUNK, scaling=scaling
        ),
    }


def _scaling(dataset: LeRobotDataset, episodes: tuple[int, ...]) -> PolicyScaling:
    states, actions = states_and_actions(dataset, episodes, CHUNK)
    return PolicyScaling(
        state_transform=RawState(), state=ByDeviation().fit(states), actions=ByDeviation().fit(actions)
    )


class TimedLoader:
    """A loader, and the number of samples that it gave in a time."""

    def __init__(self, samples: BatchSource[Any], *, workers: int, batch_size: int) -> None:
        self._loader = DataLoader(samples, Sampler(len(samples), batch_size), workers=workers)
        self._size, self._queued = min(batch_size, len(samples)), max(1, workers * self._loader.ahead)
        self._samples, self._elapsed = 0, 0.0

    def run(self, seconds: float) -> None:
        """Loads for a time. The workers' queues are full before and after, so that as many batches are made as are taken."""
        for _ in range(self._queued):
            next(self._loader)
        self._loader.wait()
        begun, batches = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds or batches == 0:
            next(self._loader)
            batches += 1
        self._loader.wait()
        self._samples += self._size * batches
        self._elapsed += time.perf_counter() - begun

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self._samples / self._elapsed

    def close(self) -> None:
        """Ends the workers."""
        self._loader.close()


def _rates(
    sources: Mapping[str, BatchSource[Any]], *, workers: int, batch_size: int, seconds: float
) -> dict[str, float]:
    """Measures all sources in turns, so that whatever slows the machine slows all of them."""
    timed = {name: TimedLoader(samples, workers=workers, batch_size=batch_size) for name, samples in sources.items()}
    try:
        for _ in range(ROUNDS):
            for loader in timed.values():
                loader.run(seconds / ROUNDS)
        return {name: loader.rate for name, loader in timed.items()}
    finally:
        for loader in timed.values():
            loader.close()


SYNTHETIC_FRAMES = 32
"""Of each episode: 50,000 episodes have 1.6 million."""
EPISODES_A_FILE = 2000
EPISODES_A_TASK = 100
FEATURES = {
    "observation.state": Feature(dtype="float32", shape=(8,)),
    "action": Feature(dtype="float32", shape=(7,)),
}
BATCH = 32
SECONDS, GIBIBYTES = 20.0, 2.0
"""The target for 50,000 episodes on one core."""


def measure_opening(episodes: int) -> dict[str, Any]:
    """Writes a dataset without images, and measures the time and memory from opening it to the first shuffled batch.

    Raises:
        ConfigError: There are too few episodes to hold one out.
    """
    if episodes < 2:
        raise ConfigError(f"--synthetic-episodes {episodes} given; expected at least 2")
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - begun, 3)

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "data"
        write_synthetic_dataset(root, episodes)
        with timed("open"):
            dataset = LeRobotDataset(root)
            tasks = [dataset.instructions(episode)[0][0] for episode in range(len(dataset))]
        with timed("split"):
            split = split_episodes(tasks, validation_share=0.1)
        with timed("normalisers"):
            scaling = _scaling(dataset, split.train)
        with timed("samples"):
            samples = ImageSamples(
                dataset=dataset,
                pictures=Videos(dataset=dataset),
                cameras=(),
                episodes=split.train,
                chunk=CHUNK,
                scaling=scaling,
            )
        with timed("shuffled epoch"):
            sampler = Sampler(len(samples), BATCH)
        with timed("first batch"):
            pick = next(sampler)
            samples.batch(pick.indices, epoch=pick.epoch)
    total, peak = sum(seconds.values()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    within = total <= SECONDS and peak <= GIBIBYTES
    return {
        "benchmark": "data of many episodes",
        "episodes": episodes,
        "frames": episodes * SYNTHETIC_FRAMES,
        "samples": len(samples),
        "seconds": seconds,
        "total_s": round(total, 3),
        "peak_gib": round(peak, 3),
        "peak_is": "the process's largest resident memory, libraries and the writing of the dataset included",
        "target": {"total_s": SECONDS, "peak_gib": GIBIBYTES},
        "within_target": within,
        "cores": available_cores(),
        "machine": asdict(describe_machine(torch.device("cpu"), torch.float32)),
    }


def write_synthetic_dataset(root: Path, episodes: int) -> None:
    """Writes a LeRobot v3.0 dataset without images, one file at a time."""
    tasks = [f"put object {number} in its place" for number in range(-(-episodes // EPISODES_A_TASK))]
    for number, first in enumerate(range(0, episodes, EPISODES_A_FILE)):
        some = np.arange(first, min(first + EPISODES_A_FILE, episodes))
        slot = Slot(chunk=number // 1000, file=number % 1000)
        _write_table(slot.path(root, DATA_PATH), _frames(some))
        _write_table(slot.path(root, EPISODES_PATH), _episodes(some, slot, tasks))
    _write_table(root / TASKS_PATH, tasks_table(tasks))
    info = {
        "codebase_version": CODEBASE_VERSION,
        "fps": 20,
        "total_episodes": episodes,
        "total_frames": episodes * SYNTHETIC_FRAMES,
        "total_tasks": len(tasks),
        "features": {name: feature.to_json() for name, feature in FEATURES.items()},
        "data_path": DATA_PATH,
        "splits": {"train": f"0:{episodes}"},
    }
    write_json(root / INFO_PATH, info)


def _frames(episodes: np.ndarray) -> pa.Table:
    count = len(episodes) * SYNTHETIC_FRAMES
    random = np.random.default_rng(int(episodes[0]))
    columns = {
        name: to_arrow(random.normal(size=(count, *feature.shape)).astype(np.float32), feature, name)
        for name, feature in FEATURES.items()
    }
    frame, episode = np.tile(np.arange(SYNTHETIC_FRAMES), len(episodes)), np.repeat(episodes, SYNTHETIC_FRAMES)
    return pa.table(
        columns
        | {
            "timestamp": (frame / 20).astype(np.float32),
            "frame_index": frame,
            "episode_index": episode,
            "index": episode * SYNTHETIC_FRAMES + frame,
            "task_index": episode // EPISODES_A_TASK,
        }
    )


def _episodes(episodes: np.ndarray, slot: Slot, tasks: list[str]) -> pa.Table:
    return pa.table(
        {
            "episode_index": episodes,
            "tasks": [[tasks[episode // EPISODES_A_TASK]] for episode in episodes.tolist()],
            "length": np.full(len(episodes), SYNTHETIC_FRAMES),
            "dataset_from_index": episodes * SYNTHETIC_FRAMES,
            "dataset_to_index": (episodes + 1) * SYNTHETIC_FRAMES,
            "data/chunk_index": np.full(len(episodes), slot.chunk),
            "data/file_index": np.full(len(episodes), slot.file),
        }
    )


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
