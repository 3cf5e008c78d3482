"""all-MiniLM-L6-v2, a six-layer BERT of width 384, read from the package that carries its weights.

Written out here because importing transformers takes longer than everything else the embedded default does at start-up.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from lamp.model.layers import attention, merge_heads, split_heads

WIDTH, HEADS, LAYERS, VOCABULARY, LENGTHS = 384, 12, 6, 30_522, 512

# Our name of each part of a layer, and the checkpoint's.
PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm_attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_mlp": "output.LayerNorm",
}


class MiniLMLayer(nn.Module):
    """A post-norm BERT layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm_attention = nn.LayerNorm(WIDTH, eps=1e-12)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm_mlp = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Float[Tensor, "1 n d"]) -> Float[Tensor, "1 n d"]:
        query, key, value = (split_heads(part(x), HEADS) for part in (self.query, self.key, self.value))
        x = self.norm_attention(x + self.out(merge_heads(attention(query, key, value))))
        return self.norm_mlp(x + self.down(functional.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Token ids of ONE sentence, without padding, to token states: a sentence's states never depend on its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (nn.Embedding(n, WIDTH) for n in (VOCABULARY, LENGTHS, 2))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(MiniLMLayer() for _ in range(LAYERS))

    def forward(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        x = self.words(ids) + self.places.weight[: len(ids)] + self.kinds.weight[0]
        x = self.norm(x)[None]
        for layer in self.layers:
            x = layer(x)
        return x[0]

    @classmethod
    def load(cls, path: Path) -> MiniLM:
        """Reads the weights from the published safetensors file; its pooler is left out."""
        stored = load_file(path)
        names = {"words": "word_embeddings", "places": "position_embeddings", "kinds": "token_type_embeddings"}
        state = {f"{ours}.weight": stored[f"embeddings.{theirs}.weight"] for ours, theirs in names.items()}
        for kind in ("weight", "bias"):
            state[f"norm.{kind}"] = stored[f"embeddings.LayerNorm.{kind}"]
            for n in range(LAYERS):
                for ours, theirs in PARTS.items():
                    state[f"layers.{n}.{ours}.{kind}"] = stored[f"encoder.layer.{n}.{theirs}.{kind}"]
        with torch.device("meta"):
            model = cls()
        model.load_state_dict(state, assign=True)
        return model
