"""Checkpoints: whole or absent, self-describing, and refusing what does not fit before weights are read."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_fakes import MOTION, PatchBackbone, loop, motion_training, policy_training

from lamp.configuration import to_json
from lamp.errors import ConfigError, DataError, LampError, MismatchError
from lamp.train.checkpoint import Expected, check_files, load_checkpoint, recover, save_checkpoint
from lamp.train.checkpoint_metadata import TIME_CONVENTION, read_description
from lamp.train.config import PolicyTraining
from lamp.train.run_folder import first_difference
from lamp.train.shards import read_shards, write_shards
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy

SHORT = loop(steps=2)


@pytest.fixture(scope="module")
def motion(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "motion"
    train_motion(motion_training(loop=SHORT), data, out, backbone=PatchBackbone())
    return out


@pytest.fixture(scope="module")
def policy(data: Path, motion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "policy"
    train_policy(policy_training(loop=SHORT), data, out, motion, backbone=PatchBackbone())
    return out


@pytest.fixture
def copy(policy: Path, tmp_path: Path) -> Path:
    """A policy's checkpoint to spoil."""
    return Path(shutil.copytree(policy / "checkpoint", tmp_path / "checkpoint"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "lamp.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_checkpoint_says_everything_about_itself(policy: Path, motion: Path, data: Path) -> None:
    found = read_description(policy)
    assert found.kind == "policy" and found.time_convention == TIME_CONVENTION and found.step == 2
    assert isinstance(found.training, PolicyTraining)
    assert found.training == policy_training(loop=SHORT) and found.model == found.training.model
    assert found.backbone.key == "patches-1"
    assert [(camera.name, camera.height, camera.width) for camera in found.backbone.cameras] == [
        ("agentview", 64, 64),
        ("wrist", 64, 64),
    ]
    assert found.flow is not None and found.flow == read_description(motion).flow
    assert (found.flow.grid, found.flow.horizon, found.flow.stride) == ((4, 4), 4, 2)
    assert found.policy is not None and (found.policy.chunk, found.policy.execute) == (5, 3)
    assert found.policy.scaling.actions.binary == (6,) and found.policy.state_width == 8
    assert found.data.episodes == 4 and len(found.data.validation_episodes) == 2
    assert found.averaged and found.exactly_reproducible and found.code
    assert to_json(found) == json.loads((policy / "checkpoint" / "lamp.json").read_text())


def test_no_file_of_a_run_is_a_pickle(policy: Path) -> None:
    files = {path.name for path in (policy / "checkpoint").rglob("*") if path.is_file()}
    assert files == {
        "lamp.json",
        "model.safetensors",
        "state.json",
        "committed.json",
        "optimiser.safetensors",
        "random.safetensors",
        "raw.safetensors",
    }


def test_a_policy_holds_the_frozen_motion_expert_bit_for_bit(policy: Path, motion: Path) -> None:
    ours, theirs = (load_file(run / "checkpoint" / "model.safetensors") for run in (policy, motion))
    assert theirs and all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert {name.split(".")[0] for name in ours} == {"motion_expert", "guidance", "action_expert"}
    optimiser = load_file(policy / "checkpoint" / "training" / "optimiser.safetensors")
    assert {name.split(".")[0] for name in optimiser} == {"guidance", "action_expert"}


def test_loading_gives_a_frozen_model_with_the_averaged_weights(policy: Path) -> None:
    model, _ = load_checkpoint(policy)
    assert not model.training and not any(value.requires_grad for value in model.parameters())
    raw = load_file(policy / "checkpoint" / "training" / "raw.safetensors")
    assert any(not torch.equal(model.state_dict()[name], value) for name, value in raw.items())


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (Expected(kind="motion"), r"kind 'policy'; expected 'motion'.*lamp train"),
        (Expected(backbone_key="other"), r"backbone_key 'patches-1'; expected 'other'"),
        (Expected(grid=(20, 20)), r"grid \(4, 4\); expected \(20, 20\)"),
        (Expected(horizon=32), r"horizon 4; expected 32"),
        (Expected(cameras=("wrist", "agentview")), r"cameras \('agentview', 'wrist'\); expected"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(copy: Path, expected: Expected, message: str) -> None:
    (copy / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(MismatchError, match=message):
        load_checkpoint(copy, expected=expected)


def test_missing_and_unknown_weights_are_named(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    without = {name: value for name, value in weights.items() if name != "guidance.g"}
    save_file(without, copy / "model.safetensors")
    with pytest.raises(MismatchError, match=r"lacks guidance\.g"):
        load_checkpoint(copy)
    save_file(weights | {"extra": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(MismatchError, match="unknown extra"):
        load_checkpoint(copy)
    save_file(weights | {"guidance.g": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(MismatchError, match=r"guidance\.g has shape \(2,\)"):
        load_checkpoint(copy)


def test_changed_weights_are_noticed(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file(weights | {"guidance.g": weights["guidance.g"] + 1}, copy / "model.safetensors")
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(copy)


@pytest.mark.parametrize("size", [0, 5, 200])
def test_a_cut_file_is_an_error_of_one_line(copy: Path, size: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="not a whole safetensors file") as caught:
        load_checkpoint(copy)
    assert "\n" not in str(caught.value)


def test_another_convention_version_or_format_is_refused(copy: Path) -> None:
    edit(copy, time_convention="t = 1 is noise")
    with pytest.raises(MismatchError, match="t = 1 is noise"):
        load_checkpoint(copy)
    edit(copy, time_convention=TIME_CONVENTION, version=99)
    with pytest.raises(MismatchError, match="version 99"):
        load_checkpoint(copy)
    edit(copy, version=1, surprise=1)
    with pytest.raises(DataError, match="surprise"):
        load_checkpoint(copy)
    edit(copy, format="else")
    with pytest.raises(DataError, match="not the description of a checkpoint"):
        load_checkpoint(copy)
    with pytest.raises(DataError, match="no checkpoint at"):
        load_checkpoint(copy / "nowhere")


def test_a_failed_save_keeps_the_previous_checkpoint(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (copy / "model.safetensors").read_bytes()
    description = read_description(copy)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lamp.train.checkpoint_metadata.write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(copy, description, {"a": torch.zeros(1)})
    assert (copy / "model.safetensors").read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint"]
    load_checkpoint(copy)


def test_what_a_killed_writer_left_is_put_in_place_or_removed(copy: Path, tmp_path: Path) -> None:
    """Between the two renames of a file system that cannot exchange folders, the old one is away and the new one not there."""
    before = read_description(copy)
    for holder, step, committed in ((".tmp-a", 3, True), (".tmp-b", 7, True), (".tmp-c", 9, False)):
        folder = Path(shutil.copytree(copy, tmp_path / holder / "checkpoint"))
        edit(folder, step=step)
        (folder / "training" / "committed.json").write_text(json.dumps({"step": step}))
        if not committed:
            (folder / "training" / "committed.json").unlink()
    spared = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-spared"))
    recover(spared / "checkpoint")
    assert read_description(spared) == before and [path.name for path in spared.iterdir()] == ["checkpoint"]
    shutil.rmtree(copy)
    recover(copy)
    assert read_description(copy).step == 7 and [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    load_checkpoint(copy)


def test_shards_are_read_by_whoever_needs_them_and_say_what_is_missing(tmp_path: Path) -> None:
    tensors = {"raw/a": torch.arange(6.0).reshape(2, 3), "optimiser/a:step": torch.tensor(3.0)}
    write_shards(tmp_path / "shards", tensors, None)
    assert {path.suffix for path in (tmp_path / "shards").iterdir()} == {".safetensors"}
    into = {name: torch.zeros_like(value) for name, value in tensors.items()}
    read_shards(tmp_path / "shards", into, None)
    assert all(torch.equal(into[name], value) for name, value in tensors.items())
    with pytest.raises(MismatchError, match=r"has \(2, 3\) as raw/a; this run needs \(3, 2\)"):
        read_shards(tmp_path / "shards", {"raw/a": torch.zeros(3, 2)}, None)
    with pytest.raises(MismatchError, match="has nothing as raw/b"):
        read_shards(tmp_path / "shards", {"raw/b": torch.zeros(1)}, None)
    with pytest.raises(DataError, match="no shards at"):
        read_shards(tmp_path, into, None)


def test_stage_two_refuses_another_motion_expert(data: Path, motion: Path, tmp_path: Path) -> None:
    config = policy_training(loop=SHORT)
    deeper = replace(config.model, motion=replace(MOTION, layers=3))
    with pytest.raises(MismatchError, match=r"model\.motion\.layers = 2; the recipe asks for 3"):
        train_policy(replace(config, model=deeper), data, tmp_path, motion, backbone=PatchBackbone())
    longer = replace(config.model, motion=replace(MOTION, horizon=8))
    with pytest.raises(MismatchError, match="horizon 4; expected 8"):
        train_policy(replace(config, model=longer), data, tmp_path, motion, backbone=PatchBackbone())
    with pytest.raises(ConfigError, match="--motion"):
        train_policy(config, data, tmp_path, None, backbone=PatchBackbone())
    with pytest.raises(ConfigError, match="--motion"):
        train_policy(policy_training(with_motion=False), data, tmp_path, motion, backbone=PatchBackbone())


def test_another_scene_flow_or_token_width_is_refused(data: Path, tmp_path: Path) -> None:
    config = motion_training()
    wider = replace(config, model=replace(config.model, motion=replace(MOTION, grid=(6, 6))))
    with pytest.raises(LampError, match="6x6"):
        train_motion(wider, data, tmp_path, backbone=PatchBackbone())
    thick = replace(config.model, token_width=32, motion=replace(MOTION, token_width=32))
    with pytest.raises(MismatchError, match=r"16 wide.*32"):
        train_motion(replace(config, model=thick), data, tmp_path, backbone=PatchBackbone())


def test_first_difference_names_the_place() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}, "x") is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}, "x") == ("x.a.b", 1, 2)
    assert first_difference({"a": 1}, {"a": 1, "c": 3}, "x") == ("x.c", None, 3)


def flip(folder: Path, rng: random.Random) -> tuple[Path, int]:
    """Flips one bit of one of a folder's files, and says which."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return path, bit


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_run_is_not_continued_from_damaged_files(
    policy: Path, data: Path, motion: Path, tmp_path: Path, count: int
) -> None:
    rng = random.Random(count)
    for _ in range(count):
        run = Path(shutil.copytree(policy, tmp_path / "run"))
        path, bit = flip(run / "checkpoint", rng)
        try:
            train_policy(policy_training(loop=SHORT), data, run, motion, backbone=PatchBackbone())
        except DataError as error:
            assert str(run) in str(error) and "\n" not in str(error)
        else:
            pytest.fail(f"bit {bit} of {path.name} was flipped, and the run went on")
        shutil.rmtree(run)


def test_any_flipped_bit_of_a_checkpoint_is_found_and_its_file_named(policy: Path, tmp_path: Path) -> None:
    rng, named = random.Random(0), set()
    for _ in range(300):
        folder = Path(shutil.copytree(policy / "checkpoint", tmp_path / "checkpoint"))
        assert check_files(folder)
        path, _ = flip(folder, rng)
        with pytest.raises(DataError, match=path.name if path.name != "committed.json" else "checkpoint"):
            check_files(folder)
        named.add(path.name)
        shutil.rmtree(folder)
    assert len(named) == 7


def test_a_file_that_is_missing_cut_exchanged_or_added_is_found(copy: Path, motion: Path) -> None:
    training = copy / "training"
    for name, change in {
        "missing": lambda: (training / "optimiser.safetensors").unlink(),
        "bytes": lambda: os.truncate(training / "raw.safetensors", 100),
        "not as it was": lambda: (training / "state.json").write_bytes(
            (training / "state.json").read_bytes().replace(b"true", b"null")
        ),
        "not among": lambda: (training / "more.json").write_text("{}"),
    }.items():
        folder = Path(shutil.copytree(copy, copy.parent / "spared"))
        change()
        with pytest.raises(DataError, match=name):
            check_files(copy)
        shutil.rmtree(copy)
        folder.rename(copy)
    assert check_files(copy)


def test_a_checkpoint_from_before_checksums_is_continued_and_said_to_be(
    policy: Path, data: Path, motion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(policy, tmp_path / "run"))
    (run / "checkpoint" / "training" / "committed.json").write_text('{"step": 2}\n')
    train_policy(policy_training(loop=SHORT), data, run, motion, backbone=PatchBackbone())
    assert "was written without checksums" in capsys.readouterr().err
    (run / "checkpoint" / "training" / "committed.json").unlink()
    train_policy(policy_training(loop=SHORT), data, run, motion, backbone=PatchBackbone())


def test_a_changed_description_is_noticed_where_a_policy_is_loaded(copy: Path) -> None:
    edit(copy, step=3)
    with pytest.raises(DataError, match=r"lamp\.json: .*damaged"):
        load_checkpoint(copy)
