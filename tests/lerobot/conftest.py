"""A motion prior on the embedded backbone, tiny, for the policy that LeRobot trains."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "train"))


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of ours, in LeRobot's format v3.0: agentview and wrist, 8 values of state, 7 of action."""
    from training_fakes import write_dataset  # pyright: ignore[reportMissingImports]

    return write_dataset(tmp_path_factory.mktemp("ours") / "data", episodes=4)


@pytest.fixture(scope="session")
def prior(demonstrations: Path) -> Path:
    """Two steps of Stage 1 on the embedded backbone."""
    from training_fakes import MOTION, loop, motion_training  # pyright: ignore[reportMissingImports]

    from lamp.model.lamp import LaMPConfig
    from lamp.model.small import SmallBackboneConfig
    from lamp.train.backbones import ensure_features
    from lamp.train.train_motion import train_motion

    backbone = SmallBackboneConfig(cameras=(("agentview", 64), ("wrist", 32)), text_tokens=8)
    ensure_features(demonstrations, backbone)
    model = LaMPConfig(token_width=400, motion=replace(MOTION, token_width=400), guidance=None, action=None)
    out = demonstrations.parent / "motion"
    train_motion(motion_training(model=model, backbone=backbone, loop=loop(steps=2)), demonstrations, out)
    return out
