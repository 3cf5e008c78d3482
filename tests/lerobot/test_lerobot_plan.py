"""What the plugin makes of a recipe, a dataset and a motion prior, and of LeRobot's batches. Needs no LeRobot."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lamp.errors import ConfigError, DataError, MismatchError
from lamp.model.lamp import LaMP, kept_tokens
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.model.small import SmallBackboneConfig
from lamp.train.checkpoint import load_checkpoint
from lamp.train.config import PolicyTraining
from lamp.types import Encoded
from lerobot_policy_lamp import building
from lerobot_policy_lamp.building import (
    CameraKey,
    Plan,
    load_motion,
    make_plan,
    observations_of,
    settings_of,
    state_of,
    training_batch,
)

PACKAGE = Path(__file__).parents[2] / "packages" / "lerobot-policy-lamp"
IMAGES = ("observation.images.agentview", "observation.images.wrist")


def planned(recipe: str = "demo", **changes: Any) -> Plan:
    settings: dict[str, Any] = {"images": IMAGES, "cameras": {}, "state_width": 8, "action_width": 7}
    return make_plan(recipe, **(settings | changes))


def test_lerobot_finds_it_by_its_name() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    assert project["name"] == "lerobot_policy_lamp"
    modules = {path.name for path in (PACKAGE / "src" / project["name"]).glob("*.py")}
    assert {"__init__.py", "configuration_lamp.py", "modeling_lamp.py", "processor_lamp.py"} <= modules
    makefile = (PACKAGE.parents[1] / "Makefile").read_text()
    installed = makefile[makefile.index("$(INSTALLED): ") :].partition("\n\n")[0]
    assert "pip install" in installed and "lerobot" not in installed, "it has an environment of its own"


class TestPlan:
    """From a recipe and features to what is built."""

    def test_the_recipes_cameras_keep_their_sizes(self) -> None:
        plan = planned()
        assert plan.backbone == SmallBackboneConfig(cameras=(("agentview", 160), ("wrist", 128)), text_tokens=24)
        assert plan.cameras[1] == CameraKey(name="wrist", key="observation.images.wrist")
        assert plan.model.motion is None and plan.model.guidance is None
        assert plan.model.action is not None
        assert (plan.model.action.state_dim, plan.model.action.action_dim, plan.model.action.chunk) == (8, 7, 12)

    def test_unknown_cameras_take_the_reference_cameras_size_first(self) -> None:
        images = ("observation.images.front", "observation.image", "odd")
        plan = planned(images=images)
        assert plan.backbone.cameras == (("front", 160), ("image", 128), ("odd", 128))
        assert [camera.key for camera in plan.cameras] == list(images)

    def test_many_cameras_have_room(self) -> None:
        images = tuple(f"observation.images.c{number}" for number in range(8))
        plan = planned(images=images, chunk=40)
        assert plan.model.action is not None
        assert plan.model.action.positions == 40 + 100 + 7 * 64 + 24
        assert plan.model.pooling is not None and plan.model.pooling.grids == ((10, 10),) + ((8, 8),) * 7

    def test_cameras_by_name(self) -> None:
        named = {"agentview": "observation.images.wrist"}
        assert planned(cameras=named).cameras == (CameraKey(name="agentview", key="observation.images.wrist"),)
        with pytest.raises(
            ConfigError, match=r"unknown image feature 'observation.images.wrst'; did you mean 'observation.i"
        ):
            planned(cameras={"wrist": "observation.images.wrst"})
        with pytest.raises(ConfigError, match="the dataset has no images"):
            planned(images=())

    def test_a_vision_language_model_of_ones_own(self) -> None:
        plan = planned("paper_libero", vlm="models/Qwen3-VL-4B-Instruct")
        assert isinstance(plan.backbone, Qwen3VLBackboneConfig) and plan.backbone.commit is None
        assert plan.backbone.model == "models/Qwen3-VL-4B-Instruct"
        with pytest.raises(ConfigError, match="'demo' has no vision-language model to replace"):
            planned(vlm="models/Qwen3-VL-4B-Instruct")

    def test_kept_as_text(self) -> None:
        plan = replace(planned("paper_libero"), backbone_key="abc")
        assert Plan.from_text(plan.to_text()) == plan and "\n" not in plan.to_text()
        with pytest.raises(ConfigError, match="the policy's plan"):
            Plan.from_text(plan.to_text().replace('"token_width"', '"token_with"'))
        with pytest.raises(ConfigError, match="is not JSON"):
            Plan.from_text(plan.to_text()[:-5])


@pytest.mark.long
class TestPrior:
    """A Stage-1 checkpoint in LeRobot's policy."""

    def test_its_expert_and_backbone_are_taken(self, prior: Path) -> None:
        plan = planned(motion=str(prior))
        trained, found = load_checkpoint(prior)
        assert plan.backbone.cameras == (("agentview", 64), ("wrist", 32))
        assert plan.model.motion is not None and found.model.motion is not None
        assert plan.model.motion.grid == found.model.motion.grid and plan.model.guidance is not None
        assert plan.model.pooling is not None and plan.model.pooling.grids == ((4, 4), (2, 2))
        model, key = LaMP(plan.model), found.backbone.key
        assert key is not None
        load_motion(model, str(prior), key)
        for name, value in trained.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)

    def test_what_does_not_fit_is_refused(self, prior: Path) -> None:
        with pytest.raises(
            MismatchError, match=r"trained with the cameras \['agentview', 'wrist'\]; 'agentview' is not among"
        ):
            planned(images=("observation.images.front", "observation.images.wrist"), motion=str(prior))
        planned(
            images=("observation.images.front", "observation.images.wrist"),
            cameras={"agentview": "observation.images.front", "wrist": "observation.images.wrist"},
            motion=str(prior),
        )
        with pytest.raises(MismatchError, match="reads tokens 400 wide, the recipe's policy 2560"):
            planned("paper_libero", motion=str(prior))
        with pytest.raises(MismatchError, match="has backbone_key"):
            load_motion(LaMP(planned(motion=str(prior)).model), str(prior), "another")
        with pytest.raises(DataError, match="no checkpoint at /nowhere/motion"):
            planned(motion="/nowhere/motion")


def batch(size: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.images.agentview": torch.rand(size, 3, 32, 48, generator=generator),
        "observation.state": torch.randn(size, 8, generator=generator),
        "action": torch.randn(size, 12, 7, generator=generator),
        "action_is_pad": torch.arange(12).expand(size, 12) >= 9,
        "task": [f"task {number}" for number in range(size)],
    }


CAMERAS = (CameraKey(name="agentview", key="observation.images.agentview"),)


class TestBatches:
    """LeRobot's batches as LaMP reads them."""

    def test_images_are_what_was_recorded(self) -> None:
        recorded = torch.randint(0, 256, (3, 32, 48, 3), dtype=torch.uint8)
        given = batch() | {CAMERAS[0].key: recorded.permute(0, 3, 1, 2).float() / 255}
        assert torch.equal(observations_of(given, CAMERAS).images["agentview"], recorded)
        given[CAMERAS[0].key] = recorded.permute(0, 3, 1, 2)
        assert torch.equal(observations_of(given, CAMERAS).images["agentview"], recorded)

    def test_instructions(self) -> None:
        assert observations_of(batch(), CAMERAS).instructions == ("task 0", "task 1", "task 2")
        assert observations_of(batch() | {"task": "push"}, CAMERAS).instructions == ("push",) * 3
        assert observations_of(batch() | {"task": ["", "", "a"]}, CAMERAS, "push").instructions == ("push", "push", "a")
        for wrong in (["", "a", "b"], ["a"], None, [" ", "a", "b"]):
            with pytest.raises(
                MismatchError, match=r"expected an instruction for each of its 3 samples: .*--policy\.instruct"
            ):
                observations_of(batch() | {"task": wrong}, CAMERAS)

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(
            MismatchError, match=r"images 'observation.images.top': missing; expected .* has the images obs"
        ):
            observations_of(batch(), (CameraKey(name="top", key="observation.images.top"),))
        stacked = batch() | {CAMERAS[0].key: torch.rand(3, 2, 3, 32, 48)}
        with pytest.raises(MismatchError, match=r"\[3, 2, 3, 32, 48\]; expected \(batch, 3, height, width\)"):
            observations_of(stacked, CAMERAS)
        with pytest.raises(MismatchError, match=r"observation.state: \[3, 8\]; expected \(3, 9\)"):
            state_of(batch(), 9, 3)
        assert state_of({}, 0, 3).shape == (3, 0)

    def settings(self, **changes: float) -> PolicyTraining:
        plain = {"state_noise": 0.0, "token_dropout": 0.0, "prior_dropout": 0.0}
        return replace(settings_of("demo", motion="prior"), **(plain | changes))  # pyright: ignore[reportArgumentType]

    def made(self, settings: PolicyTraining, seed: int = 0, size: int = 400) -> Any:
        encoded = Encoded(tokens=torch.zeros(size, 6, 4), mask=torch.ones(size, 6, dtype=torch.bool), whole=True)
        return training_batch(batch(size), encoded, settings, 8, torch.Generator().manual_seed(seed))

    def test_padded_actions_do_not_count(self) -> None:
        made = self.made(self.settings(), size=3)
        assert made.action_mask[0].tolist() == [True] * 9 + [False] * 3
        assert torch.equal(made.state, batch()["observation.state"]) and made.prior_seen is None
        assert made.encoded.mask.all() and made.encoded.whole

    def test_the_recipes_noise_and_dropouts(self) -> None:
        made = self.made(self.settings(state_noise=0.5, token_dropout=0.3, prior_dropout=0.2))
        assert abs((made.state - batch(400)["observation.state"]).std().item() - 0.5) < 0.03
        assert abs(kept_tokens(made).mask.float().mean().item() - 0.7) < 0.03 and not kept_tokens(made).whole
        assert made.encoded.mask.all() and made.encoded.whole  # what the Motion Expert reads
        assert abs(made.prior_seen.float().mean().item() - 0.8) < 0.07
        again = self.made(self.settings(state_noise=0.5, token_dropout=0.3, prior_dropout=0.2))
        assert torch.equal(again.state, made.state) and torch.equal(kept_tokens(again).mask, kept_tokens(made).mask)
        other = self.made(self.settings(state_noise=0.5), seed=1)
        assert not torch.equal(other.state, made.state)


def test_an_oracle_s_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = building.training("demo")
    oracle = replace(demo, policy=replace(demo.policy, prior="oracle"))  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(building, "training", lambda name: oracle)
    with pytest.raises(ConfigError, match="recipe 'mine' trains an oracle"):
        settings_of("mine", motion="prior")
