from __future__ import annotations

from pathlib import Path

import pytest
from demonstrations import write

from lamp.data.lerobot import LeRobotDataset


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Read only."""
    return write(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    """A dataset of the test's own, to spoil or extend."""
    return write(tmp_path / "dataset")
