"""Prints how large the source is, how finely it is cut, and how many files a training batch passes.

python scripts/house_figures.py            the figures, in a table
python scripts/house_figures.py --list     also the modules behind them: small ones, those with one importer, the largest
python scripts/house_figures.py --json     as JSON
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "lamp": ROOT / "src",
    "lamp_client": ROOT / "packages" / "lamp-client" / "src",
    "lerobot_policy_lamp": ROOT / "packages" / "lerobot-policy-lamp" / "src",
}
SMALL = 60
"""Lines below which a module counts as small."""


def module_files() -> dict[str, Path]:
    """Every module's file by its dotted name."""
    found = {}
    for package, base in SOURCES.items():
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def layers() -> list[list[str]]:
    """The packages of the import contract in pyproject.toml, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layered = next(contract for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in level.split(":")] for level in layered["layers"]]


def arrows_up(graph: grimp.ImportGraph) -> list[str]:
    """Imports that go from a lower layer to a higher one."""
    level = {name: height for height, names in enumerate(layers()) for name in names}

    def height(module: str) -> int | None:
        inside = [name for name in level if module == name or module.startswith(name + ".")]
        return level[max(inside, key=len)] if inside else None

    found = []
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ours, theirs = height(module), height(imported)
            if ours is not None and theirs is not None and theirs < ours:
                found.append(f"{module} -> {imported}")
    return sorted(found)


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if imported not in index:
                visit(imported)
                low[module] = min(low[module], low[imported])
            elif imported in stack:
                low[module] = min(low[module], index[imported])
        if low[module] == index[module]:
            at = stack.index(module)
            component, stack[at:] = stack[at:], []
            if len(component) > 1:
                found.append(sorted(component))

    sys.setrecursionlimit(10_000)
    for module in sorted(graph.modules):
        if module not in index:
            visit(module)
    return found


def occurrences(files: dict[str, Path]) -> tuple[int, int]:
    """How often the source asserts that something is not None, and how often it asks for a type."""
    asserts = types = 0
    for name, path in files.items():
        if not name.startswith("lamp.") and name != "lamp":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                asserts += "is not None" in ast.unparse(node.test)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                types += node.func.id == "isinstance"
    return asserts, types


class FilesPassed:
    """Counts the files of this project in which a function runs while it watches."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched at every call but the first, in which caches are filled."""
        called = 0

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal called
            called += 1
            if called == 1:
                return function(*args, **kwargs)
            sys.setprofile(self._note)
            try:
                return function(*args, **kwargs)
            finally:
                sys.setprofile(None)

        return call

    def _note(self, frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(ROOT)) and "/src/" in name:
            self.files.setdefault(name.split("/src/", 1)[1])


def files_of_a_batch() -> list[str]:
    """The files that a batch of Stage 2 passes, from the feature cache to the loss, in the order in which they are entered."""
    from lamp.configuration import from_json
    from lamp.recipes import Recipe
    from lamp.train.run_folder import run_stage
    from lamp.train.train_policy import train_policy

    archive = ROOT / "tests" / "fixtures" / "made_by_0_1_0" / "artefacts.tar.xz"
    passed = FilesPassed()

    def run(stage: Any, loop: Any, *args: Any, **kwargs: Any) -> Any:
        stage.next_batch = passed.watched(stage.next_batch)
        stage.loss = passed.watched(stage.loss)
        return run_stage(stage, replace(loop, steps=3), *args, **kwargs)

    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as artefacts:
        made = Path(folder)
        artefacts.extractall(made, filter="data")
        recipe = from_json(Recipe, json.loads((made / "experiment.json").read_text()))
        train_policy(recipe.policy, made / "data", made / "out", made / "motion", run=run)
    return list(passed.files)


def figures() -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The figures, and the names behind those that count modules."""
    files = module_files()
    lines = {name: len(path.read_text().splitlines()) for name, path in files.items()}
    graph = grimp.build_graph("lamp", "lamp_client", cache_dir=None)
    single = sorted(name for name in graph.modules if len(graph.find_modules_that_directly_import(name)) == 1)
    small = sorted((name for name in lines if lines[name] < SMALL and files[name].name != "__init__.py"), key=lines.get)
    largest = max(lines, key=lines.__getitem__)
    up, round_trips, batch = arrows_up(graph), circles(graph), files_of_a_batch()
    asserts, types = occurrences(files)
    values = {
        "lines of src/ and packages/": sum(lines.values()),
        "modules": len(files),
        "modules with one importer": len(single),
        f"modules under {SMALL} lines": len(small),
        "files a Stage-2 batch passes": len(batch),
        "import circles": len(round_trips),
        "arrows up": len(up),
        "largest file": f"{lines[largest]} ({largest})",
        "assert ... is not None": asserts,
        "isinstance(": types,
    }
    behind = {
        "one importer": [f"{name} ({lines[name]})" for name in single],
        "small": [f"{name} ({lines[name]})" for name in small],
        "circles": [" ".join(circle) for circle in round_trips],
        "arrows up": up,
        "a batch's way": batch,
        "largest": [f"{name} ({lines[name]})" for name in sorted(lines, key=lines.__getitem__, reverse=True)[:15]],
    }
    return values, behind


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the modules behind the figures")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    values, behind = figures()
    if chosen.json:
        print(json.dumps(values, indent=2))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:{width}}  {value}")

    def sections() -> Iterator[str]:
        for name, names in behind.items():
            yield f"\n{name}:"
            yield from (f"  {one}" for one in names)

    if chosen.list:
        print("\n".join(sections()))


if __name__ == "__main__":
    main()
