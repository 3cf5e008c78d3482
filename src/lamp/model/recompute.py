"""Activation checkpointing: blocks that keep what they were given, and compute the rest again in the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from lamp.model.layers import Block
from lamp.model.motion_expert import MotionBlock

METHODS: Mapping[type[nn.Module], str] = {Block: "attend", MotionBlock: "forward"}
"""What of a block is computed again: all that is large."""


def recompute(model: nn.Module) -> None:
    """Makes the blocks of the experts in a model compute their activations twice; results stay the same, dropout included."""
    for module in model.modules():
        for kind, method in METHODS.items():
            if isinstance(module, kind):
                setattr(module, method, partial(checkpoint, getattr(module, method), use_reentrant=False))
