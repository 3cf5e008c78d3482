"""What a study is, which episodes and seeds its arms share, what is refused, and how its figures are computed."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp import cli
from lamp.benchmark.statistics import SeedDifferences, holm
from lamp.collect.jobs import CollectConfig
from lamp.commands.study import deadline
from lamp.configuration import from_json, to_json
from lamp.data.episode_selection import EpisodeSelection
from lamp.data.lerobot import EpisodeData, LeRobotDataset, LeRobotWriter, stage_episode
from lamp.data.motion_dataset import shuffled_pairing
from lamp.errors import ConfigError, DataError, LampError, MismatchError
from lamp.files import locked
from lamp.info import describe
from lamp.json_files import write_json
from lamp.recipes import training
from lamp.study.catalogue import NONE, ORACLE, SAME, STUDIES, atm, find_study, pretrained, quick, robustness, tiny
from lamp.study.figures import summarise
from lamp.study.jobs import MotionJob, PolicyJob, errors_of
from lamp.study.plan import Partition, RunOptions, plan_text, size
from lamp.study.report import report
from lamp.study.results import DEFINITION, MOTION_ONLY, RESULT, Cell, cells, read_definition
from lamp.study.run import _Run, run
from lamp.study.study import Arm, MotionPrior, RecordedData, Resolved, SimulatorTest, Study, check_continues
from lamp.train.checkpoint_metadata import read_description
from lamp.train.publishing import find_checkpoint, shipped_checkpoints

TASKS = ("stack", "fold", "pour")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Ten episodes of each of three tasks, task after task, without pictures worth a look."""
    root = tmp_path_factory.mktemp("study") / "data"
    for number in range(30):
        values = np.zeros((2, 8), np.float32)
        frames = {"observation.state": values, "action": values[:, :7]}
        images = {"agentview": np.zeros((2, 16, 16, 3), np.uint8)}
        extra = {"initial_state": number % 10}
        made = EpisodeData(frames=frames, images=images, task=TASKS[number // 10], extra=extra)
        stage_episode(root, f"episode-{number:02d}", made)
    LeRobotWriter(root, cameras=("agentview",)).finalize()
    return LeRobotDataset(root)


def study(**changes: Any) -> Study:
    """A small study of those episodes, on made-up data's recipe."""
    settings = {
        "held_out": EpisodeSelection(states="8:10"),
        "actions": EpisodeSelection(states="0:4"),
        "motion": EpisodeSelection(states="4:8"),
        "motion_seeds": 2,
        "policy_seeds": 4,
    }
    return replace(tiny(), **(settings | changes))


def jobs(made: Study, dataset: LeRobotDataset, out: Path, **options: Any) -> list[Any]:
    work = _Run(resolved=Resolved.of(made), out=out, options=RunOptions(**options))
    return work._jobs(Partition(study=made, dataset=dataset), [])


# What a study is


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_of_the_catalogue_can_be_written_and_planned(name: str) -> None:
    made = find_study(name)
    assert from_json(Study, json.loads(json.dumps(to_json(made)))) == made
    whole = size(Resolved.of(made))
    assert whole.cells == len(made.arms) * len(made.demonstrations) * made.policy_seeds
    assert made.check or made.name.startswith("atm") or (made.policy_seeds >= 4 and made.motion_seeds >= 2)
    assert f"{whole.cells} of {whole.cells} cells" in plan_text(Resolved.of(made), None, RunOptions())


def test_the_named_studies_say_what_they_were_asked_for() -> None:
    assert {
        "regimes-object",
        "regimes-spatial",
        "motion-only-tasks",
        "robustness",
        "hand-overs",
        "flow-2d",
    } < STUDIES.keys()
    assert {"other-arm", "atm", "atm-object", "quick", "tiny"} < STUDIES.keys()
    assert [arm.name for arm in quick().arms] == ["none", "same", "action_free", "oracle"]
    assert quick().demonstrations == (3, 10) and not quick().tests
    assert {test.perturb for test in robustness().tests} == {
        None, *(f"{kind}={level}" for kind in ("camera", "light", "noise") for level in (1, 2, 3))
    }  # fmt: skip
    own = atm()
    assert own.demonstrations == (10,) and own.motion.per_task == 50 and own.policy_seeds == 3
    assert own.tests[0].episodes == 20 * 10


def test_an_arm_may_take_a_checkpoint_in_place_of_a_stage_1(dataset: LeRobotDataset, tmp_path: Path) -> None:
    (shipped,) = shipped_checkpoints()
    recorded = RecordedData(path=str(dataset.root))
    made = replace(pretrained(), data=recorded, demonstrations=(2,), policy_seeds=1, motion_seeds=1, tests=())
    found = {job.folder.split("/")[1]: job for job in jobs(made, dataset, tmp_path)}
    assert [type(job.work) for job in found.values()] == [PolicyJob] * len(made.arms)
    assert all(not job.needs for job in found.values())
    places = {name: job.work.motion for name, job in found.items()}
    assert places.pop("none") is None and set(places.values()) == {find_checkpoint(shipped)}
    assert size(Resolved.of(made)).motions == 0
    Partition(study=made, dataset=dataset).check()
    folder = Path(shutil.copytree(find_checkpoint(shipped), tmp_path / "mine"))
    known = read_description(folder)
    replace(known, data=replace(known.data, dataset=dataset.content, train_episodes=(7, 8, 9, 18))).write(folder)
    leaking = Arm(name="x", prior=MotionPrior(checkpoint=str(folder)))
    with pytest.raises(
        MismatchError, match=r"arm 'x': .*mine was trained on episodes 8-9, 18 of .*, which are held out here"
    ):
        Partition(study=replace(made, arms=(NONE, leaking)), dataset=dataset).check()
    with pytest.raises(MismatchError, match=r"arm 'x': pretrained/libero_object has model\.motion\.\w+ = .*'made_up'"):
        Resolved.of(study(arms=(NONE, Arm(name="x", prior=MotionPrior(checkpoint=shipped)))))
    with pytest.raises(ConfigError, match="unknown checkpoint that comes with LaMP 'pretrained/x'"):
        Resolved.of(study(arms=(NONE, Arm(name="x", prior=MotionPrior(checkpoint="pretrained/x")))))
    both = MotionPrior(checkpoint=shipped, targets="shuffled")
    with pytest.raises(ConfigError, match="takes the checkpoint pretrained/libero_object, and says how a Stage 1 is"):
        Resolved.of(study(arms=(NONE, Arm(name="x", prior=both))))


def test_a_check_is_not_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "list"]) == 0
    shown = capsys.readouterr().out
    assert "quick\n" in shown and "hours on 2 cores" in shown and "tiny" not in shown
    assert cli.main(["study", "list", "--all"]) == 0 and "tiny\n" in capsys.readouterr().out
    assert cli.main(["study", "show", "quick"]) == 0
    assert from_json(Study, json.loads(capsys.readouterr().out)) == quick()


def test_a_users_own_study_is_read_strictly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    content = to_json(quick())
    path.write_text(json.dumps(content))
    assert find_study(str(path)) == quick()
    for change, message in (
        ({"policy_step": 3}, r"unknown key in .*mine.json \(Study\) 'policy_step'; did you mean 'policy_steps'"),
        ({"policy_steps": "many"}, r"mine.json.policy_steps: 'many' is not what is expected here, int"),
        ({"demonstrations": []}, r"demonstrations \[\]: expected numbers"),
        ({"demonstrations": [3, 3]}, r"demonstrations \[3, 3\]: expected numbers .* none twice"),
        ({"against": "nothing"}, r"unknown arm to compare with 'nothing'.*Known: none, same"),
        ({"motion_seeds": 5}, r"motion_seeds 5, policy_seeds 4: expected as many of Stage 2 or more"),
        ({"recipe": "libero_objct_small"}, r"unknown recipe 'libero_objct_small'; did you mean 'libero_object_small'"),
        ({"arms": [*content["arms"], content["arms"][0]]}, r"arms none, same, .*: expected none twice"),
        ({"arms": [{"name": "../x", "prior": None}]}, r"arm '../x': expected a name that can be a folder's"),
        ({"name": ".."}, r"study '..': expected a name"),
        ({"actions": {"per_task": 3}}, r"actions: `demonstrations` says how many"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=message):
            Resolved.of(find_study(str(path)))
    path.write_text("{")
    assert cli.main(["study", "run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists() and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_names_that_do_not_exist_are_refused_with_what_is_near(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    for words, message in (
        (["quik", "--out", out], "unknown study 'quik'; did you mean 'quick'?"),
        (["./quick.json", "--out", out], "no study at quick.json"),
        ([str(tmp_path), "--out", out], "is a folder; expected a study's JSON file"),
        (["quick", "--out", out, "--only", "non"], "unknown arm of quick 'non'; did you mean 'none'?"),
        (["quick", "--out", out, "--until", "25:00"], "--until '25:00': expected a time of the day"),
        (["quick", "--out", out, "--until", "12:00", "--hours", "2"], "expected one of the two"),
        (["quick", "--out", out, "--hours", "0"], "--hours 0: expected more than 0"),
        (["quick", "--out", out, "--cells", "0"], "--cells 0: expected"),
    ):
        assert cli.main(["study", "run", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(["study", "report", out]) == 2 and "there is no such folder" in capsys.readouterr().err
    assert cli.main(["study", "report", str(tmp_path)]) == 2 and "holds no study" in capsys.readouterr().err


def test_a_deadline_of_today_or_tomorrow() -> None:
    noon = time.mktime((2026, 11, 30, 12, 0, 0, 0, 0, -1))
    assert deadline("12:30", None, noon) == noon + 1800
    assert deadline("11:00", None, noon) == noon + 23 * 3600
    assert deadline(None, 2.5, noon) == noon + 9000 and deadline(None, None, noon) is None


# What the arms share


def test_a_study_is_done_seed_after_seed_so_that_pairs_are_whole() -> None:
    order = cells(study())
    assert [cell.arm for cell in order[:5]] == ["none", "same", "action_free", "shuffled", "oracle"]
    assert [cell.seed for cell in order] == sorted(cell.seed for cell in order)
    assert {cell.arm for cell in cells(study(), ("none", "oracle"))} == {"none", "oracle"}
    assert Cell(arm="same", demonstrations=3, seed=1).folder == "cells/same/n003/s1"


def test_all_arms_of_a_seed_are_trained_alike(dataset: LeRobotDataset, tmp_path: Path) -> None:
    found = [job for job in jobs(study(), dataset, tmp_path) if isinstance(job.work, PolicyJob)]
    by_seed: dict[tuple[str, str], list[Any]] = {}
    for job in found:
        _, _, count, seed = job.folder.split("/")
        by_seed.setdefault((count, seed), []).append(job.work)
    assert len(by_seed) == 8
    for works in by_seed.values():
        assert len(works) == 5
        for name in ("loop", "split", "noise_draws", "execute", "action_samples", "state_noise", "token_dropout"):
            assert len({repr(getattr(work.training, name)) for work in works}) == 1
        assert len({work.episodes for work in works}) == 1
        assert works[0].training.loop.threads == 1 and works[0].training.loop.trackers == ()
    seeds = {seed: works[0].training.loop.seed for (_, seed), works in by_seed.items()}
    assert seeds == {"s0": 0, "s1": 1, "s2": 2, "s3": 3}


def test_shared_work_is_done_once(dataset: LeRobotDataset, tmp_path: Path) -> None:
    found = jobs(study(), dataset, tmp_path)
    motions = [job for job in found if isinstance(job.work, MotionJob)]
    # Two seeds each of: the same for either number of demonstrations, action-free, shuffled; the oracle's is the action-free one.
    assert len(motions) == 2 * 4 == size(Resolved.of(study())).motions
    action_free = [
        job for job in motions if job.folder.startswith("motion/action_free-") and "shuffled" not in job.folder
    ]
    assert len(action_free) == 2
    users = [job for job in found if action_free[0].folder in job.needs]
    assert {job.folder.split("/")[1] for job in users} == {"action_free", "oracle"}
    assert {job.folder.split("/")[3] for job in users} == {"s0", "s2"}
    assert len({job.folder for job in found}) == len(found)
    order = [job.folder for job in found]
    assert all(order.index(need) < order.index(job.folder) for job in found for need in job.needs)


def test_fewer_demonstrations_are_among_more_and_none_is_held_out(dataset: LeRobotDataset) -> None:
    parts = Partition(study=study(demonstrations=(1, 3)), dataset=dataset)
    few, more = parts.demonstrations(1, 0), parts.demonstrations(3, 0)
    assert len(few) == 3 and len(more) == 9 and set(few) < set(more)
    assert set(more) != set(parts.demonstrations(3, 1))
    assert not set(parts.held_out).intersection(more, parts.action_free)
    none, same, action_free, shuffled, _ = study().arms
    assert parts.motion(none, 1, 0) == () and parts.motion(same, 1, 0) == few
    assert parts.motion(action_free, 3, 1) == parts.action_free == parts.motion(shuffled, 1, 0)
    both = Arm(name="both", prior=MotionPrior(motion="both"))
    assert set(parts.motion(both, 1, 0)) == {*few, *parts.action_free}


def test_tasks_without_actions_are_measured_apart(dataset: LeRobotDataset) -> None:
    made = study(actions=EpisodeSelection(tasks="0,2", states="0:4"))
    assert Partition(study=made, dataset=dataset).groups == {"held_out": ("pour", "stack"), MOTION_ONLY: ("fold",)}
    lines = [
        {"step": 3, "action_error": 9.0, "action_error_by_task": {"stack": 0.2, "pour": 0.4, "fold": 0.9}},
        {"step": 6, "action_error": 9.0, "action_error_by_task": {"stack": 0.3, "pour": 0.5, "fold": 0.7}},
    ]
    assert errors_of(lines, ("pour", "stack"))["final"] == pytest.approx(0.4)
    found = errors_of(lines, ("pour", "stack"))
    assert found["best"] == pytest.approx(0.3) and found["best_step"] == 3
    assert errors_of(lines, ("fold",))["curve"] == [[3, 0.9], [6, 0.7]]
    assert errors_of([{"step": 1, "action_error": 0.25}], ("stack",))["final"] == 0.25


# What is refused


def test_stages_that_overlap_where_an_arm_says_they_do_not(dataset: LeRobotDataset) -> None:
    made = study(motion=EpisodeSelection(states="3:8"), demonstrations=(4,))
    with pytest.raises(
        MismatchError, match=r"arm 'action_free' says .* 3 of the 12 are in both: episodes 3, 13, 23; expected"
    ):
        Partition(study=made, dataset=dataset).check()
    kept = [replace(arm, prior=arm.prior and replace(arm.prior, motion="both")) for arm in made.arms]
    Partition(study=replace(made, arms=tuple(kept)), dataset=dataset).check()


def test_extra_motion_that_overlaps() -> None:
    made = quick()
    data = made.data
    assert isinstance(data, CollectConfig)
    other = replace(data, motion_only=True, seed=1, states=(0, 25))
    Resolved.of(replace(made, extra=(other,)))
    with pytest.raises(MismatchError, match=r"extra\[0\] starts from initial states 25-27, .* \(25:30\); .* 0-24"):
        Resolved.of(replace(made, extra=(replace(other, states=(0, 28)),)))
    with pytest.raises(MismatchError, match=r"extra\[1\] has the seed of `data`, 0, and would repeat"):
        Resolved.of(replace(made, extra=(other, replace(other, seed=0))))
    Resolved.of(replace(made, extra=(replace(other, suite="libero_spatial", states=(0, 30), seed=0),)))
    mine = RecordedData(path="data/mine")
    with pytest.raises(MismatchError, match=r"extra\[0\] is data/../data/mine, which `data` is too"):
        Resolved.of(replace(made, data=mine, extra=(RecordedData(path="data/../data/mine"),)))


def test_too_few_demonstrations(dataset: LeRobotDataset) -> None:
    with pytest.raises(DataError, match=r"5 demonstrations of each task are asked for, and .* has 4 of 'stack'"):
        Partition(study=study(demonstrations=(5,)), dataset=dataset).check()


def test_unequal_budgets() -> None:
    base = training("small_gated")
    larger = replace(base.policy, loop=replace(base.policy.loop, batch_size=64), noise_draws=1)
    made = replace(quick(), arms=(NONE, SAME))
    with pytest.raises(
        MismatchError, match=r"unequal budgets: Stage 2's batch_size is 64 in arm 'same' and 32 in 'none'"
    ):
        Resolved(study=made, recipes={"small_gated": replace(base, policy=larger)}).check()
    Resolved(study=made, recipes={"small_gated": base}).check()


def test_an_oracle_where_there_is_no_expert() -> None:
    tests = (SimulatorTest(name="goal", suite="libero_goal", tasks=(0, 1)),)
    with pytest.raises(
        ConfigError, match=r"arm 'oracle' is an oracle, and .* cannot do task 0 of libero_goal .* 1, 2, 4"
    ):
        Resolved.of(replace(quick(), tests=tests))
    Resolved.of(replace(quick(), tests=tests, arms=(NONE, SAME)))


def test_other_things_that_cannot_be() -> None:
    with pytest.raises(
        ConfigError, match=r"arm 'x' has a prior, and its recipe 'small_flow_head' has no Motion Expert"
    ):
        Resolved.of(replace(quick(), arms=(NONE, Arm(name="x", prior=MotionPrior(), recipe="small_flow_head"))))
    with pytest.raises(MismatchError, match=r"arm 'x': recipe 'paper_simpler' has another backbone"):
        Resolved.of(replace(quick(), arms=(NONE, Arm(name="x", prior=MotionPrior(), recipe="paper_simpler"))))
    with pytest.raises(ConfigError, match=r"recipe 'small_flow_head' does not say how scene flow is built"):
        Resolved.of(replace(quick(), recipe="small_flow_head", arms=(NONE,)))
    with pytest.raises(ConfigError, match="unknown suite of test 'x' 'libero_objects'; did you mean 'libero_object'"):
        replace(quick(), tests=(SimulatorTest(name="x", suite="libero_objects", tasks=(0,)),))
    with pytest.raises(ConfigError, match="data is motion_only"):
        Resolved.of(replace(quick(), data=replace(quick().data, motion_only=True)))


def test_a_folder_goes_on_with_its_own_study_alone(tmp_path: Path) -> None:
    before = study()
    check_continues(before, replace(before, policy_seeds=6, demonstrations=(1, 2, 3)), tmp_path)
    with pytest.raises(
        MismatchError, match=r"holds the study 'tiny' with policy_steps 6; now it is 7: expected the same"
    ):
        check_continues(before, replace(before, policy_steps=7), tmp_path)
    changed = replace(SAME, prior=MotionPrior(motion="both"))
    with pytest.raises(MismatchError, match=r"was begun with arm 'same' as .*'same'.*; now it is .*'both'"):
        check_continues(before, replace(before, arms=(NONE, changed)), tmp_path)
    (tmp_path / "mine.txt").write_text("of somebody else")
    with pytest.raises(DataError, match="is there and holds no study"):
        run(before, tmp_path)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", ""), pytest.raises(DataError, match="a study is at work in"):
        run(tiny(), tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [".lock"]


def test_a_study_goes_on_with_the_recipe_that_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamp.study import study as definitions
    from lamp.study.run import _resolved

    tmp_path.joinpath("out").mkdir()
    begun = _resolved(tiny(), tmp_path / "out")
    other = replace(begun.base, policy=replace(begun.base.policy, noise_draws=9))
    monkeypatch.setattr(definitions, "synthetic_recipe", lambda: other)
    assert Resolved.of(tiny()).base.policy.noise_draws == 9
    assert _resolved(tiny(), tmp_path / "out") == begun


# The figures


def test_differences_of_seeds_by_hand() -> None:
    found = SeedDifferences(differences=(1.0, 2.0, 3.0, 4.0))
    # Mean 2.5, deviation sqrt(5/3), and t of 3 degrees of freedom is 3.18245 at 97.5%.
    assert found.mean == 2.5 and found.deviation == pytest.approx(1.2909944)
    assert found.interval == pytest.approx((2.5 - 3.1824463 * 1.2909944 / 2, 2.5 + 3.1824463 * 1.2909944 / 2))
    assert found.p_value == pytest.approx(0.0304663)
    assert found.power(found.detectable or 0.0, 4) == pytest.approx(0.8)
    assert found.detectable == pytest.approx(2.74717, rel=1e-3)  # as scipy's noncentral t has it
    assert found.more_pairs() == 1 and found.power(2.5, 4) < 0.8 < found.power(2.5, 5)
    assert found.more_pairs(100.0) == 0 and found.more_pairs(1e-6) is None


def test_differences_that_say_nothing_of_how_they_vary() -> None:
    for equal, p in (((0.0, 0.0, 0.0, 0.0), 1.0), ((0.5, 0.5, 0.5, 0.5), 0.125), ((0.5,), 1.0)):
        found = SeedDifferences(differences=equal)
        assert found.p_value == p
        assert found.interval is None and found.detectable is None and found.more_pairs() is None


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_a_shuffled_pairing_leaves_no_sample_in_its_episode() -> None:
    groups = np.repeat(np.arange(5), (4, 9, 1, 6, 7))
    pairing = shuffled_pairing(groups, 0)
    assert sorted(pairing.tolist()) == list(range(len(groups)))
    assert (groups[pairing] != groups).all()
    assert (pairing != shuffled_pairing(groups, 1)).any() and (pairing == shuffled_pairing(groups, 0)).all()
    assert sorted(shuffled_pairing(np.zeros(4, np.int64), 0).tolist()) == [0, 1, 2, 3]


def made_results(
    made: Study, out: Path, errors: dict[str, list[float]], outcomes: dict[str, list[list[int]]] | None = None
) -> None:
    """Writes what cells would leave: final errors by arm and seed, and whether each of some episodes succeeded."""
    resolved = Resolved.of(made)
    content = {"format": "lamp-study", "study": to_json(made), "recipes": to_json(resolved.recipes)}
    write_json(out / DEFINITION, content)
    for arm, values in errors.items():
        for seed, value in enumerate(values):
            folder = out / Cell(arm=arm, demonstrations=2, seed=seed).folder
            curve = [[3, value - 0.01], [6, value]]
            error = {"final": value, "best": value - 0.01, "best_step": 3, "curve": curve}
            write_json(
                folder / RESULT,
                {"steps": 6, "seconds": 1.0, "episodes": [0], "code": "x", "errors": {"held_out": error}},
            )
            for test in made.tests:
                scenes = [["libero_object", 0, 30 + place, 7] for place in range(len((outcomes or {})[arm][seed]))]
                done = [[*scene, bool(one)] for scene, one in zip(scenes, (outcomes or {})[arm][seed], strict=True)]
                write_json(folder / "tests" / test.name / RESULT, {"outcomes": done, "seconds": 1.0, "code": "x"})


def test_figures_of_errors_by_hand(tmp_path: Path) -> None:
    made = study(arms=(NONE, SAME, ORACLE), demonstrations=(2,))
    made_results(
        made,
        tmp_path,
        {"none": [0.30, 0.32, 0.34, 0.36], "same": [0.29, 0.33, 0.33, 0.37], "oracle": [0.2, 0.21, 0.24, 0.25]},
    )
    figures = summarise(Resolved.of(made), tmp_path)
    assert figures == json.loads((tmp_path / "study.json").read_text()) and figures["complete"]
    none, same, oracle = figures["results"]
    assert none["held_out_error"] == pytest.approx(0.33) and none["seeds"] == 4 and none["motion_seeds"] == 0
    assert none["best_error"] == pytest.approx(0.32) and none["steps"] == 6 and none["successes"] is None
    # Deviation 0.025820, times 3.18245 / 2.
    assert none["held_out_error_interval"] == pytest.approx([0.33 - 0.041085, 0.33 + 0.041085], abs=1e-5)
    assert same["motion_seeds"] == 2 and oracle["held_out_error"] == pytest.approx(0.225)
    by_key = {(row["arm"], row["measure"]): row for row in figures["differences"]}
    helped = by_key["oracle", "held_out_error"]
    assert helped["difference"] == pytest.approx(-0.105) and helped["relative"] == pytest.approx(-0.105 / 0.33)
    assert helped["verdict"] == "helps" and helped["oracle"] and helped["claim"] and helped["pairs"] == 4
    # Differences -0.10, -0.11, -0.10, -0.11: deviation 0.0057735, interval -0.105 +- 0.0091869.
    assert helped["interval"] == pytest.approx([-0.1141869, -0.0958131], abs=1e-6)
    unclear = by_key["same", "held_out_error"]
    assert unclear["difference"] == pytest.approx(0.0) and unclear["verdict"] == "cannot tell"
    assert unclear["by_motion_seed"] == pytest.approx({"0": -0.01, "1": 0.01})
    assert unclear["detectable"] > 0 and unclear["p_holm"] >= unclear["p"]
    text = report(tmp_path)
    assert "oracle against none, 2 demonstrations" in text and "helps (a ceiling), -32% (-35 to -29)" in text
    page = (tmp_path / "report.html").read_text()
    assert "helps (a ceiling)" in page and "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_figures_of_successes_by_hand(tmp_path: Path) -> None:
    tests = (SimulatorTest(name="standard", suite="libero_object", tasks=(0,), states="30:34"),)
    made = study(arms=(NONE, SAME), demonstrations=(2,), tests=tests)
    outcomes = {
        "none": [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
        "same": [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
    }
    made_results(made, tmp_path, {"none": [0.3, 0.31, 0.3, 0.32], "same": [0.3, 0.3, 0.3, 0.3]}, outcomes)
    figures = summarise(Resolved.of(made), tmp_path)
    none, same = [row for row in figures["results"] if row["test"] == "standard"]
    assert (none["successes"], none["episodes"]) == (3, 16) and (same["successes"], same["episodes"]) == (13, 16)
    row = next(row for row in figures["differences"] if row["measure"] == "success_rate")
    # By seed 0.5, 0.5, 0.75, 0.75.
    assert row["difference"] == pytest.approx(0.625) and row["verdict"] == "helps"
    # The sixteen scenes differ 10 times, always in favour: 2 / 2^10.
    assert row["scenes"] == 16 and row["p_scenes"] == pytest.approx(2 / 1024)
    told = describe(tmp_path)
    assert told["kind"] == "study" and told["state"] == "finished" and told["cells"] == {"done": 8, "planned": 8}
    assert "same, n 2, standard: helps" in told["verdicts"]
    assert "standard" in report(tmp_path) and "+62 points" in report(tmp_path)


def test_damaged_results_are_told_in_one_line(tmp_path: Path) -> None:
    tests = (SimulatorTest(name="standard", suite="libero_object", tasks=(0,), states="30:34"),)
    made = study(arms=(NONE, SAME), demonstrations=(2,), tests=tests)
    outcomes = {name: [[0, 1]] * 4 for name in ("none", "same")}
    made_results(made, tmp_path, {"none": [0.3] * 4, "same": [0.3, 0.2, 0.3, 0.2]}, outcomes)
    cell = tmp_path / Cell(arm="same", demonstrations=2, seed=1).folder
    for path in (cell / RESULT, cell / "tests" / "standard" / RESULT, tmp_path / DEFINITION):
        good = path.read_text()
        for number, key in enumerate((*json.loads(good), None)):
            for wrong in (None, "x", -1, 3.5, [], {}, {"a": 1}, [[1]])[number % 2 :: 2]:
                content = wrong if key is None else json.loads(good) | {key: wrong}
                path.write_text(json.dumps(content))
                for read in (lambda: summarise(read_definition(tmp_path), tmp_path), lambda: describe(tmp_path)):
                    try:
                        read()
                    except LampError as error:
                        assert len(str(error).splitlines()) == 1
        path.write_text(good)
    assert "same against none" in report(tmp_path)


@pytest.mark.parametrize(
    "seeds, why", [(3, "3 seeds of Stage 2 and 2 of Stage 1"), (1, "1 seed of Stage 2 and 1 of Stage 1")]
)
def test_nothing_is_claimed_of_too_few_seeds(seeds: int, why: str, tmp_path: Path) -> None:
    made = study(arms=(NONE, SAME), demonstrations=(2,))
    made_results(made, tmp_path, {"none": [0.5, 0.51, 0.52][:seeds], "same": [0.1, 0.11, 0.121][:seeds]})
    figures = summarise(Resolved.of(made), tmp_path)
    assert not figures["complete"] and figures["cells"] == {"done": 2 * seeds, "planned": 8}
    assert {row["verdict"] for row in figures["differences"]} == {"no claim"}
    assert figures["differences"][0]["why"] == f"{why}; a claim takes 4 of Stage 2 and 2 of Stage 1"
    assert why in report(tmp_path)
