"""The worked examples of CONTRIBUTING.md, applied to a copy of the sources, where their own tests and the linter pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = dict(re.findall(r"(?ms)^### (Add an? \w+)\n(.*?)(?=^### |\Z)", (ROOT / "CONTRIBUTING.md").read_text()))
BLOCK = re.compile(r"(?ms)^```(python|diff)\n# (\S+)\n(.*?)^```$")


def blocks(example: str) -> list[tuple[str, str, str]]:
    """The language, file and content of each block of an example."""
    return BLOCK.findall(EXAMPLES[example])


def changed(source: str, hunk: str) -> str:
    """A file with one change: the lines of the hunk with a minus or a space stand there once, together."""
    marked = [(line[:1] or " ", line[1:] + "\n") for line in hunk.splitlines()]
    before = "".join(line for mark, line in marked if mark in "- ")
    assert source.count(before) == 1, f"{source.count(before)} times in the file, not once:\n{before}"
    return source.replace(before, "".join(line for mark, line in marked if mark in "+ "))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with all examples in it."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "src/lamp", root / "src/lamp")
    (root / "packages").symlink_to(ROOT / "packages")
    for name in ("pyproject.toml", "tests/conftest.py", "tests/data/demonstrations.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for example in EXAMPLES:
        for language, name, content in blocks(example):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if language == "python":
                assert not path.exists() and not (ROOT / name).exists(), f"{name} is there already"
                path.write_text(content)
                continue
            for hunk in content.split("@@\n"):
                path.write_text(changed(path.read_text(), hunk))
    return root


def test_the_four_examples_are_there_short_and_name_their_files() -> None:
    assert list(EXAMPLES) == ["Add a dataset", "Add a backbone", "Add a benchmark", "Add an ablation"]
    for example, text in EXAMPLES.items():
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("```")]
        listed = re.search(r"Files:\s(.*?);", text, re.DOTALL)
        assert len(lines) < 60, f"{example}: {len(lines)} lines"
        assert listed and set(re.findall(r"`([^`]+)`", listed[1])) == {name for _, name, _ in blocks(example)}


@pytest.mark.slow
def test_the_examples_work(project: Path) -> None:
    clients = [str(ROOT / f"packages/{name}/src") for name in ("lamp-client", "lerobot-policy-lamp")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project / "src"), *clients]), "CUDA_VISIBLE_DEVICES": ""}
    tests = [name for example in EXAMPLES for _, name, _ in blocks(example) if name.startswith("tests/")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *tests],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_examples_are_in_the_projects_style(project: Path) -> None:
    files = sorted({name for example in EXAMPLES for _, name, _ in blocks(example)})
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, *files], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
