"""`lamp evaluate simpler` without ManiSkill: what is missing is said at once; episodes run by SimplerEnv's rules."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_fakes import PolicyDefaults, make_checkpoint
from remote_fakes import Line  # pyright: ignore[reportMissingImports]
from simpler_files import write_assets  # pyright: ignore[reportMissingImports]
from training_fakes import PatchBackbone, loop, policy_training, write_dataset  # pyright: ignore[reportMissingImports]

from lamp import cli
from lamp.benchmark.episodes import read_records
from lamp.benchmark.evaluate import Summary, evaluate
from lamp.benchmark.simpler import (
    SUITE,
    VARIABLE,
    WITH_STAND_INS,
    ManiSkillEnvironment,
    SimplerConfig,
    SimplerSimulators,
    find_environment,
    simulators_of,
    view_of,
)
from lamp.errors import ConfigError, MismatchError, MissingDependencyError
from lamp.json_files import read_json
from lamp.train.checkpoint_metadata import read_description
from lamp.train.train_policy import train_policy
from lamp_client.envs.remote import Launch
from lamp_client.envs.simpler_tasks import SIMPLER_TASKS, SimplerView
from lamp_client.types import ActionChunk, Observation

FAKES = Path(sys.modules[Line.__module__].__file__ or "")


class Stepping(PolicyDefaults):
    """Goes right by half a unit a step, in chunks of four; remembers what it saw."""

    uses_motion = False
    execute = 3

    def __init__(self, path: Path, device: str, threads: int) -> None:
        self.shapes: set[tuple[int, ...]] = set()
        self.seeds: list[tuple[int, ...]] = []

    def act_batch(
        self, observations: list[Observation], noise_seeds: list[tuple[int, ...]], foresight: bool = False
    ) -> list[ActionChunk]:
        self.seeds += noise_seeds
        self.shapes |= {image.shape for seen in observations for image in seen.images.values()}
        action = np.array([0.5, 0, 0, 0, 0, 0, 1], np.float32)
        return [ActionChunk(actions=np.tile(action, (4, 1))) for _ in observations]


def simulators(**changes: Any) -> SimplerSimulators:
    launch = Launch(command=(sys.executable, str(FAKES)))
    return replace(SimplerSimulators(launch=launch, max_steps=6, facts={"assets": "abc", "stand_ins": []}), **changes)


def run(root: Path, out: str, made: SimplerSimulators, opened: list[Stepping] | None = None, **changes: Any) -> Summary:
    make_checkpoint(root / "policy")
    config = SimplerConfig(
        **{
            "checkpoint": root / "policy",
            "states": "0:3",
            "task": ("stack_block", "put_eggplant"),
            "workers": 2,
            **changes,
        },
        out=root / out,
    )

    def load(path: Path, device: str, threads: int) -> Stepping:
        policy = Stepping(path, device, threads)
        if opened is not None:
            opened.append(policy)
        return policy

    return evaluate(config.evaluation(made.suite), load=load, simulators=made, settings=config.settings)


@pytest.mark.long
def test_episodes_go_to_the_limit_and_both_rules_are_recorded(tmp_path: Path) -> None:
    """From -s a policy needs 2 s + 2 steps to the goal, and leaves it after one more: from -2 it is there at the end."""
    opened: list[Stepping] = []
    summary = run(tmp_path, "out", simulators(), opened, controls=("expert", "zero"), videos=2)
    records = read_records(tmp_path / "out")
    assert summary.complete and len(records) == 2 * 3 * 3
    found = {(r.condition, r.task, r.state): (r.success, r.success_last, r.steps, r.policy_calls) for r in records}
    for task in (0, 3):
        assert [found["without_motion", task, state] for state in range(3)] == [
            (True, False, 6, 6),
            (True, False, 6, 6),
            (True, True, 6, 6),
        ]
        assert found["expert", task, 0] == (True, True, 6, 0) and found["zero", task, 0] == (False, False, 6, 0)
    (line,) = [r for r in records if (r.condition, r.task, r.state) == ("expert", 0, 0)]
    assert (
        line.suite == SUITE and line.extra["simulator"]["fake"] == "1.0" and line.extra["simulator"]["assets"] == "abc"
    )
    # One noise seed a step, of the episode and the call.
    assert {seed[1] for seed in opened[0].seeds} == set(range(6)) and opened[0].shapes == {(480, 640, 3)}
    row = next(row for row in summary.tables[0].rows if row.condition == "without_motion")
    assert [(rate.successes, rate.trials) for rate in row.tasks_last] == [(1, 3), (1, 3)]
    assert "3/3, 1 last" in summary.text and "2/6" in summary.text
    told = read_json(tmp_path / "out" / "summary.json")["tables"][0]["conditions"][0]
    assert told["tasks"]["0"]["successes"] == 3 and told["tasks_last"]["0"]["successes"] == 1
    assert len([r for r in records if r.video]) == 2


@pytest.mark.slow
def test_without_an_ensemble_chunks_are_executed_in_the_open(tmp_path: Path) -> None:
    for execute, calls in ((None, 2), (1, 6)):  # the checkpoint says 3 of each
        summary = run(
            tmp_path, str(calls), simulators(ensemble=0), ensemble=0, execute=execute, states="0", task=("put_spoon",),
            workers=1,
        )  # fmt: skip
        assert [record.policy_calls for record in summary.records] == [calls]


@pytest.mark.slow
def test_a_folder_belongs_to_one_set_of_settings(tmp_path: Path) -> None:
    run(tmp_path, "out", simulators())
    before = (tmp_path / "out" / "episodes.jsonl").read_bytes()
    assert run(tmp_path, "out", simulators()).complete
    assert (tmp_path / "out" / "episodes.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="ensemble is 3, was 7"):
        run(tmp_path, "out", simulators(ensemble=3), ensemble=3)
    with pytest.raises(ConfigError, match=f"suite is '{WITH_STAND_INS}', was '{SUITE}'"):
        run(tmp_path, "out", simulators(suite=WITH_STAND_INS))


@pytest.mark.long
def test_a_simulator_that_dies_is_started_again_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trouble = json.dumps({"trouble": {"1": "die"}, "once": str(tmp_path / "died")})
    made = simulators(launch=Launch(command=(sys.executable, str(FAKES), trouble)))
    summary = run(tmp_path, "out", made, workers=1, task=("put_carrot",))
    assert summary.complete and sorted(record.attempt for record in summary.records) == [1, 1, 2]
    assert "out of memory, they say" in capfd.readouterr().err


def environment(tmp_path: Path, answer: str, exit_code: int = 0) -> Path:
    """An interpreter that gives this answer, whatever it is asked."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {exit_code}\n")
    script.chmod(0o755)
    return script


GOOD = json.dumps({"problem": None, "versions": {"mani_skill": "3.0.1"}})


def test_a_complete_environment_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = environment(tmp_path, f"some banner\n{GOOD}")
    write_assets(tmp_path / "assets" / "data")
    found = find_environment(python, tmp_path / "assets", "cpu")
    assert found.versions == {"mani_skill": "3.0.1"} and found.stand_ins == () and len(found.fingerprint) == 16
    assert found.launch.command[0] == str(python) and found.launch.command[-1] == "host"
    assert found.launch.environment["MS_ASSET_DIR"] == str(tmp_path / "assets")
    monkeypatch.setenv(VARIABLE, str(python))
    assert find_environment(None, tmp_path / "assets", "cpu") == found
    (tmp_path / "assets" / "data" / "STAND_INS").write_text("the robot\n")
    named = simulators_of(
        SimplerConfig(controls=("expert",)), find_environment(None, tmp_path / "assets", "cpu"), SimplerView()
    )
    assert named.suite == WITH_STAND_INS and named.facts["stand_ins"] == ["the robot"]


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        find_environment(tmp_path / "none" / "python", tmp_path, "cpu")
    told = str(caught.value)
    assert "(1) there is no" in told and "make simpler-env" in told
    assert "(2)" in told and "download_asset bridge_v2_real2sim" in told and "CC BY-NC 4.0" in told
    assert "(3)" in told and "download_asset widowx250s" in told and f"MS_ASSET_DIR={tmp_path}" in told


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (json.dumps({"problem": "Vulkan has no device", "versions": {}}), 1, r"\(1\) Vulkan has no device\."),
        ("", 1, r"failed \(no output\).*make simpler-env"),
        ("Traceback", 1, "make simpler-env"),
    ],
)
def test_an_environment_that_does_not_work_says_why(tmp_path: Path, answer: str, code: int, message: str) -> None:
    write_assets(tmp_path / "data")
    with pytest.raises(MissingDependencyError, match=message):
        find_environment(environment(tmp_path, answer, code), tmp_path, "cpu")


def test_the_command_ends_with_2_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "python"))
    words = ["evaluate", "simpler", "--controls", "expert", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--assets", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("lamp: SimplerEnv cannot run here. (1)") and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": "20:25"}, "there are 0 to 23"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"ensemble": -1}, "ensemble is -1"),
        ({"execute": 4}, "expected --ensemble 0 with it"),
        ({"controls": ()}, "nothing to evaluate"),
        ({"workers": 0}, "workers is 0"),
        ({"prior": "oracle"}, "--prior oracle needs a simulator that tells its state, and SimplerEnv's does not"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimplerConfig(**{"controls": ("expert",), **settings})


def test_settings_reach_the_simulators(tmp_path: Path) -> None:
    found = ManiSkillEnvironment(launch=Launch(command=("x",)), versions={}, fingerprint="f", stand_ins=())
    view = SimplerView(camera="front", height=224, width=224)
    made = simulators_of(SimplerConfig(controls=("expert",), max_steps=120, ensemble=0), found, view)
    assert (made.suite, made.view, made.max_steps, made.ensemble) == (SUITE, view, 120, 0)
    assert made.instructions() == tuple(task.instruction for task in SIMPLER_TASKS)
    chosen = SimplerConfig(controls=("expert",), task=("put_eggplant", "put_carrot")).evaluation(SUITE)
    assert chosen.task == (3, 1) and chosen.states == "0:24"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("view")
    data = write_dataset(root / "data", episodes=4)
    train_policy(
        policy_training(with_motion=False, loop=loop(steps=2)), data, root / "policy", backbone=PatchBackbone()
    )
    return root / "policy"


def rewritten(checkpoint: Path, folder: Path, *, cameras: int = 1, state_width: int = 7) -> Path:
    """The checkpoint's description with other inputs."""
    description = read_description(checkpoint)
    assert description.policy is not None
    backbone = replace(description.backbone, cameras=description.backbone.cameras[:cameras])
    policy = replace(description.policy, state_width=state_width)
    folder.mkdir(parents=True)
    replace(description, backbone=backbone, policy=policy).write(folder)
    (folder / "model.safetensors").touch()
    return folder


def test_a_policy_is_shown_what_its_checkpoint_says(checkpoint: Path, tmp_path: Path) -> None:
    (camera, *_) = read_description(checkpoint).backbone.cameras
    expected = SimplerView(camera=camera.name, height=camera.height, width=camera.width, state_width=7)
    one = rewritten(checkpoint, tmp_path / "one")
    assert view_of(one) == view_of(one, None) == view_of(one, rewritten(checkpoint, tmp_path / "two")) == expected
    assert view_of(None, None) == SimplerView()
    assert view_of(rewritten(checkpoint, tmp_path / "blind", state_width=0)).state_width == 0


def test_policies_that_need_more_than_there_is_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    one, blind = rewritten(checkpoint, tmp_path / "1"), rewritten(checkpoint, tmp_path / "2", state_width=0)
    with pytest.raises(MismatchError, match="see different things"):
        view_of(one, blind)
    with pytest.raises(MismatchError, match="a state of 8 values; expected none, or BridgeV2's 7"):
        view_of(rewritten(checkpoint, tmp_path / "3", state_width=8))
    with pytest.raises(MismatchError, match=r"was trained with the cameras .*; SimplerEnv has one"):
        view_of(checkpoint)
