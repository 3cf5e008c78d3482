"""What the documents name is there: files, functions, commands."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from lamp import cli
from lamp.commands import COMMANDS
from lamp.flags import value_of

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/*.md")])


def named(pattern: str) -> list[tuple[str, str]]:
    """All matches of a pattern with the documents they are in."""
    found = [(path.name, match) for path in DOCUMENTS for match in re.findall(pattern, path.read_text())]
    return sorted(set(found))


@pytest.mark.parametrize(("document", "file"), named(r"`(lamp/[a-z_/]+\.py)`"))
def test_files_of_the_package_exist(document: str, file: str) -> None:
    assert (ROOT / "src" / file).is_file()


@pytest.mark.parametrize(
    ("document", "row"), [item for item in named(r"(?m)^\|.*`lamp/.*\|$") if item[0] == "paper.md"]
)
def test_names_beside_files_are_defined_there(document: str, row: str) -> None:
    for cell in row.split("|")[-2].split(";"):
        file, *names = re.findall(r"`([^`]+)`", cell) or [""]
        if file.endswith(".py"):
            module = import_module(file.removesuffix(".py").replace("/", "."))
            for name in names:
                found: object = module
                for part in name.split("."):
                    found = getattr(found, part)


@pytest.mark.parametrize(("document", "target"), named(r"\]\(([^)#:]+)\)"))
def test_links_lead_somewhere(document: str, target: str) -> None:
    assert any((folder / target).exists() for folder in {path.parent for path in DOCUMENTS if path.name == document})


@pytest.mark.parametrize(("document", "line"), named(r"(?m)^lamp ([^#\n]+)"))
def test_commands_in_examples_have_these_flags(document: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, rest = cli.find(line.split())
    name = next(name for name, known in COMMANDS.items() if known is command)
    chosen = value_of("--recipe", line.split())
    chosen = "demo" if chosen and chosen.endswith(".json") else chosen  # a file that the reader has written
    # Which flags there are may depend on the recipe.
    assert cli.main([*name.split(), *(["--recipe", chosen] if chosen else []), "--help"]) == 0
    shown = capsys.readouterr().out
    assert [word for word in rest if word.startswith("--") and f" {word}" not in shown] == []
