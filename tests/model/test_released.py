"""Released weights: our arithmetic on them against golden vectors, a twin in plain torch, and diffusers' own transformer."""

from __future__ import annotations

import json
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from released_reference import DECODER, NETWORK, TINY, Reference, random_inputs, random_weights, shapes, write_golden
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lamp import cli
from lamp.errors import ConfigError, DataError, LampError, MismatchError
from lamp.model.lamp import LaMP
from lamp.model.parameter_count import expected_parameters
from lamp.model.released import ReleasedSizes, check, load
from lamp.model.released.golden import OUTPUTS, TOLERANCE, outputs, packed, unpacked
from lamp.model.released.keys import released_shapes, to_ours, to_theirs
from lamp.model.released.sizes import MOTION, POLICY, sizes_of
from lamp.types import Encoded

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden.safetensors"

ODD = TINY | {"vl": 33, "latent": 48, "m_heads": 3, "pack": 3, "grid": 6, "T": 6, "g_heads": 3, "m_layers": 1}
ODD |= {"act_dim": 35, "act_heads": 5, "act_depth": 3, "A": 4, "S": 5, "H": 3, "dim_time": 7, "maxlen": 23}
SMALL = TINY | {"pack": 1, "grid": 2, "T": 3, "m_heads": 1, "latent": 16, "S": 0, "H": 1, "A": 1, "dim_time": 1}
WHOLE = TINY | {"pack": 8, "m_heads": 4, "m_hd": 8, "act_heads": 1, "g_heads": 1, "maxlen": 30, "H": 12, "dim_time": 2}
CASES = {
    "repeated and filled": (ODD | {"cond": 9}, 3, 4),
    "cut": (ODD | {"cond": 7}, 2, 11),
    "as many as wanted": (ODD | {"cond": 6}, 1, 6),
    "divides exactly": (SMALL | {"cond": 12}, 2, 4),
    "one token": (SMALL | {"cond": 5}, 4, 1),
    "one condition": (SMALL | {"cond": 1}, 2, 3),
    "filled more than half": (WHOLE | {"cond": 21}, 2, 11),
}


def golden_weights() -> dict[str, Tensor]:
    found = load_file(GOLDEN)
    return {name.removeprefix("weights."): value for name, value in found.items() if name.startswith("weights.")}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return golden_weights()


def write_pt(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def test_golden_vectors() -> None:
    errors = check(GOLDEN)
    assert set(errors) == set(OUTPUTS)
    with safe_open(GOLDEN, "pt") as file:
        inputs = {"vl_features", "state", "motion_noise", "action_noise"}
        assert {name for name in file.keys() if name.startswith("golden.")} == {  # noqa: SIM118
            f"golden.{name}" for name in {*OUTPUTS, *inputs}
        }
    assert all(error < 1e-5 for error in errors.values()), errors


def test_the_twin_has_the_golden_arithmetic(weights: dict[str, Tensor]) -> None:
    assert shapes(TINY) == {name: tuple(value.shape) for name, value in weights.items()}
    golden = {name.removeprefix("golden."): value for name, value in load_file(GOLDEN).items() if "golden" in name}
    for name, value in Reference(weights, TINY).outputs(golden).items():
        torch.testing.assert_close(value.float(), golden[name], atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize(("sizes", "batch", "tokens"), CASES.values(), ids=CASES)
def test_any_sizes_and_numbers_of_tokens(sizes: dict[str, int], batch: int, tokens: int, tmp_path: Path) -> None:
    file = write_golden(tmp_path / "twin.safetensors", sizes, batch=batch, tokens=tokens, seed=tokens)
    errors = check(file)
    assert all(error < 2e-5 for error in errors.values()), errors


@pytest.mark.parametrize("sizes", [TINY, ODD, SMALL, WHOLE], ids=["tiny", "odd", "small", "whole"])
def test_names_and_shapes_are_the_release_s(sizes: dict[str, int]) -> None:
    assert released_shapes(ReleasedSizes.of(sizes), POLICY) == shapes(sizes)
    model = LaMP(ReleasedSizes.of(sizes).config())
    assert model.parameter_table() == expected_parameters(model.config)
    even = sizes | {"dim_time": sizes["dim_time"] // 2 * 2}
    if even["dim_time"]:
        assert sizes_of(model.config) == ReleasedSizes.of(even)


@pytest.mark.parametrize(
    "name", ["action_model.action_decoder.bias", f"{DECODER}learnable_padding_tokens", f"{NETWORK}proj_out.weight"]
)
def test_a_wrong_weight_is_seen(name: str, tmp_path: Path) -> None:
    tensors = load_file(GOLDEN)
    tensors[f"weights.{name}"] = tensors[f"weights.{name}"] + 0.01
    with safe_open(GOLDEN, "pt") as file:
        save_file(tensors, tmp_path / "wrong.safetensors", file.metadata())
    assert max(check(tmp_path / "wrong.safetensors").values()) > TOLERANCE


def test_packed_inverts_unpacked() -> None:
    sizes = ReleasedSizes.of(ODD)
    noise = random_inputs(ODD, 2, 5, 3)["motion_noise"]
    motion = unpacked(noise, sizes.pack)
    assert motion.shape == (2, 36, 6, 3) and torch.equal(packed(motion, sizes), noise)
    # Channel (axis, frame): the second of three packed frames of axis 2, in the second group, at row 1 and column 4.
    assert motion[1, 1 * 6 + 4, 3 + 1, 2] == noise[1, 1, 2 * 3 + 1, 1, 4]


class TestThereAndBack:
    """What import and export preserve."""

    def test_our_weights_come_back(self) -> None:
        sizes = ReleasedSizes.of(ODD)
        ours = to_ours(random_weights(ODD, 4), sizes, "twin")
        again = to_ours(to_theirs(ours, sizes, POLICY), sizes, "again")
        rounded = {"action_expert.action_in.weight"}  # a rotation and its inverse, each rounded once
        for name, value in ours.items():
            if name in rounded:
                torch.testing.assert_close(again[name], value, atol=3e-7, rtol=0)
            else:
                assert torch.equal(again[name], value), name

    def test_their_weights_come_back_but_for_the_folds(self, weights: dict[str, Tensor]) -> None:
        sizes = ReleasedSizes.of(TINY)
        again = to_theirs(to_ours(weights, sizes, "golden"), sizes, POLICY)
        assert again.keys() == weights.keys()
        text = f"{NETWORK}patch_embed.text_proj.weight"
        folded = {"motion_head.vlm_proj.weight", text, f"{DECODER}learnable_padding_tokens"}
        different = {name for name in weights if not torch.equal(again[name], weights[name])}
        assert different == {*folded, "action_model.action_encoder.weight"}
        torch.testing.assert_close(
            again["action_model.action_encoder.weight"],
            weights["action_model.action_encoder.weight"],
            atol=3e-7,
            rtol=0,
        )
        # What is left of the two layers is their product, and the table as the second sees it.
        first, second = weights["motion_head.vlm_proj.weight"], weights[text]
        torch.testing.assert_close(again["motion_head.vlm_proj.weight"], second @ first, atol=1e-6, rtol=1e-5)
        assert torch.equal(again[text], torch.eye(TINY["latent"]))

    def test_what_comes_back_computes_the_same_for_the_authors(self) -> None:
        sizes, weights = ReleasedSizes.of(ODD), random_weights(ODD, 6)
        again = to_theirs(to_ours(weights, sizes, "twin"), sizes, POLICY)
        inputs = random_inputs(ODD, 2, 4, 7)
        before, after = Reference(weights, ODD).outputs(inputs), Reference(again, ODD).outputs(inputs)
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0, msg=name)

    def test_the_column_of_an_odd_time_channel_is_lost(self) -> None:
        sizes, weights = ReleasedSizes.of(ODD), random_weights(ODD, 6)
        name, column = "action_model.action_encoder.weight", ODD["A"] + ODD["dim_time"] - 1
        again = to_theirs(to_ours(weights, sizes, "twin"), sizes, POLICY)[name]
        assert weights[name][:, column].abs().min() > 0 and (again[:, column] == 0).all()


class TestLoad:
    """`lamp.model.released.load`."""

    def test_sizes_come_from_the_file_or_the_caller(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        golden = {name.removeprefix("golden."): value for name, value in load_file(GOLDEN).items() if "golden" in name}
        plain = tmp_path / "plain.safetensors"
        save_file(weights, plain)
        pt = write_pt(tmp_path / "w.pt", weights)
        sizes = ReleasedSizes.of(TINY)
        expected = outputs(load(GOLDEN), sizes, golden)
        for model in (load(GOLDEN, TINY), load(str(plain), TINY), load(pt, TINY), load(pt, sizes)):
            assert not model.training and not any(p.requires_grad for p in model.parameters())
            for name, value in outputs(model, sizes, golden).items():
                assert torch.equal(value, expected[name]), name
        for file in (plain, pt):
            with pytest.raises(ConfigError, match=r"pass.* config"):
                load(file)

    def test_half_precision_becomes_float32(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        model = load(write_pt(tmp_path / "w.pt", {name: value.bfloat16() for name, value in weights.items()}), TINY)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        bias = weights[f"{NETWORK}norm_final.bias"].bfloat16().float()
        assert torch.equal(model.state_dict()["motion_expert.norm.bias"], bias)

    def test_old_files_that_cannot_be_mapped(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        assert load(tmp_path / "old.pt", TINY).action_expert is not None

    def test_the_motion_expert_alone(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        alone = {name: value for name, value in weights.items() if name.startswith("motion_head.")}
        model = load(write_pt(tmp_path / "w.pt", alone), TINY)
        assert model.action_expert is None and model.guidance is None and model.motion_expert is not None
        assert released_shapes(ReleasedSizes.of(TINY), MOTION) == {n: tuple(v.shape) for n, v in alone.items()}

    def test_the_vlm_is_left_out(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        vlm = {"qwen_vl_interface.model.lm_head.weight": torch.zeros(3, 3)}
        assert load(write_pt(tmp_path / "w.pt", weights | vlm), TINY).guidance is not None

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_all_wrong_tensors_are_listed(self, suffix: str, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        spoilt = dict(weights)
        del spoilt["motion_guidance.gate"], spoilt[f"{NETWORK}proj_out.bias"]
        spoilt |= {"action_model.extra.weight": torch.zeros(2), "qwen_vl_interface.head": torch.zeros(2)}
        spoilt["action_model.pos_emb"] = torch.zeros(1, 63, 32)
        file = tmp_path / f"w{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(spoilt, file)
        with pytest.raises(MismatchError) as error:
            load(file, TINY)
        message = str(error.value)
        missing, unknown, shape = (message.index(word) for word in ("missing: ", "unknown: ", "of another shape: "))
        assert "motion_guidance.gate" in message[missing:unknown] and "proj_out.bias" in message[missing:unknown]
        assert (
            "action_model.extra.weight" in message[unknown:shape] and "qwen_vl_interface.head" in message[unknown:shape]
        )
        assert "action_model.pos_emb (1, 63, 32), expected (1, 64, 32)" in message[shape:]

    @pytest.mark.parametrize(
        ("dropped", "message"),
        [("motion_guidance.", "no tensors of motion_guidance"), ("motion_head.", "no tensors of motion_head")],
    )
    def test_half_a_policy(self, dropped: str, message: str, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        rest = {name: value for name, value in weights.items() if not name.startswith(dropped)}
        with pytest.raises(MismatchError, match=message):
            load(write_pt(tmp_path / "w.pt", rest), TINY)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"m_layers": 3}, r"2 layers .*transformer_blocks.* m_layers = 3"),
            ({"act_depth": 1}, r"2 layers action_model.blocks.* act_depth = 1"),
            ({"cond": 25}, "learnable_padding_tokens"),
            ({"vl": 45}, "motion_head.vlm_proj.weight"),
            ({"m_heads": 4}, "latent = 32"),
            ({"m_heads": 32, "m_hd": 1}, "norm_q"),
            ({"T": 7}, "frames_per_token 2"),
            ({"grid": 5}, "patch 2"),
            ({"maxlen": 10}, "positions"),
            ({"act_heads": 3}, "3 heads do not divide"),
            ({"H": 0}, "H is 0"),
            ({"A": 7.0}, "A is 7.0"),
            ({"pack": True}, "pack is True"),
            ({"act_depth": 10**9}, "act_depth is 1000000000"),
            ({"depth": 3}, "unknown: depth"),
        ],
    )
    def test_sizes_that_do_not_fit(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(LampError, match=message):
            load(GOLDEN, TINY | changes)

    def test_a_missing_size(self) -> None:
        with pytest.raises(ConfigError, match="missing: cond"):
            load(GOLDEN, {name: value for name, value in TINY.items() if name != "cond"})


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


class TestOnlyTensors:
    """What a `.pt` may hold."""

    @pytest.mark.parametrize(
        "state",
        [
            {"model": {"a": torch.zeros(2)}},
            {"a": torch.zeros(2), "step": 3},
            {"a": torch.zeros(2), "config": None},
            {1: torch.zeros(2)},
            [torch.zeros(2)],
            torch.zeros(2),
            {"a": torch.zeros(2, dtype=torch.int64)},
            {"a": torch.eye(2).to_sparse()},
        ],
        ids=["nested", "number", "none", "number as name", "list", "tensor", "integers", "sparse"],
    )
    def test_anything_else_is_refused(self, state: Any, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"refused .* holds tensors of floating-point numbers by name, and nothing"):
            load(write_pt(tmp_path / "w.pt", state), TINY)

    def test_code_is_refused_and_not_run(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        witness = tmp_path / "ran"
        file = write_pt(tmp_path / "w.pt", weights | {"extra": Harmful(witness)})
        with pytest.raises(DataError, match=r"refused \(it asks for getattr\)") as error:
            load(file, TINY)
        assert not witness.exists() and "\n" not in str(error.value) and "weights_only" not in str(error.value)
        file.write_bytes(pickle.dumps(Harmful(witness)))
        with pytest.raises(DataError):
            load(file, TINY)
        assert not witness.exists()

    def test_damaged_files(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        whole = write_pt(tmp_path / "w.pt", weights).read_bytes()
        for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-100], b"not a file of tensors"):
            (tmp_path / "w.pt").write_bytes(content)
            with pytest.raises(DataError):
                load(tmp_path / "w.pt", TINY)
        with pytest.raises(DataError, match="no file"):
            load(tmp_path / "other.pt", TINY)


class TestCommand:
    """`lamp check-released`."""

    def test_prints_every_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["check-released", str(GOLDEN)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == [f"golden.{name}" for name in OUTPUTS]
        assert all(float(line.split()[1]) < TOLERANCE for line in lines)

    @pytest.mark.parametrize("wrong", [2e-4, float("nan")])
    def test_one_wrong_value_is_enough(self, wrong: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tensors = load_file(GOLDEN)
        tensors["golden.guided"][1, 10, 39] += wrong
        file = tmp_path / "w.safetensors"
        save_file(tensors, file, {"config": json.dumps(TINY)})
        assert cli.main(["check-released", str(file)]) == 1
        captured = capsys.readouterr()
        assert "guided" in captured.err and "actions" not in captured.err and len(captured.out.splitlines()) == 7

    @pytest.mark.parametrize(
        ("metadata", "changes"),
        [
            (None, {}),
            ({"config": "{"}, {}),
            ({"config": "3"}, {}),
            ({"config": json.dumps(TINY | {"cond": 3})}, {}),
            ({"config": json.dumps(TINY)}, {"golden.state": None}),
            ({"config": json.dumps(TINY)}, {"golden.actions": None}),
            ({"config": json.dumps(TINY)}, {"golden.other": torch.zeros(1)}),
            ({"config": json.dumps(TINY)}, {"golden.state": torch.zeros(3, 8)}),
            ({"config": json.dumps(TINY)}, {"golden.guided": torch.zeros(2, 11, 41)}),
            ({"config": json.dumps(TINY)}, {"golden.vl_features": torch.zeros(2, 55, 40)}),
            ({"config": json.dumps(TINY)}, {"golden.vl_features": torch.zeros(0, 11, 40)}),
            ({"config": json.dumps(TINY)}, {"weights.motion_guidance.gate": None}),
        ],
    )
    def test_a_bad_file(
        self, metadata: Any, changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tensors = {name: value for name, value in (load_file(GOLDEN) | changes).items() if value is not None}
        save_file(tensors, tmp_path / "w.safetensors", metadata)
        assert cli.main(["check-released", str(tmp_path / "w.safetensors")]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1

    def test_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "torn.safetensors").write_bytes(GOLDEN.read_bytes()[:5000])
        for name in ("none.safetensors", "torn.safetensors", "."):
            assert cli.main(["check-released", str(tmp_path / name)]) == 2


@pytest.mark.diffusers
@pytest.mark.parametrize("sizes", [TINY, ODD, WHOLE], ids=["tiny", "odd", "whole"])
def test_the_motion_expert_equals_diffusers_transformer(sizes: dict[str, int]) -> None:
    diffusers, parts = import_module("diffusers"), import_module("diffusers.models.embeddings")
    weights, latent = random_weights(sizes, 8), sizes["latent"]
    network = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=sizes["m_heads"],
        attention_head_dim=sizes["m_hd"],
        in_channels=3 * sizes["pack"],
        out_channels=3 * sizes["pack"],
        time_embed_dim=latent,
        text_embed_dim=latent,
        num_layers=sizes["m_layers"],
        sample_width=sizes["grid"],
        sample_height=sizes["grid"],
        sample_frames=sizes["T"] // sizes["pack"],
        patch_size=2,
        patch_size_t=1,
        temporal_compression_ratio=1,
        max_text_seq_length=sizes["cond"],
        use_rotary_positional_embeddings=False,
    )
    network.time_proj = parts.Timesteps(512, True, 0)
    network.time_embedding = parts.TimestepEmbedding(512, latent)
    network.load_state_dict({n.removeprefix(NETWORK): v for n, v in weights.items() if n.startswith(NETWORK)})
    z = torch.randn(2, sizes["cond"], sizes["vl"], generator=torch.Generator().manual_seed(1))
    noise = random_inputs(sizes, 2, 1, 9)["motion_noise"]
    with torch.no_grad():
        theirs = network.eval()(
            noise, z @ weights["motion_head.vlm_proj.weight"].T, torch.full((2,), 437), return_dict=False
        )[0]
    model = LaMP(ReleasedSizes.of(sizes).config()).eval()
    model.load_state_dict(to_ours(weights, ReleasedSizes.of(sizes), "twin"))
    assert model.motion_expert is not None
    encoded = Encoded(tokens=z, mask=torch.ones(z.shape[:2], dtype=torch.bool))
    with torch.no_grad():
        ours = model.motion_expert(unpacked(noise, sizes["pack"]), torch.full((2,), 0.4376), encoded)
    torch.testing.assert_close(packed(ours, ReleasedSizes.of(sizes)), theirs, atol=2e-5, rtol=1e-5)
