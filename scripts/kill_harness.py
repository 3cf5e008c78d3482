"""Ends commands at random moments, again and again, and checks what is left of them.

    python scripts/kill_harness.py DATA OUT --commands flow cache train evaluate --blows 20 --signals TERM KILL

DATA is a small dataset of `lamp collect`. Each command is run whole first. Then it is run anew and ended, in turn with SIGTERM
and with kill -9 of its main process alone, at a random moment of the time it took; the same command is given again until it has
ended by itself, and then once more from nothing, until there were so many blows. After each, all its processes must be gone
within ten seconds; SIGTERM must exit with 143 (or, where the work was done just then, 0); and what is there at the end must be
what the whole run left: the same bytes, or of an evaluation the same episodes with the same ends, each once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

GONE_S = 10.0
MARK = "LAMP_KILL_HARNESS"
TRAIN = [
    "--recipe",
    "demo",
    "--loop.steps",
    "12",
    "--loop.batch-size",
    "4",
    "--loop.checkpoint-every",
    "3",
    "--loop.threads",
    "1",
    "--loop.workers",
    "1",
]
EVALUATE = ["--states", "30:32", "--controls", "zero", "--render", "fast", "--workers", "2", "--suite", "libero_object"]


def digest(folder: Path, pattern: str) -> dict[str, str]:
    """The contents of files."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and ".tmp-" not in str(path))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tensors(folder: Path, pattern: str) -> dict[str, str]:
    """The contents of tensor files: the words of their headers come in any order."""
    found = {}
    for path in sorted(path for path in folder.glob(pattern) if ".tmp-" not in str(path)):
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


def commands(data: Path, out: Path) -> Mapping[str, tuple[list[str], Path, Callable[[], dict[str, str]]]]:
    """Name -> its words, what it makes, and what that holds."""
    flow, features, run, evaluation, demo = (
        data / "sceneflow",
        out / "features",
        out / "run",
        out / "evaluation",
        out / "demo",
    )
    return {
        "flow": (
            ["flow", "build", str(data), "--every", "8", "--workers", "2"],
            flow,
            lambda: digest(flow, "episode-*/**/*"),
        ),
        "cache": (
            ["cache", "features", str(data), "--out", str(features), "--processes", "2"],
            features,
            lambda: tensors(features, "**/episode-*.safetensors"),
        ),
        "train": (
            [
                "train",
                "policy",
                "--data",
                str(data),
                "--features",
                str(out / "train_features"),
                "--out",
                str(run),
                *TRAIN,
            ],
            run,
            lambda: tensors(run, "checkpoint/model.safetensors"),
        ),
        "evaluate": (
            ["evaluate", "--task", "0", "--out", str(evaluation), *EVALUATE],
            evaluation,
            lambda: episodes(evaluation),
        ),
        "demo": (
            ["demo", "--out", str(demo)],
            demo,
            lambda: {**tensors(demo, "*/checkpoint/model.safetensors"), **episodes(demo / "evaluation")},
        ),
    }


def start(words: list[str], mark: str, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "lamp", *words],
        env={**os.environ, MARK: mark},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
    )


def left(mark: str) -> list[int]:
    """Processes that a command, or one of its own, has started and that still run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                marked = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                if marked and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                    found.append(int(folder.name))
            except OSError:
                pass
    return found


def clear(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def harm(
    name: str, words: list[str], made: Path, content: Callable[[], dict[str, str]], asked: argparse.Namespace
) -> dict:
    log, mark = asked.out / f"{name}.log", uuid.uuid4().hex
    clear(made)
    began = time.monotonic()
    assert start(words, mark, log).wait() == 0, f"see {log}"
    whole, took = content(), time.monotonic() - began
    assert whole, f"{name} left nothing"
    print(f"{name}: whole in {took:.1f} s, {len(whole)} things", flush=True)
    clear(made)
    counts = {"blows": 0, "ended before": 0, "whole runs compared": 0, "slowest end": 0.0}
    deadline = time.monotonic() + asked.minutes * 60
    while True:
        enough = counts["blows"] >= asked.blows or time.monotonic() > deadline
        process = start(words, mark, log)
        try:
            code = process.wait(None if enough else random.uniform(0.05, 1.0) * took)
        except subprocess.TimeoutExpired:
            blow = signal.Signals[f"SIG{asked.signals[counts['blows'] % len(asked.signals)]}"]
            counts["blows"] += 1
            process.send_signal(blow)
            began = time.monotonic()
            code = process.wait(GONE_S * 6)
            while remains := left(mark):
                assert time.monotonic() - began < GONE_S, f"{name} after {blow.name}: {remains} live on; see {log}"
                time.sleep(0.05)
            counts["slowest end"] = max(counts["slowest end"], round(time.monotonic() - began, 2))
            assert code in ((-9,) if blow is signal.SIGKILL else (0, 143, -15)), (
                f"{name}: exit code {code} after {blow.name}"
            )
            if code == -15:  # before Python had read the command
                counts["too early to notice"] = counts.get("too early to notice", 0) + 1
            if code != 0:
                continue
        assert code == 0, f"{name}: exit code {code}; see {log}"
        counts["whole runs compared"] += 1
        assert content() == whole, f"{name}: what is there is not what a whole run leaves; see {log}"
        if enough:
            return counts
        clear(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--commands", nargs="+", default=["flow", "cache", "train", "evaluate", "demo"])
    parser.add_argument("--signals", nargs="+", default=["TERM", "KILL"])
    parser.add_argument("--blows", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=600.0, help="the longest that a command is given blows")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random.seed(asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    known = commands(asked.data, asked.out)
    for name in asked.commands:
        print(f"{name}: {json.dumps(harm(name, *known[name], asked))}", flush=True)


if __name__ == "__main__":
    main()
