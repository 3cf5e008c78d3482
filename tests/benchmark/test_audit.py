"""The four audits, and the shortcut policy that they need."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_fakes import FakePolicy, FakeSimulators, make_checkpoint
from training_fakes import write_dataset  # pyright: ignore[reportMissingImports]

from lamp.benchmark.audit import AuditReport, PublishedRate, run_audit
from lamp.benchmark.audit import audited as audit_summary
from lamp.benchmark.baselines import is_policy
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.evaluate import EvaluateConfig, Summary, evaluate
from lamp.benchmark.policies import PolicyOpener
from lamp.benchmark.run_manifest import checkpoint_hash
from lamp.benchmark.shortcut import (
    ShortcutPolicy,
    ShortcutRecord,
    ShortcutTraining,
    is_shortcut,
    read_record,
    shifted,
    train_shortcut,
)
from lamp.benchmark.statistics import Rate, episodes_needed, fisher_exact, pairs_needed
from lamp.data.embodiment import OWN
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.view.paper_tables import best_published
from lamp_client.types import Observation


@dataclass(frozen=True, kw_only=True)
class Scenes(FakeSimulators):
    def shifted(self, shift: float) -> Scenes:
        return replace(self, suite=f"{self.suite} shifted by {shift:g} m")


class Forgetful(FakePolicy):
    """Knows the stored scenes only: the gripper stands still wherever it is not told where it starts."""

    def act_batch(self, observations: list[Observation], *args: Any, **kwargs: Any) -> Any:
        chunks = super().act_batch(observations, *args, **kwargs)
        return [
            replace(one, actions=one.actions * (seen.state[0] < 12))
            for one, seen in zip(chunks, observations, strict=True)
        ]


def opened(path: Path, device: str = "cpu", threads: int = 1) -> FakePolicy:
    return Forgetful(path) if "forgetful" in str(path) else FakePolicy(path)


def audited(root: Path, policy: str = "policy", shortcut: str = "forgetful", **more: Any) -> AuditReport:
    other = make_checkpoint(root / shortcut, "other weights")
    (other / "lamp.json").write_text('{"format": "lamp-shortcut"}')
    config = EvaluateConfig(
        checkpoint=make_checkpoint(root / policy),
        shortcut=other,
        suite="fake",
        states="0:12",
        audit=True,
        out=root / "out",
        workers=2,
        **more,
    )
    published = PublishedRate(method="π", rate=0.9, source="Table I")
    return run_audit(config, load=opened, simulators=Scenes(), published=published)


def test_a_policy_that_reads_and_looks_passes(tmp_path: Path) -> None:
    report = audited(tmp_path)
    verdicts = {one.name: one.verdict for one in report.audits}
    assert verdicts == {"shortcut": "passed", "vision": "passed", "significance": "open", "shift": "open"}
    told = {record.condition for record in report.summary.records}
    assert told == {"with_motion", "shortcut", "blank", "zero"} and len(report.summary.records) == 4 * 2 * 36
    shifts = {record.suite: record.placement_shift for record in report.summary.records}
    assert shifts == {"fake": 0.0, "fake shifted by 0.04 m": 0.04}
    significance = report.audits[2].numbers
    assert significance["chance"]["only_first"] == 36 and significance["published"]["protocol"] is False
    assert significance["published"]["p_value"] == pytest.approx(
        fisher_exact(Rate(successes=36, trials=36), Rate(successes=450, trials=500))
    )
    stored = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert [one["verdict"] for one in stored["audits"]] == list(verdicts.values())
    assert (
        "takes" in report.text and "PASSED" in report.text and "**open**" in (tmp_path / "out" / "audit.md").read_text()
    )
    assert "36/36" in report.audits[0].sentences[0]


def test_a_suite_that_needs_no_words_fails(tmp_path: Path) -> None:
    report = audited(tmp_path, shortcut="another")
    assert report.audits[0].verdict == "failed" and report.audits[0].numbers["difference"] == 0
    assert "shows nothing" in report.audits[0].sentences[1]


def whole_run(successes: int) -> Summary:
    """LIBERO's protocol, done by a policy with so many successes, and by a robot that stands still."""
    records = [
        EpisodeRecord(
            condition=condition,
            suite="libero_goal",
            task=number // 50,
            state=number % 50,
            repeat=0,
            placement_seed=number,
            placement_shift=0.0,
            placement={},
            success=condition == "policy" and number < successes,
            success_last=False,
            steps=9,
            instruction="",
            checkpoint="",
            code="",
            packages={},
            wall_s=0.0,
            render="exact",
        )
        for condition in ("policy", "zero")
        for number in range(500)
    ]
    return Summary(folder=Path(), tables=(), perturbed=(), records=tuple(records), planned=1000, sessions=())


@pytest.mark.parametrize(("successes", "verdict"), [(500, "passed"), (480, "open"), (400, "failed"), (0, "failed")])
def test_a_whole_run_is_held_to_the_best_published_rate(successes: int, verdict: str) -> None:
    published = PublishedRate(method="π", rate=0.95, source="Table I")
    report = audit_summary(
        whole_run(successes),
        policy="policy",
        standard="libero_goal",
        shifted=("libero_goal shifted",),
        published=published,
    )
    assert [one.verdict for one in report.audits] == ["open", "open", verdict, "open"]
    assert report.audits[2].numbers["published"]["protocol"] is True and not report.notes
    assert report.audits[0].sentences == ("No episode is done yet.",)


def test_an_audit_goes_on_where_it_was(tmp_path: Path) -> None:
    first = audited(tmp_path)
    again = audited(tmp_path)
    assert [one.numbers for one in again.audits] == [one.numbers for one in first.audits]
    with pytest.raises(ConfigError, match=r"audit_shift is 0\.02, was 0\.04"):
        audited(tmp_path, audit_shift=0.02)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": None, "controls": ("zero",)}, "--audit needs --checkpoint"),
        ({"placement_shift": 0.02}, "placement_shift is 0.02"),
        ({"audit_shift": 0.0}, "audit_shift 0"),
        ({"shortcut_steps": 0}, "shortcut_steps is 0"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"checkpoint": tmp_path, "audit": True} | change
    with pytest.raises(ConfigError, match=said):
        EvaluateConfig(**settings)


def test_what_the_shortcut_policy_learns_from_must_be_given(tmp_path: Path) -> None:
    config = EvaluateConfig(checkpoint=make_checkpoint(tmp_path / "policy"), audit=True, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="--audit needs --data"):
        run_audit(config, load=opened, simulators=Scenes())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("shortcut") / "data", episodes=4)


@pytest.fixture(scope="module")
def trained(data: Path) -> tuple[Path, ShortcutRecord]:
    folder = data.parent / "policy"
    return folder, train_shortcut(data, folder, OWN, ShortcutTraining(steps=300, width=64))


def seen(data: Path, episode: int, frame: int) -> tuple[Observation, np.ndarray]:
    """What was seen in a frame of the demonstrations, and what was done from there on."""
    dataset = LeRobotDataset(data)
    images = {camera: dataset.frames(camera, episode, [frame])[0] for camera in dataset.cameras}
    state = OWN.states(dataset, episode)[frame]
    observation = Observation(images=images, state=state, instruction=dataset.instruction(episode, frame))
    return observation, OWN.chunks(dataset, episode, 10)[frame]


def test_the_shortcut_policy_learns_its_demonstrations(data: Path, trained: tuple[Path, ShortcutRecord]) -> None:
    folder, record = trained
    policy = ShortcutPolicy(folder)
    shown = [seen(data, episode, frame) for episode in range(4) for frame in (0, 6, 12)]
    acted = np.stack([one.actions for one in policy.act_batch([each for each, _ in shown], [(0,)] * len(shown))])
    done = np.stack([chunk for _, chunk in shown])
    spread = np.abs(done - done.mean(0)).mean()
    assert np.abs(acted - done).mean() < 0.5 * spread and record.loss < 0.5
    assert record == read_record(folder) and record.parameters > 10_000 and len(record.tasks) > 1


def test_the_shortcut_policy_is_told_a_number_and_no_words(data: Path, trained: tuple[Path, ShortcutRecord]) -> None:
    policy, (observation, _) = ShortcutPolicy(trained[0]), seen(data, 0, 6)
    own, other = trained[1].tasks[:2]

    def acted(instruction: str) -> np.ndarray:
        return policy.act_batch([replace(observation, instruction=instruction)], [(0,)])[0].actions

    np.testing.assert_array_equal(acted(own), acted(f"  {own.upper()} "))
    assert not np.array_equal(acted(own), acted(other))
    with pytest.raises(MismatchError, match="has no task 'sing a song'"):
        policy.act_batch([replace(observation, instruction="sing a song")], [(0,)])
    with pytest.raises(MismatchError, match="needs the camera 'wrist'"):
        policy.act_batch([replace(observation, images={"agentview": observation.images["agentview"]})], [(0,)])
    assert policy.act_batch([], []) == []


def test_training_is_repeatable_and_opens_as_any_policy(
    data: Path, trained: tuple[Path, ShortcutRecord], tmp_path: Path
) -> None:
    for name in ("first", "second"):
        train_shortcut(data, tmp_path / name, OWN, ShortcutTraining(steps=3, width=16))
    assert checkpoint_hash(tmp_path / "first") == checkpoint_hash(tmp_path / "second") != checkpoint_hash(trained[0])
    policy = PolicyOpener()(trained[0], "cpu", 1)
    assert isinstance(policy, ShortcutPolicy) and policy.execute == 5 and policy.metadata["actions"] == "delta"
    assert is_shortcut(trained[0]) and not is_shortcut(make_checkpoint(tmp_path / "other"))
    assert not is_policy("shortcut")
    config = EvaluateConfig(controls=("zero",), shortcut=tmp_path / "other", suite="fake", task=(0,), states="0")
    for refused in (
        lambda: read_record(tmp_path / "other"),
        lambda: evaluate(config, simulators=Scenes(), load=opened),
    ):
        with pytest.raises(DataError, match="is no shortcut policy"):
            refused()


def test_images_are_shifted_as_a_whole() -> None:
    import torch

    rows = torch.arange(64, dtype=torch.uint8)
    images = rows[None, None, :, None, None].expand(5, 2, 64, 64, 3)
    moved = shifted(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    differences = {int(one[0, 30, 0, 0]) - 30 for one in moved}
    assert differences <= {-2, -1, 0, 1, 2} and len(differences) > 1
    assert all((one[:, 10:50] - one[0, 10, 0, 0] == (rows[:40])[None, :, None, None]).all() for one in moved)


@pytest.mark.parametrize(
    ("difference", "disagreement", "pairs"), [(0.10, 0.30, 234), (0.15, 0.30, 103), (-0.10, 0.30, 234), (0.1, 0.1, 77)]
)
def test_pairs_needed(difference: float, disagreement: float, pairs: int) -> None:
    """Connor (1987), by hand: (1.96 sqrt(d) + 0.8416 sqrt(d - D^2))^2 / D^2."""
    assert pairs_needed(difference, disagreement) == pairs


def test_what_no_number_of_episodes_shows() -> None:
    assert pairs_needed(0.0, 0.3) is None and pairs_needed(0.2, 0.1) is None and episodes_needed(0.5, 0.5) is None


def test_episodes_needed_have_the_power() -> None:
    """Simulated: so many episodes of each show the difference in about 80 of 100 cases."""
    needed = episodes_needed(0.98, 0.94)
    assert needed is not None and 350 < needed < 420
    generator, found = np.random.default_rng(0), 0
    for _ in range(400):
        one, two = generator.binomial(needed, (0.98, 0.94))
        shares = np.array([one, two]) / needed
        middle = shares.mean()
        found += abs(shares[0] - shares[1]) > 1.959964 * np.sqrt(2 * middle * (1 - middle) / needed)
    assert 0.74 < found / 400 < 0.87


def test_fisher_exact_by_hand() -> None:
    # Of 4 episodes with 3 successes in all: 3 of 3 against 0 of 1 has a chance of 1 in 4, and is the only so unlikely one.
    assert fisher_exact(Rate(successes=3, trials=3), Rate(successes=0, trials=1)) == pytest.approx(0.25)


@pytest.mark.parametrize(("suite", "method", "rate"), [("libero_object", "LaMP", 0.998), ("libero_10", "LaMP", 0.967)])
def test_the_best_published_row(suite: str, method: str, rate: float) -> None:
    best = best_published(suite)
    assert best is not None and best.method == method and best.rate == pytest.approx(rate)
    assert best_published("fake") is None
