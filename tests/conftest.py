"""Set-up of every test: shape checks at run time, one thread, software rendering."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path

# A shell starts background jobs with Ctrl-C ignored, and what they start inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torch's compiler cannot look through the shape checks below; on a GPU, the fast path is then recorded as it is.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

from jaxtyping import install_import_hook

# Every shape in an annotation is checked at every call; the hook has to be there before the first import of lamp.
install_import_hook(["lamp", "lerobot_policy_lamp"], "beartype.beartype")

import pytest
import torch

from lamp import progress

torch.set_num_threads(1)
# What tests compare with must not depend on how slow the machine is.
progress.SILENCE_S = float("inf")


LONG_FILES = (
    "test_experiment",
    "test_distributed",
    "test_lora",
    "test_ablations",
    "test_memory",
    "test_evaluating",
    "test_qwen_training",
    "test_cluster",
    "test_stages",
    "test_shards",
    "test_libero",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU, a package that is only an oracle, or another environment, where it is not there."""
    lacking = {} if torch.cuda.is_available() else {"gpu": "no GPU on this machine"}
    if find_spec("diffusers") is None:
        lacking["diffusers"] = "diffusers is not installed: pip install -e '.[oracle]'"
    if any("maniskill" in item.keywords for item in items) and (reason := _no_maniskill()):
        lacking["maniskill"] = reason
    # Whole files go to a process each (--dist loadfile): the long ones are begun first, so that none is left for the end.
    items.sort(key=lambda item: LONG_FILES.index(item.path.stem) if item.path.stem in LONG_FILES else len(LONG_FILES))
    for item in items:
        for name in lacking.keys() & item.keywords:
            item.add_marker(pytest.mark.skip(reason=lacking[name]))


def _no_maniskill() -> str:
    """Why SimplerEnv's scenes cannot be simulated here; empty where they can, as far as files tell."""
    from lamp.benchmark.simpler import interpreter
    from lamp_client.envs import simpler_tasks

    if not interpreter(None).is_file():
        return "ManiSkill3's environment is not there: make simpler-env"
    if simpler_tasks.missing_assets(simpler_tasks.asset_folder()):
        return "ManiSkill's assets are not there: docs/simpler.md"
    return ""


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3-VL; read only."""
    from tiny_qwen import write_tiny_qwen

    return write_tiny_qwen(tmp_path_factory.mktemp("hub") / "tiny-qwen")


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes products in bfloat16 even on a processor that has no instructions for it, and takes long."""
    monkeypatch.setattr("lamp.train.config.multiplies_bfloat16", lambda device: True)
