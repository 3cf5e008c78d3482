"""A tiny random model of the real Qwen3-VL class, in a folder as the hub would give it, with Qwen's real vocabulary."""

from __future__ import annotations

import base64
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

MARKS = ("object_ref", "box", "quad", "vision")
CONTROL = [
    *("endoftext", "im_start", "im_end"),
    *(f"{mark}_{end}" for mark in MARKS for end in ("start", "end")),
    *("vision_pad", "image_pad", "video_pad"),
]
WIDTH = 32


def write_tiny_qwen(folder: Path) -> Path:
    """Writes configuration, weights, tokenizer and preprocessor settings; 1.3 million parameters, nearly all of them words."""
    transformers = pytest.importorskip("transformers")
    package = find_spec("dashscope")
    if package is None or not package.submodule_search_locations:
        pytest.skip("Qwen's vocabulary is in package dashscope, which `make setup` installs")
    config = transformers.Qwen3VLConfig(
        text_config={
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 151_936,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True,
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    # A fresh model's norms do nothing and its tokens hardly depend on each other: too simple to test.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 64 * 64, "longest_edge": 16_777_216},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)
    _write_tokenizer(Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken", folder)
    return folder


def _write_tokenizer(vocabulary: Path, folder: Path) -> None:
    from tokenizers import normalizers
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line)
            return {base64.b64decode(token): int(rank) for token, rank in lines}

    control = [f"<|{name}|>" for name in CONTROL]
    tokenizer = Converter(str(vocabulary), PRETOKENIZE_REGEX, extra_special_tokens=control).converted()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
