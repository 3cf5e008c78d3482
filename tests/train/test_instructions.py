"""Instructions that a backbone cannot tell apart are refused before anything is learnt of them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_fakes import CAMERAS, episode, loop, policy_training

from lamp.cli import main
from lamp.data.feature_cache.build import make_features
from lamp.data.feature_cache.work_sharing import Workers
from lamp.data.lerobot import LeRobotDataset
from lamp.data.lerobot.format import short_names
from lamp.data.lerobot.staging import stage_episode
from lamp.data.lerobot.writer import LeRobotWriter
from lamp.data.observation_encoder import ObservationEncoder, check_instructions, unreadable
from lamp.errors import DataError
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.model.small import SmallBackbone, SmallBackboneConfig, SmallReader
from lamp.train.train_policy import train_policy

OPEN, CLOSE = "打开抽屉", "关闭抽屉"


def write(root: Path, *tasks: str) -> Path:
    for index, task in enumerate(tasks):
        stage_episode(root, f"episode-{index}", replace(episode(index, length=6), task=task))
    LeRobotWriter(root).finalize({"suite": "made up"})
    return root


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, the opposite of each other."""
    return write(tmp_path_factory.mktemp("chinese") / "data", OPEN, CLOSE, OPEN, CLOSE)


@pytest.fixture(scope="module")
def reader() -> SmallReader:
    return SmallReader(SmallBackboneConfig(text_tokens=12))


@pytest.mark.parametrize(
    ("one", "other", "unknown"),
    [
        (OPEN, CLOSE, ("打开抽屉", "关闭抽屉")),
        ("pick up the 🔴 cube", "pick up the 🔵 cube", ("🔴", "🔵")),
        ("빨간 컵", "파란 컵", ()),
        ("ouvre la boîte", "ouvre la boite", ()),
    ],
)
def test_different_words_with_equal_tokens_are_named(
    reader: SmallReader, one: str, other: str, unknown: tuple[str, ...]
) -> None:
    found = unreadable(reader, [one, "push the cup", other, one])
    equal = reader.instruction_ids(one) == reader.instruction_ids(other)
    assert found is not None and found.equal == (((one, other),) if equal else ())
    assert set(unknown) <= set(found.unknown)
    if equal:
        with pytest.raises(DataError, match=f"mine: '{one}', '{other}' are the same to the backbone"):
            check_instructions(reader, [one, other], "mine")


def test_capitals_and_spaces_are_no_harm_and_are_said(reader: SmallReader, capsys: pytest.CaptureFixture[str]) -> None:
    check_instructions(reader, ["Open the  drawer", "open the drawer", "lift the 杯"], "mine")
    told = capsys.readouterr().err
    assert "'Open the  drawer', 'open the drawer' are the same" in told and "does not know '杯'" in told


def test_what_there_is_no_room_for_is_refused_with_the_room_it_needs(reader: SmallReader) -> None:
    long = "pick up the red cube and put it into the blue box on the left"
    with pytest.raises(DataError, match=r"has 17 tokens; text_tokens is 12.*text_tokens of at least 17"):
        check_instructions(reader, [long], "mine")


def test_many_groups_are_counted(reader: SmallReader) -> None:
    pairs = [f"{sign} the {word}" for word in "abcdefghij" for sign in ("开", "关")]
    found = unreadable(reader, pairs)
    assert found is not None and len(found.equal) == 10 and found.problems[-1].startswith("5 more groups")


def test_a_vision_language_model_tells_them_apart(qwen_folder: Path) -> None:
    identity = Qwen3VLBackboneConfig(model=str(qwen_folder), text_tokens=40).tokenizer()
    found = unreadable(identity, [OPEN, CLOSE, "open the drawer"])
    assert found is not None and not found.problems and not found.remarks
    short = Qwen3VLBackboneConfig(model=str(qwen_folder), text_tokens=2).tokenizer()
    with pytest.raises(DataError, match=r"text_tokens is 2"):
        check_instructions(short, ["open the drawer"], "mine")
    assert Qwen3VLBackboneConfig(model="nobody/has-this-model").tokenizer() is None


def test_every_command_refuses_them(chinese: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "robot.json"
    assert main(["recipe", "fit", str(chinese), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert OPEN in told and CLOSE in told and "does not know" in told and "Qwen3-VL" in told and not out.exists()
    assert main(["cache", "features", str(chinese), "--recipe", "demo"]) == 2
    assert OPEN in capsys.readouterr().err and not (chinese / "features").exists()


def test_the_check_of_data_says_so(chinese: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(chinese), "--quick"]) == 0
    told = capsys.readouterr().out
    assert "no fault of the data, but" in told and OPEN in told
    assert main(["data", "check", str(chinese), "--quick", "--recipe", "demo", "--json"]) == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert OPEN in fault["problem"] and CLOSE in fault["problem"]


def test_a_training_on_features_from_elsewhere_refuses_them(
    chinese: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SmallBackboneConfig(cameras=tuple((camera, 64) for camera in CAMERAS))
    backbone = SmallBackbone(settings)
    with monkeypatch.context() as patch:
        patch.setattr("lamp.data.feature_cache.build.check_instructions", lambda *_: None)
        dataset = LeRobotDataset(chinese)
        make_features(dataset, backbone, lambda device: backbone, workers=Workers(), root=tmp_path / "features")
    base = policy_training(with_motion=False, loop=loop(steps=1))
    assert base.model.action is not None
    model = replace(base.model, token_width=400, action=replace(base.model.action, token_width=400, positions=128))
    with pytest.raises(DataError, match=f"'{OPEN}', '{CLOSE}' are the same"):
        train_policy(
            replace(base, model=model), chinese, tmp_path / "run", backbone=backbone, features=tmp_path / "features"
        )
    assert not (tmp_path / "run").exists()


def test_a_recipe_makes_room_for_the_longest(tmp_path: Path) -> None:
    from lamp.recipes import training
    from lamp.recipes.fit import fit
    from lamp.recipes.fit_robot import FitConfig

    long = "pick up the red cube and put it into the blue box on the left of the table behind the cup and the plate"
    data = write(tmp_path / "data", long, "push the cup")
    made, _ = fit(FitConfig(data=str(data), out=tmp_path / "robot.json"), training("demo"))
    assert isinstance(made.backbone, SmallBackboneConfig) and made.backbone.text_tokens == 26


def test_unknown_words_are_said_once_where_a_policy_acts(caplog: pytest.LogCaptureFixture) -> None:
    encoder = ObservationEncoder(SmallBackbone(SmallBackboneConfig(cameras=(("front", 32),))))
    with caplog.at_level(logging.WARNING, "lamp"):
        for text in ("lift the 杯", "lift the 杯", "lift the cup"):
            encoder._read(text)
    assert [record.getMessage() for record in caplog.records] == [
        "instruction 'lift the 杯': the backbone does not know '杯', and takes no meaning from it"
    ]


def test_features_with_one_short_name_are_both_kept() -> None:
    assert short_names(["observation.images.front", "observation.images.side"]) == {
        "front": "observation.images.front",
        "side": "observation.images.side",
    }
    both = short_names(["observation.images.front", "front", "side"])
    assert both == {"observation.images.front": "observation.images.front", "front": "front", "side": "side"}


def test_cameras_with_one_short_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data", "push the cup")
    words = ["--cameras", "observation.images.front", "observation.front"]
    assert main(["recipe", "fit", str(data), "--out", str(tmp_path / "robot.json"), *words]) == 2
    told = capsys.readouterr().err
    assert "observation.images.front and observation.front would both be called 'front'" in told
    assert "front=observation.images.front front_2=observation.front" in told


def test_equal_ids_are_equal_tokens() -> None:
    backbone = SmallBackbone(SmallBackboneConfig(cameras=(("front", 32),), text_tokens=24))
    tokens, _ = backbone.text_tokens([OPEN, CLOSE, "open the drawer"])
    assert torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])
    assert backbone.instruction_ids(OPEN) == backbone.instruction_ids(CLOSE)
