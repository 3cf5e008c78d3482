"""What the documents name is there: links and their anchors, files, functions, commands and their flags."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest
import tyro

from lamp import cli
from lamp.commands import COMMANDS
from lamp.commands import train as train_commands
from lamp.flags import value_of
from lamp.train import publishing

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("llms.txt"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("packages/*/*.md"),
        *ROOT.glob(".github/**/*.md"),
    ]
)
FENCED = re.compile(r"(?ms)^ *(`{3,}|~{3,})([\w-]*)[^\n]*\n(.*?)^ *\1`*~*[ \t]*$")
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
SHELL = ("", "sh", "bash", "console", "shell")
PREFIXES = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:(?:torchrun|accelerate launch|\S*python[\d.]*) .*?-m (?=lamp\b)|\.venv/bin/)?"
)


def read(document: str) -> str:
    return (ROOT / document).read_text()


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return FENCED.sub("", text)


def named(pattern: str) -> list[tuple[str, str]]:
    """All matches of a pattern with the documents they are in."""
    found = [
        (str(path.relative_to(ROOT)), match) for path in DOCUMENTS for match in re.findall(pattern, path.read_text())
    ]
    return sorted(set(found))


def links(text: str) -> list[str]:
    """Where a document's links and pictures lead; what stands in code is no link."""
    text = SPAN.sub("", prose(text))
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    references = re.findall(r"(?m)^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", text)
    return [*inline, *references, *re.findall(r"(?:href|src)=\"([^\"]+)\"", text)]


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file, as GitHub and the site make them of its headings."""
    found: set[str] = set()
    for heading in re.findall(r"(?m)^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*$", prose(path.read_text())):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", path.read_text()))


def fault(document: Path, link: str) -> str | None:
    """What is wrong with a link; None where nothing is, and for what lies elsewhere, which is not asked for."""
    if re.match(r"[a-z][a-z+.-]*:", link):
        return None
    file, _, anchor = unquote(link).partition("#")
    target = (document.parent / file).resolve() if file else document
    if file.startswith("/") or not target.is_relative_to(ROOT):
        return f"{link}: outside of the repository"
    if not target.exists():
        return f"{link}: no such file"
    if anchor and (target.suffix != ".md" or anchor not in anchors(target)):
        return f"{link}: {target.name} has no heading of that name"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(document: Path) -> None:
    assert [wrong for link in links(document.read_text()) if (wrong := fault(document, link))] == []


def test_a_wrong_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '# One `lamp` & (two)\n## Twice\n## Twice\n[a](page.md#one-lamp--two) [b](#twice-1) ![p](gone.png "title")\n'
        "[c](#twice-2) `[code](no.md)`\n```md\n# not a heading\n[code](no.md)\n```\n[d](/page.md) [e](../x) [f][g] "
        "[h](https://example.org/no)\n\n[g]: missing.md\n[i](#not-a-heading)\n"
    )
    assert [wrong.split(":")[0] for link in links(page.read_text()) if (wrong := fault(page, link))] == [
        "gone.png",
        "#twice-2",
        "/page.md",
        "../x",
        "#not-a-heading",
        "missing.md",
    ]


@pytest.mark.parametrize(("document", "file"), named(r"`(lamp/[a-z_/0-9]+\.py)`"))
def test_files_of_the_package_exist(document: str, file: str) -> None:
    assert (ROOT / "src" / file).is_file()


@pytest.mark.parametrize(
    ("document", "row"), [item for item in named(r"(?m)^\|.*`lamp/.*\|$") if item[0] == "docs/paper.md"]
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


@cache
def defined(file: Path) -> set[str]:
    """The functions, classes, methods and constants of a source file; methods also as `Class.method`."""
    found: set[str] = set()

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    add(ast.parse(file.read_text()).body, "")
    return found


PATHS = r"(?<![\w./-])((?:src|packages|tests|scripts|docs|\.github)/[\w./*-]*\w)((?:::[\w.]*\w)?)"


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name != "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_paths_exist_and_hold_what_is_named(document: Path) -> None:
    """`src/lamp/x.py` is a file, `src/lamp/x.py::name` one that defines the name; a star stands for any."""
    text = SPAN.sub(lambda match: match[2], document.read_text())
    made = set(re.findall(r"(?m)^```python\n# (\S+)$", document.read_text()))  # files of examples
    wrong = []
    for path, name in set(re.findall(PATHS, text)):
        if path in made:
            continue
        if not list(ROOT.glob(path)) and not (ROOT / "docs" / path).exists():
            wrong.append(path)
        elif name and name[2:] not in defined(ROOT / path):
            wrong.append(path + name)
    assert wrong == []


@cache
def methods() -> dict[str, set[str]]:
    """The methods and fields of every class of the source, those of its base classes included."""
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for file in [*ROOT.glob("src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                inside = {name.split(".")[1] for name in defined(file) if name.startswith(f"{node.name}.")}
                stored = (part for part in ast.walk(node) if isinstance(part, ast.Attribute))
                inside.update(part.attr for part in stored if isinstance(part.ctx, ast.Store))
                own.setdefault(node.name, set()).update(inside)
                bases.setdefault(node.name, set()).update(base.id for base in node.bases if isinstance(base, ast.Name))

    def everything(name: str) -> set[str]:
        return own[name].union(*(everything(base) for base in bases[name] if base in own))

    return {name: everything(name) for name in own}


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, *sorted(ROOT.glob("src/lamp/**/*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_methods_that_are_named_exist(path: Path) -> None:
    """Where a document or a docstring says `Class.method`, a class of ours has that method or field."""
    named = re.findall(r"`([A-Z]\w+)\.([a-z_]\w*)`", path.read_text())
    assert [f"{name}.{part}" for name, part in named if name in methods() and part not in methods()[name]] == []


def commands(text: str, program: str) -> list[tuple[str, bool]]:
    """Command lines of a program in blocks of code and in code within sentences, and whether each is given in full."""
    blocks = [body for _, language, body in FENCED.findall(text) if language in SHELL]
    lines = [line for body in blocks for line in re.sub(r"\s*\\\n\s*", " ", body).splitlines()]
    lines = [part for line in lines for part in re.split(r" (?:&&|\|\|?|;) ", re.sub(r"(^|\s)#.*", "", line))]
    found = [(PREFIXES.sub("", line.strip()), True) for line in lines]
    found += [(" ".join(span.split()), False) for _, span in SPAN.findall(prose(text))]
    found = [(line, whole and "..." not in line) for line, whole in found if re.match(rf"{program} \S", line)]
    found = [(line, whole and not line.startswith(f"{program} -")) for line, whole in found]
    # Neither what stands for more words nor where the output goes is read.
    found = [(re.sub(r"\s\d?[<>]\s?[&/\w.-]+$", "", line).replace("...", " "), whole) for line, whole in found]
    return [(" ".join(line.split()), whole) for line, whole in found if line.split() != [program]]


LAMP = sorted({command: path.name for path in DOCUMENTS for command in commands(path.read_text(), "lamp")}.items())
"""Each command once, however many documents give it."""


class _ParsedError(BaseException):
    """Thrown once a command has read its flags, so that it does nothing else."""


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands read their flags and stop; what they look at before, because defaults depend on it, is not there."""
    read_flags = tyro.cli

    def stop(*arguments: object, **settings: object) -> None:
        read_flags(*arguments, **settings)  # pyright: ignore[reportArgumentType, reportCallIssue]
        raise _ParsedError

    monkeypatch.setattr(tyro, "cli", stop)
    monkeypatch.setattr(publishing, "find_checkpoint", lambda path: path)
    monkeypatch.setattr(train_commands, "_has_motion", lambda checkpoint: True)
    monkeypatch.chdir(tmp_path)


def words_of(line: str) -> list[str]:
    """A line's words, without what the reader has: a recipe of his own, and a GPU."""
    words = shlex.split(line)
    for place, (flag, value) in enumerate(itertools.pairwise(words), start=1):
        if flag == "--recipe" and value.endswith(".json"):
            words[place] = "demo"
        if flag == "--device":
            words[place] = "cpu"
    return words


@pytest.mark.parametrize(("document", "line"), [(document, line) for (line, whole), document in LAMP if whole])
@pytest.mark.usefixtures("only_parsed")
def test_commands_in_blocks_can_be_read(document: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(_ParsedError):
        assert cli.main(words_of(line)[1:]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(("document", "line"), [(document, line) for (line, whole), document in LAMP if not whole])
def test_commands_in_sentences_have_these_flags(document: str, line: str) -> None:
    words = words_of(line)[1:]
    if words[0].startswith("-") or (len(words) == 1 and any(name.startswith(f"{words[0]} ") for name in COMMANDS)):
        assert words[0] in ("--help", "--version") or not words[0].startswith("-")
        return
    if words[0] == "train" and words[1].startswith("-"):
        words.insert(1, "policy")
    command, rest = cli.find(words)
    flags = [word.split("=")[0] for word in rest if word.startswith("--") and word not in ("--help", "--help-all")]
    chosen = value_of("--recipe", words)
    # Which flags there are may depend on the recipe, and on whether there is a Motion Expert.
    recipe = ("--recipe", chosen) if chosen and chosen.islower() else ()
    recipe += ("--motion", "CKPT") if "--motion" in words else ()
    name = next(name for name, known in COMMANDS.items() if known is command)
    shown = help_of((*name.split(), *recipe)) if flags else ""
    assert [flag for flag in flags if f" {flag}" not in shown] == []


@cache
def help_of(words: tuple[str, ...]) -> str:
    """The help text of a command."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert cli.main([*words, "--help-all"]) == 0
    return shown.getvalue()


def test_a_wrong_command_is_found(only_parsed: None, capsys: pytest.CaptureFixture[str]) -> None:
    text = "```sh\n$ X=1 lamp info runs/policy --no-such 3  # what\ncd a && lamp inform \\\n  b\n```\n"
    text += "`lamp train\nmotion --from` `lamp ... >&-`"
    assert commands(text, "lamp") == [
        ("lamp info runs/policy --no-such 3", True),
        ("lamp inform b", True),
        ("lamp train motion --from", False),
    ]
    assert [cli.main(words_of(line)[1:]) for line, whole in commands(text, "lamp") if whole] == [2, 2]
    assert "--no-such" in capsys.readouterr().err
    with pytest.raises(_ParsedError):
        cli.main(["info", "runs/policy"])


def test_targets_of_make_exist() -> None:
    makefile = read("Makefile")
    targets = {name for line in re.findall(r"(?m)^([a-z][\w -]*):(?!=)", makefile) for name in line.split()}
    variables = set(re.findall(r"(?m)^(?:export )?([A-Z_]+) \?=", makefile)) | set(
        re.findall(r"\$\(if \$\((\w+)\)", makefile)
    )
    wrong = []
    for path in DOCUMENTS:
        for line, _ in commands(path.read_text(), "make"):
            asked = {word.partition("=")[0] for word in shlex.split(line)[1:]}
            wrong += [(path.name, line, word) for word in asked - targets - variables]
    assert wrong == []


@pytest.mark.parametrize("target", ["setup", "check", "docs", "test", "demo", "dist", "test-lerobot"])
def test_what_make_would_do_is_shell(target: str) -> None:
    """A comma within $(if ...), for one, breaks a text in two."""
    planned = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in planned.replace("\\\n", " ").splitlines():
        subprocess.run(["bash", "-n", "-c", line], check=True)


@pytest.mark.parametrize(("document", "extras"), named(r"(?:lamp-vla|(?<=['\"])\.)\[([a-z, ]+)\]"))
def test_extras_exist(document: str, extras: str) -> None:
    known = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert {name.strip() for name in extras.split(",")} <= known.keys()


def test_the_page_of_the_architecture_has_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    (listed,) = [body for _, language, body in FENCED.findall(read("docs/architecture.md")) if language == "text"]
    assert listed.splitlines() == layers


def test_both_diagrams_name_functions_at_every_step() -> None:
    diagrams = [body for _, language, body in FENCED.findall(read("docs/architecture.md")) if language == "mermaid"]
    assert [len(re.findall(PATHS, body)) >= 10 and "::" in body for body in diagrams] == [True, True]


ACTIVATED = re.compile(r"source \S+/bin/activate")


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name not in ("CHANGELOG.md", "EXPERIMENTS.md", "AGENTS.md", "llms.txt")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_page_says_how_lamp_comes_onto_the_path(document: Path) -> None:
    """`make setup` puts it into .venv: before the first block with a command, the page says how to get there."""
    text = document.read_text()
    blocks = [found for found in FENCED.finditer(text) if found[2] in SHELL]
    needing = [found for found in blocks if re.search(r"(?m)^(?:lamp|lerobot-\w+|\S+ .*-m lamp) ", found[3])]
    # What stands in the block itself comes in time too.
    assert not needing or ACTIVATED.search(text[: needing[0].end()])


def walk(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "scripts" / "walk", *words], capture_output=True, text=True)


def test_the_walk_takes_the_marked_blocks_as_they_are_printed() -> None:
    done = walk("--list")
    assert done.returncode == 0, done.stderr
    lines = [re.fullmatch(r"(\S+):(\d+)  (.*)", line) for line in done.stdout.splitlines()]
    found = [match for match in lines if match]
    assert len(found) == len(lines) and {match[1] for match in found} == {"README.md", "docs/robot.md"}
    for match in found:
        assert read(match[1]).splitlines()[int(match[2]) - 1].rstrip("\\ ").strip() in match[3]
    walked = [re.sub(r"\s+#.*", "", match[3]) for match in found]
    assert walked[:3] == ["make setup", "source .venv/bin/activate", "lamp demo --quick"] and "make demo" in walked
    for start in ("lamp data check", "lamp recipe fit", "lamp train policy", "lamp evaluate", "lamp serve"):
        assert any(line.startswith(start) for line in walked)
    quick = walk("--quick", "--list").stdout
    assert "  make demo" not in quick and "--loop.steps 6" in quick


def test_the_walk_of_a_page_without_a_marked_block_says_so() -> None:
    done = walk("docs/architecture.md")
    assert done.returncode == 2 and "no block of docs/architecture.md comes after <!-- walk -->" in done.stderr


@pytest.mark.slow
@pytest.mark.sim
def test_the_walk_in_its_quick_form(tmp_path: Path) -> None:
    """Of what is committed: the walk begins with a clone."""
    done = walk("--quick", "--venv", sys.prefix, "--into", str(tmp_path / "clone"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert (tmp_path / "clone" / "runs" / "policy" / "checkpoint" / "lamp.json").is_file()
