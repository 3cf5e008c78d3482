"""Checkpoints on the hub: published with their cards, opened by their ids, and refused where they could do harm."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from stand_in_hub import Hub
from training_fakes import PatchBackbone, loop, motion_training, policy_training, write_dataset  # pyright: ignore[reportMissingImports]

from lamp import cli
from lamp.benchmark.run_manifest import checkpoint_hash
from lamp.benchmark.summary import checkpoint_results
from lamp.errors import DataError, MismatchError
from lamp.info import verify
from lamp.policy import LaMPPolicy
from lamp.train.checkpoint_metadata import checkpoint_folder
from lamp.train.model_card import Measured, Publication, TaskResult
from lamp.train.publishing import find_checkpoint, published_files, pull, push
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp_client.types import Observation


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages' runs, tiny; read only."""
    root, short = tmp_path_factory.mktemp("runs"), loop(steps=2)
    data = write_dataset(root / "data", episodes=4)
    train_motion(motion_training(loop=short), data, root / "motion", backbone=PatchBackbone())
    train_policy(policy_training(loop=short), data, root / "policy", root / "motion", backbone=PatchBackbone())
    return root


def files_of(checkpoint: Path) -> dict[str, bytes]:
    return {name: file.read_bytes() for name, file in published_files(checkpoint).items()}


def actions(policy: LaMPPolicy) -> np.ndarray:
    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 255, (64, 64, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    seen = Observation(images=images, state=generator.normal(size=8).astype(np.float32), instruction="task 1")
    return policy.act(seen, noise_seed=(7,)).actions


@pytest.mark.usefixtures("logged_in")
class TestRoundTrip:
    """Push, and back."""

    def test_a_policy_acts_from_the_hub_as_from_its_folder(self, hub: Hub, runs: Path) -> None:
        policy = LaMPPolicy.from_pretrained(runs / "policy", backbone=PatchBackbone())
        address = policy.push_to_hub("me/policy", Publication(licence="mit"))
        sha = hub.repo("me/policy").refs["main"]
        assert address == f"{hub.url}/me/policy/commit/{sha}"
        again = LaMPPolicy.from_pretrained("me/policy", backbone=PatchBackbone())
        np.testing.assert_array_equal(actions(again), actions(policy))
        assert again.description == policy.description
        pinned = LaMPPolicy.from_pretrained(f"me/policy@{sha}", backbone=PatchBackbone())
        assert pinned.description == policy.description

    def test_only_what_belongs_there_is_published(self, hub: Hub, runs: Path) -> None:
        checkpoint = runs / "policy" / "checkpoint"
        assert (checkpoint / "training").is_dir()
        push(runs / "policy", "me/policy", Publication())
        files = hub.repo("me/policy").files("main")
        assert files.keys() == {".gitattributes", "README.md", "lamp.json", "model.safetensors"}
        assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
        assert files["lamp.json"] == (checkpoint / "lamp.json").read_bytes()
        assert any("/storage/" in asked for asked in hub.asked), "weights go the way of large files"
        assert hub.repo("me/policy").messages[-1] == "LaMP policy, step 2"

    def test_a_branch_leaves_the_main_one_alone(self, hub: Hub, runs: Path) -> None:
        push(runs / "motion", "me/both", Publication())
        push(runs / "policy", "me/both@experiment", Publication(), message="as an experiment")
        assert json.loads(hub.repo("me/both").files("main")["lamp.json"])["kind"] == "motion"
        assert json.loads(hub.repo("me/both").files("experiment")["lamp.json"])["kind"] == "policy"
        LaMPPolicy.from_pretrained("me/both", revision="experiment", backbone=PatchBackbone())
        with pytest.raises(MismatchError, match="has kind 'motion'; expected 'policy'"):
            LaMPPolicy.from_pretrained("me/both", backbone=PatchBackbone())

    def test_private_where_it_is_asked_for(self, hub: Hub, runs: Path) -> None:
        push(runs / "motion", "me/secret", Publication(), private=True)
        push(runs / "motion", "me/open", Publication())
        assert hub.repo("me/secret").private and not hub.repo("me/open").private

    def test_pulled_to_a_folder(self, hub: Hub, runs: Path, tmp_path: Path) -> None:
        push(runs / "policy", "me/policy", Publication())
        out = pull("me/policy", tmp_path / "here")
        assert {path.name for path in out.iterdir()} == {
            "README.md", "lamp.json", "model.safetensors", "checksums.json",
        }  # fmt: skip
        assert not any(path.is_symlink() for path in out.iterdir())
        assert checkpoint_hash(out) == checkpoint_hash(runs / "policy")
        assert pull("me/policy", out) == out
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.txt").write_text("years of work")
        with pytest.raises(DataError, match=r"is there and holds no checkpoint alone, but also 'thesis\.txt'"):
            pull("me/policy", tmp_path / "full")
        assert (tmp_path / "full" / "thesis.txt").exists()

    def test_neither_a_copy_nor_a_saved_policy_takes_the_place_of_a_run(
        self, hub: Hub, runs: Path, tmp_path: Path
    ) -> None:
        push(runs / "policy", "me/policy", Publication())
        policy = LaMPPolicy.from_pretrained(runs / "policy", backbone=PatchBackbone())
        shutil.copytree(runs / "motion", tmp_path / "run")
        for place in (tmp_path / "run", tmp_path / "run" / "checkpoint"):
            before = sorted(path for path in place.rglob("*"))
            with pytest.raises(DataError, match="holds no checkpoint alone"):
                pull("me/policy", place)
            with pytest.raises(DataError, match="holds no checkpoint alone"):
                policy.save_pretrained(place)
            assert sorted(path for path in place.rglob("*")) == before
        saved = policy.save_pretrained(tmp_path / "saved")
        assert policy.save_pretrained(saved) == saved, "an earlier copy is replaced"

    def test_what_was_pulled_is_verified_its_description_too(self, hub: Hub, runs: Path, tmp_path: Path) -> None:
        push(runs / "policy", "me/policy", Publication())
        out = pull("me/policy", tmp_path / "here")
        assert not verify(out).faults and not verify(out).unchecked and verify(out).files >= 2
        (out / "README.md").write_text("my own words")
        assert not verify(out).faults
        description = (out / "lamp.json").read_text()
        (out / "lamp.json").write_text(description.replace('"step": ', '"step": 1'))
        assert [fault.file for fault in verify(out).faults] == [out / "lamp.json"]

    def test_the_command_line(self, hub: Hub, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["push", str(runs / "policy"), "me/policy", "--licence", "apache-2.0", "--private"]) == 0
        assert capsys.readouterr().out.startswith(f"{hub.url}/me/policy/commit/")
        assert cli.main(["pull", "me/policy@main", str(tmp_path / "out")]) == 0
        capsys.readouterr()
        hub.asked.clear()
        assert cli.main(["info", "me/policy", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["kind"] == "checkpoint" and told["step"] == 2 and told["path"] == "me/policy"
        assert told["commit"] == hub.repo("me/policy").refs["main"]
        assert not any("model.safetensors" in asked for asked in hub.asked), "a description needs no weights"
        assert cli.main(["push", str(runs / "motion"), "me/motion"]) == 0
        assert cli.main(["resize", "me/motion", str(tmp_path / "resized"), "--pace", "0.5"]) == 0
        assert checkpoint_folder(tmp_path / "resized")
        capsys.readouterr()
        assert cli.main(["view", str(runs / "data"), "--checkpoint", "me/none", "--out", str(tmp_path / "v")]) == 2
        assert "there is no model at" in capsys.readouterr().err
        for words in (["serve", "me/none"], ["evaluate", "--checkpoint", "me/none"], ["info", "me/none"]):
            assert cli.main(words) == 2
            told = capsys.readouterr().err
            assert told.startswith("lamp: no folder me/none, and the model hub does not give it (there is no model at")
            assert told.count("\n") == 1

    def test_training_continues_from_a_motion_prior_of_the_hub(self, hub: Hub, runs: Path, tmp_path: Path) -> None:
        push(runs / "motion", "me/motion", Publication())
        motion = find_checkpoint("me/motion")
        train_policy(
            policy_training(loop=loop(steps=1)), runs / "data", tmp_path / "p", motion, backbone=PatchBackbone()
        )
        assert (tmp_path / "p" / "checkpoint" / "lamp.json").is_file()


class TestRefusals:
    """What is not used, and what is not published."""

    def test_a_pickle_is_never_copied(self, hub: Hub, runs: Path, tmp_path: Path) -> None:
        class Boom:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return (Path(tmp_path / "ran").touch, ())  # pyright: ignore[reportReturnType]

        files = files_of(runs / "policy" / "checkpoint")
        for number, name in enumerate(("training/optimiser.pt", "pytorch_model.bin", "extra/state.PKL")):
            hub.repo(f"me/harm{number}").commit({**files, name: pickle.dumps(Boom())})
            with pytest.raises(DataError, match=f"holds {name} .*a pickle, which can run any code.*nothing was copied"):
                LaMPPolicy.from_pretrained(f"me/harm{number}", backbone=PatchBackbone())
        assert not (tmp_path / "ran").exists() and not (tmp_path / "home").exists()

    def test_a_pickle_under_another_name_is_never_read_as_one(self, hub: Hub, runs: Path, tmp_path: Path) -> None:
        torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pt")
        files = files_of(runs / "policy" / "checkpoint") | {"model.safetensors": (tmp_path / "weights.pt").read_bytes()}
        hub.repo("me/disguised").commit(files)
        with pytest.raises(DataError, match="is not a whole safetensors file"):
            LaMPPolicy.from_pretrained("me/disguised", backbone=PatchBackbone())
        with pytest.raises(DataError, match="is not a whole safetensors file"):
            pull("me/disguised", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_weights_that_are_not_those_described(self, hub: Hub, runs: Path, tmp_path: Path) -> None:
        weights = load_file(runs / "policy" / "checkpoint" / "model.safetensors")
        name = next(iter(weights))
        save_file({**weights, name: weights[name] + 1}, tmp_path / "model.safetensors")
        files = files_of(runs / "policy" / "checkpoint")
        hub.repo("me/swapped").commit(files | {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
        with pytest.raises(DataError, match="its description says"):
            pull("me/swapped", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_something_else_on_the_hub(self, hub: Hub) -> None:
        hub.repo("me/other").commit({"config.json": b"{}", "model.safetensors": b""})
        with pytest.raises(
            DataError, match=r"me/other is not a checkpoint: it lacks lamp\.json and has config\.json, model"
        ):
            find_checkpoint("me/other")

    def test_a_folder_has_no_revisions(self, hub: Hub, runs: Path) -> None:
        with pytest.raises(DataError, match="a folder on this machine, which has no revisions"):
            find_checkpoint(runs / "policy", "v1")
        with pytest.raises(DataError, match=r"is not a hub id; expected OWNER/NAME with revision v1"):
            find_checkpoint("/nowhere/at/all", "v1")
        assert find_checkpoint("/nowhere/at/all") == Path("/nowhere/at/all")

    def test_publishing_without_a_token(self, hub: Hub, runs: Path) -> None:
        with pytest.raises(
            DataError, match=r"does not take me/policy .*log in with `hf auth login` or HF_TOKEN, with a tok"
        ):
            push(runs / "policy", "me/policy", Publication())
        assert not hub.repos

    @pytest.mark.usefixtures("logged_in")
    def test_a_damaged_checkpoint_is_not_published(self, hub: Hub, runs: Path, tmp_path: Path) -> None:
        shutil.copytree(runs / "policy" / "checkpoint", tmp_path / "damaged")
        weights = tmp_path / "damaged" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
        with pytest.raises(DataError, match="is not a whole safetensors file"):
            push(tmp_path / "damaged", "me/policy", Publication())
        with pytest.raises(DataError, match="'policy' is not a hub id"):
            push(runs / "policy", "policy", Publication())
        assert not hub.repos and not hub.asked

    @pytest.mark.usefixtures("logged_in")
    def test_a_hub_that_goes_away_while_it_is_asked(self, hub: Hub, runs: Path) -> None:
        hub.shutdown()
        hub.server_close()
        with pytest.raises(DataError, match=r"`lamp push --dry-run` writes its card without a hub\.$") as caught:
            push(runs / "policy", "me/policy", Publication())
        assert "\n" not in str(caught.value)

    def test_a_motion_expert_that_was_changed_is_not_saved(self, runs: Path, tmp_path: Path) -> None:
        policy = LaMPPolicy.from_pretrained(runs / "policy", backbone=PatchBackbone())
        assert policy.model.motion_expert is not None
        with torch.no_grad():
            next(policy.model.motion_expert.parameters()).add_(1)
        with pytest.raises(MismatchError, match="are not those of its Stage 1 any more"):
            policy.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


class TestCard:
    """What the card says is what the record says."""

    def card(self, runs: Path, about: Publication, capsys: pytest.CaptureFixture[str] | None = None) -> str:
        from lamp.train.publishing import card_of

        return card_of(runs, about)

    def test_the_hubs_own_reader_takes_it(self, runs: Path) -> None:
        from huggingface_hub import ModelCard

        about = Publication(licence="mit", datasets=("me/data",), repository="me/policy")
        for run in ("policy", "motion"):
            data = ModelCard(self.card(runs / run, about)).data.to_dict()
            assert data["license"] == "mit" and data["datasets"] == ["me/data"] and data["pipeline_tag"] == "robotics"
            assert "model-index" not in data and "base_model" not in data

    def test_figures_are_those_of_the_record(self, runs: Path) -> None:
        found = LaMPPolicy.from_pretrained(runs / "policy", backbone=PatchBackbone())
        card = self.card(runs / "policy", Publication())
        total = sum(parameter.numel() for parameter in found.model.parameters())
        assert f"{total:,} parameters beside the frozen backbone" in card
        centre, scale = found.record.scaling.actions.centre_and_scale()
        assert f"| action | 0 | {centre[0]:.6g} | {scale[0]:.6g} |" in card
        assert "| agentview | 64 x 64 |" in card and found.description.weights_sha256 in card
        assert "No measured results were given" in card and "No licence is stated" in card and "license:" not in card
        for task in found.description.data.tasks:
            assert f"- {task}" in card
        assert found.description.data.dataset in card and "2 of 2" in card

    def test_saved_with_the_checkpoint_and_kept_by_the_next(self, runs: Path, tmp_path: Path) -> None:
        policy = LaMPPolicy.from_pretrained(runs / "policy", backbone=PatchBackbone())
        saved = policy.save_pretrained(tmp_path / "saved", Publication(licence="mit"))
        assert yaml.safe_load((saved / "README.md").read_text().split("---")[1])["license"] == "mit"
        assert checkpoint_hash(saved) == checkpoint_hash(runs / "policy"), "evaluations of the run are of this one too"
        np.testing.assert_array_equal(
            actions(LaMPPolicy.from_pretrained(saved, backbone=PatchBackbone())), actions(policy)
        )

    def test_what_cannot_stand_in_a_table(self, runs: Path, tmp_path: Path) -> None:
        shutil.copytree(runs / "policy" / "checkpoint", tmp_path / "odd")
        told = json.loads((tmp_path / "odd" / "lamp.json").read_text())
        told["backbone"]["prompt"] = "a | b\n--- {instruction}"
        (tmp_path / "odd" / "lamp.json").write_text(json.dumps(told))
        assert "| prompt | `a \\| b --- {instruction}` |" in self.card(tmp_path / "odd", Publication())

    def test_text_of_the_data_does_not_become_markup(self, runs: Path, tmp_path: Path) -> None:
        shutil.copytree(runs / "policy" / "checkpoint", tmp_path / "odd")
        record = json.loads((tmp_path / "odd" / "lamp.json").read_text())
        record["data"]["tasks"] = ["a\n\n# Title", "<script>alert(1)</script>", "{{ 7 * 7 }} {% raw %}", "half \ud800"]
        (tmp_path / "odd" / "lamp.json").write_text(json.dumps(record))
        task = TaskResult(name="a|b\nc", successes=1, trials=2)
        told = {"successes": 1, "trials": 2, "interval": (0.1, 0.9), "settings": (("render", "fast"),)}
        result = Measured(suite="s\n## t", tasks=(task,), **told)
        card = self.card(tmp_path / "odd", Publication(results=(result,)))
        listed = "- a  # Title\n- \\<script>alert(1)\\</script>\n- {{ 7 * 7 }} {% raw %}\n- half ?\n"
        assert listed in card and "### s ## t\n" in card and "| a\\|b c | 1/2 |" in card
        assert "| all | **1/2** (50.0%, Wilson 95% 10.0 to 90.0) |\n\nrender fast.\n" in card


def evaluation(folder: Path, checkpoint: Path, *, planned: int = 6) -> Path:
    """An evaluation of the checkpoint, a control and another checkpoint; task 0 succeeds in 2 of 3, task 1 in none."""
    folder.mkdir()
    content = {
        "policy": checkpoint_hash(checkpoint),
        "wrong_instruction": checkpoint_hash(checkpoint),
        "other": "ab" * 8,
    }
    config = {
        "suite": "libero_object",
        "states": "0:3",
        "render": "fast",
        "placement_shift": 0.04,
        "execute": None,
        "seed": 0,
    }
    manifest = {"format": "lamp-evaluation", "version": 1, "config": config, "conditions": content, "planned": planned}
    (folder / "run.json").write_text(json.dumps(manifest))
    line = {
        "suite": "libero_object",
        "repeat": 0,
        "placement_seed": 0,
        "placement_shift": 0.04,
        "placement": {},
        "noise_seed": [7],
        "success_last": False,
        "steps": 10,
        "code": "0.1.0",
        "packages": {"mujoco": "3.2"},
        "wall_s": 1.0,
        "render": "fast",
    }
    rows = [
        {
            **line,
            "condition": name,
            "task": task,
            "state": state,
            "checkpoint": content[name],
            "instruction": f"task {task}",
            "success": name == "policy" and task == 0 and state < 2,
        }
        for name in content
        for task in (0, 1)
        for state in range(3)
    ]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class TestResults:
    """Measured results of this checkpoint, and of no other."""

    def test_they_stand_in_the_card(self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from huggingface_hub import ModelCard

        folder = evaluation(tmp_path / "evaluation", runs / "policy", planned=18)
        assert cli.main(["push", str(runs / "policy"), "me/policy", "--results", str(folder), "--dry-run"]) == 0
        captured = capsys.readouterr()
        assert "| task 0 | 2/3 |" in captured.out and "**2/6** (33.3%, Wilson 95% 9.7 to 70.0)" in captured.out
        assert "states 0:3; placement shift 0.04; render fast; seed 0; code 0.1.0; packages mujoco 3.2." in captured.out
        assert "wrong_instruction" not in captured.out and "model.safetensors: " in captured.err
        (result,) = ModelCard(captured.out).data.eval_results  # pyright: ignore[reportAttributeAccessIssue]
        assert (result.dataset_name, result.metric_type, result.metric_value) == (
            "libero_object",
            "success_rate",
            0.3333,
        )

    def test_of_another_checkpoint_they_are_refused(self, runs: Path, tmp_path: Path) -> None:
        folder = evaluation(tmp_path / "evaluation", runs / "policy", planned=18)
        with pytest.raises(MismatchError, match=r"is no evaluation of .*motion, whose content is"):
            checkpoint_results(folder, runs / "motion")

    def test_unfinished_or_missing_ones_are_refused(self, runs: Path, tmp_path: Path) -> None:
        folder = evaluation(tmp_path / "evaluation", runs / "policy", planned=20)
        with pytest.raises(DataError, match="has 18 of 20 episodes; finish it"):
            checkpoint_results(folder, runs / "policy")
        with pytest.raises(DataError, match="no evaluation manifest at"):
            checkpoint_results(tmp_path, runs / "policy")
