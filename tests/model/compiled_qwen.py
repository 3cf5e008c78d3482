"""Run by itself: torch's compiler cannot look through the type checks that tests run under. Prints what it found, as JSON."""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional

from lamp.model.qwen3_vl import Qwen3VLBackbone, Qwen3VLBackboneConfig, QwenInputs
from lamp.model.qwen_fast import FastQwen, StaticQwen
from lamp.types import Observations

CAMERAS = (("a", 96), ("b", 64))
INSTRUCTIONS = ("pick up the milk", "open it", "put both moka pots on the stove")


def prepared(backbone: Qwen3VLBackbone, instructions: tuple[str, ...]) -> QwenInputs:
    """Inputs for random images."""
    images = {name: torch.randint(256, (len(instructions), side, side, 3), dtype=torch.uint8) for name, side in CAMERAS}
    return backbone.prepare(Observations(images=images, instructions=instructions))


def least_cosine(one: Tensor, other: Tensor, lengths: tuple[int, ...]) -> float:
    """Of all real tokens."""
    alike = functional.cosine_similarity(one.float(), other.float(), dim=-1)
    return min(float(row[:length].min()) for row, length in zip(alike, lengths, strict=True))


def compiled_beside_plain(backbone: Qwen3VLBackbone, static: StaticQwen) -> dict[str, float]:
    """Compiles the blocks; returns how alike the tokens are, and how many pieces were compiled."""
    inputs = prepared(backbone, INSTRUCTIONS)
    given = inputs.ids, inputs.positions.transpose(0, 1), inputs.patches.unflatten(0, (len(INSTRUCTIONS), -1))
    with torch.inference_mode():
        plain = static(*given)
        counters.clear()
        static.compile()
        compiled = static(*given)
    return {
        "cosine": least_cosine(plain, compiled, inputs.lengths),
        "pieces": counters["stats"]["unique_graphs"],
    }


def recorded_beside_transformers(backbone: Qwen3VLBackbone, fast: FastQwen) -> dict[str, float]:
    """Records compiled blocks in more shapes than the compiler keeps by default; returns how alike the tokens are."""
    cosines = []
    for batch in (1, 2, 4, 8, 1):
        for words in (1, 12, 30):
            inputs = prepared(backbone, (*INSTRUCTIONS * 3, "put " * words)[-batch:])
            found = fast(inputs.ids, inputs.positions, inputs.patches)
            cosines.append(least_cosine(found, backbone(inputs), inputs.lengths))
    return {"cosine": min(cosines)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    folder, device = sys.argv[1:]
    torch.manual_seed(3)
    # Compiled blocks round less often, which in bfloat16 would show.
    config = Qwen3VLBackboneConfig(model=folder, cameras=CAMERAS, text_tokens=None, bfloat16=False)
    backbone = Qwen3VLBackbone(config).to(device)
    layout = backbone.vlm, backbone.tokenizer.turn("", [9, 4]), torch.tensor([[1, 6, 6], [1, 4, 4]])
    found = {"static": compiled_beside_plain(backbone, StaticQwen(*layout))}
    if device == "cuda":
        found["recorded"] = recorded_beside_transformers(backbone, FastQwen(*layout))
    print(json.dumps(found))
