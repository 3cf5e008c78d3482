from __future__ import annotations

from pathlib import Path

import pytest
from training_fakes import write_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dataset with features and scene flow; read only."""
    return write_dataset(tmp_path_factory.mktemp("demonstrations"))
