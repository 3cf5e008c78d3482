"""Ends commands at random moments, again and again, and checks what is left of them.

    lamp collect --suite libero_object --task 0 --episodes 3 --out DATA
    python scripts/kill_harness.py DATA OUT --commands flow cache train evaluate demo --blows 40 --signals TERM KILL

DATA is a small dataset of `lamp collect`. Each command is run whole once; what that left is kept in OUT, and compared with in
later calls, too. Then it is run anew and ended, in turn with SIGTERM and with kill -9 of its main process alone, at a random
moment, and the same command is given again until it has ended by itself: one run takes several blows. That is repeated, each time
from nothing, until there were so many blows. After each,

- all its processes must be gone within a minute (the slowest is told), and nobody holds a lock;
- SIGTERM must exit with 143 (or, where the work was done just then, 0, which is not counted as a blow);
- every JSON file must be whole; of a log of JSON lines, only the last may be cut short.

When it has ended by itself, what is there must be what the whole run left: the same bytes of the same files, or of an evaluation
the same episodes with the same ends, each once; and nothing temporary may be left.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch
from safetensors.torch import load_file

from lamp.configuration import to_json
from lamp.files import TEMPORARY
from lamp.json_files import write_json
from lamp.recipes import experiment

GONE_S = 60.0
"""How long a command's processes may take to end: on an idle machine seconds, beside much else a checkpoint takes a while. [s]"""
MARK = "LAMP_KILL_HARNESS"
PRELOADED = ("lamp.cli", "lamp.experiment", "lamp.commands.data", "lamp.commands.train", "lamp.commands.evaluate")
LOCKS = (".lock", ".claims", ".sceneflow.lock")


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A command that is to be killed."""

    words: list[str]
    """After `lamp`."""
    made: Path
    """The folder that it makes."""
    content: Callable[[], dict[str, str]]
    """What is in there that must be the same."""


def digest(folder: Path, pattern: str) -> dict[str, str]:
    """The contents of files."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and TEMPORARY not in str(path))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tensors(folder: Path, pattern: str) -> dict[str, str]:
    """The contents of tensor files: the words of their headers come in any order."""
    found = {}
    for path in sorted(path for path in folder.glob(pattern) if TEMPORARY not in str(path)):
        held = hashlib.sha256()
        for name, value in sorted(load_file(path).items()):
            held.update(
                f"{name} {value.dtype} {tuple(value.shape)}".encode()
                + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        found[str(path.relative_to(folder))] = held.hexdigest()
    return found


def episodes(folder: Path) -> dict[str, str]:
    """What came of each episode."""
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    found = {f"{one['condition']} {one['task']} {one['state']}": f"{one['success']} {one['steps']}" for one in lines}
    assert len(found) == len(lines), "an episode was done twice"
    return found


def losses(folder: Path) -> dict[str, str]:
    """The loss of each step that was noted: each once, in order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["kind"], line["step"]) for line in lines if "kind" in line]
    assert len(set(steps)) == len(steps), f"steps noted twice: {steps}"
    return {f"{folder.name} step {line['step']}": str(line["loss"]) for line in lines if "loss" in line}


def tiny_recipe(path: Path) -> Path:
    """The demo's recipe with next to nothing to do, as a file."""
    demo = experiment("demo")

    def shorter(loop, steps: int):  # type: ignore[no-untyped-def]
        return replace(loop, steps=steps, batch_size=4, checkpoint_every=3, validate_every=6, log_every=1, trackers=())

    def shallower(training):  # type: ignore[no-untyped-def]
        model = training.model
        motion = model.motion and replace(model.motion, layers=1)
        action = model.action and replace(model.action, layers=1)
        changed = replace(training, model=replace(model, motion=motion, action=action))
        return replace(changed, loop=shorter(training.loop, 12))

    tiny = replace(
        demo,
        name="tiny",
        prior=None,  # so that Stage 1 is killed, too
        collect=replace(demo.collect, task=(0,), episodes=3),
        flow=replace(demo.flow, every=8),
        motion=shallower(demo.motion),
        policy=shallower(demo.policy),
        without_motion=shallower(demo.without_motion),
        evaluations=(
            replace(
                demo.evaluations[-1],
                task=(0,),
                states="30:31",
                controls=("replay", "zero"),
                videos=1,
                out=Path("evaluation"),
            ),
        ),
    )
    write_json(path, to_json(tiny))
    return path


def victims(data: Path, out: Path, policy: Path | None) -> Mapping[str, Victim]:
    """What can be killed, by name; a policy is evaluated beside the control zero."""
    flow, features, run = data / "sceneflow", out / "features", out / "run"
    evaluation, demo = out / "evaluation", out / "demo"
    recipe = str(tiny_recipe(out / "tiny.json"))
    evaluated = ["--states", "30:33", "--controls", "zero", "--render", "fast", "--workers", "2"]
    if policy is not None:
        evaluated += ["--checkpoint", str(policy)]
    return {
        "flow": Victim(
            words=["flow", "build", str(data), "--every", "16", "--workers", "2"],
            made=flow,
            content=lambda: digest(flow, "**/*"),
        ),
        "cache": Victim(
            words=["cache", "features", str(data), "--out", str(features), "--processes", "2"],
            made=features,
            content=lambda: tensors(features, "**/episode-*.safetensors"),
        ),
        "train": Victim(
            words=[
                *("train", "policy", "--recipe", recipe, "--data", str(data), "--out", str(run)),
                *("--features", str(out / "train_features"), "--loop.workers", "1"),
            ],
            made=run,
            content=lambda: {**tensors(run, "checkpoint/**/*.safetensors"), **losses(run)},
        ),
        "evaluate": Victim(
            words=["evaluate", "--suite", "libero_object", "--task", "0", "--out", str(evaluation), *evaluated],
            made=evaluation,
            content=lambda: episodes(evaluation),
        ),
        "demo": Victim(
            words=["demo", "--recipe", recipe, "--out", str(demo)],
            made=demo,
            content=lambda: {
                **tensors(demo, "*/checkpoint/model.safetensors"),
                # An episode's own attributes name when its recording was written, which is anew each time.
                **digest(demo, "data/sceneflow/episode-*/*/**/*"),
                **episodes(demo / "evaluation"),
            },
        ),
    }


class Running:
    """A command at work: a process in a session of its own, marked so that its children are known.

    It is forked from this process, which has imported what commands need: blows then fall into the work, not into the imports,
    and a hundred of them are affordable. `--cold` starts each as a shell would.
    """

    def __init__(self, words: list[str], mark: str, log: Path, *, cold: bool) -> None:
        with log.open("ab") as file:
            if cold:
                command, environment = [sys.executable, "-m", "lamp", *words], {**os.environ, MARK: mark}
                options = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
                self.pid = subprocess.Popen(command, env=environment, start_new_session=True, **options).pid
            else:
                self.pid = os.fork()
                if self.pid == 0:
                    _become(words, mark, file.fileno())
        self.mark = mark

    def wait(self, seconds: float | None = None) -> int:
        """Waits for the end and returns the exit code, negative where a signal ended it.

        Raises:
            TimeoutError: It has not ended by then.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, 0 if deadline is None else os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise TimeoutError

    def left(self) -> list[int]:
        """Its processes that still run: those of its session, and those that inherited its mark."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    state, _, _, session, *_ = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                    marked = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if state not in "ZX" and (marked or int(session) == self.pid):
                    found.append(int(folder.name))
        return found


def _become(words: list[str], mark: str, log: int) -> NoReturn:
    """Runs a command in a process that was just forked."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ[MARK] = mark
        sys.argv[:] = ["lamp", *words]
        sys.modules["__main__"] = ModuleType("__main__")  # or spawned processes would import this script
        from lamp.cli import main as command

        code = command(words)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def faults(folder: Path) -> list[str]:
    """What a killed command may not leave: half-written JSON, a lock that is held."""
    found = []
    for path in folder.rglob("*"):
        if TEMPORARY in str(path) or not path.is_file():
            continue
        if path.suffix == ".json" and not _is_json(path.read_bytes()):
            found.append(f"{path} is half written")
        if path.suffix == ".jsonl" and not all(_is_json(line) for line in path.read_bytes().split(b"\n")[:-1]):
            found.append(f"{path} has a line that is half written")
        if path.name in LOCKS:
            with path.open("rb+") as file:
                try:
                    (fcntl.lockf if path.name == ".claims" else fcntl.flock)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    found.append(f"{path} is locked")
    return found


def temporary(folder: Path) -> list[str]:
    """What is there under a temporary name."""
    return [str(path) for path in folder.rglob("*") if path.name.startswith(TEMPORARY)]


def clear(path: Path) -> None:
    """Removes what was made."""
    shutil.rmtree(path, ignore_errors=True)


def whole_run(name: str, victim: Victim, out: Path, log: Path, *, cold: bool) -> tuple[dict[str, str], float]:
    """What a run that nobody harms leaves, and how long it takes [s]; it is kept, and made once."""
    kept = out / f"{name}.whole.json"
    if kept.is_file():
        known = json.loads(kept.read_text())
        if known["words"] == victim.words:
            return known["whole"], known["took"]
    clear(victim.made)
    began = time.monotonic()
    code = Running(victim.words, "whole", log, cold=cold).wait()
    assert code == 0, f"{name}: exit code {code}; see {log}"
    whole, took = victim.content(), time.monotonic() - began
    assert whole, f"{name} left nothing"
    assert not temporary(victim.made), temporary(victim.made)
    write_json(kept, {"words": victim.words, "whole": whole, "took": took})
    return whole, took


def strike(name: str, running: Running, blow: signal.Signals, log: Path) -> tuple[int, float]:
    """Gives a blow and waits until all is gone; the exit code, and how long that took [s]."""
    os.kill(running.pid, blow)
    began = time.monotonic()
    code = running.wait(GONE_S)
    while remains := running.left():
        assert time.monotonic() - began < GONE_S, f"{name} after {blow.name}: {remains} live on; see {log}"
        time.sleep(0.05)
    return code, time.monotonic() - began


def harm(name: str, victim: Victim, asked: argparse.Namespace) -> dict[str, float]:
    """Gives a command its blows, and returns what came of them.

    Raises:
        AssertionError: Something was lost, or left.
    """
    log, mark = asked.out / f"{name}.log", uuid.uuid4().hex
    whole, took = whole_run(name, victim, asked.out, log, cold=asked.cold)
    longest = min(took, asked.longest)
    print(f"{name}: whole in {took:.1f} s, {len(whole)} things", flush=True)
    clear(victim.made)
    signals = [signal.Signals[f"SIG{one}"] for one in asked.signals]
    counts: Counter[str] = Counter({"blows": 0, **dict.fromkeys((one.name for one in signals), 0)})
    slowest, deadline = 0.0, time.monotonic() + asked.minutes * 60
    while True:
        enough = counts["blows"] >= asked.blows or time.monotonic() > deadline
        running = Running(victim.words, mark, log, cold=asked.cold)
        try:
            code = running.wait(None if enough else random.uniform(0.05, 1.0) * longest)
        except TimeoutError:
            blow = signals[counts["blows"] % len(signals)]
            code, lasted = strike(name, running, blow, log)
            if code != 0:  # else it had ended by itself
                counts.update(["blows", blow.name])
                slowest = max(slowest, lasted)
                print(
                    f"{name}: blow {counts['blows']}, {blow.name}, gone in {lasted:.1f} s", file=sys.stderr, flush=True
                )
            # -15: before Python had read the command
            allowed = (0, -9) if blow is signal.SIGKILL else (0, 128 + blow, -blow)
            assert code in allowed, f"{name}: exit code {code} after {blow.name}; see {log}"
            assert not (found := faults(victim.made)), f"{name} after {blow.name}: {found}"
            counts["left something temporary"] += bool(temporary(victim.made))
            if code == -blow and blow is not signal.SIGKILL:
                counts["too early to notice"] += 1
            if code != 0:
                continue
        assert code == 0, f"{name}: exit code {code}; see {log}"
        counts["whole runs compared"] += 1
        now = victim.content()
        differing = sorted(key for key in whole.keys() | now.keys() if whole.get(key) != now.get(key))
        assert not differing, f"{name}: {differing[:5]} not as a whole run leaves them; see {log}"
        assert not (found := temporary(victim.made)), f"{name} leaves {found}"
        assert not (found := faults(victim.made)), f"{name} leaves {found}"
        if enough:
            return {**counts, "slowest end [s]": round(slowest, 2)}
        clear(victim.made)


def main() -> None:
    """Kills the commands that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--commands", nargs="+", default=["flow", "cache", "train", "evaluate", "demo"])
    parser.add_argument("--policy", type=Path, help="a checkpoint for `evaluate`; otherwise the control zero alone")
    parser.add_argument("--signals", nargs="+", default=["TERM", "KILL"])
    parser.add_argument("--blows", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=600.0, help="the longest that a command is given blows")
    parser.add_argument("--longest", type=float, default=60.0, help="a blow comes after at most so many seconds")
    parser.add_argument("--cold", action="store_true", help="start each command as a shell would, imports included")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random.seed(asked.seed)
    torch.set_num_threads(1)  # threads would not survive a fork
    for module in PRELOADED:
        importlib.import_module(module)
    asked.out.mkdir(parents=True, exist_ok=True)
    known = victims(asked.data, asked.out, asked.policy)
    for name in asked.commands:
        print(f"{name}: {json.dumps(harm(name, known[name], asked))}", flush=True)


if __name__ == "__main__":
    main()
