"""The tests of pictures and reports use the tests of training's tiny data and models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "train"))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a motion run, a guided policy and a plain one."""
    from training_fakes import PatchBackbone, loop, motion_training, policy_training, write_dataset  # pyright: ignore[reportMissingImports]

    from lamp.train.train_motion import train_motion
    from lamp.train.train_policy import train_policy

    root, short = tmp_path_factory.mktemp("foresight"), loop(steps=2)
    data = write_dataset(root / "data", episodes=4)
    train_motion(motion_training(loop=short), data, root / "motion", backbone=PatchBackbone())
    train_policy(policy_training(loop=short), data, root / "guided", root / "motion", backbone=PatchBackbone())
    train_policy(policy_training(with_motion=False, loop=short), data, root / "plain", backbone=PatchBackbone())
    return root
