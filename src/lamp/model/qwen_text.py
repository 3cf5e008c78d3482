"""An instruction as Qwen3-VL reads it: one turn of a chat, with the images before the text.

<|im_start|>user
<|vision_start|><|image_pad|>...<|vision_end|> (once an image) PROMPT<|im_end|>
<|im_start|>assistant

Nothing is generated; the last tokens are where an answer would begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from lamp.errors import ConfigError, DataError

INSTRUCTION = "{instruction}"
BARE_PROMPT = INSTRUCTION
"""The instruction and nothing else."""
RELEASE_PROMPT = (
    "Your task is {instruction}. To identify the key objects for your task. "
    "Locate their bounding boxes in [x1,y1,x2,y2] format."
)
"""What the authors' weights were trained with; the text is theirs, and no box is ever asked back."""
IMAGE = "<|image_pad|>"
CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE)


def check_prompt(prompt: str) -> None:
    """
    Raises:
        ConfigError: The prompt has no place for the instruction, or several.
    """
    if prompt.count(INSTRUCTION) != 1:
        raise ConfigError(
            f"prompt {prompt!r} given; {INSTRUCTION} expected in it exactly once, such as {BARE_PROMPT!r}."
        )


class PromptTokenizer:
    """Turns instructions into token ids.

    Args:
        file: `tokenizer.json` of the model's folder.
        prompt: Text around the instruction.

    Raises:
        DataError: The file is no tokenizer, or not Qwen's.
    """

    def __init__(self, file: Path, prompt: str) -> None:
        from tokenizers import Tokenizer

        check_prompt(prompt)
        self.prompt = prompt
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more particular
            raise DataError(f"{file} is not a tokenizer ({error}); restore the model's folder.") from None
        ids = {name: self._tokenizer.token_to_id(name) for name in CONTROL}
        absent = [name for name, found in ids.items() if found is None]
        if absent:
            raise DataError(f"{file} has no token {', '.join(absent)}; expected the tokenizer of a Qwen3-VL model.")
        self._ids = {name: found for name, found in ids.items() if found is not None}
        # Whatever a user writes is read as text, also where it looks like a control token.
        self._tokenizer.encode_special_tokens = True

    @property
    def image_id(self) -> int:
        """The id that stands where a token of an image goes."""
        return self._ids[IMAGE]

    def read(self, instruction: str) -> list[int]:
        """Returns the ids of the prompt's text alone."""
        return self._tokenizer.encode(self.prompt.replace(INSTRUCTION, instruction), add_special_tokens=False).ids

    def turn(self, instruction: str, images: Sequence[int]) -> Int[Tensor, " n"]:
        """Returns the ids of the whole turn; `images` says how many tokens each image has."""
        im_start, im_end, vision_start, vision_end, image = (self._ids[name] for name in CONTROL)
        user, line, assistant = (
            self._tokenizer.encode(text, add_special_tokens=False).ids for text in ("user\n", "\n", "assistant\n")
        )
        shown = [token for count in images for token in (vision_start, *[image] * count, vision_end)]
        text = self.read(instruction)
        return torch.tensor([im_start, *user, *shown, *text, im_end, *line, im_start, *assistant])

    def turn_length(self, images: Sequence[int], text: int) -> int:
        """Tokens of a turn whose prompt has `text` tokens."""
        return len(self.turn("", images)) - len(self.read("")) + text
