"""The Qwen3-VL backbone on a tiny random model of the real class."""

from __future__ import annotations

import builtins
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen import WIDTH
from torch import Tensor

from lamp.data.feature_cache.encode import FeatureBackbone, SequenceBackbone
from lamp.errors import ConfigError, DataError, LampError, MismatchError, MissingDependencyError
from lamp.model.qwen3_vl import FlashAttention, PostNorm, PreNorm, Qwen3VLBackbone, Qwen3VLBackboneConfig
from lamp.model.qwen_processor import RELEASE_PROMPT
from lamp.types import LeftPadding, Observations, RightPadding

CAMERAS = (("agentview", 96), ("wrist", 64))
IMAGES = 9 + 4
"""Tokens of both images."""
FIXED = 3 + 2 * 2 + IMAGES + 5
"""Tokens of a turn without its prompt's text."""


@pytest.fixture(scope="module")
def config(qwen_folder: Path) -> Qwen3VLBackboneConfig:
    return Qwen3VLBackboneConfig(model=str(qwen_folder), cameras=CAMERAS, bfloat16=False, text_tokens=12)


@pytest.fixture(scope="module")
def backbone(config: Qwen3VLBackboneConfig) -> Qwen3VLBackbone:
    return Qwen3VLBackbone(config)


@pytest.fixture
def observations() -> Observations:
    generator = torch.Generator().manual_seed(4)
    sizes = {"wrist": (2, 80, 100, 3), "agentview": (2, 96, 96, 3)}
    images = {name: torch.randint(0, 256, size, generator=generator, dtype=torch.uint8) for name, size in sizes.items()}
    return Observations(images=images, instructions=("pick up the milk", "put both moka pots on the stove"))


def one(observations: Observations, row: int) -> Observations:
    images = {name: images[row : row + 1] for name, images in observations.images.items()}
    return Observations(images=images, instructions=observations.instructions[row : row + 1])


def reference(backbone: Qwen3VLBackbone, observations: Observations) -> tuple[list[Tensor], list[Tensor]]:
    """What the class itself computes, called as its own processor calls it: padded on the left, with a mask.

    Returns the last decoder layer's output, and `hidden_states[-1]`, of each observation's real tokens.
    """
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(
        backbone.identity.folder.path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    seen: dict[str, Tensor] = {}
    model.model.language_model.layers[-1].register_forward_hook(lambda _, given, out: seen.update(last=out))
    inputs = backbone.prepare(observations)
    length = max(inputs.lengths)
    ids, mask = torch.zeros(2, len(inputs.lengths), length, dtype=torch.long)
    for row, real in enumerate(inputs.lengths):
        ids[row, length - real :], mask[row, length - real :] = inputs.ids[row, :real], 1
    with torch.no_grad():
        out = model(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=(ids == 151655).int(),
            pixel_values=inputs.patches,
            image_grid_thw=inputs.grid,
            output_hidden_states=True,
        )
    rows = [slice(length - real, None) for real in inputs.lengths]
    return [x[r] for x, r in zip(seen["last"], rows, strict=True)], [
        x[r] for x, r in zip(out.hidden_states[-1], rows, strict=True)
    ]


def test_it_is_a_backbone_of_whole_sequences(backbone: Qwen3VLBackbone) -> None:
    assert isinstance(backbone, SequenceBackbone)
    assert not isinstance(backbone, FeatureBackbone)
    assert backbone.width == WIDTH and backbone.length == FIXED + 12


def test_it_is_frozen_and_stays_so(backbone: Qwen3VLBackbone) -> None:
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_pre_norm_is_the_last_decoder_layers_output(backbone: Qwen3VLBackbone, observations: Observations) -> None:
    encoded = backbone.encode(observations)
    last, listed = reference(backbone, observations)
    assert encoded.tokens.shape == (2, FIXED + 12, WIDTH) and encoded.tokens.dtype == torch.float32
    assert encoded.mask.sum(1).tolist() == [FIXED + 4, FIXED + 8]
    for row in range(2):
        real = encoded.tokens[row, encoded.mask[row]]
        torch.testing.assert_close(real, last[row], atol=1e-4, rtol=1e-4)
        assert (real - listed[row]).abs().max() > 0.1, "this version's hidden_states[-1] is after the norm"
    assert (encoded.tokens[~encoded.mask] == 0).all()


def test_post_norm_is_after_the_final_norm(config: Qwen3VLBackboneConfig, observations: Observations) -> None:
    backbone = Qwen3VLBackbone(replace(config, layer=PostNorm()))
    encoded = backbone.encode(observations)
    last, listed = reference(backbone, observations)
    for row in range(2):
        real = encoded.tokens[row, encoded.mask[row]]
        torch.testing.assert_close(real, backbone.vlm.language_model.norm(last[row]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(real, listed[row], atol=1e-4, rtol=1e-4)


def test_deepstack_features_enter(config: Qwen3VLBackboneConfig, observations: Observations) -> None:
    backbone = Qwen3VLBackbone(config)
    before = backbone.encode(observations).tokens
    torch.nn.init.zeros_(backbone.vlm.visual.deepstack_merger_list[1].linear_fc2.weight)
    assert (backbone.encode(observations).tokens - before).abs().max() > 0.1


def test_the_side_of_the_padding_moves_tokens_and_changes_none(
    config: Qwen3VLBackboneConfig, backbone: Qwen3VLBackbone, observations: Observations
) -> None:
    right = backbone.encode(observations)
    left = Qwen3VLBackbone(replace(config, padding=LeftPadding())).encode(observations)
    tight = Qwen3VLBackbone(replace(config, text_tokens=None, padding=LeftPadding())).encode(observations)
    assert tight.tokens.shape[1] == FIXED + 8 and left.tokens.shape == right.tokens.shape
    assert right.mask[0].tolist() == [True] * (FIXED + 4) + [False] * 8
    assert left.mask[0].tolist() == [False] * 8 + [True] * (FIXED + 4)
    for other in (left, tight):
        for row in range(2):
            assert torch.equal(other.tokens[row, other.mask[row]], right.tokens[row, right.mask[row]])
        assert (other.tokens[~other.mask] == 0).all()


def test_tokens_do_not_depend_on_the_batch(backbone: Qwen3VLBackbone, observations: Observations) -> None:
    together = backbone.encode(observations)
    for row in range(2):
        alone = backbone.encode(one(observations, row))
        torch.testing.assert_close(alone.tokens[0], together.tokens[row], atol=1e-4, rtol=1e-4)
        assert torch.equal(alone.mask[0], together.mask[row])


def test_images_come_in_the_order_of_the_cameras_and_the_text_sees_both(
    config: Qwen3VLBackboneConfig, backbone: Qwen3VLBackbone, observations: Observations
) -> None:
    before = backbone.encode(observations).tokens
    starts = {"agentview": 4, "wrist": 4 + 9 + 2}
    for camera, start in starts.items():
        changed = observations.images | {camera: 255 - observations.images[camera]}
        after = backbone.encode(replace(observations, images=changed)).tokens
        moved = (after - before).abs().amax((0, 2)) > 1e-4
        assert not moved[:start].any() and moved[start:FIXED].all()
    swapped = Qwen3VLBackbone(replace(config, cameras=CAMERAS[::-1]))
    assert (swapped.encode(observations).tokens - before).abs().max() > 0.1
    assert swapped.key != backbone.key


def test_the_instruction_matters_only_after_the_images(backbone: Qwen3VLBackbone, observations: Observations) -> None:
    """Attention is causal: that is what makes a cache of image tokens apart from text tokens possible in one direction only."""
    before = backbone.encode(observations).tokens
    after = backbone.encode(replace(observations, instructions=("open the drawer", "open the drawer"))).tokens
    text = FIXED - 5
    torch.testing.assert_close(after[:, :text], before[:, :text], atol=1e-4, rtol=1e-4)
    assert (after[:, text:] - before[:, text:]).abs().amax((1, 2)).min() > 0.1


def test_bfloat16_is_near_and_stays_bfloat16(
    config: Qwen3VLBackboneConfig, backbone: Qwen3VLBackbone, observations: Observations
) -> None:
    half = Qwen3VLBackbone(replace(config, bfloat16=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = half.encode(observations)
        assert backbone.encode(observations).tokens.dtype == torch.float32
    assert encoded.tokens.dtype == torch.bfloat16 and half.key != backbone.key
    full = backbone.encode(observations).tokens
    cosine = torch.nn.functional.cosine_similarity(encoded.tokens.float(), full, dim=-1)
    assert cosine[encoded.mask].min() > 0.99


def test_the_key_says_content_and_settings(config: Qwen3VLBackboneConfig, qwen_folder: Path, tmp_path: Path) -> None:
    here = config.find()
    copy = Path(shutil.copytree(qwen_folder, tmp_path / "copy"))
    assert replace(config, model=str(copy)).find().key == here.key and len(here.key) == 64
    changed: dict[str, Any] = {
        "layer": PostNorm(),
        "padding": LeftPadding(),
        "prompt": RELEASE_PROMPT,
        "text_tokens": None,
        "bfloat16": True,
        "cameras": (("agentview", 96), ("wrist", 96)),
    }
    keys = {replace(config, **{name: value}).find().key for name, value in changed.items()}
    assert len(keys | {here.key}) == len(changed) + 1
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert replace(config, model=str(copy)).find().key != here.key
    assert Qwen3VLBackbone(config).key == here.key
    assert json.loads(json.dumps(here.description)) == here.description
    assert here.description["cameras"] == [["agentview", 96], ["wrist", 64]]
    assert (here.description["layer"], here.description["prompt"]) == ("PreNorm", "{instruction}")


def test_a_name_is_looked_up_among_local_copies(
    qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Qwen3VLBackboneConfig(model="Qwen/Qwen3-VL-2B-Instruct")
    monkeypatch.setenv("LAMP_MODELS", str(tmp_path))
    (tmp_path / "Qwen3-VL-2B-Instruct").symlink_to(qwen_folder)
    assert config.find().folder.path == tmp_path / "Qwen3-VL-2B-Instruct"
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen" / "Qwen3-VL-2B-Instruct").symlink_to(qwen_folder)
    assert config.find().folder.path.parent.name == "Qwen"


def test_the_commit_that_the_hub_gave_is_recorded(
    qwen_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None]] = []

    def download(name: str, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        place = tmp_path / "models--Qwen" / "snapshots" / (revision or "8d2f5c")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(qwen_folder)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config = Qwen3VLBackboneConfig()
    found = config.find()
    assert found.description["commit"] == "8d2f5c" and found.description["model"] == "Qwen/Qwen3-VL-4B-Instruct"
    pinned = config.pinned(found.description)
    assert pinned.commit == "8d2f5c" and pinned.find().key == found.key
    assert replace(config, commit="older").pinned(found.description).commit == "older"
    assert asked == [("Qwen/Qwen3-VL-4B-Instruct", None), ("Qwen/Qwen3-VL-4B-Instruct", "8d2f5c")]


def test_an_unreachable_hub_names_the_local_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError) as caught:
        Qwen3VLBackbone(Qwen3VLBackboneConfig(model="Qwen/Qwen3-VL-9000B", commit="abc"))
    told = str(caught.value)
    assert (
        "no folder Qwen/Qwen3-VL-9000B, and the model hub does not give it at revision abc (" in told
        and "\n" not in told
    )
    assert "--backbone.model FOLDER" in told and "$LAMP_MODELS/Qwen/Qwen3-VL-9000B" in told


def test_what_was_downloaded_serves_where_the_hub_cannot_be_reached(
    qwen_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    def cached(name: str, **settings: object) -> str:
        asked.append({"name": name, **settings})
        return str(qwen_folder)

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert Qwen3VLBackboneConfig(commit="abc").find().folder.path == qwen_folder
    (once,) = asked
    assert once["local_files_only"] and once["revision"] == "abc", "a download would try again and again"


def spoiled_weights(folder: Path, edit: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_config(folder: Path, **changes: object) -> None:
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | changes))


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (lambda f: shutil.rmtree(f), DataError, "no folder at .*spoiled; expected the folder of a Qwen3-VL model"),
        (lambda f: (f / "tokenizer.json").unlink(), DataError, r"lacks tokenizer\.json; expected the folder"),
        (lambda f: (f / "model.safetensors").unlink(), DataError, r"lacks \*\.safetensors"),
        (lambda f: spoil_config(f, model_type="llama"), MismatchError, "of type 'llama'; expected a Qwen3-VL"),
        (lambda f: spoil_config(f, model_type="qwen3_vl_moe"), MismatchError, "of type 'qwen3_vl_moe'"),
        (lambda f: (f / "config.json").write_text("{"), DataError, r"config\.json is not valid JSON"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs"),
            DataError,
            "cannot load the model",
        ),
        (
            lambda f: spoiled_weights(f, lambda t: t.pop("model.language_model.layers.1.mlp.up_proj.weight")),
            DataError,
            r"lacks model\.language_model\.layers\.1\.mlp\.up_proj\.weight \(1 weights in all\)",
        ),
        (
            lambda f: spoiled_weights(f, lambda t: t.update({"model.visual.pos_embed.weight": torch.zeros(16, 24)})),
            DataError,
            "cannot load the model",
        ),
    ],
)
def test_a_folder_that_is_no_whole_qwen_is_refused(
    qwen_folder: Path, tmp_path: Path, spoil: Any, kind: type[LampError], message: str
) -> None:
    folder = Path(shutil.copytree(qwen_folder, tmp_path / "spoiled"))
    spoil(folder)
    with pytest.raises(kind, match=message):
        Qwen3VLBackbone(Qwen3VLBackboneConfig(model=str(folder), bfloat16=False))


def test_observations_that_do_not_fit_are_refused(backbone: Qwen3VLBackbone, observations: Observations) -> None:
    with pytest.raises(DataError, match=r"'and and .*' has 13 tokens, text_tokens is 12; raise it"):
        backbone.encode(replace(observations, instructions=("pick up the milk", "and" + " and" * 12)))
    with pytest.raises(MismatchError, match=r"cameras \['agentview'\] are missing; the observation has: wrist"):
        backbone.encode(replace(observations, images={"wrist": observations.images["wrist"]}))


def test_settings_that_cannot_be_are_refused() -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"cameras": ()}, "one or several different names expected"),
        ({"cameras": (("front", 224), ("front", 224))}, "different names expected"),
        ({"cameras": (("front", 0),)}, "at least 1 px expected"),
        ({"text_tokens": 0}, "at least 1 expected, or None"),
        ({"prompt": "do it"}, "exactly once"),
        ({"attention": FlashAttention(), "bfloat16": False}, "expected bfloat16, or Sdpa"),
    )
    for changes, message in refused:
        with pytest.raises(ConfigError, match=message):
            Qwen3VLBackboneConfig(**changes)


def test_missing_packages_are_named_with_their_cure(
    config: Qwen3VLBackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        with pytest.raises(MissingDependencyError, match=r"'flash_attn'; install it .* or use Sdpa"):
            Qwen3VLBackbone(replace(config, bfloat16=True, attention=FlashAttention()))
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("transformers", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"package 'transformers'; install it: pip install 'transformers"):
        Qwen3VLBackbone(config)
    with pytest.raises(MissingDependencyError, match="needs huggingface_hub: pip install huggingface_hub"):
        Qwen3VLBackboneConfig().find()


@pytest.mark.hub
def test_the_published_4b_model(observations: Observations) -> None:
    """About 9 GB: what of the published files the tiny model can only imitate."""
    from transformers import AutoTokenizer

    backbone = Qwen3VLBackbone(Qwen3VLBackboneConfig(cameras=(("agentview", 224), ("wrist", 224))))
    assert backbone.width == 2560 and backbone.description["commit"]
    assert [backbone.rule.tokens(side) for _, side in backbone.config.cameras] == [64, 64]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "pick up the milk"}]
    official = AutoTokenizer.from_pretrained(backbone.identity.folder.path)
    text = official.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert official(text)["input_ids"] == backbone.tokenizer.turn("pick up the milk", [1, 1]).tolist()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoded = backbone.to(device).encode(observations)
    assert encoded.tokens.shape == (2, 3 + 2 * 66 + 32 + 5, 2560) and encoded.tokens.dtype == torch.bfloat16
    assert encoded.tokens.isfinite().all() and isinstance(backbone.config.layer, PreNorm)
    assert isinstance(backbone.padding, RightPadding)
