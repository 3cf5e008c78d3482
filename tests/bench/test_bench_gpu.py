"""The one command for a machine with a GPU: what it says where there is none, and what it sums up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lamp.bench.timing import summary

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench-gpu"


def run(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": python}
    return subprocess.run([SCRIPT, tmp_path / "out"], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_without_a_gpu_it_says_so_in_a_line(tmp_path: Path) -> None:
    found = run(tmp_path, sys.executable)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.startswith("bench-gpu: torch finds no GPU on this machine") and found.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


STAND_IN = """#!/bin/sh
# Stands in for Python on a machine with a GPU; the bench of batch 4 fails there.
case "$*" in
  *is_available*) echo True ;;
  *lamp.bench.timing*) shift 2; echo "summed up: $(ls "$@" | wc -l)" ;;
  *"--batch 4"*) echo "out of memory"; exit 1 ;;
  *) echo "$*" ;;
esac
"""


def test_a_failure_is_named_and_the_rest_runs(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    found = run(tmp_path, str(python))
    assert found.returncode == 1
    assert "failed: infer-batch4-reference.json" in found.stderr and "out of memory" in found.stderr
    assert found.stdout == "summed up: 6\n"
    told = {file.name: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert set(told) == {
        "tests.txt", "train-policy.json", "train-motion.json", "infer-batch1-plain.json",
        *(f"infer-batch{batch}-reference.json" for batch in (1, 4, 16)),
    }  # fmt: skip
    assert "-m gpu" in told["tests.txt"]
    assert (
        "--recipe paper_libero_packed --device cuda --precision bfloat16 --batch 16"
        in told["infer-batch16-reference.json"]
    )


def test_every_result_has_a_line(tmp_path: Path) -> None:
    times = {"ours": {"p50_s": 0.012}, "other": {"p50_s": 0.06}}
    result = {**times, "ratio": 5.0, "against": "reference", "machine": {"name": "a GPU", "precision": "bfloat16"}}
    (tmp_path / "train-policy.json").write_text(json.dumps(result))
    (tmp_path / "infer.json").write_text(json.dumps(result | {"over_floors": 2.25, "cosine": 0.99987}))
    (tmp_path / "failed.json").write_text("out of memory")
    files = [tmp_path / f"{name}.json" for name in ("train-policy", "infer", "failed")]
    assert summary(files).splitlines() == [
        "train-policy: 12.00 ms, reference 60.00 ms, ratio 5.00; a GPU, bfloat16",
        "infer: 12.00 ms, reference 60.00 ms, ratio 5.00; a GPU, bfloat16; 2.25x the sum of the floors, least cosine to the "
        "plain path 0.99987",
        "failed: no result",
    ]
