"""Training runs on several processes, for tests: started as a launcher would start them, but from one that is warm already.

Run as a script, it is that warm process: it reads launches from its input, one JSON line each, and forks their processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent)]

import torch
from torch.distributed import TCPStore
from torch.profiler import ProfilerActivity, profile
from training_fakes import GUIDANCE, PatchBackbone, loop, motion_training, policy_training

import lamp.train.checkpoint as checkpoints
import lamp.train.trainer as loops
from lamp.configuration import from_json, to_json
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.train.config import LoopConfig, MotionTraining, PolicyTraining
from lamp.train.dry_run import Planner
from lamp.train.optimizer import AdamW
from lamp.train.run_folder import run_stage
from lamp.train.run_plan import to_text
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy

PATIENCE_S = 300
NOTICED_S = 60
"""How long the others may take to notice that one was killed. [s]"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training."""

    config: MotionTraining | PolicyTraining
    data: Path
    out: Path
    motion: Path | None = None
    step_s: float = 0.0
    """Pause before every step."""
    write_s: float = 0.0
    """Pauses within the writing of a checkpoint."""
    plan: bool = False
    """Only say what it would need."""
    stop_at: int | None = None
    """The step before which the last process is asked to stop."""
    count: bool = False
    """Write down how the main process has talked with the others in the last part of its steps, and in the others."""

    def train(self) -> None:
        backbone = None if isinstance(self.config.backbone, Qwen3VLBackboneConfig) else PatchBackbone()
        planner = Planner(self.config.loop.device)
        run = planner if self.plan else run_stage
        if isinstance(self.config, MotionTraining):
            train_motion(self.config, self.data, self.out, backbone=backbone, run=run)
        else:
            train_policy(self.config, self.data, self.out, self.motion, backbone=backbone, run=run)
        if planner.plan is not None and planner.main:
            print(to_text(planner.plan))


def settings(**changes: Any) -> LoopConfig:
    """Ten steps, the batch of which no number of processes divides. A large `eps`: else AdamW blows up roundings to steps."""
    usual = {"steps": 10, "batch_size": 7, "checkpoint_every": 4, "validate_every": 10, "log_every": 2}
    return loop(**(usual | {"optimiser": AdamW(lr=3e-2, eps=1e-2)} | changes))


def exact_policy(*, config: LoopConfig, **changes: Any) -> PolicyTraining:
    """A policy without attention dropout, whose masks depend on how a batch is shared out."""
    made = policy_training(loop=config, token_dropout=0.2, **changes)
    return replace(made, model=replace(made.model, guidance=replace(GUIDANCE, dropout=0.0)))


def exact_motion(*, config: LoopConfig) -> MotionTraining:
    return motion_training(loop=config, draws=2, token_dropout=0.2)


class Launcher:
    """A warm process that starts others."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, runs: list[Run], *, count: int = 2) -> Launch:
        """Starts processes that do the same runs together, one after the other."""
        folder = runs[0].out.parent
        folder.mkdir(parents=True, exist_ok=True)
        logs = [str(folder / f"log-{rank}.txt") for rank in range(count)]
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"runs": [to_json(run) for run in runs], "logs": logs}) + "\n")
        self._process.stdin.flush()
        return Launch(json.loads(self._process.stdout.readline()), logs, self._process.stdout)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class Launch:
    """Processes that train together."""

    def __init__(self, pids: list[int], logs: list[str], answers: Any) -> None:
        self.pids, self._logs, self._answers = pids, logs, answers

    def wait(self) -> None:
        """Waits for all to end well."""
        codes = json.loads(self._answers.readline())
        assert codes == [0] * len(codes), "\n".join(Path(log).read_text()[-3000:] for log in self._logs)

    def said(self) -> str:
        """What the main process has said so far."""
        return Path(self._logs[0]).read_text()

    def kill(self, rank: int) -> None:
        """Kills one with SIGKILL, and waits for the others to notice."""
        os.kill(self.pids[rank], signal.SIGKILL)
        codes = json.loads(self._answers.readline())
        assert codes[rank] == -signal.SIGKILL, codes
        stuck = [code for other, code in enumerate(codes) if other != rank and code == -signal.SIGKILL]
        assert not stuck, "the other processes went on without the killed one"


def serve() -> None:
    """Forks the processes of each launch, then says their ids, and how they ended."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        # As torchrun does, this process holds what they meet at: a port that is only looked up may be taken before they come.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        runs = [from_json(Run, run) for run in asked["runs"]]
        pids = [_forked(rank, asked["logs"], runs) for rank in range(len(asked["logs"]))]
        print(json.dumps(pids), flush=True)
        print(json.dumps(_ends(pids)), flush=True)


def _forked(rank: int, logs: list[str], runs: list[Run]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(logs[rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        count = str(len(logs))
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        for run in runs:
            _with_pauses(run, main=rank == 0, last=rank == len(logs) - 1)
            try:
                run.train()
            except KeyboardInterrupt:
                print("stopped as asked", flush=True)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ends(pids: list[int]) -> list[int]:
    """Waits for processes; once one was killed the others have a while to notice, and are then killed as well."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(codes) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
            if codes[pid]:
                deadline = min(deadline, time.monotonic() + NOTICED_S)
        elif time.monotonic() > deadline:
            for left in set(pids) - codes.keys():
                os.kill(left, signal.SIGKILL)
            deadline += PATIENCE_S
        else:
            time.sleep(0.02)
    return [codes[pid] for pid in pids]


TRAIN_STEP, WRITE = loops.Trainer.train_step, checkpoints.write_tensors


def _with_pauses(run: Run, *, main: bool, last: bool) -> None:
    talks = {"last": Counter[str](), "others": Counter[str]()}

    def step(self: loops.Trainer, interval: Any) -> None:
        if last and self.step == run.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(run.step_s)
        strategy = self.strategy
        if run.count and main and self.step == 0:
            strategy.micro_batch = _counted(strategy.micro_batch, talks)
        TRAIN_STEP(self, interval)
        if run.count and main:
            (run.out / "talks.json").write_text(json.dumps(talks))

    def write(*arguments: Any) -> None:
        time.sleep(run.write_s)
        WRITE(*arguments)
        time.sleep(run.write_s)

    loops.Trainer.train_step = step
    checkpoints.write_tensors = write


def _counted(part: Callable[..., Any], talks: dict[str, Counter[str]]) -> Callable[..., Any]:
    @contextmanager
    def counted(*, last: bool) -> Iterator[None]:
        with profile(activities=[ProfilerActivity.CPU]) as seen, part(last=last):
            yield
        names = [event.name for event in seen.events() or () if event.name.startswith("gloo:")]
        talks["last" if last else "others"].update(names)

    return counted


if __name__ == "__main__":
    serve()
