"""Run by itself: torch's compiler cannot look through the type checks that tests run under. Prints what it found, as JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional

from lamp.model.action_expert import ActionExpertConfig, Joint, Prefix
from lamp.model.fast import FastActor, compile_blocks, prepare_model
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.types import Encoded


def made(config: LaMPConfig, device: str) -> tuple[LaMP, Encoded, Tensor, dict[str, Any]]:
    """A model, and what it acts on."""
    torch.manual_seed(3)
    model = LaMP(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    encoded = Encoded(tokens=torch.randn(2, 7, 24), mask=torch.tensor([[True] * 7, [True] * 5 + [False] * 2]))
    noise = {"motion_noise": torch.randn(2, 24, 8, 3), "action_noise": torch.randn(2, 5, 7)}
    state = torch.randn(2, 9)
    moved = {name: tensor.to(device) for name, tensor in noise.items()}
    return model.to(device), encoded.to(device), state.to(device), moved


def recorded_beside_plain(config: LaMPConfig) -> dict[str, float]:
    """Compiles and records a model on a GPU; returns how alike the actions are to those in float32."""
    model, encoded, state, noise = made(config, "cuda")
    plain, actor = model.act(encoded, state, **noise), FastActor(model, torch.bfloat16)
    acted = [actor.act(encoded, state, **noise) for _ in range(3)]
    return {"cosine": min(float(functional.cosine_similarity(plain.flatten(), a.flatten(), dim=0)) for a in acted)}


def compiled_beside_plain(config: LaMPConfig) -> dict[str, float]:
    """Compiles a model's blocks; returns how alike the actions are, and how many pieces were compiled."""
    model, encoded, state, noise = made(config, "cpu")
    twin = prepare_model(model, torch.bfloat16)
    with torch.inference_mode():
        # As the solver's own steps are: a tensor of another kind would be compiled for once more.
        noise = {name: tensor.clone() for name, tensor in noise.items()}
        plain = twin.act(encoded, state, **noise)
        counters.clear()
        torch.compiler.reset()
        compile_blocks(twin)
        compiled = twin.act(encoded, state, **noise)
    alike = functional.cosine_similarity(plain.flatten(), compiled.flatten(), dim=0)
    return {"cosine": float(alike), "pieces": counters["stats"]["unique_graphs"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    action = ActionExpertConfig(
        token_width=24, width=48, layers=4, heads=4, chunk=5, state_dim=9, attention=Joint(), positions=40
    )
    config = LaMPConfig(
        token_width=24,
        motion=MotionExpertConfig(
            token_width=24, width=32, layers=4, heads=2, grid=(4, 6), horizon=8, frames_per_token=2, time_channels=64
        ),
        guidance=GuidanceConfig(token_width=24, motion_width=32, heads=3),
        action=action,
    )
    prefix = replace(config, action=replace(action, attention=Prefix()))
    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    compare = recorded_beside_plain if sys.argv[1:] == ["cuda"] else compiled_beside_plain
    print(json.dumps({"joint": compare(config), "prefix": compare(prefix)}))
