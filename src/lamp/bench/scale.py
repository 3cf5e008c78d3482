"""`lamp bench data --synthetic-episodes N`: what it takes to open a dataset of very many episodes and to begin training on it."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lamp.bench.machine import describe_machine
from lamp.data.frame_sources import Videos
from lamp.data.image_samples import ImageSamples
from lamp.data.lerobot_format import (
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
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.data.normalise import ByDeviation, RawState
from lamp.data.sampler import Sampler
from lamp.data.samples import PolicyScaling, split_episodes, stacked
from lamp.errors import ConfigError
from lamp.files import write_json
from lamp_client.child_processes import available_cores

FRAMES = 32
"""Of each episode: 50,000 episodes have 1.6 million."""
EPISODES_A_FILE = 2000
EPISODES_A_TASK = 100
FEATURES = {
    "observation.state": Feature(dtype="float32", shape=(8,)),
    "action": Feature(dtype="float32", shape=(7,)),
}
CHUNK, BATCH = 16, 32
SECONDS, GIBIBYTES = 20.0, 2.0
"""What 50,000 episodes may take on one core."""


def measure_opening(episodes: int) -> dict[str, Any]:
    """Writes a dataset of numbers only, and measures how long its opening takes until the first shuffled batch is there.

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
        write_numbers(root, episodes)
        with timed("open"):
            dataset = LeRobotDataset(root)
            tasks = [dataset.instructions(episode)[0][0] for episode in range(len(dataset))]
        with timed("split"):
            split = split_episodes(tasks, validation_share=0.1)
        with timed("normalisers"):
            states, actions = stacked(dataset, split.train, CHUNK)
            scaling = PolicyScaling(
                state_transform=RawState(), state=ByDeviation().fit(states), actions=ByDeviation().fit(actions)
            )
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
        "frames": episodes * FRAMES,
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


def write_numbers(root: Path, episodes: int) -> None:
    """Writes a LeRobot v3.0 dataset without pictures, a file at a time."""
    tasks = [f"put object {number} in its place" for number in range(-(-episodes // EPISODES_A_TASK))]
    for number, first in enumerate(range(0, episodes, EPISODES_A_FILE)):
        some = np.arange(first, min(first + EPISODES_A_FILE, episodes))
        slot = Slot(chunk=number // 1000, file=number % 1000)
        _write(slot.path(root, DATA_PATH), _frames(some))
        _write(slot.path(root, EPISODES_PATH), _episodes(some, slot, tasks))
    _write(root / TASKS_PATH, tasks_table(tasks))
    info = {
        "codebase_version": CODEBASE_VERSION,
        "fps": 20,
        "total_episodes": episodes,
        "total_frames": episodes * FRAMES,
        "total_tasks": len(tasks),
        "features": {name: feature.to_json() for name, feature in FEATURES.items()},
        "data_path": DATA_PATH,
        "splits": {"train": f"0:{episodes}"},
    }
    write_json(root / INFO_PATH, info)


def _frames(episodes: np.ndarray) -> pa.Table:
    count = len(episodes) * FRAMES
    random = np.random.default_rng(int(episodes[0]))
    columns = {
        name: to_arrow(random.normal(size=(count, *feature.shape)).astype(np.float32), feature, name)
        for name, feature in FEATURES.items()
    }
    frame, episode = np.tile(np.arange(FRAMES), len(episodes)), np.repeat(episodes, FRAMES)
    return pa.table(
        columns
        | {
            "timestamp": (frame / 20).astype(np.float32),
            "frame_index": frame,
            "episode_index": episode,
            "index": episode * FRAMES + frame,
            "task_index": episode // EPISODES_A_TASK,
        }
    )


def _episodes(episodes: np.ndarray, slot: Slot, tasks: list[str]) -> pa.Table:
    return pa.table(
        {
            "episode_index": episodes,
            "tasks": [[tasks[episode // EPISODES_A_TASK]] for episode in episodes.tolist()],
            "length": np.full(len(episodes), FRAMES),
            "dataset_from_index": episodes * FRAMES,
            "dataset_to_index": (episodes + 1) * FRAMES,
            "data/chunk_index": np.full(len(episodes), slot.chunk),
            "data/file_index": np.full(len(episodes), slot.file),
        }
    )


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
