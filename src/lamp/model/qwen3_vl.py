"""Qwen3-VL, the paper's vision-language backbone: any size of it, as transformers computes it, frozen.

Its last decoder layer's output is z. Attention is causal, so padding that follows cannot change a token: sequences are always
computed with their padding on the right and moved afterwards, which makes the side of the padding a matter of layout alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamp.configuration import to_json
from lamp.errors import ConfigError, DataError, MismatchError, MissingDependencyError
from lamp.model.backbone import BackboneSettings
from lamp.model.qwen_fast import FastQwen
from lamp.model.qwen_files import TOKENIZER, ModelFolder, find_model, missing
from lamp.model.qwen_lora import LoRA, adapt, merge, unadapted, without_adapters
from lamp.model.qwen_processor import BARE_PROMPT, PatchRule, PromptTokenizer, check_prompt
from lamp.types import Encoded, LeftPadding, Observations, Padding, RightPadding, placed

REVISION = 1
"""Raised whenever the same weights and settings would give other tokens."""
INSTRUCTIONS_KEPT = 1024
PROVENANCE = ("model", "commit")
"""Entries of a description that name where the weights came from; their content identifies them."""
CONTENT = "content"
"""The entry of a description with that content's hash."""


@dataclass(frozen=True, kw_only=True)
class PreNorm:
    """The last decoder layer's output as it is: what the release was trained with."""


@dataclass(frozen=True, kw_only=True)
class PostNorm:
    """The same after the language model's final norm."""


@dataclass(frozen=True, kw_only=True)
class Sdpa:
    """PyTorch's own attention."""


@dataclass(frozen=True, kw_only=True)
class FlashAttention:
    """The `flash-attn` package, on a GPU and in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Qwen3VLBackboneConfig(BackboneSettings):
    """Which Qwen3-VL, what it is shown, and which of its numbers are z."""

    model: str = "Qwen/Qwen3-VL-4B-Instruct"
    """Name on the hub, or a local folder."""
    commit: str | None = None
    """Commit, tag or branch on the hub; None: the newest. The commit that was found is recorded."""
    cameras: tuple[tuple[str, int], ...] = (("agentview", 224), ("wrist", 224))
    """(name, side in pixels) of each camera, in order: images are resized to it, and then as the model itself asks for."""
    prompt: str = BARE_PROMPT
    """Text around {instruction}; `lamp.model.qwen_processor.RELEASE_PROMPT` is the release's."""
    layer: PreNorm | PostNorm = field(default_factory=PreNorm)
    padding: RightPadding | LeftPadding = field(default_factory=RightPadding)
    text_tokens: int | None = 32
    """Room for the prompt in every sequence; None: as much as the longest prompt of a batch needs."""
    bfloat16: bool = True
    """Weights and arithmetic in bfloat16, as they are published; else in float32."""
    attention: Sdpa | FlashAttention = field(default_factory=Sdpa)
    encodes_on_gpu: ClassVar[bool] = True
    lora: LoRA | None = None
    """Adapters that Stage 2 trains along; None: the model is frozen, and its tokens can be cached."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.cameras]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"Qwen3-VL: cameras {names} given, one or several different names expected.")
        for name, side in self.cameras:
            if side < 1:
                raise ConfigError(f"Qwen3-VL: camera {name!r} at {side} px, at least 1 px expected, such as 224.")
        if self.text_tokens is not None and self.text_tokens < 1:
            raise ConfigError(f"Qwen3-VL: text_tokens {self.text_tokens} given, at least 1 expected, or None.")
        if isinstance(self.attention, FlashAttention) and not self.bfloat16:
            raise ConfigError("Qwen3-VL: FlashAttention given in float32; expected bfloat16, or Sdpa.")
        check_prompt(self.prompt)

    def describe(self, content: str | None, commit: str | None) -> dict[str, Any]:
        """What a checkpoint records, as JSON values.

        Args:
            content: Hash of the model's files; None where they are not at hand.
        """
        adapted = {} if self.lora is None else {"lora": to_json(self.lora)}
        # What the Motion Expert reads changes no token.
        adapted.get("lora", {}).pop("prior_reads_adapted", None)
        return {
            "kind": "qwen3_vl",
            "revision": REVISION,
            "model": self.model,
            "commit": commit,
            "content": content,
            "cameras": [list(camera) for camera in self.cameras],
            "prompt": self.prompt,
            "layer": type(self.layer).__name__,
            "padding": type(self.padding).__name__,
            "text_tokens": self.text_tokens,
            "bfloat16": self.bfloat16,
            **adapted,
        }

    def pinned(self, recorded: Mapping[str, Any]) -> Qwen3VLBackboneConfig:
        return replace(self, commit=self.commit or recorded.get("commit"))

    def stored_in(self, folder: Path) -> Qwen3VLBackboneConfig:
        return replace(self, model=str(folder.resolve()))

    def find(self) -> QwenIdentity:
        """Finds the model's files, downloading them where they are missing, and returns the backbone that they make."""
        return QwenIdentity(config=self, folder=find_model(self.model, self.commit))

    def build(self) -> Qwen3VLBackbone:
        return self.find().load()

    def tokenizer(self) -> QwenIdentity | None:
        return self.find() if Path(self.model).is_dir() else None

    @property
    def recorded(self) -> dict[str, Any]:
        described = self.describe(None, None)
        return {name: value for name, value in described.items() if name not in ("commit", "content")}


@dataclass(frozen=True, kw_only=True)
class QwenIdentity:
    """Which backbone it is, known from the files before any weights are loaded."""

    config: Qwen3VLBackboneConfig
    folder: ModelFolder

    @property
    def description(self) -> dict[str, Any]:
        """What a checkpoint records, as JSON values."""
        return self.config.describe(self.folder.content, self.folder.revision)

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.folder.width

    @property
    def key(self) -> str:
        """SHA-256 over the files and the settings; a copy of the model elsewhere has the same."""
        identifying = {name: value for name, value in self.description.items() if name not in PROVENANCE}
        return hashlib.sha256(json.dumps(identifying, sort_keys=True).encode()).hexdigest()

    @cached_property
    def rule(self) -> PatchRule:
        """What the model makes of an image."""
        try:
            return PatchRule.read(self.folder.path)
        except ImportError as error:
            raise missing(error) from error

    @cached_property
    def tokenizer(self) -> PromptTokenizer:
        """What it makes of an instruction."""
        try:
            return PromptTokenizer(self.folder.path / TOKENIZER, self.config.prompt)
        except ImportError as error:
            raise missing(error) from error

    @property
    def padding(self) -> Padding:
        """On which side sequences are padded."""
        return self.config.padding

    @cached_property
    def tokens_of_images(self) -> tuple[int, ...]:
        """Tokens of each camera's image."""
        return tuple(self.rule.tokens(side) for _, side in self.config.cameras)

    @property
    def length(self) -> int | None:
        """Tokens of every padded sequence, where `text_tokens` fixes them."""
        room = self.config.text_tokens
        return None if room is None else self.tokenizer.turn_length(self.tokens_of_images, room)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of its tokens."""
        return torch.bfloat16 if self.config.bfloat16 else torch.float32

    def values_of(self, instruction: str) -> int:
        """How many numbers one observation's tokens are, without padding."""
        return len(self.tokenizer.turn(instruction, self.tokens_of_images)) * self.width

    @property
    def text_room(self) -> int | None:
        """Most tokens of a prompt."""
        return self.config.text_tokens

    def instruction_ids(self, instruction: str) -> tuple[int, ...]:
        """The ids of the prompt with the instruction in it."""
        return tuple(self.tokenizer.read(instruction))

    def unknown_words(self, instruction: str) -> tuple[str, ...]:
        """None: what is no word of its vocabulary is read byte by byte."""
        return ()

    def load(self) -> Qwen3VLBackbone:
        """Loads the weights."""
        return Qwen3VLBackbone(self.config, self)


@dataclass(frozen=True, kw_only=True)
class QwenInputs:
    """What the model is run on: sequences padded on the right."""

    ids: Int[Tensor, "b n"]
    positions: Int[Tensor, "3 b n"]
    """Of each token in time, rows and columns (M-RoPE)."""
    patches: Float[Tensor, "p v"]
    """Of all images, one observation after the other."""
    grid: Int[Tensor, "i 3"]
    """Frames, rows and columns of patches of each image."""
    lengths: tuple[int, ...]
    """Real tokens of each sequence."""
    real: Int[Tensor, " b"]
    """The same, on the model's device: nothing has to be brought there between the model and the experts."""


class Qwen3VLBackbone(nn.Module):
    """z_t = phi_vl(O_t, l): tokens of each camera's image and of the chat around them, in the order they are read.

    Args:
        identity: What `config.find()` gave, where it has been called already.

    Raises:
        DataError: The model is not where the settings say, or its files are damaged.
        MismatchError: What is there is no Qwen3-VL.
        MissingDependencyError: transformers is not installed.
    """

    def __init__(self, config: Qwen3VLBackboneConfig, identity: QwenIdentity | None = None) -> None:
        super().__init__()
        self.config, self.identity = config, identity or config.find()
        self.rule, self.tokenizer = self.identity.rule, self.identity.tokenizer
        try:
            self.vlm: Any = _load(self.identity.folder, config)
        except ImportError as error:
            raise missing(error) from error
        self._image_tokens = self.identity.tokens_of_images
        self.width, self.dtype = self.identity.width, self.identity.dtype
        self.padding, self.length, self.text_room = config.padding, self.identity.length, config.text_tokens
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}
        self.fast: FastQwen | None = None
        """What `accelerate` prepared."""
        self._fast_unadapted: FastQwen | None = None
        self.eval().requires_grad_(False)
        if config.lora is not None:
            adapt(self.vlm, config.lora)

    def train(self, mode: bool = True) -> Qwen3VLBackbone:
        """Stays in evaluation mode, but for adapters: the backbone itself is frozen in both stages."""
        return super().train(mode and self.config.lora is not None)

    def accelerate(self) -> None:
        """From now on computes the same tokens, within rounding, sooner (`lamp.model.qwen_fast`), on the device where it is.

        The weights must not change any more. On a GPU, the first call of each batch size and length then takes a while.
        """
        if self.config.lora is not None and self.fast is None:
            if not self.config.lora.prior_reads_adapted:
                bare: Any = unadapted(self.vlm)
                bare.language_model.set_attn_implementation("sdpa")
                self._fast_unadapted = FastQwen(bare, self.tokenizer.turn("", self._image_tokens), self._grid)
            merge(self.vlm)
        if self.fast is None or self.fast.device != self.vlm.device:
            # Package flash-attn can neither be compiled whole nor gain anything here, where torch picks such a kernel itself.
            self.vlm.language_model.set_attn_implementation("sdpa")
            sequence = self.tokenizer.turn("", self._image_tokens)
            self.fast = FastQwen(self.vlm, sequence, self._grid)

    @property
    def key(self) -> str:
        """SHA-256 over the model's files and the settings."""
        return self.identity.key

    @property
    def description(self) -> dict[str, Any]:
        """Model, commit, content, cameras, prompt, feature layer, padding."""
        return self.identity.description

    def values_of(self, instruction: str) -> int:
        """How many numbers one observation's tokens are, without padding."""
        return self.identity.values_of(instruction)

    def instruction_ids(self, instruction: str) -> tuple[int, ...]:
        """The ids of the prompt with the instruction in it."""
        return self.identity.instruction_ids(instruction)

    def unknown_words(self, instruction: str) -> tuple[str, ...]:
        """None: what is no word of its vocabulary is read byte by byte."""
        return self.identity.unknown_words(instruction)

    def prepare(self, observations: Observations) -> QwenInputs:
        """Makes the model's inputs, on the model's device.

        Raises:
            DataError: A prompt is longer than `text_tokens`.
            MismatchError: A camera is missing.
        """
        absent = [name for name, _ in self.config.cameras if name not in observations.images]
        if absent:
            given = ", ".join(observations.images) or "none"
            raise MismatchError(f"Qwen3-VL: cameras {absent} are missing; the observation has: {given}.")
        device, turns = self.vlm.device, [self._turn(text) for text in observations.instructions]
        lengths = tuple(len(ids) for ids, _ in turns)
        ids = nn.utils.rnn.pad_sequence([ids for ids, _ in turns], batch_first=True)
        positions = nn.utils.rnn.pad_sequence([positions.T for _, positions in turns], batch_first=True)
        patches = [self.rule.patches(observations.images[name].to(device), side) for name, side in self.config.cameras]
        return QwenInputs(
            ids=ids.to(device),
            positions=positions.permute(2, 0, 1).to(device),
            patches=torch.cat(patches, dim=1).flatten(0, 1),
            grid=self._grid.repeat(len(turns), 1).to(device),
            lengths=lengths,
            real=torch.tensor(lengths, device=device),
        )

    def forward(self, inputs: QwenInputs) -> Float[Tensor, "b n d"]:
        """Returns the last decoder layer's output; what it holds past a sequence's end means nothing."""
        if self.fast is not None:
            return self.fast(inputs.ids, inputs.positions, inputs.patches, length=self.length)
        learning = self.training and torch.is_grad_enabled()
        with torch.set_grad_enabled(learning), torch.autocast(self.vlm.device.type, enabled=False):
            return run_plain(self.vlm, inputs)

    def encode(self, observations: Observations) -> Encoded:
        """Returns the tokens of whole observations, padded as the settings say."""
        inputs = self.prepare(observations)
        return self._placed(self(inputs), inputs)

    @torch.no_grad()
    def encode_for_prior(self, observations: Observations) -> Encoded | None:
        """Returns the tokens that a frozen Motion Expert reads where they are others than `encode`'s: without the adapters, as
        Stage 1 had them."""
        if self.config.lora is None or self.config.lora.prior_reads_adapted:
            return None
        inputs = self.prepare(observations)
        if self._fast_unadapted is not None:
            tokens = self._fast_unadapted(inputs.ids, inputs.positions, inputs.patches, length=self.length)
        else:
            with without_adapters(self.vlm), torch.autocast(self.vlm.device.type, enabled=False):
                tokens = run_plain(self.vlm, inputs)
        return self._placed(tokens, inputs)

    def _placed(self, tokens: Float[Tensor, "b n d"], inputs: QwenInputs) -> Encoded:
        length = self.length or max(inputs.lengths)
        return placed(tokens, inputs.real, self.config.padding, length, whole=min(inputs.lengths) == length)

    @property
    def _grid(self) -> Int[Tensor, "i 3"]:
        return torch.tensor([(1, *self.rule.grid(side)) for _, side in self.config.cameras])

    def _turn(self, instruction: str) -> tuple[Int[Tensor, " n"], Int[Tensor, "3 n"]]:
        """The ids and positions of one sequence; they depend on the instruction alone."""
        if instruction in self._turns:
            return self._turns[instruction]
        used, room = len(self.tokenizer.read(instruction)), self.config.text_tokens
        if room is not None and used > room:
            raise DataError(
                f"Qwen3-VL: the prompt of {instruction[:80]!r} has {used} tokens, text_tokens is {room}; raise it."
            )
        ids = self.tokenizer.turn(instruction, self._image_tokens)
        kinds = (ids == self.tokenizer.image_id).int()
        positions, _ = self.vlm.get_rope_index(ids[None], kinds[None], image_grid_thw=self._grid)
        if len(self._turns) >= INSTRUCTIONS_KEPT:
            self._turns.clear()
        self._turns[instruction] = ids, positions[:, 0]
        return self._turns[instruction]


def run_plain(vlm: Any, inputs: QwenInputs) -> Float[Tensor, "b n d"]:
    """Runs transformers' own forward."""
    # No mask: with causal attention the padding on the right is never seen.
    outputs = vlm(
        input_ids=inputs.ids,
        position_ids=inputs.positions,
        pixel_values=inputs.patches,
        image_grid_thw=inputs.grid,
    )
    return outputs.last_hidden_state


def _load(folder: ModelFolder, config: Qwen3VLBackboneConfig) -> Any:
    """Loads the model without its head for words; of its final norm only what the feature layer needs."""
    from transformers import Qwen3VLForConditionalGeneration
    from transformers.utils import is_flash_attn_2_available

    flash = isinstance(config.attention, FlashAttention)
    if flash and not is_flash_attn_2_available():
        raise MissingDependencyError(
            "Qwen3-VL: FlashAttention needs a GPU and package 'flash_attn'; install it (pip install flash-attn), or use Sdpa."
        )
    # With `output_loading_info` a pair comes back, which the type does not say.
    load: Any = Qwen3VLForConditionalGeneration.from_pretrained
    try:
        whole, report = load(
            folder.path,
            dtype=torch.bfloat16 if config.bfloat16 else torch.float32,
            attn_implementation="flash_attention_2" if flash else "sdpa",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    # A damaged file, a header that is none, a configuration with impossible sizes: each raises its own exception.
    except Exception as error:
        reason = " ".join(str(error).split())
        message = f"cannot load the model in {folder.path} ({reason})"
        raise DataError(f"{message}; expected the whole files of a Qwen3-VL model.") from error
    # Weights that are not in the files would silently be random ones.
    if lost := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise DataError(
            f"{folder.path} lacks {lost[0]} ({len(lost)} weights in all); restore the folder: some of it is missing."
        )
    vlm = whole.model
    vlm.config.text_config.use_cache = False
    if isinstance(config.layer, PreNorm):
        # What the language model returns is then the last decoder layer's output, in every version of transformers.
        vlm.language_model.norm = nn.Identity()
    return vlm
