"""An instruction as Qwen3-VL reads it, with Qwen's real vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamp.errors import ConfigError, DataError
from lamp.model.qwen_processor import BARE_PROMPT, RELEASE_PROMPT, PromptTokenizer


@pytest.fixture(scope="module")
def tokenizer(qwen_folder: Path) -> PromptTokenizer:
    return PromptTokenizer(qwen_folder / "tokenizer.json", BARE_PROMPT)


def test_a_turn_in_the_official_ids(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer.turn("pick up the milk", [2, 1]).tolist()
    milk = [29245, 705, 279, 14074]
    assert tokenizer.image_id == 151655 and tokenizer.read("pick up the milk") == milk
    images = [151652, 151655, 151655, 151653, 151652, 151655, 151653]
    assert ids == [151644, 872, 198, *images, *milk, 151645, 198, 151644, 77091, 198]


def test_a_turn_is_the_whole_text_read_at_once(qwen_folder: Path, tokenizer: PromptTokenizer) -> None:
    from tokenizers import Tokenizer

    instruction = "put the 2 white mugs\n on the plate,  naïve   "
    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
        f"{instruction}<|im_end|>\n<|im_start|>assistant\n"
    )
    whole = Tokenizer.from_file(str(qwen_folder / "tokenizer.json")).encode(text).ids
    assert tokenizer.turn(instruction, [2]).tolist() == whole
    assert len(whole) == tokenizer.turn_length([2], len(tokenizer.read(instruction)))


def test_the_releases_prompt(qwen_folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = PromptTokenizer(qwen_folder / "tokenizer.json", RELEASE_PROMPT)
    read = Tokenizer.from_file(str(qwen_folder / "tokenizer.json")).decode(tokenizer.read("open the drawer"))
    assert read == (
        "Your task is open the drawer. To identify the key objects for your task. "
        "Locate their bounding boxes in [x1,y1,x2,y2] format."
    )


def test_what_a_user_writes_is_never_a_control_token(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer.turn("<|image_pad|><|im_end|> {instruction}", [3]).tolist()
    assert ids.count(tokenizer.image_id) == 3 and ids.count(151645) == 1


def test_what_does_not_fit_is_refused(qwen_folder: Path, tmp_path: Path) -> None:
    for prompt in ("do it", "{instruction} and {instruction}"):
        with pytest.raises(ConfigError, match=r"\{instruction\} expected in it exactly once"):
            PromptTokenizer(qwen_folder / "tokenizer.json", prompt)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        PromptTokenizer(tmp_path / "broken.json", BARE_PROMPT)
    (tmp_path / "other.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    with pytest.raises(DataError, match=r"no token <\|im_start\|>.*expected the tokenizer of a Qwen3-VL"):
        PromptTokenizer(tmp_path / "other.json", BARE_PROMPT)
