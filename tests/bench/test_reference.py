"""The reference of the speed comparison is the release's arithmetic: its weights load as they are and give its outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lamp.bench.models import ReleaseArrangement
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig

GOLDEN = Path(__file__).parents[1] / "fixtures/golden.safetensors"


@pytest.mark.diffusers
def test_the_reference_gives_the_release_s_outputs() -> None:
    with safe_open(GOLDEN, framework="pt") as file:
        sizes = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    golden = {name.removeprefix("golden."): value for name, value in tensors.items() if name.startswith("golden.")}
    width = {"token_width": sizes["vl"]}
    motion = MotionExpertConfig(
        **width,
        width=sizes["latent"],
        heads=sizes["m_heads"],
        layers=sizes["m_layers"],
        grid=(sizes["grid"], sizes["grid"]),
        horizon=sizes["T"],
        frames_per_token=sizes["pack"],
    )
    action = ActionExpertConfig(
        **width,
        width=sizes["act_dim"],
        heads=sizes["act_heads"],
        layers=sizes["act_depth"],
        action_dim=sizes["A"],
        state_dim=sizes["S"],
        time_channels=sizes["dim_time"],
        positions=sizes["maxlen"],
    )
    guidance = GuidanceConfig(**width, motion_width=sizes["latent"], heads=sizes["g_heads"])
    config = LaMPConfig(**width, motion=motion, guidance=guidance, action=action)
    model = ReleaseArrangement(config, condition_tokens=sizes["cond"]).eval()
    model.load_state_dict(weights)

    z, noise = golden["vl_features"], golden["motion_noise"]
    with torch.inference_mode():
        velocity, hidden = model.motion_head(noise, 0.0, model.motion_head.condition(z))
        found = {
            "motion_velocity_t0": velocity,
            "motion_hidden_t0": hidden,
            "motion_hidden_tau": model.motion_hidden(z, noise),
            "guided": model.motion_guidance(z, golden["motion_hidden_tau"]),
            "action_velocity_t06": model.action_model(golden["action_noise"], 0.6, golden["state"], golden["guided"]),
            "actions": model.act(z, golden["state"], noise, golden["action_noise"]),
        }
    for name, value in found.items():
        torch.testing.assert_close(
            value, golden[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
