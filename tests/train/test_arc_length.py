"""Stage 1 on flow steps of equal way."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_fakes import PatchBackbone, loop, motion_training

from lamp.errors import ConfigError, MismatchError
from lamp.sceneflow.retiming import ByArcLength
from lamp.train.checkpoint import read_description
from lamp.train.resize_checkpoint import resize_checkpoint
from lamp.train.run_folder import CHECKPOINT
from lamp.train.train_motion import evaluate_flow, train_motion


def test_a_motion_expert_is_trained_and_measured_on_steps_of_equal_way(data: Path, tmp_path: Path) -> None:
    # A stride that no store holds: it does not count.
    config = motion_training(loop=loop(steps=2), arc_length=0.03, flow_stride=1000)
    train_motion(config, data, tmp_path / "run", backbone=PatchBackbone())
    flow = read_description(tmp_path / "run" / CHECKPOINT).flow
    assert flow is not None and flow.retiming == ByArcLength(interval=0.03)
    assert evaluate_flow(tmp_path / "run", data).moving
    with pytest.raises(MismatchError, match=r"take no fixed time; an oracle needs steps of time"):
        flow.check_timed("an oracle")
    with pytest.raises(MismatchError, match=r"another pace needs steps of time"):
        resize_checkpoint(tmp_path / "run", tmp_path / "other", pace=2.0)
    with pytest.raises(ConfigError, match=r"expected 0 <= floor < interval"):
        motion_training(arc_length=0.001)
