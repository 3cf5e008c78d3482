"""Which code and which packages produced a file."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

import lamp


@dataclass(frozen=True, kw_only=True)
class CodeVersion:
    """The version of this package, and the commit where it runs from a git checkout."""

    lamp: str
    commit: str | None = None
    modified: bool = False
    """Whether the checkout held changes that were not committed."""
    packages: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def current() -> CodeVersion:
        commit, modified = _commit()
        packages = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        return CodeVersion(lamp=lamp.__version__, commit=commit, modified=modified, packages=packages)


@cache
def _commit() -> tuple[str | None, bool]:
    package = Path(__file__).resolve().parents[1]
    root = _git(package, "rev-parse", "--show-toplevel")
    if root is None or Path(root) / "src" / "lamp" != package:
        return None, False
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return _git(package, "rev-parse", "--verify", "HEAD"), bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
