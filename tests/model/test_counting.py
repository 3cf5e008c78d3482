"""Parameters counted twice: from the modules and from the formula, from tiny sizes to the paper's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lamp.model.action_expert import ActionExpertConfig, Prefix
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig, RepeatAndPad
from lamp.model.motion_fusion import TokenFusion
from lamp.model.parameter_count import expected_parameters

DEMO = LaMPConfig(
    token_width=400,
    motion=MotionExpertConfig(token_width=400, width=192, layers=3, heads=4, horizon=8, frames_per_token=8),
    guidance=GuidanceConfig(token_width=400, motion_width=192, heads=5),
    action=ActionExpertConfig(
        token_width=400, width=192, layers=4, heads=4, chunk=12, state_dim=11, attention=Prefix(), positions=320
    ),
)
PAPER = LaMPConfig(
    token_width=2560,
    motion=MotionExpertConfig(token_width=2560),
    guidance=GuidanceConfig(),
    action=ActionExpertConfig(token_width=2560),
)


@pytest.mark.parametrize(
    "size", ["tiny", "demo", "paper", "no motion", "stage 1", "released conditioning", "tokens", "all tokens"]
)
def test_modules_and_formula_agree(config, size):
    assert DEMO.motion is not None
    config = {
        "tiny": config,
        "demo": DEMO,
        "paper": PAPER,
        "no motion": replace(PAPER, motion=None),
        "stage 1": replace(PAPER, action=None),
        "tokens": replace(PAPER, guidance=TokenFusion(tokens=8)),
        "all tokens": replace(DEMO, guidance=TokenFusion(motion_width=192, heads=4, tokens=None)),
        "released conditioning": replace(DEMO, motion=replace(DEMO.motion, conditioning=RepeatAndPad(tokens=17))),
    }[size]
    with torch.device("meta"):
        assert LaMP(config).parameter_table() == expected_parameters(config)


def test_the_papers_sizes_by_hand():
    d = 1024
    block = 12 * d * d + 13 * d  # attention 4 d^2, MLP 8 d^2; biases 4 d + 5 d; two norms of 2 d
    table = expected_parameters(PAPER)
    outside = (2560 + 1) * d + (7 + 32 + 8 + 1) * d + 1024 * d + 2 * d + 7 * (d + 1)
    assert table["action_expert"] == 24 * block + outside
    assert table["guidance"] == 1025 * 2560 + 4 * 2560 + 4 * 2561 * 2560 + 1
    assert table["total"] == sum(table[part] for part in ("motion_expert", "guidance", "action_expert"))


def test_a_changed_size_changes_the_count(config):
    deeper = replace(config, motion=replace(config.motion, layers=4))
    assert expected_parameters(deeper)["motion_expert"] > expected_parameters(config)["motion_expert"]
