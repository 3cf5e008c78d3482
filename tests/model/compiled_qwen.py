"""Run by itself: torch's compiler cannot look through the type checks that tests run under. Prints what it found, as JSON."""

from __future__ import annotations

import json
import sys

import torch
from torch._dynamo.utils import counters
from torch.nn import functional

from lamp.model.qwen3_vl import Qwen3VLBackbone, Qwen3VLBackboneConfig
from lamp.model.qwen_fast import StaticQwen
from lamp.types import Observations


def compiled_beside_plain(folder: str) -> dict[str, float]:
    """Compiles the blocks; returns how alike the tokens are, and how many pieces were compiled."""
    cameras = (("a", 96), ("b", 64))
    backbone = Qwen3VLBackbone(Qwen3VLBackboneConfig(model=folder, cameras=cameras, text_tokens=None))
    images = {name: torch.randint(256, (2, side, side, 3), dtype=torch.uint8) for name, side in cameras}
    inputs = backbone.prepare(Observations(images=images, instructions=("pick up the milk", "open it")))
    static = StaticQwen(backbone.vlm, backbone.tokenizer.turn("", [9, 4]), torch.tensor([[1, 6, 6], [1, 4, 4]]))
    given = inputs.ids, inputs.positions.transpose(0, 1), inputs.patches.unflatten(0, (2, -1))
    with torch.inference_mode():
        plain = static(*given)
        counters.clear()
        static.compile()
        compiled = static(*given)
    alike = functional.cosine_similarity(plain.float(), compiled.float(), dim=-1)
    return {"cosine": float(alike.min()), "pieces": counters["stats"]["unique_graphs"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(compiled_beside_plain(sys.argv[1])))
