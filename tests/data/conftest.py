from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.demonstrations import episode

from lamp.data.lerobot import LeRobotDataset, LeRobotWriter, stage_episode

LENGTHS = (20, 9, 33, 1)


def write(root: Path, lengths: tuple[int, ...] = LENGTHS) -> LeRobotDataset:
    for seed, length in enumerate(lengths):
        stage_episode(root, f"episode-{seed}", episode(seed, length))
    LeRobotWriter(root).finalize({"suite": "libero_object", "render_every": 2})
    return LeRobotDataset(root)


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Read only."""
    return write(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    """A dataset of the test's own, to spoil or extend."""
    return write(tmp_path / "dataset")
