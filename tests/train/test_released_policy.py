"""An imported release as a policy by itself: its own VLM, in any place, alone and in a batch, against its own arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from release_fakes import CONFIG, PROMPT, STATISTICS, changed, write_release
from released_reference import TINY, Reference, random_weights
from safetensors.torch import load_file
from tiny_qwen import WIDTH
from torch import Tensor

import lamp.model.qwen3_vl as qwen3_vl
from lamp import cli
from lamp.errors import DataError, MismatchError
from lamp.model.qwen3_vl import PostNorm, Qwen3VLBackbone, Qwen3VLBackboneConfig
from lamp.model.qwen_processor import RELEASE_PROMPT
from lamp.policy import LaMPPolicy
from lamp.seeding import generator_at
from lamp.train.checkpoint_metadata import Imported, read_description
from lamp.train.released.import_release import import_released
from lamp.types import RightPadding
from lamp.view.foresight import MotionPredictor
from lamp_client.types import Observation

VLM = "qwen_vl_interface.model."
SIDE, IMAGE_TOKENS = 96, 9
DESCRIBING = ("config.json", "tokenizer.json", "preprocessor_config.json")
SHORT, LONG = (
    "open it",
    "put both moka pots on the stove, and then the black bowl into the bottom drawer of the cabinet",
)


def sizes(cond: int) -> dict[str, int]:
    return TINY | {"vl": WIDTH, "g_heads": 4, "cond": cond, "maxlen": 128}


def config(cond: int, dtype: str = "float32") -> Any:
    settings = {
        "framework.qwenvl.vl_hidden_dim": WIDTH,
        "framework.qwenvl.dtype": dtype,
        "framework.motion_expert.guidance_heads": 4,
        "framework.motion_expert.max_text_seq_length": cond,
        "framework.action_model.max_len_seq": 128,
        "datasets.vla_data.image_size": [SIDE, SIDE],
    }
    found: Any = CONFIG
    for path, value in settings.items():
        found = changed(found, path, value)
    return found


def experts(cond: int) -> dict[str, Tensor]:
    """All weights of a release but the VLM's."""
    return random_weights(sizes(cond), 5)


def trained_vlm(folder: Path) -> dict[str, Tensor]:
    """The VLM's weights under a release's names, trained away from those of the hub."""
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(8)
    moved = "model.language_model.layers.2.mlp.down_proj.weight"
    weights[moved] = weights[moved] + torch.randn(weights[moved].shape, generator=generator) * 0.1
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    return {f"{VLM}{name}": value for name, value in weights.items()}


Imports = Callable[..., Path]


@pytest.fixture
def imported(qwen_folder: Path, tmp_path: Path) -> Imports:
    """Imports a release that brings its VLM, then removes it and moves the checkpoint to another place."""

    def make(cond: int = 150, dtype: str = "float32", vlm: Path | None = qwen_folder) -> Path:
        release = write_release(
            tmp_path / "release", experts(cond) | trained_vlm(qwen_folder), config=config(cond, dtype)
        )
        out = import_released(str(release), tmp_path / "first" / "libero", vlm=vlm).checkpoint
        shutil.rmtree(release)
        (tmp_path / "elsewhere").mkdir()
        return Path(shutil.move(out, tmp_path / "elsewhere" / "moved"))

    return make


def observation(instruction: str, seed: int) -> Observation:
    random = np.random.default_rng(seed)
    images = {name: random.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    return Observation(images=images, state=random.uniform(-1, 1, 8).astype(np.float32), instruction=instruction)


def released_features(folder: Path, seen: Observation) -> Float[Tensor, "1 n d"]:
    """What the authors' code reads of the VLM for one observation: their prompt and resizing, the class's own processing."""
    from tokenizers import Tokenizer
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

    pictures = [Image.fromarray(image).resize((SIDE, SIDE)) for image in seen.images.values()]
    processed = Qwen2VLImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    shown = "".join(f"<|vision_start|>{'<|image_pad|>' * IMAGE_TOKENS}<|vision_end|>" for _ in pictures)
    asked = PROMPT.replace("{instruction}", seen.instruction)
    turn = f"<|im_start|>user\n{shown}{asked}<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(turn).ids])
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    found: dict[str, Tensor] = {}
    model.model.language_model.layers[-1].register_forward_hook(lambda _, given, out: found.update(last=out))
    with torch.no_grad():
        model.eval()(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == 151655).int(),
            pixel_values=processed["pixel_values"],
            image_grid_thw=processed["image_grid_thw"],
        )
    return found["last"]


def released_actions(cond: int, z: Float[Tensor, "1 n d"], state: np.ndarray, seed: int) -> Float[np.ndarray, "10 7"]:
    """The release's chunk for one observation, before it is scaled to the data's units."""
    noise = torch.randn(16, 8, 3, generator=generator_at(seed, "motion"))
    inputs = {
        "vl_features": z,
        "state": torch.from_numpy(state)[None],
        "motion_noise": noise.reshape(1, 4, 4, 4, 2, 3).permute(0, 3, 5, 4, 1, 2).flatten(2, 3),
        "action_noise": torch.randn(10, 7, generator=generator_at(seed, "action"))[None],
    }
    return Reference(experts(cond), sizes(cond)).outputs(inputs)["actions"][0].float().numpy()


def unclamped(policy: LaMPPolicy, seen: list[Observation], seeds: list[tuple[int, ...]]) -> Float[np.ndarray, "b 10 7"]:
    """The policy's actions before they are scaled: clamping would hide errors."""
    noise = [
        policy._noise(shape, seeds, use) for shape, use in ((policy.model.motion_shape, "motion"), ((10, 7), "action"))
    ]
    assert noise[1] is not None
    state = torch.from_numpy(policy.record.scaling.scaled_state(np.stack([one.state for one in seen])))
    return policy.model.act(policy._encode(seen), state, motion_noise=noise[0], action_noise=noise[1]).numpy()


@pytest.mark.long
@pytest.mark.parametrize(
    "cond",
    [
        pytest.param(150, marks=pytest.mark.slow, id="repeated and filled"),
        pytest.param(64, id="one cut, one filled"),
        pytest.param(20, marks=pytest.mark.slow, id="both cut"),
    ],
)
def test_it_acts_as_the_release_alone_and_in_a_batch(
    cond: int, imported: Imports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = imported(cond)
    monkeypatch.chdir(tmp_path / "elsewhere")
    policy = LaMPPolicy.from_checkpoint(Path("moved"))
    monkeypatch.chdir(tmp_path)
    seen = [observation(SHORT, 1), observation(LONG, 2)]
    features = [released_features(checkpoint / "vlm", item) for item in seen]
    lengths = [z.shape[1] for z in features]
    assert lengths[0] + 10 < lengths[1] and (cond != 64 or lengths[0] < 64 < lengths[1])
    states = policy.record.scaling.scaled_state(np.stack([item.state for item in seen]))
    expected = np.stack([released_actions(cond, features[row], states[row], 5 + row) for row in range(2)])
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    for rows in ([0], [1], [0, 1], [1, 0]):
        given, seeds = [seen[row] for row in rows], [(5 + row,) for row in rows]
        chunks = [chunk.actions for chunk in policy.act_batch(given, seeds)]
        np.testing.assert_allclose(chunks, policy.record.scaling.actions.invert(expected[rows]), atol=1e-4)
        np.testing.assert_allclose(unclamped(policy, given, seeds), expected[rows], atol=1e-4)


def test_the_state_reaches_the_reference_as_in_the_release(imported: Imports) -> None:
    policy = LaMPPolicy.from_checkpoint(imported())
    ends, state = STATISTICS["franka"]["state"], observation(SHORT, 1).state
    scaled = policy.record.scaling.scaled_state(state[None])[0]
    low, high = np.array(ends["min"]), np.array(ends["max"])
    expected = 2 * (state - low) / (high - low) - 1
    expected[2], expected[7] = 0, state[7] > 0.5
    np.testing.assert_allclose(scaled, expected, atol=1e-5)


def test_settings_and_key_are_on_record(imported: Imports, qwen_folder: Path) -> None:
    checkpoint = imported()
    found = read_description(checkpoint)
    assert isinstance(found.training, Imported)
    settings = found.training.backbone
    assert settings == Qwen3VLBackboneConfig(
        model="vlm",
        cameras=(("agentview", SIDE), ("wrist", SIDE)),
        prompt=RELEASE_PROMPT,
        padding=RightPadding(),
        text_tokens=None,
        bfloat16=False,
    )
    inside = found.training.backbone_in(checkpoint)
    assert isinstance(inside, Qwen3VLBackboneConfig) and inside.model == str(checkpoint.resolve() / "vlm")
    assert found.backbone.key == inside.find().key != replace(inside, model=str(qwen_folder)).find().key
    assert found.backbone.description["model"] == "Qwen/Qwen3-VL-4B-Instruct"
    assert found.backbone.description["content"] == inside.find().folder.content


def test_its_foresight_can_be_looked_at(imported: Imports) -> None:
    predictor = MotionPredictor(imported())
    paths = predictor.points(dict(observation(SHORT, 1).images), SHORT, samples=1, seed=0)
    assert paths.shape == (16, 9, 3) and np.isfinite(paths).all()


def test_bfloat16_as_published(imported: Imports) -> None:
    policy = LaMPPolicy.from_checkpoint(imported(dtype="bfloat16"))
    assert isinstance(policy.encoder.backbone, Qwen3VLBackbone)
    assert {value.dtype for value in policy.encoder.backbone.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in policy.model.parameters()} == {torch.float32}
    assert np.isfinite(policy.act(observation(LONG, 2), noise_seed=(1,)).actions).all()


def unread(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where weights are read."""
    (checkpoint / "model.safetensors").write_bytes(b"unread")
    monkeypatch.setattr(qwen3_vl, "_load", lambda *_: pytest.fail("weights of the VLM were read"))


def test_another_vlm_in_its_place_is_refused(
    imported: Imports, qwen_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = imported()
    for file in (checkpoint / "vlm").glob("*.safetensors*"):
        file.unlink()
    shutil.copyfile(qwen_folder / "model.safetensors", checkpoint / "vlm" / "model.safetensors")
    unread(checkpoint, monkeypatch)
    with pytest.raises(MismatchError, match=r"backbone_key .*its content is '[0-9a-f]{12}', here it is"):
        LaMPPolicy.from_checkpoint(checkpoint)
    shutil.rmtree(checkpoint / "vlm")
    with pytest.raises(DataError, match=r"no folder at /.*/moved/vlm; expected the folder of a Qwen3-VL"):
        LaMPPolicy.from_checkpoint(checkpoint)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("Name or service not known\nand more")

    for name in ("model_info", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", fail)


def test_what_describes_the_vlm_may_come_later(imported: Imports, qwen_folder: Path, no_hub: None) -> None:
    checkpoint = imported(vlm=None)
    assert read_description(checkpoint).backbone.key is None
    with pytest.raises(
        DataError, match=r"vlm lacks config\.json, tokenizer\.json, preprocessor_config\.json; expected"
    ):
        LaMPPolicy.from_checkpoint(checkpoint)
    for name in DESCRIBING:
        shutil.copyfile(qwen_folder / name, checkpoint / "vlm" / name)
    policy = LaMPPolicy.from_checkpoint(checkpoint)
    expected = released_features(checkpoint / "vlm", observation(SHORT, 1))
    torch.testing.assert_close(policy._encode([observation(SHORT, 1)]).tokens, expected, atol=1e-4, rtol=1e-4)
    settings = read_description(checkpoint).training
    assert isinstance(settings, Imported)
    inside = settings.backbone_in(checkpoint)
    assert isinstance(inside, Qwen3VLBackboneConfig)
    other = Qwen3VLBackbone(replace(inside, layer=PostNorm()))
    with pytest.raises(MismatchError, match="its layer is 'PreNorm', here it is 'PostNorm'"):
        LaMPPolicy.from_checkpoint(checkpoint, backbone=other)


class TestWithoutItsVlm:
    """A release that leaves the VLM to the hub, such as LaMP-Motion-Expert."""

    @pytest.fixture
    def release(self, tmp_path: Path) -> Path:
        return write_release(tmp_path / "release", experts(150), config=config(150))

    @pytest.fixture
    def copies(self, qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder of local copies, with the model that the release names."""
        folder = tmp_path / "models" / "Qwen3-VL-4B-Instruct"
        shutil.copytree(qwen_folder, folder)
        monkeypatch.setenv("LAMP_MODELS", str(tmp_path / "models"))
        return folder

    def test_a_local_copy_serves(
        self, release: Path, copies: Path, tmp_path: Path, no_hub: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert cli.main(["import-released", str(release), str(out)]) == 0
        assert "holds no weights of its VLM" in capsys.readouterr().err
        assert read_description(out).backbone.key is None
        assert np.isfinite(LaMPPolicy.from_checkpoint(out).act(observation(SHORT, 1)).actions).all()

    def test_once_it_was_seen_no_other_serves(self, release: Path, copies: Path, tmp_path: Path, no_hub: None) -> None:
        found = import_released(str(release), tmp_path / "out", vlm=copies)
        assert found.notes == () and not (found.checkpoint / "vlm").exists()
        LaMPPolicy.from_checkpoint(found.checkpoint)
        weights = bytearray((copies / "model.safetensors").read_bytes())
        weights[-40] ^= 1
        (copies / "model.safetensors").write_bytes(weights)
        with pytest.raises(MismatchError, match=r"its content is '[0-9a-f]{12}', here it is"):
            LaMPPolicy.from_checkpoint(found.checkpoint)

    def test_one_of_another_width_is_refused(self, tmp_path: Path, qwen_folder: Path) -> None:
        release = write_release(tmp_path / "release")
        with pytest.raises(MismatchError, match="a VLM 32 wide; the released model's is 40 wide"):
            import_released(str(release), tmp_path / "out", vlm=qwen_folder)
        assert not (tmp_path / "out").exists()
