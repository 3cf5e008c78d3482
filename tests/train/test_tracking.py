"""Trackers against stand-ins of their packages: what arrives there, under which name, and what a continued run does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError, MissingDependencyError
from lamp.json_files import read_json, read_lines_json, write_json
from lamp.train import metrics
from lamp.train.config import LoopConfig
from lamp.train.distributed import DistributedContext
from lamp.train.metrics import (
    GIB,
    Journal,
    TensorBoard,
    Tracker,
    Trackio,
    Wandb,
    check_trackers,
    device_memory,
    tracker,
)

pytest.importorskip("accelerate")


class FakePolicy(ModuleType):
    """What Accelerate's trackers ask of wandb and trackio: `init`, its run, and `config`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.finished = 0
        self.config = self
        self.fails = False

    def init(self, **known: Any) -> FakePolicy:
        self.started.append(known)
        return self

    def update(self, values: dict[str, Any], **_: Any) -> None:
        self.settings.update(values)

    def log(self, values: dict[str, float], step: int) -> None:
        if self.fails:
            raise ConnectionError("no route\nto the dashboard")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, FakePolicy]]:
    found = {name: FakePolicy(name) for name in ("wandb", "trackio")}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    there = metrics.find_spec
    monkeypatch.setattr(metrics, "find_spec", lambda name: True if name in found else there(name))
    yield found


def write(out: Path, trackers: tuple[Tracker, ...], steps: range, from_step: int = 0) -> None:
    journal = Journal(out, from_step=from_step, trackers=trackers)
    for step in steps:
        journal.write("train", step, 0.1 * step, {"loss": 1.0 / step, "per_dim": {"x": 0.5}, "note": "text"})
    journal.close()


def test_values_arrive_flat_with_their_step_and_the_run_with_its_settings(
    tmp_path: Path, packages: dict[str, FakePolicy]
) -> None:
    out = tmp_path / "policy_with"
    write_json(out / "lamp.json", {"training": {"loop": {"steps": 3}}})
    write(out, (Wandb(project="p", entity="lab", tags=("a",)), Trackio(space="me/space")), range(1, 4))
    for package in packages.values():
        assert package.logged == [(step, {"train/loss": 1.0 / step, "train/per_dim/x": 0.5}) for step in (1, 2, 3)]
        assert package.settings == {"training": {"loop": {"steps": 3}}} and package.finished == 1
    wandb, trackio = (package.started[0] for package in packages.values())
    assert (wandb["project"], wandb["name"], wandb["entity"], wandb["tags"]) == ("p", "policy_with", "lab", ["a"])
    assert wandb["dir"] == str(out) and wandb["resume"] == trackio["resume"] == "allow"
    assert (trackio["project"], trackio["space_id"]) == ("lamp", "me/space")
    assert not (out / "tensorboard").exists()


def test_a_continued_run_goes_on_under_its_id_and_a_fresh_one_does_not(
    tmp_path: Path, packages: dict[str, FakePolicy]
) -> None:
    both = (Wandb(), Trackio())
    write(tmp_path / "run", both, range(1, 4))
    write(tmp_path / "run", both, range(3, 5), from_step=2)
    write(tmp_path / "other", both, range(1, 2))
    for name, key in (("wandb", "id"), ("trackio", "name")):
        first, continued, other = (known[key] for known in packages[name].started)
        assert first == continued != other
    assert set(read_json(tmp_path / "run" / "trackers.json")) == {"wandb", "trackio"}
    assert [line["step"] for line in read_lines_json(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, packages: dict[str, FakePolicy], capsys: pytest.CaptureFixture[str]
) -> None:
    packages["wandb"].fails = True
    write(tmp_path, (Wandb(), Trackio()), range(1, 4))
    assert capsys.readouterr().err.count("tracker wandb is left out from now on (ConnectionError: no route)") == 1
    assert len(packages["trackio"].logged) == len(read_lines_json(tmp_path / "metrics.jsonl")) == 3


def test_a_package_that_is_missing_is_named_before_the_run_starts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name == "wandb" else True)
    with pytest.raises(MissingDependencyError, match=r"Wandb needs .*: wandb\..*pip install 'lamp-vla\[wandb\]'"):
        check_trackers([TensorBoard(), Wandb()])
    with pytest.raises(MissingDependencyError):
        write(tmp_path, (Wandb(),), range(1, 2))
    check_trackers([TensorBoard(), Trackio()])


def test_tensorboard_is_the_default_and_holds_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, LoopConfig(steps=1).trackers, range(1, 4))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["train/loss", "train/per_dim/x"]
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (step, pytest.approx(1 / step)) for step in (1, 2, 3)
    ]


def test_trackers_are_settings_of_a_run() -> None:
    config = LoopConfig(steps=1, trackers=(TensorBoard(), Wandb(project="a"), Trackio(name="b")))
    assert from_json(LoopConfig, to_json(config)) == config
    older = {key: value for key, value in to_json(config).items() if key != "trackers"}
    assert from_json(LoopConfig, older).trackers == (TensorBoard(),)


def test_the_command_line_names_trackers() -> None:
    assert tracker("wandb") == Wandb() and tracker("trackio=mine") == Trackio(project="mine")
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        tracker("wanb=x")
    with pytest.raises(ConfigError, match="TensorBoard has no projects"):
        tracker("tensorboard=x")


class ThreeTogether(DistributedContext):
    """The second of three processes; the others' GPUs hold what is given."""

    rank, world_size = 1, 3

    def __init__(self, others: torch.Tensor) -> None:
        self.others = others

    def sum(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value + self.others for name, value in values.items()}


def test_gpu_memory_is_that_of_the_fullest_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in {"is_available": True, "max_memory_allocated": 3 * GIB, "max_memory_reserved": 9 * GIB}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, found=found: found)
    others = torch.tensor([[5.0, 6.0], [0.0, 0.0], [4.0, 7.0]], dtype=torch.float64) * GIB
    assert device_memory("cuda", ThreeTogether(others)) == {"gpu_memory_gib": 5.0, "gpu_reserved_gib": 9.0}
    assert device_memory("cuda") == {"gpu_memory_gib": 3.0, "gpu_reserved_gib": 9.0}
    assert device_memory("cpu", ThreeTogether(others)) == {}
