"""`torchrun` and `accelerate launch`, as they are installed, start `lamp train` on two processors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from lamp.cli import main
from lamp.json_files import read_lines_json

pytestmark = pytest.mark.long

TINY = "--model.motion.width 16 --model.motion.layers 1 --model.motion.heads 2 --model.motion.grid 4 4 --model.motion.horizon 4"
MOTION = f"train motion --recipe demo --flow-stride 2 {TINY} --model.motion.frames-per-token 4 --final-samples 4"
POLICY = (
    "train policy --recipe small_no_motion --model.action.width 16 --model.action.layers 1 --model.action.heads 2 "
    "--model.action.chunk 5 --execute 3"
)
LOOP = "--loop.steps 3 --loop.log-every 1 --validation-samples 4 --loop.optimiser.lr 0.03 --loop.optimiser.eps 0.01"
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
}


def words(stage: str, data: Path, features: Path, out: Path, batch: int) -> list[str]:
    given = {"--data": data, "--features": features, "--out": out, "--loop.batch-size": batch}
    return [*stage.split(), *LOOP.split(), *(str(word) for pair in given.items() for word in pair)]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def launch(launcher: str, arguments: list[str], folder: Path) -> str:
    """Runs `lamp` on two processes, neither of which sees a GPU; returns what they have said."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        place = ["--main_process_port", str(port.getsockname()[1]), "--mixed_precision", "no"]
    command = [sys.executable, *LAUNCHERS[launcher], *(place if launcher == "accelerate" else []), "-m", "lamp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    ended = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said[-4000:]
    return said


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def gap(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "stage"), [("torchrun", POLICY), pytest.param("accelerate", MOTION, marks=pytest.mark.slow)]
)
def test_a_launcher_trains_what_one_process_does(
    launcher: str, stage: str, data: Path, features: Path, tmp_path: Path
) -> None:
    """Against one process with the same global batch, and with the one that there were if each took a whole batch."""
    for name, batch in (("alone", 6), ("larger", 12)):
        assert main(words(stage, data, features, tmp_path / name, batch)) == 0
    said = launch(launcher, words(stage, data, features, tmp_path / "two", 6), tmp_path)
    assert said.count("saved in ") == 1, said[-4000:]
    steps = [line for line in read_lines_json(tmp_path / "two" / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert gap(tmp_path / "alone", tmp_path / "two") < 0.05 * gap(tmp_path / "alone", tmp_path / "larger")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_the_processes_end_with_torchrun(data: Path, features: Path, tmp_path: Path) -> None:
    """Killed with kill -9, it can end nobody itself. They take it for a request to stop, and save."""
    arguments = words(POLICY, data, features, tmp_path / "two", 6)
    arguments[arguments.index("--loop.steps") + 1] = "100000"
    command = [sys.executable, *LAUNCHERS["torchrun"], "-m", "lamp", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    launcher = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "two" / "metrics.jsonl"
    wait(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2, 300)
    ranks = [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
    assert len(ranks) == 2
    launcher.kill()
    launcher.wait()
    wait(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), 120)
    assert (tmp_path / "two" / "checkpoint" / "model.safetensors").is_file()


def wait(until: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.2)
