"""Training runs on several processes, for tests: started as a launcher would, and the settings that they share.

Run as a script, it is one of those processes: `python launched.py FAKES RUNS.json`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = sys.argv[1:2]

from training_fakes import GUIDANCE, PatchBackbone, loop, motion_training, policy_training

from lamp.configuration import from_json, to_json
from lamp.train.configs import LoopConfig, MotionTraining, PolicyTraining
from lamp.train.motion import train_motion
from lamp.train.optimiser import AdamW
from lamp.train.policy import train_policy


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training."""

    config: MotionTraining | PolicyTraining
    data: Path
    out: Path
    motion: Path | None = None
    pause_s: float = 0.0
    """Before every step."""

    def train(self) -> None:
        if isinstance(self.config, MotionTraining):
            train_motion(self.config, self.data, self.out, backbone=PatchBackbone())
        else:
            train_policy(self.config, self.data, self.out, self.motion, backbone=PatchBackbone())


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


class Launch:
    """Processes that train together; each does the same runs, one after the other."""

    def __init__(self, runs: list[Run], folder: Path, *, count: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        listed = folder / "runs.json"
        listed.write_text(json.dumps([to_json(run) for run in runs]))
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1])}
        self.logs = [folder / f"log-{rank}.txt" for rank in range(count)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            with log.open("w") as file:
                command = [sys.executable, __file__, str(Path(__file__).parent), str(listed)]
                self.processes.append(
                    subprocess.Popen(command, env={**os.environ, **address, **places}, stdout=file, stderr=file)
                )

    def wait(self, timeout_s: float = 600) -> None:
        """Waits for all to end well."""
        for process in self.processes:
            process.wait(timeout_s)
        said = "\n".join(log.read_text()[-3000:] for log in self.logs)
        assert [process.returncode for process in self.processes] == [0] * len(self.processes), said

    def kill(self, rank: int) -> None:
        """Kills one with SIGKILL, and waits for the others to notice."""
        self.processes[rank].kill()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(0.05)
        stuck = [process for process in self.processes if process.poll() is None]
        for process in stuck:
            process.kill()
            process.wait()
        assert not stuck, "the other processes went on without the killed one"


def main() -> None:
    import torch

    import lamp.train.loop as loops

    torch.set_num_threads(1)
    step = loops.Loop._train_step
    for obj in json.loads(Path(sys.argv[2]).read_text()):
        run = from_json(Run, obj)

        def slowly(self: loops.Loop, interval: Any, run: Run = run) -> None:
            time.sleep(run.pause_s)
            step(self, interval)

        loops.Loop._train_step = slowly
        run.train()


if __name__ == "__main__":
    main()
