"""Task files of others: what LIBERO's parser would run or misread never reaches it."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lamp_client.envs import bddl, libero_simulation
from lamp_client.envs.libero_tasks import LiberoTask, load_task
from lamp_client.errors import InvalidValueError, UnknownNameError

DEFINITION = """(define (problem LIBERO_Tabletop_Manipulation) ; a comment ) (
  (:domain robosuite)
  (:language Turn on the stöve plate)
  (:regions
    (stove_region
      (:target main_table)
      (:ranges ((-0.41 -0.01 -0.40 {low})))
      (:yaw_rotation (({yaw} {yaw})))
      (:rgba (0 0 1 0))
    )
  )
  (:fixtures main_table - table)
  (:objects plate_1 - plate)
  (:obj_of_interest plate_1)
  (:init (On plate_1 main_table_stove_region))
  (:goal (and (On plate_1 main_table)))
)
"""


@pytest.fixture(scope="module")
def task() -> LiberoTask:
    return load_task("libero_spatial", 0)


def exploit(marker: Path) -> str:
    """An expression without a parenthesis or a space, as one token is, that runs a command: LIBERO's parser splits at both."""
    module = """sys.modules["os"]"""
    command = f"touch\\x20{marker}"
    return (
        f"""[[[]for[{module}._wrap_close.__class_getitem__]in[[{module}.system]]],{module}._wrap_close["{command}"]]"""
    )


def written(folder: Path, yaw: str = "0.0", low: str = "0.01") -> Path:
    path = folder / "task.bddl"
    path.write_text(DEFINITION.format(yaw=yaw, low=low), encoding="utf-8")
    return path


def test_liberos_own_parser_runs_code_and_never_sees_it(task: LiberoTask, tmp_path: Path) -> None:
    from libero.libero.envs import bddl_utils

    folder = Path(str(tmp_path).lower())
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "marker"
    path = written(tmp_path, yaw=exploit(marker))
    with pytest.raises(InvalidValueError, match=r"task\.bddl: the region stove_region, :yaw_rotation: .* a number"):
        libero_simulation.build(replace(task, bddl_path=path))
    assert not marker.exists()
    bddl_utils.robosuite_parse_problem(str(path))
    assert marker.exists(), "the file does no harm, so that the test shows nothing"


def test_what_libero_reads_is_what_was_checked(tmp_path: Path) -> None:
    from libero.libero.envs import bddl_utils

    path = written(tmp_path, yaw="-3*pi/4")
    with bddl.checked_copy(path) as copy:
        read = bddl_utils.robosuite_parse_problem(str(copy))
        assert copy.parent == Path("/proc/self/fd") or sys.platform != "linux", "a killed process would leave it"
    assert not copy.exists()
    region = read["regions"]["main_table_stove_region"]
    assert region["yaw_rotation"] == [-3 * math.pi / 4] * 2 and region["ranges"] == [[-0.41, -0.01, -0.40, 0.01]]
    assert read["objects"] == {"plate": ["plate_1"]} and read["goal_state"] == [["on", "plate_1", "main_table"]]
    assert read["problem_name"] == "libero_tabletop_manipulation" and region["rgba"] == [0, 0, 1, 0]


def test_liberos_own_files_are_read_as_before(task: LiberoTask) -> None:
    from libero.libero.envs import bddl_utils

    for path in sorted(task.bddl_path.parent.glob("*.bddl")):
        with bddl.checked_copy(path) as copy:
            assert bddl_utils.robosuite_parse_problem(str(copy)) == bddl_utils.robosuite_parse_problem(str(path))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0", 0.0),
        ("-1.5e-3", -0.0015),
        ("pi", math.pi),
        ("np.pi/2", math.pi / 2),
        ("-(3*pi)/4+0.5", -3 * math.pi / 4 + 0.5),
        ("2**-1", 0.5),
        (" +1_000 ", 1000.0),
    ],
)
def test_numbers_are_worked_out(expression: str, value: float) -> None:
    assert bddl.number(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "nan", "inf", "1e999", "1j", "True", "'1'", "1/0", "9**9**9", "(-1)**0.5", "pi()", "os.pi", "np.e", "pi.real",
     "[1]", "1,2", "1if 1else 2", "x", "x:=1", "1<2", "~1", "1\n+1;2", "__import__('os').system('true')", "lambda:1", "1" * 101,
     "-" * 99 + "1\0", "(" * 99],
)  # fmt: skip
def test_anything_else_is_no_number(expression: str) -> None:
    with pytest.raises(InvalidValueError, match="number"):
        bddl.number(expression)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("((0.0 0.0))", "(__import__ 0.0)", "expected groups of 2 numbers"),
        ("((0.0 0.0))", "pi", "expected groups of 2 numbers"),
        ("((0.0 0.0))", "((0.0 0.0 0.0))", "expected groups of 2 numbers"),
        ("((0.0 0.0))", "((0.0 (pi)))", r"'\(pi\)' was given; expected a number"),
        ("(:target main_table)", "", r"has no \(:target"),
        ("(:target main_table)", "(:target ../../etc/passwd)", "expected a name"),
        (":yaw_rotation", ":yaw", "the region stove_region has ':yaw'"),
        ("plate_1 - plate", "plate_1 - ../plate", r"\(:objects ...\) holds '../plate'"),
        ("(:domain robosuite)", "(:domain other)", "expected"),
        ("(problem LIBERO_Tabletop_Manipulation)", "(problem (a b))", r"\(problem ...\) holds '\(a b\)'"),
        ("(:goal (and", "(:goal (and " + "(not " * 30, "parentheses are open"),
        ("(:goal (and (On plate_1 main_table)))", "", r"there is no \(:goal"),
        ("(:domain robosuite)", "(:scene_properties (:floor_style x))", "scene_properties"),
        ("))\n)\n", "))\n", "cut off"),
        ("(define", "(undefine", "expected"),
        ("(define", ") (define", "closes nothing"),
    ],
)
def test_each_place_holds_what_may_stand_there(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = written(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InvalidValueError, match=said) as raised:
        bddl.read_definition(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_are_no_task(tmp_path: Path) -> None:
    for content, said in ((b"\xff\xfe(", "no text in UTF-8"), (b"", "expected one"), (b"(" * (1 << 20) + b"(", "over")):
        (tmp_path / "task.bddl").write_bytes(content)
        with pytest.raises(InvalidValueError, match=said):
            bddl.read_definition(tmp_path / "task.bddl")
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidValueError, match="no such task file"):
            bddl.read_definition(path)


def test_names_that_libero_does_not_have_are_said_before_an_episode(task: LiberoTask, tmp_path: Path) -> None:
    text = task.bddl_path.read_text()
    for old, new, kind, said in (
        ("(problem LIBERO_Tabletop_Manipulation)", "(problem os)", UnknownNameError, "unknown problem, in .*, 'os'"),
        ("- plate", "- plater", InvalidValueError, "LIBERO cannot build .*plater"),
    ):
        assert old in text
        path = tmp_path / "task.bddl"
        path.write_text(text.replace(old, new))
        with pytest.raises(kind, match=said):
            libero_simulation.build(replace(task, bddl_path=path))


def test_a_goal_that_libero_cannot_check_is_refused(task: LiberoTask, tmp_path: Path) -> None:
    text = task.bddl_path.read_text()
    for old, new, said in (
        ("(:goal\n    (And (On", "(:goal\n    (And (Explode", "unknown condition .* 'explode'"),
        ("(:goal\n    (And (On akita_black_bowl_1", "(:goal\n    (And (On akita_black_bowl_9", "unknown object .*_9"),
    ):
        assert old in text
        path = tmp_path / "task.bddl"
        path.write_text(text.replace(old, new))
        with pytest.raises(UnknownNameError, match=said):
            libero_simulation.build(replace(task, bddl_path=path))


def test_paths_stay_inside(tmp_path: Path) -> None:
    root = tmp_path / "assets"
    (root / "deep").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    assert bddl.inside(root / "deep", "../a.png", root) == root / "a.png"
    for name in ("../a.png", "/etc/passwd", "deep/../../x", "link/x", "a\0b"):
        with pytest.raises(InvalidValueError, match=r"leads out of|is no path"):
            bddl.inside(root, name)
