"""A release's folder as the authors' code writes it, with tiny weights."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden.safetensors"
PROMPT = (
    "Your task is {instruction}. To identify the key objects for your task. Locate their bounding boxes in "
    "[x1,y1,x2,y2] format."
)
CONFIG: dict[str, Any] = {
    "artifact_role": "tiny",
    "framework": {
        "name": "LaMP",
        "qwenvl": {
            "base_vlm": "Qwen/Qwen3-VL-4B-Instruct",
            "revision": "ebb281ec",
            "attn_implementation": "flash_attention_2",
            "dtype": "bfloat16",
            "vl_hidden_dim": 40,
            "num_vl_layers": 36,
        },
        "action_model": {
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 4.0,
            "dim_time": 32,
            "max_len_seq": 64,
            "action_dim": 7,
            "state_dim": 8,
            "future_action_window_size": 9,
            "past_action_window_size": 0,
            "use_adaln": False,
            "use_proprio": True,
            "use_mask_z": True,
            "noise_beta_alpha": 1.5,
            "noise_beta_beta": 1.0,
            "noise_s": 0.999,
            "num_timestep_buckets": 1000,
            "num_inference_timesteps": 10,
        },
        "motion_expert": {
            "enabled": True,
            "motion_dim": 3,
            "spatial_size": 4,
            "num_motion_frames": 8,
            "put_frames_in_channels": 2,
            "latent_dim": 32,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "patch_size": 2,
            "patch_size_t": 1,
            "max_text_seq_length": 24,
            "use_rotary_embeddings": False,
            "use_guidance": True,
            "guidance_heads": 5,
            "guidance_dropout": 0.1,
            "guidance_init_gate": 0.0,
            "tau_v_infer": 0.1,
            "motion_infer_steps": 10,
        },
    },
    "datasets": {"vla_data": {"image_size": [224, 224], "CoT_prompt": PROMPT}},
}
"""The published configuration, at the golden file's sizes."""

STATISTICS: dict[str, Any] = {
    "franka": {
        "action": {
            "mean": [0.0] * 7,
            "min": [-0.9, -0.8, -0.7, -0.1, -0.2, 0.3, 0.0],
            "max": [0.9, 0.6, 0.8, 0.2, 0.3, 0.3, 1.0],
        },
        "state": {
            "mean": [0.0] * 8,
            "min": [-0.5, -0.3, 0.1, 0.2, -3.6, -1.8, -0.01, -0.04],
            "max": [0.2, 0.4, 1.4, 3.7, 3.6, 1.4, 0.04, 0.01],
        },
        "num_transitions": 273465,
    }
}
"""Of which the last continuous action has no range."""


def golden_weights() -> dict[str, Tensor]:
    return {n.removeprefix("weights."): v for n, v in load_file(GOLDEN).items() if n.startswith("weights.")}


def golden_vectors() -> dict[str, Tensor]:
    return {n.removeprefix("golden."): v for n, v in load_file(GOLDEN).items() if n.startswith("golden.")}


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted path replaced, or removed where `value` is `...`."""
    copy = deepcopy(config)
    *parents, last = path.split(".")
    place = copy
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


def write_release(
    folder: Path,
    weights: dict[str, Tensor] | None = None,
    *,
    config: Any = CONFIG,
    statistics: Any = STATISTICS,
    name: str = "pytorch_model.pt",
    manifest: bool = True,
) -> Path:
    folder.mkdir(parents=True)
    torch.save(golden_weights() if weights is None else weights, folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if statistics is not None:
        (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    (folder / "README.md").write_text("a card\n")
    if manifest:
        write_manifest(folder, name)
    return folder


def write_manifest(folder: Path, checkpoint: str) -> None:
    records = [
        {"name": file.name, "size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in sorted(folder.iterdir())
    ]
    found = next(record for record in records if record["name"] == checkpoint)
    content = {"files": records, "checkpoint": found, "model": "LaMP", "format_version": 1, "optimizer_step": 30000}
    (folder / "checkpoint_manifest.json").write_text(json.dumps(content))
