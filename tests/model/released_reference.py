"""The release's arithmetic written a second time, plainly and in float64, from its description in words.

It shares nothing with `lamp`: names, layouts and conventions are the release's, and time runs the release's way.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

DECODER = "motion_head.decoder."
NETWORK = f"{DECODER}cogvideox."

TINY = {
    "vl": 40,
    "latent": 32,
    "pack": 2,
    "grid": 4,
    "T": 8,
    "cond": 24,
    "m_heads": 2,
    "m_hd": 16,
    "m_layers": 2,
    "g_heads": 5,
    "act_dim": 32,
    "act_heads": 2,
    "act_depth": 2,
    "A": 7,
    "S": 8,
    "H": 10,
    "dim_time": 32,
    "maxlen": 64,
}
"""The sizes of the golden file."""


def linear(inputs: int, outputs: int, name: str, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(width: int, name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def shapes(c: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights."""
    d, values = c["latent"], 3 * c["pack"] * 4
    found = linear(c["vl"], d, "motion_head.vlm_proj", bias=False)
    found |= {f"{DECODER}learnable_padding_tokens": (1, c["cond"], d)}
    found |= linear(values, d, f"{NETWORK}patch_embed.proj") | linear(d, d, f"{NETWORK}patch_embed.text_proj")
    found |= linear(512, d, f"{NETWORK}time_embedding.linear_1") | linear(d, d, f"{NETWORK}time_embedding.linear_2")
    for index in range(c["m_layers"]):
        block = f"{NETWORK}transformer_blocks.{index}."
        for name in ("norm1", "norm2"):
            found |= norm(d, f"{block}{name}.norm") | linear(d, 6 * d, f"{block}{name}.linear")
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= linear(d, d, f"{block}attn1.{name}")
        found |= norm(c["m_hd"], f"{block}attn1.norm_q") | norm(c["m_hd"], f"{block}attn1.norm_k")
        found |= linear(d, 4 * d, f"{block}ff.net.0.proj") | linear(4 * d, d, f"{block}ff.net.2")
    found |= norm(d, f"{NETWORK}norm_final") | norm(d, f"{NETWORK}norm_out.norm")
    found |= linear(d, 2 * d, f"{NETWORK}norm_out.linear") | linear(d, values, f"{NETWORK}proj_out")
    v, g = c["vl"], "motion_guidance."
    found |= linear(d, v, f"{g}motion_proj") | norm(v, f"{g}norm_motion") | norm(v, f"{g}norm_vl")
    found |= {f"{g}cross_attn.in_proj_weight": (3 * v, v), f"{g}cross_attn.in_proj_bias": (3 * v,), f"{g}gate": (1,)}
    found |= linear(v, v, f"{g}cross_attn.out_proj")
    a, e = c["act_dim"], "action_model."
    found |= linear(c["A"] + c["dim_time"] + c["S"], a, f"{e}action_encoder") | linear(v, a, f"{e}vlm_proj")
    found |= {f"{e}pos_emb": (1, c["maxlen"], a)}
    for index in range(c["act_depth"]):
        block = f"{e}blocks.{index}."
        found |= norm(a, f"{block}norm1") | linear(a, 3 * a, f"{block}attn.qkv") | linear(a, a, f"{block}attn.proj")
        found |= norm(a, f"{block}norm2") | linear(a, 4 * a, f"{block}mlp.fc1") | linear(4 * a, a, f"{block}mlp.fc2")
    return found | norm(a, f"{e}norm") | linear(a, c["A"], f"{e}action_decoder")


def random_weights(c: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Weights at which every part of the model matters, in float32."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(c).items():
        values = torch.randn(shape, generator=generator)
        scale = 0.7 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.3
        weights[name] = values * scale + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)
    return weights


def random_inputs(c: dict[str, int], batch: int, tokens: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "vl_features": (batch, tokens, c["vl"]),
        "state": (batch, c["S"]),
        "motion_noise": (batch, c["T"] // c["pack"], 3 * c["pack"], c["grid"], c["grid"]),
        "action_noise": (batch, c["H"], c["A"]),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class Reference:
    """A released model of weights by name."""

    def __init__(self, weights: dict[str, Tensor], c: dict[str, int]) -> None:
        self.w, self.c = {name: value.double() for name, value in weights.items()}, c

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return functional.layer_norm(x, weight.shape, weight, self.w[f"{name}.bias"], eps)

    def condition(self, z: Tensor) -> Tensor:
        """Exactly `cond` rows: cut, or repeated whole and filled from the table."""
        x, count = self.linear(z, "motion_head.vlm_proj"), self.c["cond"]
        if x.shape[1] >= count:
            rows = x[:, :count]
        else:
            rows = torch.cat([x] * (count // x.shape[1]), dim=1)
            table = self.w[f"{DECODER}learnable_padding_tokens"].expand(len(x), -1, -1)
            rows = torch.cat([rows, table[:, : count - rows.shape[1]]], dim=1)
        return self.linear(rows, f"{NETWORK}patch_embed.text_proj")

    def positions(self) -> Tensor:
        """A quarter of the width for the frame, three eighths each for column and row, at 1/1.875 of their number."""
        d, side = self.c["latent"], self.c["grid"] // 2

        def wave(place: float, width: int) -> list[float]:
            angles = [place / 10_000 ** (2 * i / width) for i in range(width // 2)]
            return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

        return torch.tensor(
            [
                wave(frame, d // 4) + wave(column / 1.875, 3 * d // 8) + wave(row / 1.875, 3 * d // 8)
                for frame in range(self.c["T"] // self.c["pack"])
                for row in range(side)
                for column in range(side)
            ],
            dtype=torch.float64,
        )

    def motion(self, noisy: Tensor, time: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """(velocity, output of the last block) at the whole number `time` of 0 to 1000."""
        side = self.c["grid"] // 2
        angles = time * 10_000.0 ** (-torch.arange(256, dtype=torch.float64) / 256)
        embedded = torch.cat([angles.cos(), angles.sin()]).expand(len(noisy), -1)
        embedded = functional.silu(self.linear(embedded, f"{NETWORK}time_embedding.linear_1"))
        embedded = functional.silu(self.linear(embedded, f"{NETWORK}time_embedding.linear_2"))
        # (b, frame, channel, row block, row, column block, column) -> tokens (frame, row block, column block)
        cut = noisy.double().unflatten(4, (side, 2)).unflatten(3, (side, 2)).permute(0, 1, 3, 5, 2, 4, 6)
        x = self.linear(cut.flatten(4).flatten(1, 3), f"{NETWORK}patch_embed.proj") + self.positions()
        condition = self.condition(z)
        for index in range(self.c["m_layers"]):
            condition, x = self.motion_block(condition, x, embedded, f"{NETWORK}transformer_blocks.{index}.")
        shift, scale = self.linear(embedded, f"{NETWORK}norm_out.linear")[:, None].chunk(2, dim=-1)
        out = self.norm(self.norm(x, f"{NETWORK}norm_final"), f"{NETWORK}norm_out.norm") * (1 + scale) + shift
        out = self.linear(out, f"{NETWORK}proj_out")
        out = out.unflatten(-1, (-1, 2, 2)).unflatten(1, (-1, side, side)).permute(0, 1, 4, 2, 5, 3, 6)
        return out.flatten(5).flatten(3, 4), x

    def motion_block(self, condition: Tensor, x: Tensor, time: Tensor, block: str) -> tuple[Tensor, Tensor]:
        n = condition.shape[1]

        def modulated(part: str) -> tuple[Tensor, Tensor]:
            shift, scale, gate, c_shift, c_scale, c_gate = self.linear(time, f"{block}{part}.linear")[:, None].chunk(
                6, -1
            )
            both = [
                self.norm(condition, f"{block}{part}.norm") * (1 + c_scale) + c_shift,
                self.norm(x, f"{block}{part}.norm") * (1 + scale) + shift,
            ]
            gates = torch.cat([c_gate.expand(-1, n, -1), gate.expand(-1, x.shape[1], -1)], dim=1)
            return torch.cat(both, dim=1), gates

        tokens, gates = modulated("norm1")
        joint = torch.cat([condition, x], dim=1) + gates * self.motion_attention(tokens, f"{block}attn1.")
        condition, x = joint[:, :n], joint[:, n:]
        tokens, gates = modulated("norm2")
        inner = functional.gelu(self.linear(tokens, f"{block}ff.net.0.proj"), approximate="tanh")
        joint = joint + gates * self.linear(inner, f"{block}ff.net.2")
        return joint[:, :n], joint[:, n:]

    def motion_attention(self, tokens: Tensor, name: str) -> Tensor:
        query, key, value = (
            self.linear(tokens, f"{name}to_{kind}").unflatten(-1, (self.c["m_heads"], -1)).transpose(1, 2)
            for kind in ("q", "k", "v")
        )
        query, key = self.norm(query, f"{name}norm_q", 1e-6), self.norm(key, f"{name}norm_k", 1e-6)
        weights = (query @ key.mT / math.sqrt(self.c["m_hd"])).softmax(-1)
        return self.linear((weights @ value).transpose(1, 2).flatten(2), f"{name}to_out.0")

    def guided(self, z: Tensor, hidden: Tensor) -> Tensor:
        z = z.double()
        attention = torch.nn.MultiheadAttention(self.c["vl"], self.c["g_heads"], batch_first=True).double().eval()
        prefix = "motion_guidance.cross_attn."
        attention.load_state_dict(
            {name.removeprefix(prefix): w for name, w in self.w.items() if name.startswith(prefix)}
        )
        motion = self.norm(self.linear(hidden, "motion_guidance.motion_proj"), "motion_guidance.norm_motion")
        with torch.no_grad():
            found, _ = attention(self.norm(z, "motion_guidance.norm_vl"), motion, motion, need_weights=False)
        return z + torch.sigmoid(self.w["motion_guidance.gate"]) * found

    def action(self, noisy: Tensor, level: float, state: Tensor, guided: Tensor) -> Tensor:
        """Noise minus data, predicted at a noise level."""
        e, (b, h, _) = "action_model.", noisy.shape
        half = self.c["dim_time"] // 2
        angles = [level * 100 ** (-i / half) for i in range(half)]
        time = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0.0] * (self.c["dim_time"] % 2)
        parts = [noisy.double(), torch.tensor(time, dtype=torch.float64).expand(b, h, -1)]
        parts += [state.double()[:, None].expand(b, h, -1)]
        x = torch.cat(
            [self.linear(torch.cat(parts, -1), f"{e}action_encoder"), self.linear(guided, f"{e}vlm_proj")], dim=1
        )
        x = x + self.w[f"{e}pos_emb"][:, : x.shape[1]]
        for index in range(self.c["act_depth"]):
            block = f"{e}blocks.{index}."
            x = x + self.action_attention(self.norm(x, f"{block}norm1"), f"{block}attn.")
            inner = functional.gelu(self.linear(self.norm(x, f"{block}norm2"), f"{block}mlp.fc1"), approximate="tanh")
            x = x + self.linear(inner, f"{block}mlp.fc2")
        return self.linear(self.norm(x[:, :h], f"{e}norm"), f"{e}action_decoder")

    def action_attention(self, x: Tensor, name: str) -> Tensor:
        parts = self.linear(x, f"{name}qkv").unflatten(-1, (3, self.c["act_heads"], -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        return self.linear((weights @ value).transpose(1, 2).flatten(2), f"{name}proj")

    def outputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """All golden outputs: one of ten Euler steps of the motion, then ten of the action, from 1 down to 0."""
        z, noise = inputs["vl_features"].double(), inputs["motion_noise"].double()
        velocity, hidden = self.motion(noise, 0, z)
        latents = noise + 0.1 * velocity
        _, hidden_tau = self.motion(latents, 100, z)
        guided, state = self.guided(z, hidden_tau), inputs["state"]
        actions = inputs["action_noise"].double()
        at_06 = self.action(actions, 0.6, state, guided)
        for step in range(10):
            actions = actions - 0.1 * self.action(actions, 1 - step / 10, state, guided)
        return {
            "motion_velocity_t0": velocity,
            "motion_hidden_t0": hidden,
            "motion_latents_tau": latents,
            "motion_hidden_tau": hidden_tau,
            "guided": guided,
            "action_velocity_t06": at_06,
            "actions": actions,
        }


def write_golden(
    path: Path, c: dict[str, int], *, batch: int = 2, tokens: int = 11, seed: int = 1, **changes: Any
) -> Path:
    """Writes a file laid out like the golden file; `changes` replace tensors by name, or drop them where None."""
    weights, inputs = random_weights(c, seed), random_inputs(c, batch, tokens, seed + 1)
    tensors = {f"weights.{name}": value for name, value in weights.items()}
    golden = inputs | Reference(weights, c).outputs(inputs)
    tensors |= {f"golden.{name}": value.float().contiguous() for name, value in golden.items()}
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    save_file(tensors, path, {"config": json.dumps(c)})
    return path
