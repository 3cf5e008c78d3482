"""Whole releases: a folder of the authors' becomes a checkpoint of ours and the other way, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float, UInt8
from release_fakes import (
    CONFIG,
    PROMPT,
    STATISTICS,
    changed,
    golden_vectors,
    golden_weights,
    write_manifest,
    write_release,
)
from released_reference import TINY, Reference
from safetensors.torch import load_file
from torch import Tensor

from lamp import cli
from lamp.configuration import to_json
from lamp.errors import ConfigError, DataError, LampError, MismatchError
from lamp.info import describe
from lamp.model.action_expert import Joint, Prefix
from lamp.model.guidance import Tanh
from lamp.model.lamp import Arrival, Departure
from lamp.model.motion_expert import JointTokens, RepeatAndPad
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.model.released import ReleasedSizes
from lamp.model.released import artifact as artifact_module
from lamp.model.released.golden import outputs
from lamp.policy import LaMPPolicy
from lamp.sceneflow.normalization import RELEASED_BOUNDS
from lamp.seeding import generator_at
from lamp.train.checkpoint import Expected, load_checkpoint, save_checkpoint
from lamp.train.checkpoint_metadata import Description, Imported, read_description
from lamp.train.released.export import export_released
from lamp.train.released.import_release import import_released
from lamp.train.resize_checkpoint import resize_checkpoint
from lamp.train.train_motion import evaluate_flow
from lamp_client.types import Observation

VLM = "qwen_vl_interface.model."


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole policy; read only."""
    return write_release(tmp_path_factory.mktemp("releases") / "LaMP-LIBERO")


@pytest.fixture(scope="module")
def checkpoint(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, imported; read only."""
    return import_released(str(release), tmp_path_factory.mktemp("checkpoints") / "libero").checkpoint


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where weights are read."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(torch, "load", fail)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that cannot be reached, and what it was asked for."""
    asked: list[dict[str, Any]] = []

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("[Errno -2] Name or service not known\nand more")

    def fail(hub_id: str, **settings: Any) -> str:
        asked.append({"id": hub_id, **settings})
        raise FileNotFoundError("nothing of it is in the cache")

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    return asked


def assert_golden(path: Path) -> None:
    model, _ = load_checkpoint(path)
    golden = golden_vectors()
    for name, value in outputs(model, ReleasedSizes.of(TINY), golden).items():
        assert float((value - golden[name]).abs().max()) < 1e-4, name


class TestImport:
    """`lamp import-released`."""

    def test_the_reloaded_checkpoint_has_the_golden_arithmetic(self, checkpoint: Path) -> None:
        assert_golden(checkpoint)

    def test_every_convention_is_on_record(self, checkpoint: Path) -> None:
        found = read_description(checkpoint)
        motion, action = found.model.motion, found.model.action
        assert motion is not None and action is not None and found.flow is not None and found.policy is not None
        assert found.kind == "policy" and found.step == 30000
        assert motion.conditioning == RepeatAndPad(tokens=24) and motion.whole_time and motion.time_channels == 512
        assert isinstance(action.attention, Joint) and action.time_frequencies == (0.01, 1.0) and action.dropout == 0.1
        assert isinstance(found.model.hidden_at, Arrival) and found.model.solver_steps == 10
        assert found.flow.bounds == RELEASED_BOUNDS
        assert (found.policy.chunk, found.policy.execute, found.policy.state_width) == (10, 10, 8)
        assert found.backbone.prompt == PROMPT
        assert [(camera.name, camera.height) for camera in found.backbone.cameras] == [
            ("agentview", 256),
            ("wrist", 256),
        ]
        description = found.backbone.description
        assert description["layer"] == "PreNorm" and description["cameras"] == [["agentview", 224], ["wrist", 224]]
        assert (description["model"], description["commit"]) == ("Qwen/Qwen3-VL-4B-Instruct", "ebb281ec")
        assert description["bfloat16"] and description["content"] is None and found.backbone.key is None
        assert isinstance(found.training, Imported) and found.training.source == "LaMP-LIBERO"
        assert found.training.config == CONFIG and found.training.statistics == STATISTICS
        assert describe(checkpoint)["training"]["vlm"]["folder"] is None

    def test_states_and_actions_are_scaled_as_the_release_scales(self, checkpoint: Path) -> None:
        policy = read_description(checkpoint).policy
        assert policy is not None
        random = np.random.default_rng(3)
        states = random.uniform(-2, 2, (50, 8)).astype(np.float32)
        torch.testing.assert_close(policy.scaling.scaled_state(states), released_state(states), atol=1e-6, rtol=1e-6)
        actions = random.uniform(-2, 2, (50, 7)).astype(np.float32)
        expected = released_actions(actions)
        torch.testing.assert_close(policy.scaling.actions.invert(actions), expected, atol=1e-6, rtol=1e-6)
        again = policy.scaling.actions.normalise(torch.from_numpy(expected))
        torch.testing.assert_close(again[:, :5], torch.from_numpy(actions).clip(-1, 1)[:, :5], atol=1e-5, rtol=1e-5)
        assert (again[:, 5] == 0).all() and torch.equal(again[:, 6] == 1, torch.from_numpy(actions[:, 6] > 0.5))

    def test_the_policy_acts_as_the_release(self, checkpoint: Path) -> None:
        model, description = load_checkpoint(checkpoint)
        backbone = RandomBackbone()
        policy = LaMPPolicy(model, description, backbone)
        images = {name: np.full((256, 256, 3), value, np.uint8) for name, value in (("agentview", 7), ("wrist", 90))}
        random = np.random.default_rng(1)
        observations = [
            Observation(images=images, state=random.uniform(-1, 1, 8).astype(np.float32), instruction=text)
            for text in ("open it", "close the other one")
        ]
        ours = policy.act_batch(observations, [(5,), (6,)])
        assert backbone.read == [item.instruction for item in observations], (
            "the prompt is the VLM backbone's own affair"
        )
        reference = Reference(golden_weights(), TINY)
        for seed, observation, chunk in zip((5, 6), observations, ours, strict=True):
            encoded = policy._encode([observation])
            noise = torch.randn(16, 8, 3, generator=generator_at(seed, "motion"))
            noise = noise.reshape(1, 4, 4, 4, 2, 3).permute(0, 3, 5, 4, 1, 2).flatten(2, 3)
            inputs = {
                # Alone, as the authors evaluate: without what a batch pads.
                "vl_features": encoded.tokens[encoded.mask][None],
                "state": torch.from_numpy(released_state(observation.state[None])),
                "motion_noise": noise,
                "action_noise": torch.randn(10, 7, generator=generator_at(seed, "action"))[None],
            }
            theirs = released_actions(reference.outputs(inputs)["actions"][0].float().numpy())
            np.testing.assert_allclose(chunk.actions, theirs, atol=1e-4)

    def test_the_motion_expert_alone(self, tmp_path: Path) -> None:
        weights = {name: value for name, value in golden_weights().items() if name.startswith("motion_head.")}
        folder = write_release(tmp_path / "motion", weights, name="motion_expert.pt", statistics=None)
        found = import_released(str(folder), tmp_path / "out")
        assert found.kind == "motion" and found.notes == ()
        expected = Expected(kind="motion", grid=(4, 4), horizon=8, stride=1, cameras=("agentview", "wrist"))
        model, description = load_checkpoint(found.checkpoint, expected=expected)
        assert model.action_expert is None and description.policy is None and description.model.action is None
        with pytest.raises(MismatchError, match="was imported"):
            evaluate_flow(found.checkpoint, tmp_path)
        back = export_released(found.checkpoint, tmp_path / "back")
        assert sorted(file.name for file in back.folder.iterdir()) == [
            "checkpoint_manifest.json",
            "config.yaml",
            "motion_expert.pt",
        ]
        assert torch.load(back.folder / "motion_expert.pt").keys() == weights.keys()

    def test_the_motion_expert_on_another_grid(self, tmp_path: Path) -> None:
        weights = {name: value for name, value in golden_weights().items() if name.startswith("motion_head.")}
        folder = write_release(tmp_path / "motion", weights, name="motion_expert.pt", statistics=None)
        source = import_released(str(folder), tmp_path / "out").checkpoint
        resize_checkpoint(source, tmp_path / "fine", grid=(8, 8))
        model, found = load_checkpoint(tmp_path / "fine", expected=Expected(kind="motion", grid=(8, 8), horizon=8))
        before, _ = load_checkpoint(source)
        assert model.motion_shape == (64, 8, 3) and isinstance(found.training, Imported)
        assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())

    def test_unclear_settings_are_the_release_s_defaults(self, tmp_path: Path) -> None:
        config = CONFIG
        for key in ("tau_v_infer", "patch_size_t", "guidance_dropout", "use_rotary_embeddings"):
            config = changed(config, f"framework.motion_expert.{key}", ...)
        config = changed(config, "framework.action_model.use_mask_z", ...)
        config = changed(config, "datasets.vla_data.CoT_prompt", ...)
        folder = write_release(
            tmp_path / "r", config=config, statistics={"libero": STATISTICS["franka"]}, manifest=False
        )
        found = read_description(import_released(str(folder), tmp_path / "out").checkpoint)
        assert found.backbone.prompt == "{instruction}" and found.step == 0 and found.policy is not None
        raised = found.policy.scaling.scaled_state(np.full((1, 8), 1.0, np.float32))
        assert raised[0, 2] != 0

    def test_a_prompt_may_hold_braces(self, tmp_path: Path) -> None:
        prompt = '{"task": "{instruction}"}'
        folder = write_release(tmp_path / "r", config=changed(CONFIG, "datasets.vla_data.CoT_prompt", prompt))
        out = import_released(str(folder), tmp_path / "out").checkpoint
        found = read_description(out)
        assert isinstance(found.training, Imported) and isinstance(found.training.backbone, Qwen3VLBackboneConfig)
        assert found.backbone.prompt == found.training.backbone.prompt == prompt
        back = export_released(out, tmp_path / "back").folder
        assert read_description(import_released(str(back), tmp_path / "again").checkpoint).backbone == found.backbone

    def test_nothing_is_written_over(self, release: Path, tmp_path: Path, unread: None) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        for out in (tmp_path / "out", tmp_path / "out" / "mine"):
            with pytest.raises(ConfigError, match="in use"):
                import_released(str(release), out)
        assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


class RandomBackbone:
    """Tokens of the golden width, and the prompts that were read."""

    width, key = 40, "random"
    description: dict[str, Any] = {"kind": "random", "cameras": [["agentview", 256], ["wrist", 256]]}  # noqa: RUF012

    def __init__(self) -> None:
        self.read: list[str] = []

    def image_tokens(self, camera: str, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b n d"]:
        generator = torch.Generator().manual_seed(int(images[0, 0, 0, 0]))
        return torch.randn(3, 40, generator=generator).expand(len(images), -1, -1)

    def text_tokens(self, instructions: Sequence[str]) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        self.read += instructions
        tokens = torch.stack(
            [torch.randn(4, 40, generator=torch.Generator().manual_seed(len(t))) for t in instructions]
        )
        mask = torch.tensor([[True] * 3 + [len(text) % 2 == 0] for text in instructions])
        return tokens, mask


def released_state(state: Float[np.ndarray, "n 8"]) -> Float[np.ndarray, "n 8"]:
    """Written once more, one value at a time."""
    ends = STATISTICS["franka"]["state"]
    out = np.zeros_like(state)
    for row, values in enumerate(state):
        for i, (low, high) in enumerate(zip(ends["min"], ends["max"], strict=True)):
            out[row, i] = 2 * (values[i] - low) / (high - low) - 1
        out[row, 2], out[row, 7] = 0, values[7] > 0.5
    return out


def released_actions(actions: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 7"]:
    """Normalised actions to the data's units, one value at a time."""
    ends = STATISTICS["franka"]["action"]
    out = np.zeros_like(actions)
    for row, values in enumerate(actions):
        for i, (low, high) in enumerate(zip(ends["min"], ends["max"], strict=True)):
            out[row, i] = (min(max(values[i], -1), 1) + 1) / 2 * (high - low) + low
        out[row, 6] = values[6] > 0.5
    return out


class TestExport:
    """`lamp export-released`."""

    def test_there_and_back(self, checkpoint: Path, tmp_path: Path) -> None:
        out = export_released(checkpoint, tmp_path / "release")
        assert "only with them" in out.notes[0] and "Qwen/Qwen3-VL-4B-Instruct" in out.notes[0]
        again = import_released(str(out.folder), tmp_path / "again").checkpoint
        assert_golden(again)
        before, after = read_description(checkpoint), read_description(again)
        assert isinstance(before.training, Imported) and isinstance(after.training, Imported)
        for name in ("kind", "model", "backbone", "flow", "policy", "step"):
            assert getattr(after, name) == getattr(before, name), name
        assert after.training.statistics == STATISTICS
        # What was there is as it was; beside it stand defaults and bounds that it left unsaid.
        kept, added = after.training.config, {"action_min", "action_max"}
        assert kept["framework"]["motion_expert"].keys() - CONFIG["framework"]["motion_expert"].keys() == added
        for name in added:
            del kept["framework"]["motion_expert"][name]
        assert kept == CONFIG
        ours, theirs = (load_file(path / "model.safetensors") for path in (checkpoint, again))
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, atol=3e-7, rtol=0, msg=name)

    def test_its_manifest_is_verified_on_import(self, checkpoint: Path, tmp_path: Path) -> None:
        out = export_released(checkpoint, tmp_path / "release").folder
        names = {record["name"] for record in json.loads((out / "checkpoint_manifest.json").read_text())["files"]}
        assert names == {"config.yaml", "dataset_statistics.json", "pytorch_model.pt"}
        with (out / "config.yaml").open("a") as file:
            file.write("# a note\n")
        with pytest.raises(DataError, match=r"config\.yaml has .* bytes"):
            import_released(str(out), tmp_path / "again")

    def test_a_policy_of_ours_with_the_release_s_scaling(self, checkpoint: Path, tmp_path: Path) -> None:
        # As `lamp train` would leave it: nothing of the imported folder is known any more; what training drops is no obstacle.
        model, found = load_checkpoint(checkpoint)
        assert found.model.action is not None
        trained = replace(found.model, action=replace(found.model.action, dropout=0.0))
        description = replace(found, model=trained, training=policy_training_like(found))
        save_checkpoint(tmp_path / "ours", description, model.state_dict())
        out = export_released(tmp_path / "ours", tmp_path / "release").folder
        again = read_description(import_released(str(out), tmp_path / "again").checkpoint)
        assert again.policy == found.policy and again.model == found.model and again.flow == found.flow

    @pytest.mark.parametrize(
        ("part", "changes", "reason"),
        [
            ("motion", {"conditioning": JointTokens()}, "model.motion.conditioning is JointTokens"),
            ("motion", {"whole_time": False}, "model.motion.whole_time is False"),
            ("motion", {"grid": (4, 6)}, r"model.motion.grid is \(4, 6\)"),
            ("motion", {"hidden_layer": 0}, "model.motion.hidden_layer is 0"),
            ("action", {"attention": Prefix()}, "model.action.attention is Prefix"),
            ("action", {"time_frequencies": (1.0, 100.0)}, "model.action.time_frequencies"),
            ("guidance", {"gate": Tanh()}, "model.guidance.gate is Tanh"),
        ],
    )
    def test_what_the_release_cannot_express(
        self, part: str, changes: dict[str, Any], reason: str, checkpoint: Path, tmp_path: Path
    ) -> None:
        found = read_description(checkpoint)
        model = replace(found.model, **{part: replace(getattr(found.model, part), **changes)})
        self.refused(replace(found, model=model), checkpoint, tmp_path, reason)

    def test_other_scaling_cameras_and_backbones(self, checkpoint: Path, tmp_path: Path) -> None:
        found = read_description(checkpoint)
        assert found.policy is not None
        scaling = found.policy.scaling
        shown = replace(scaling, state=replace(scaling.state, hidden=(3,)))
        cases = {
            "hides the values": replace(found, policy=replace(found.policy, scaling=shown)),
            "cameras are agentview": replace(
                found, backbone=replace(found.backbone, cameras=found.backbone.cameras[:1])
            ),
            "backbone is 'small'": replace(found, backbone=replace(found.backbone, description={"kind": "small"})),
        }
        for reason, description in cases.items():
            training = policy_training_like(found)
            self.refused(replace(description, training=training), checkpoint, tmp_path, reason)

    @staticmethod
    def refused(description: Description, checkpoint: Path, tmp_path: Path, reason: str) -> None:
        folder = tmp_path / "changed"
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"unread")
        description.write(folder)
        with pytest.raises(MismatchError, match=reason):
            export_released(folder, tmp_path / "release")
        assert not (tmp_path / "release").exists()

    def test_last_layers_may_be_named_by_their_number(self, checkpoint: Path, tmp_path: Path) -> None:
        model, found = load_checkpoint(checkpoint)
        assert found.model.motion is not None
        named = replace(found.model, motion=replace(found.model.motion, hidden_layer=1), hidden_at=Departure())
        save_checkpoint(tmp_path / "ours", replace(found, model=named), model.state_dict())
        out = export_released(tmp_path / "ours", tmp_path / "release").folder
        again = read_description(import_released(str(out), tmp_path / "again").checkpoint)
        assert isinstance(again.model.hidden_at, Departure)


def policy_training_like(found: Description) -> Any:
    from training_fakes import policy_training

    return replace(policy_training(), model=found.model)


class TestRefused:
    """Folders that are not what they should be; nothing of their weights is read, and nothing is written."""

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("framework.name", "Other", "framework.name is 'Other', 'LaMP' expected"),
            ("framework.qwenvl.base_vlm", ..., "lacks framework.qwenvl.base_vlm"),
            ("framework.action_model", ..., "lacks framework.action_model"),
            ("framework.action_model.use_adaln", True, "use_adaln is True, False expected"),
            ("framework.action_model.mlp_ratio", 2.0, "mlp_ratio is 2.0"),
            ("framework.action_model.depth", "2", "depth is '2'; expected a whole number"),
            ("framework.action_model.depth", True, "depth is True; expected a whole number"),
            ("framework.action_model.hidden_size", 0, "act_dim is 0"),
            (
                "framework.action_model.num_inference_timesteps",
                5,
                "motion_infer_steps is 10, num_inference_timesteps 5",
            ),
            ("framework.motion_expert.use_rotary_embeddings", True, "use_rotary_embeddings is True"),
            ("framework.motion_expert.patch_size_t", 2, "patch_size_t is 2"),
            ("framework.motion_expert.tau_v_infer", 0.5, "tau_v_infer is 0.5; expected 0 or one step, 0.1"),
            ("framework.motion_expert.action_min", [-1.0, 0.0], "action_min is"),
            ("framework.motion_expert.attention_head_dim", 8, "do not make the width latent = 32"),
            ("datasets.vla_data.image_size", 224, "image_size is 224; expected twice the same whole number"),
            ("datasets.vla_data.image_size", [224, 256], r"image_size is \[224, 256\]; expected twice the same"),
            ("datasets.vla_data.CoT_prompt", ["a"], "CoT_prompt is"),
            (
                "datasets.vla_data.CoT_prompt",
                "do it",
                "prompt 'do it' given; {instruction} expected in it exactly once",
            ),
            ("framework.qwenvl.dtype", "float16", "dtype is 'float16'; expected bfloat16 or float32"),
        ],
    )
    def test_configurations(self, path: str, value: Any, message: str, tmp_path: Path, unread: None) -> None:
        folder = write_release(tmp_path / "r", config=changed(CONFIG, path, value))
        with pytest.raises(ConfigError, match=message):
            import_released(str(folder), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("statistics", "message"),
        [
            ({"bridge": STATISTICS["franka"]}, "statistics of bridge; expected libero or franka"),
            (changed(STATISTICS, "franka.action", ...), "franka.action.min is None; expected 7 numbers"),
            (changed(STATISTICS, "franka.state.max", [1.0] * 7), r"franka.state.max is .*; expected 8 numbers"),
            (changed(STATISTICS, "franka.state.min", ["a"] * 8), "expected 8 numbers"),
            ([1], "holds no mapping"),
        ],
    )
    def test_statistics(self, statistics: Any, message: str, tmp_path: Path, unread: None) -> None:
        folder = write_release(tmp_path / "r", statistics=statistics)
        with pytest.raises(DataError, match=message):
            import_released(str(folder), tmp_path / "out")

    def test_a_policy_needs_statistics(self, tmp_path: Path) -> None:
        folder = write_release(tmp_path / "r", statistics=None)
        with pytest.raises(DataError, match=r"needs its dataset_statistics\.json"):
            import_released(str(folder), tmp_path / "out")

    def test_sizes_that_are_not_the_weights(self, tmp_path: Path) -> None:
        config = changed(CONFIG, "framework.motion_expert.max_text_seq_length", 25)
        folder = write_release(tmp_path / "r", config=config)
        with pytest.raises(MismatchError, match=r"learnable_padding_tokens \(1, 24, 32\), expected \(1, 25, 32\)"):
            import_released(str(folder), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_the_manifest(self, tmp_path: Path, unread: None) -> None:
        folder = write_release(tmp_path / "r")
        file = folder / "checkpoint_manifest.json"
        whole = json.loads(file.read_text())

        def refused(message: str) -> None:
            with pytest.raises(DataError, match=message):
                import_released(str(folder), tmp_path / "out")

        content = bytearray((folder / "pytorch_model.pt").read_bytes())
        content[-40] ^= 1
        (folder / "pytorch_model.pt").write_bytes(content)
        refused("pytorch_model.pt has sha256")
        (folder / "pytorch_model.pt").write_bytes(content[:-1])
        refused("pytorch_model.pt has .* bytes")
        (folder / "README.md").unlink()
        refused("names README.md, which is missing")
        for name in ("../r/config.yaml", "a\\b"):
            file.write_text(json.dumps(whole | {"files": [{"name": name}]}))
            refused("expected a file of the same folder")
        for damaged in ({"files": "all"}, {"files": [3]}, {"files": [{"name": None}]}, [1]):
            file.write_text(json.dumps(damaged))
            refused("expected")
        file.write_text(json.dumps({"checkpoint": {"name": "config.yaml"}}))
        refused("names the checkpoint 'config.yaml'")
        file.write_text("{")
        refused("not valid JSON")

    def test_folders(self, tmp_path: Path, unread: None) -> None:
        folder = write_release(tmp_path / "r", manifest=False)
        (folder / "second.pt").touch()
        with pytest.raises(DataError, match=r"pytorch_model.pt, second.pt; expected exactly one"):
            import_released(str(folder), tmp_path / "out")
        for file in folder.glob("*.pt"):
            file.unlink()
        with pytest.raises(DataError, match=r"\.pt files none; expected exactly one"):
            import_released(str(folder), tmp_path / "out")
        with pytest.raises(DataError, match="is a file; expected the folder"):
            import_released(str(folder / "config.yaml"), tmp_path / "out")
        (folder / "m.pt").touch()
        (folder / "config.yaml").write_text("a: [")
        with pytest.raises(DataError, match="not YAML"):
            import_released(str(folder), tmp_path / "out")
        (folder / "config.yaml").unlink()
        with pytest.raises(DataError, match=r"no config\.yaml"):
            import_released(str(folder), tmp_path / "out")


class TestHub:
    """Sources that are no folders."""

    def test_an_unreachable_hub(
        self, no_hub: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert cli.main(["import-released", "summerwang11/LaMP-LIBERO", str(out), "--revision", "abc"]) == 2
        message = capsys.readouterr().err
        assert "Name or service not known" in message and len(message.splitlines()) == 1
        assert "hf download summerwang11/LaMP-LIBERO --local-dir FOLDER" in message
        assert no_hub[0]["id"] == "summerwang11/LaMP-LIBERO" and no_hub[0]["revision"] == "abc"
        assert {"*.pt", "README.md"} < set(no_hub[0]["allow_patterns"]) and not out.exists()

    @pytest.mark.parametrize("source", ["./nothing", "/no/where", "~/nothing/there", "nothing", "a/b/c"])
    def test_paths_are_not_asked_for(self, source: str, no_hub: list[dict[str, Any]], tmp_path: Path) -> None:
        with pytest.raises(DataError, match=f"no folder {source}; expected a folder, or a hub id"):
            import_released(source, tmp_path / "out")
        assert no_hub == []

    def test_what_was_fetched_is_on_record(
        self, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = Path(shutil.copytree(release, tmp_path / "snapshots" / "0123abcd"))
        monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: None)
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
        found = read_description(import_released("summerwang11/LaMP-LIBERO", tmp_path / "out").checkpoint)
        assert isinstance(found.training, Imported)
        assert (found.training.source, found.training.revision) == ("summerwang11/LaMP-LIBERO", "0123abcd")


class TestVlm:
    """The weights of the VLM that a release brings."""

    @staticmethod
    def weights(width: int = 40) -> dict[str, Tensor]:
        table = torch.randn(6, width, generator=torch.Generator().manual_seed(2)).bfloat16()
        return {f"{VLM}model.embed_tokens.weight": table, f"{VLM}lm_head.weight": table, f"{VLM}b": torch.ones(3)}

    @staticmethod
    def description(folder: Path, width: int = 40) -> Path:
        folder.mkdir()
        config = {"model_type": "qwen3_vl", "text_config": {"hidden_size": width}}
        (folder / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "preprocessor_config.json"):
            (folder / name).write_text("{}")
        (folder / "merges.txt").write_text("a b\n")
        (folder / "model.safetensors.index.json").write_text("{}")
        (folder / "model.safetensors").touch()
        return folder

    def test_they_come_and_go_unchanged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lamp.train.released.vlm.SHARD_BYTES", 500)
        weights = golden_weights() | self.weights()
        release = write_release(tmp_path / "release", weights)
        found = import_released(str(release), tmp_path / "out", vlm=self.description(tmp_path / "qwen"))
        folder = found.checkpoint / "vlm"
        assert found.notes == () and sorted(file.name for file in folder.iterdir()) == [
            "config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "preprocessor_config.json",
            "tokenizer.json",
        ]
        assert_golden(found.checkpoint)
        training = read_description(found.checkpoint).training
        assert isinstance(training, Imported) and training.vlm.described and training.vlm.folder == "vlm"
        back = torch.load(export_released(found.checkpoint, tmp_path / "back").folder / "pytorch_model.pt")
        assert back.keys() == weights.keys()
        for name in self.weights():
            assert torch.equal(back[name], weights[name]) and back[name].dtype == weights[name].dtype
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(DataError, match=r"which model\.safetensors\.index\.json names"):
            export_released(found.checkpoint, tmp_path / "other")

    def test_without_the_hub_they_are_kept_and_a_note_says_what_to_do(
        self, no_hub: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        release = write_release(tmp_path / "release", golden_weights() | self.weights())
        assert cli.main(["import-released", str(release), str(tmp_path / "out")]) == 0
        captured = capsys.readouterr()
        assert "a policy checkpoint" in captured.out
        assert (
            "hf download Qwen/Qwen3-VL-4B-Instruct --local-dir FOLDER" in captured.err
            and "--vlm FOLDER" in captured.err
        )
        assert (no_hub[0]["id"], no_hub[0]["revision"]) == ("Qwen/Qwen3-VL-4B-Instruct", "ebb281ec")
        assert (tmp_path / "out" / "vlm" / "model-00001-of-00001.safetensors").is_file()
        training = read_description(tmp_path / "out").training
        assert isinstance(training, Imported) and not training.vlm.described and training.vlm.sha256

    def test_another_vlm_is_refused(self, tmp_path: Path) -> None:
        release = write_release(tmp_path / "release", golden_weights() | self.weights())
        with pytest.raises(MismatchError, match="48 wide; the released model's is 40 wide"):
            import_released(str(release), tmp_path / "out", vlm=self.description(tmp_path / "qwen", 48))
        with pytest.raises(
            DataError, match=r"lacks config\.json, tokenizer\.json, preprocessor_config\.json; expected"
        ):
            import_released(str(release), tmp_path / "out", vlm=tmp_path)
        (tmp_path / "qwen" / "config.json").write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(MismatchError, match="of type 'llama'"):
            import_released(str(release), tmp_path / "out", vlm=tmp_path / "qwen")
        assert not (tmp_path / "out").exists()

    def test_it_may_be_brought_to_an_export(self, checkpoint: Path, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        folder = self.description(tmp_path / "qwen")
        (folder / "model.safetensors.index.json").unlink()
        save_file({"lm_head.weight": torch.ones(2, 2)}, folder / "model.safetensors")
        out = export_released(checkpoint, tmp_path / "release", vlm=folder)
        assert out.notes == () and f"{VLM}lm_head.weight" in torch.load(out.folder / "pytorch_model.pt")

    def test_transformers_loads_the_folder(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.Qwen3VLConfig(
            text_config={
                "vocab_size": 20,
                "hidden_size": 40,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 20,
                "rope_scaling": {"rope_type": "default", "mrope_section": [4, 3, 3], "mrope_interleaved": True},
            },
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 40,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            tie_word_embeddings=True,
        )
        torch.manual_seed(1)
        vlm = transformers.Qwen3VLForConditionalGeneration(config)
        self.description(tmp_path / "qwen")
        config.save_pretrained(tmp_path / "qwen")
        named = {f"{VLM}{name}": value for name, value in vlm.state_dict().items()}
        release = write_release(tmp_path / "release", golden_weights() | named)
        out = import_released(str(release), tmp_path / "out", vlm=tmp_path / "qwen").checkpoint
        loaded = transformers.Qwen3VLForConditionalGeneration.from_pretrained(out / "vlm")
        assert loaded.state_dict().keys() == vlm.state_dict().keys()
        for name, value in vlm.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


class TestUse:
    """Imported checkpoints where another is expected."""

    @pytest.mark.parametrize(
        ("expected", "message"),
        [
            (Expected(vlm="Qwen/Qwen3-VL-8B-Instruct"), "vlm 'Qwen/Qwen3-VL-4B-Instruct'; expected 'Qwen/Qwen3-VL-8B"),
            (Expected(feature_layer="PostNorm"), "feature_layer 'PreNorm'; expected 'PostNorm'"),
            (Expected(image_sizes=((256, 256), (128, 128))), "image_sizes"),
            (Expected(cameras=("agentview",)), "cameras"),
            (Expected(chunk=16), "chunk 10; expected 16"),
            (Expected(backbone_key="another"), "backbone_key"),
        ],
    )
    def test_refused_before_weights_are_read(
        self, expected: Expected, message: str, checkpoint: Path, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
        (copy / "model.safetensors").write_bytes(b"unread")
        with pytest.raises(MismatchError, match=message):
            load_checkpoint(copy, expected=expected)

    def test_what_fits_is_accepted(self, checkpoint: Path) -> None:
        expected = Expected(
            kind="policy",
            cameras=("agentview", "wrist"),
            image_sizes=((256, 256), (256, 256)),
            chunk=10,
            vlm="Qwen/Qwen3-VL-4B-Instruct",
            feature_layer="PreNorm",
        )
        load_checkpoint(checkpoint, expected=expected)

    def test_a_vlm_that_is_no_part_of_it_is_asked_of_the_hub(
        self, checkpoint: Path, no_hub: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        with pytest.raises(
            DataError, match=r"no folder Qwen/Qwen3-VL-4B-Instruct, .* at revision ebb281ec .*\$LAMP_MODELS"
        ):
            LaMPPolicy.from_checkpoint(checkpoint)
        assert (no_hub[0]["id"], no_hub[0]["revision"]) == ("Qwen/Qwen3-VL-4B-Instruct", "ebb281ec")
        found = read_description(checkpoint)
        assert isinstance(found.training, Imported)
        nothing = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
        replace(found, training=replace(found.training, backbone=None)).write(nothing)
        with pytest.raises(MismatchError, match="argument `backbone`"):
            LaMPPolicy.from_checkpoint(nothing)

    def test_the_command_line(self, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
        assert cli.main(["import-released", str(release), ours]) == 0
        assert cli.main(["export-released", ours, theirs]) == 0
        assert cli.main(["info", ours, "--all"]) == 0
        assert "RepeatAndPad" in capsys.readouterr().out
        assert cli.main(["import-released", theirs, ours]) == 2
        assert cli.main(["export-released", theirs, str(tmp_path / "again")]) == 2

    def test_a_pt_with_more_than_tensors(self, tmp_path: Path) -> None:
        folder = write_release(tmp_path / "r", manifest=False)
        torch.save({"state_dict": golden_weights()}, folder / "pytorch_model.pt")
        write_manifest(folder, "pytorch_model.pt")
        with pytest.raises(LampError, match="refused"):
            import_released(str(folder), tmp_path / "out")
        assert artifact_module.open_artifact(str(folder)).manifest and to_json(CONFIG)
