"""The command line: finds commands, reports mistakes on one line with exit code 2, stays fast."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from safetensors import SafetensorError

import lamp
from lamp import cli, commands
from lamp.commands import COMMANDS, Command
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.flags import flags_of, parse
from lamp.sceneflow.store import SceneFlowStore
from lamp_client.errors import LampClientError


@dataclass(frozen=True, kw_only=True)
class Example:
    """An example."""

    suite: str
    task: tuple[int, ...] = ()
    render: Literal["exact", "fast"] = "exact"
    out: Path = Path("out")


DONE = SimpleNamespace(checkpoint=Path("runs/x/checkpoint"), outcome=SimpleNamespace(finished=True, step=8))
"""What a training that is not done says."""


def add(monkeypatch: pytest.MonkeyPatch, run: object, name: str = "example") -> None:
    monkeypatch.setitem(COMMANDS, name, Command(summary="an example", run=run))  # pyright: ignore[reportArgumentType]


def test_flags_are_read_from_the_dataclass() -> None:
    flags = ["--suite", "libero_object", "--task", "0", "3", "--out", "x/y"]
    assert parse(Example, flags, "example") == Example(suite="libero_object", task=(0, 3), out=Path("x/y"))


@dataclass(frozen=True, kw_only=True)
class SeededLoop:
    """Holds a seed."""

    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """Holds a seed, and one further down."""

    selection_seed: int = 0
    loop: SeededLoop = SeededLoop()


@pytest.mark.parametrize("flag", ["--selection-seed", "--loop.seed"])
@pytest.mark.parametrize("seed", ["-1", str(1 << 64)])
def test_seeds_that_no_generator_takes(flag: str, seed: str) -> None:
    assert parse(Seeded, [flag, "7"], "example") != Seeded()
    with pytest.raises(ConfigError, match=f"seed {seed} is no seed; expected a whole number from 0 to"):
        parse(Seeded, [flag, seed], "example")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"--suite STR"),
        (["--suite", "a", "--frames", "3"], r"Unrecognized options: --frames"),
        (["--siute", "a"], r"--siute.*did you mean --suite\?"),
        (["--suite", "a", "--taks", "3"], r"Unrecognized options: --taks, 3; did you mean --task\? \(lamp example"),
        (["--suite", "a", "--render", "slow"], r"'slow'.*--render.*exact.*fast"),
        (["--suite", "a", "--task", "one"], r"--task.*'one'"),
    ],
)
def test_mistakes_in_flags_become_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse(Example, flags, "example")
    assert "\n" not in str(error.value)
    assert not set("│╭╰─") & set(str(error.value))
    assert "lamp example --help" in str(error.value)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_overview_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_help_of_a_group_shows_its_commands_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "train motion" in out and "train policy" in out and "collect" not in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lamp {lamp.__version__}\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    assert f"usage: lamp {name}" in capsys.readouterr().out


TRAINING = {"--data", "--out", "--loop.steps", "--loop.batch-size", "--plan"}
EVALUATING = {"--checkpoint", "--out", "--suite", "--device"}


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("train motion", TRAINING),
        ("train policy", TRAINING),
        ("evaluate", EVALUATING | {"--audit"}),
        ("evaluate libero_plus", EVALUATING | {"--plus-root"}),
    ],
)
@pytest.mark.parametrize("letters", ["utf-8", "ascii"])
def test_help_of_a_command_with_many_flags_lists_the_usual_ones(
    name: str, usual: set[str], letters: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(type(sys.stdout), "encoding", letters)
    assert cli.main([*name.split(), "--help"]) == 0
    brief = capsys.readouterr().out
    assert cli.main([*name.split(), "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert len(brief.splitlines()) < 80 < len(whole.splitlines())
    assert cli.main(["help", *name.split()]) == 0
    assert capsys.readouterr().out == brief
    listed = {text: set(re.findall(r"(?m)^[\u2502 ] (--[a-z][\w.-]*)", text)) for text in (brief, whole)}
    assert usual < listed[brief] < listed[whole]
    assert f"'--help-all' lists {len(listed[whole] - listed[brief])} more flags." in brief
    # Every line of those that are left is as it was.
    assert set(brief.splitlines()) - set(whole.splitlines()) == {
        line for line in brief.splitlines() if "--help-all" in line
    }


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.usual])
def test_usual_flags_exist(name: str) -> None:
    known = {flag for each in COMMANDS.values() if each.usual == COMMANDS[name].usual for flag in flags_of(each.run)}
    assert set(COMMANDS[name].usual) <= known


@pytest.mark.parametrize("name", ["recipe fit", "train motion", "serve"])
def test_descriptions_are_wrapped_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not where the source's docstrings are: no line ends early where the next word would have had room."""
    assert cli.main([*name.split(), "--help"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("\u2502  ")]
    for line, following in pairwise(lines):
        text, more = line.strip("\u2502"), following.strip("\u2502")
        word = more.split()[0] if more.split() else ""
        alike = len(text) - len(text.lstrip()) == len(more) - len(more.lstrip()) > 6
        assert not alike or len(text.rstrip()) + 1 + len(word) >= len(text) - 1, (line, following)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_refuses_an_unknown_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--no-such-flag"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lamp: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["colect"], "did you mean 'collect'?"),
        (
            ["flow"],
            "'lamp flow' needs one more word. Known: flow build, flow score, flow validate, flow merge, flow stats.",
        ),
        (["flow", "biuld"], "did you mean 'flow build'?"),
        (["train", "--recipe", "demo"], "Known: train motion, train policy"),
        (["motion"], "did you mean 'train motion'?"),
        (["biuld", "data"], "did you mean 'flow build'?"),
    ],
)
def test_unknown_commands_name_the_nearest(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [DataError("no data\nat x"), LampClientError("no data at x"), PermissionError(13, "no data", "x")]
)
def test_errors_of_users_are_one_line_and_code_2(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(flags: Sequence[str]) -> None:
        raise error

    add(monkeypatch, run)
    assert cli.main(["example"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("lamp: no data") and told.count("\n") == 1


SYSTEM = {
    "a read-only disk": (
        OSError(errno.EROFS, "Read-only file system", "/d/x"),
        "Read-only file system: /d/x; write elsewhere (--over THERE)",
    ),
    "a full disk, as safetensors says it": (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "No space left on device; free some, or write elsewhere (--over THERE); what is finished stays, and the same command",
    ),
    "a full disk, as pyarrow says it": (
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        "No space left on device; free some",
    ),
    "a full disk, in words alone": (
        RuntimeError("cannot write: No space left on device"),
        "No space left on device; free",
    ),
    "a quota": (
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/d/x"),
        f"{os.strerror(errno.EDQUOT)}: /d/x; free some",
    ),
    "files": (
        OSError(errno.EMFILE, "Too many open files", "/d/x"),
        "Too many open files: /d/x; allow more (ulimit -n 65536)",
    ),
    "a file for a folder": (
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"),
        f"Not a directory: {Path.cwd()}/x/y; remove",
    ),
    "a network": (
        OSError(errno.ESTALE, "Stale file handle", b"/d/x"),
        "Stale file handle: /d/x; are its disk and its network there?",
    ),
    "memory": (MemoryError(), "Cannot allocate memory; use fewer workers"),
    "nothing there": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/d/x"),
        "No such file or directory: /d/x",
    ),
}


@pytest.mark.parametrize("name", SYSTEM)
def test_errors_of_the_system_are_one_line_with_the_path_and_what_helps(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, line = SYSTEM[name]

    def run(flags: Sequence[str]) -> None:
        try:
            raise error
        except Exception as found:
            raise (RuntimeError("in a worker") if name == "a network" else error) from found

    monkeypatch.setitem(COMMANDS, "example", Command(summary="an example", run=run, elsewhere="--over THERE"))
    assert cli.main(["example"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"lamp: {line}") and told.count("\n") == 1


def test_another_pipe_that_breaks_is_not_taken_for_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(flags: Sequence[str]) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    add(monkeypatch, run)
    with pytest.raises(BrokenPipeError), Path(os.devnull).open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        cli.main(["example"])


def test_errors_of_ours_keep_their_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(flags: Sequence[str]) -> None:
        raise KeyError("bug")

    add(monkeypatch, run)
    with pytest.raises(KeyError):
        cli.main(["example"])


def test_an_interrupt_says_that_work_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(flags: Sequence[str]) -> None:
        raise KeyboardInterrupt

    add(monkeypatch, run)
    assert cli.main(["example"]) == 130
    assert "continues where it stopped" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """As a shell starts a command; under nohup, SIGHUP is ignored."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_end_that_the_system_asks_for_is_as_orderly(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tidied = []

    def run(flags: Sequence[str]) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            tidied.append(True)
            raise

    add(monkeypatch, run)
    before = signal.getsignal(number)
    assert cli.main(["example"]) == code and tidied
    assert f"lamp: stopped by {number.name}; the same command continues" in capsys.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("how", ["swallowed", "another error", "an error beside it"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_an_end_that_a_library_makes_something_else_of_is_an_end(
    how: str, number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a signal comes while a class is made, which turns what is raised into a RuntimeError."""

    def run(flags: Sequence[str]) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as stop:
            if how == "another error":
                raise RuntimeError("Error calling __set_name__") from stop
        if how == "an error beside it":
            raise DataError("a worker died")
        time.sleep(20)

    if number == signal.SIGINT and how != "another error":
        pytest.skip("a second Ctrl-C is at hand")
    add(monkeypatch, run)
    monkeypatch.setattr(cli, "RESEND_S", 0.05)
    before = time.monotonic()
    assert cli.main(["example"]) == code
    assert time.monotonic() - before < 10


def test_an_end_is_asked_for_once_while_it_is_tidied_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tidied = []

    def run(flags: Sequence[str]) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            with contextlib.suppress(ValueError):
                time.sleep(0.3)
                raise ValueError
            time.sleep(0.3)
            tidied.append(True)

    add(monkeypatch, run)
    monkeypatch.setattr(cli, "RESEND_S", 0.02)
    assert cli.main(["example"]) == 143 and tidied


def test_a_hangup_stays_ignored_under_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, lambda flags: signal.raise_signal(signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["example"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_words_win_over_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    add(monkeypatch, lambda flags: seen.append(["one", *flags]), "word")
    add(monkeypatch, lambda flags: seen.append(["two", *flags]), "word more")
    assert cli.main(["word", "more", "x"]) == cli.main(["word", "other"]) == 0
    assert seen == [["two", "x"], ["one", "other"]]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from lamp import cli; cli.main(['--help']); print(sorted({'torch', 'mujoco', 'av'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = 'from lamp import cli; raise SystemExit(cli.main(["--help"]))'
    command = f"{sys.executable} -c '{code}' | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from lamp.recipes import RECIPES

    assert cli.main(["recipe", "list"]) == 0
    assert all(name in capsys.readouterr().out for name in list(RECIPES)[:1])
    for name in RECIPES:
        assert cli.main(["recipe", "show", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["name"] == name
        assert cli.main(["recipe", "show", name]) == 0
        shown = capsys.readouterr().out
        assert f"name:    {name}\n" in shown and "parameters:\n" in shown
    assert cli.main(["recipe", "show", "no-such-recipe"]) == 2
    assert f"Known: {', '.join(RECIPES)}" in capsys.readouterr().err


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the training functions are called with; nothing is trained."""
    from lamp.train import train_motion as motion
    from lamp.train import train_policy

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(commands.train, "ensure_features", lambda *_, **__: None)
    monkeypatch.setattr(motion, "train_motion", lambda *values, fresh, **_: calls.append((*values, fresh)) or DONE)
    monkeypatch.setattr(
        train_policy, "train_policy", lambda *values, fresh, **_: calls.append((*values, fresh)) or DONE
    )
    return calls


def store(folder: Path, stride: int) -> None:
    from lamp.sceneflow.build import FlowBuildConfig
    from lamp.sceneflow.store import SceneFlowStore

    SceneFlowStore.create(folder / "sceneflow", FlowBuildConfig(data=folder, stride=stride).description)


@pytest.mark.parametrize(("stored", "expected"), [(4, 1), (2, 2), (1, 4)])
def test_training_keeps_the_recipe_s_pace_over_a_finer_store(
    stored: int, expected: int, trained: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    store(tmp_path, stored)
    words = ["train", "motion", "--recipe", "demo", "--data", str(tmp_path), "--out", "run", "--loop.steps", "7"]
    assert cli.main(words) == 0
    ((training, data, out, fresh),) = trained
    assert (training.flow_stride, training.loop.steps, data, out, fresh) == (expected, 7, tmp_path, Path("run"), False)


def test_training_refuses_a_store_of_another_pace(
    trained: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, 3)
    words = ["train", "motion", "--recipe", "demo", "--data", str(tmp_path), "--out", "run"]
    assert cli.main(words) == 2
    assert "flow step every 3 frames, the recipe demo one every 4" in capsys.readouterr().err
    assert cli.main([*words, "--flow-stride", "1"]) == 0
    assert [call[0].flow_stride for call in trained] == [1]


@pytest.mark.usefixtures("bfloat16")
def test_a_policy_has_a_motion_prior_where_it_is_given_one(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "policy", "--recipe", "demo", "--data", "data", "--out", "run"]
    assert cli.main(words) == 0
    assert "without the motion prior" in capsys.readouterr().err
    assert cli.main([*words, "--motion", "motion", "--fresh"]) == 0
    assert capsys.readouterr().err == ""
    (plain, *_), (guided, *rest) = trained
    assert plain.model.motion is None and guided.model.motion is not None
    assert rest == [Path("data"), Path("run"), Path("motion"), True]


def test_embodiments_and_further_datasets_are_named(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "policy", "--recipe", "demo", "--data", "data", "--out", "run", "--embodiment", "libero"]
    assert cli.main([*words, "--also", "b", "c=droid", "--weights", "2", "1", "1"]) == 0
    ((training, *_),) = trained
    assert training.embodiment.name == "libero" and training.weights == (2.0, 1.0, 1.0)
    assert [(part.data, part.embodiment.name) for part in training.also] == [("b", "lamp"), ("c", "droid")]
    assert cli.main([*words[:-1], "libreo"]) == 2
    assert "unknown embodiment 'libreo'; did you mean 'libero'?" in capsys.readouterr().err


def test_recipes_of_another_kind_are_told_apart(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "data", "--out", "run"]
    for command, name, message in (
        (["demo"], "paper_libero", "'paper_libero' is a TrainingRecipe; expected a whole experiment: demo,"),
        (["train", "policy"], "bench_mid", "'bench_mid' is a ModelRecipe; expected one with training: demo,"),
        (["train", "motion"], "small_no_motion", "'small_no_motion' has no motion prior to train"),
    ):
        flags = words[2:] if command == ["demo"] else words
        assert cli.main([*command, "--recipe", name, *flags]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["train", "motion", "--recipe", "paper_libero", "--loop.device", "cpu", *words]) == 0
    following = "lamp train policy --recipe paper_libero --data data --motion run --out policy"
    assert capsys.readouterr().out == f"saved in runs/x/checkpoint; next: {following}\n"
    assert cli.main(["train", "policy", "--recipe", "small_no_motion", *words]) == 0
    assert cli.main(["train", "policy", "--recipe", "small_add", "--motion", "motion", *words]) == 0
    motion, alone, added = (call[0] for call in trained)
    assert motion.flow_stride == 1 and motion.loop.batch_size == 512
    assert alone.model.motion is None and type(added.model.guidance).__name__ == "AddFusion"


def test_after_training_a_policy_the_next_command_suits_the_robot(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["train", "policy", "--recipe", "demo", "--data", "data", "--out", "run"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.endswith("next: lamp serve run or lamp evaluate --checkpoint run\n")
    (tmp_path / "arm.json").write_text('{"name": "arm", "fps": 15.0}')
    for robot in ("droid", str(tmp_path / "arm.json")):
        assert cli.main([*words, "--embodiment", robot]) == 0
        assert capsys.readouterr().out.endswith("next: lamp serve run or lamp report run\n")


@pytest.mark.parametrize(("name", "flag"), [("recipe fit", "--data"), ("flow build", "--data"), ("view", "--data"),
                                            ("report", "--run"), ("score", "--out")])  # fmt: skip
def test_help_says_that_the_folder_may_be_given_without_its_flag(
    name: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    assert f"`lamp {name} DIR` is short for `lamp {name} {flag} DIR`" in " ".join(capsys.readouterr().out.split())


def test_a_recipe_gives_the_defaults_but_not_the_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lamp.collect import collect as collecting
    from lamp.recipes import experiment

    seen: list[Any] = []
    monkeypatch.setattr(collecting, "collect", lambda config: seen.append(config) or "done")
    assert cli.main(["collect", "--recipe", "demo"]) == 2
    assert "--out" in capsys.readouterr().err
    assert cli.main(["collect", "--recipe", "demo", "--out", "x", "--episodes", "3"]) == 0
    assert seen == [replace(experiment("demo").collect, out=Path("x"), episodes=3)]


def test_the_plain_forms_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    from lamp.benchmark import evaluate as evaluating
    from lamp.collect import collect as collecting
    from lamp.sceneflow import build

    seen: list[Any] = []
    for module, name in ((collecting, "collect"), (build, "build"), (evaluating, "evaluate")):
        monkeypatch.setattr(module, name, lambda config, **_: seen.append(config) or SimpleNamespace(text=""))
    monkeypatch.setattr(build, "as_recorded", lambda config: config)  # it reads the recording, which is not there
    collect = "collect --suite libero_object --task 0 --episodes 5 --out DIR"
    evaluate = "evaluate --checkpoint DIR --suite libero_object --task 0 1 --states 30:50 --out DIR"
    for words in (collect, "flow build DIR", evaluate, evaluate.replace("evaluate", "evaluate libero")):
        assert cli.main(words.split()) == 0
    collected, built, evaluated, named = seen
    assert named == evaluated
    assert (collected.task, collected.episodes, collected.out) == ((0,), 5, Path("DIR"))
    assert built.data == Path("DIR")
    assert (evaluated.checkpoint, evaluated.task, evaluated.states) == (Path("DIR"), (0, 1), "30:50")


def test_an_unknown_benchmark_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "libreo", "--out", "x"]) == 2
    assert "unknown benchmark 'libreo'; did you mean 'libero'?" in capsys.readouterr().err


def test_a_command_with_others_below_it_keeps_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--help"]) == 0
    assert "--checkpoint" in capsys.readouterr().out


def test_a_missing_dataset_is_named_before_its_scene_flow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "motion", "--recipe", "demo", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert f"no dataset at {tmp_path / 'none'}" in error and "scene-flow" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("info", r"Missing from lamp info: PATH"),
        ("serve", r"Missing from lamp serve: \S*CHECKPOINT\S*|Missing from lamp serve: PATH"),
        ("data check", r"Missing from lamp data check: \S+ \("),
        ("trian motion", r"unknown command 'trian'; did you mean 'train motion'"),
        ("evalute libero_plus", r"did you mean 'evaluate libero_plus'"),
        ("recipe show robot.jsn", r"no recipe at robot\.jsn; did you mean robot\.json\? Expected a recipe's JSON file"),
        ("recipe show robots/robot.json", r"no recipe at robots/robot\.json: there is no folder robots"),
        ("recipe show empty", r"empty is a folder; expected a recipe's JSON file"),
        ("train motion --recipe robot.jsn --data empty --out o", r"no recipe at robot\.jsn; did you mean robot\.json"),
        ("train motion --recipe demo --data nowhere --out o", r"no dataset|no folder"),
        ("flow build nowhere", r"no dataset at nowhere"),
        ("flow build empty", r"no recorded simulation at empty/"),
        ("collect --suite libero_object --image-size 0 --out o", r"image_size is 0; expected 16 to 4096 px"),
        ("info robot.json", r"robot\.json is a file; expected a folder"),
        ("info emty", r"did you mean empty\?"),
    ],
)
def test_a_slip_is_told_by_its_name_and_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "robot.json").write_text("{}")
    assert cli.main(words.split()) == 2
    told = capsys.readouterr().err
    assert re.search(said, told) and told.count("\n") == 1 and len(told) < 600, told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "robot.json"]


def test_hashes_are_shown_by_their_first_digits_and_paths_whole() -> None:
    told = str(
        MismatchError(f"key {'a1' * 32} stored in /cache/{'b2' * 20}/x and blobs/{'c3' * 32}, {'d4' * 32} asked")
    )
    assert told == f"key a1a1a1a1a1a1 stored in /cache/{'b2' * 20}/x and blobs/{'c3' * 32}, d4d4d4d4d4d4 asked"


def test_video_alone_is_not_sent_to_a_command_that_cannot_help(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"holds video without recorded simulation.*train policy --recipe small_no_motion"
    ):
        SceneFlowStore(tmp_path / "sceneflow")
    (tmp_path / "simulation").mkdir()
    (tmp_path / "simulation" / "episode-000000.safetensors").touch()
    with pytest.raises(DataError, match=r"expected `lamp flow build .*` to make it"):
        SceneFlowStore(tmp_path / "sceneflow")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_program_that_is_started_with_closed_streams_writes_into_no_file(closed: str, tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from lamp import cli;"
        "first = cli.main(['--version']); second = cli.main(['info', '/nowhere']);"
        "file = os.open('kept', os.O_CREAT | os.O_WRONLY); print('said'); assert file > 2;"
        "Path('codes').write_text(f'{first} {second}')"
    )
    command = f'exec {sys.executable} -c "{code}" {closed}'
    subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    assert (tmp_path / "codes").read_text() == "0 2" and (tmp_path / "kept").read_bytes() == b""


def completed(words: list[str], script: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _lamp; printf '%s\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.long
def test_shells_complete_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(["lamp", "tra"], script) == ["train"]
    assert completed(["lamp", "train", ""], script) == ["motion", "policy"]
    assert completed(["lamp", "train", "policy", "--mot"], script) == ["--motion"]
    assert "--loop.batch-size" in completed(["lamp", "train", "motion", "--data", "x", "--loop."], script)
    assert completed(["lamp", "train", "motion", "--recipe", "bench_mid_"], script) == ["bench_mid_fast"]
    assert completed(["lamp", "info", "ru"], script) == []  # the shell's own: files
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.endswith(script)
    assert cli.main(["completion", "fish"]) == 0
    assert "complete -c lamp -n '__fish_seen_subcommand_from serve' -l port" in capsys.readouterr().out
    assert cli.main(["completion", "tcsh"]) == 2
    assert "unknown shell 'tcsh'. Known: bash, zsh, fish" in capsys.readouterr().err
