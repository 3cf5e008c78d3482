"""The files around the code: citation, hooks before a commit, issue forms, pins."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pre_commit.clientlib import load_config

import lamp

ROOT = Path(__file__).resolve().parents[1]
FORMS = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/[!c]*.yml"))


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (lamp.__version__, project["license"])
    paper = citation["preferred-citation"]
    assert "3D Scene Flow as Latent Motion Prior" in paper["title"] and len(paper["authors"]) == 10
    assert paper["authors"][0] == {"given-names": "Xinkai", "family-names": "Wang"}


def test_hooks_run_tools_of_the_environment() -> None:
    (repository,) = load_config(str(ROOT / ".pre-commit-config.yaml"))["repos"]
    programs = {hook["id"]: hook["entry"].split()[0] for hook in repository["hooks"]}
    assert {"ruff-check", "ruff-format", "end-of-file-fixer"} <= programs.keys()
    assert all(program.startswith(".venv/bin/") for program in programs.values())
    assert [name for name in programs.values() if not (Path(sys.executable).parent / Path(name).name).exists()] == []


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_whole(path: Path) -> None:
    form: dict[str, Any] = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    named = [item["id"] for item in form["body"]]
    assert len(set(named)) == len(named) and all(item["attributes"]["label"] for item in form["body"])
    assert {item["type"] for item in form["body"]} <= {"textarea", "input", "dropdown", "checkboxes"}


def test_everything_for_development_is_pinned() -> None:
    def name_of(requirement: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!\[;]", requirement)[0]).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {name_of(each) for each in [*project["dependencies"], *extras["dev"], *extras["small"], *extras["libero"]]}
    pinned = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert wanted - pinned == {"lamp-client"}


def test_setting_up_ends_with_how_to_go_on() -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "setup"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "source .venv/bin/activate" in shown.splitlines()[-1]
    quiet = subprocess.run(["make", "--dry-run", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "source .venv/bin/activate" not in quiet
