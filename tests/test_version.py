"""Results name the code and the packages they came from."""

from __future__ import annotations

from pathlib import Path

import pytest

import lamp
from lamp import version


@pytest.fixture(autouse=True)
def _fresh_cache() -> None:
    version.code_version.cache_clear()


@pytest.mark.parametrize(("changes", "suffix"), [("", ""), (" M src/lamp/cli.py", ".modified")])
def test_a_checkout_adds_its_commit(monkeypatch: pytest.MonkeyPatch, changes: str, suffix: str) -> None:
    root = Path(version.__file__).resolve().parents[2]
    answers = {"--show-toplevel": str(root), "HEAD": "1a2b3c4", "--untracked-files=no": changes}
    monkeypatch.setattr(version, "_git", lambda folder, *arguments: answers[arguments[-1]])
    assert version.code_version() == f"{lamp.__version__}+g1a2b3c4{suffix}"


@pytest.mark.parametrize("root", [None, "/somewhere/else"])
def test_outside_a_checkout_of_lamp_the_version_stands_alone(monkeypatch: pytest.MonkeyPatch, root: str | None) -> None:
    monkeypatch.setattr(
        version, "_git", lambda folder, *arguments: root if "--show-toplevel" in arguments else "1a2b3c4"
    )
    assert version.code_version() == lamp.__version__


def test_git_that_fails_is_no_error(tmp_path: Path) -> None:
    assert version._git(tmp_path, "rev-parse", "--show-toplevel") is None


def test_package_versions_leave_out_what_is_missing() -> None:
    import torch

    found = version.package_versions(("torch", "no-such-package-here"))
    assert found.keys() == {"python", "torch"}
    assert found["torch"] == torch.__version__
