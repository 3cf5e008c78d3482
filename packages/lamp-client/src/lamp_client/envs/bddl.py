"""LIBERO's task files, checked before LIBERO's own parser sees them.

That parser hands every token of `:yaw_rotation` to Python's `eval`, so a task file could run any code. Here a file is read into
lists of words, each place is held to what may stand there, expressions are worked out as numbers, and LIBERO is given a copy
written from the result: it never sees a byte of the original.
"""

from __future__ import annotations

import ast
import contextlib
import math
import operator
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lamp_client.errors import InvalidValueError

Words = list[Any]
"""A parenthesised group: words and further groups."""

_MAX_BYTES = 1 << 20
"""LIBERO's longest task file has 6 kB."""
_MAX_DEPTH = 20
_MAX_EXPRESSION = 100

_PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
_NAME = re.compile(r"[a-z0-9_?][a-z0-9_?.-]*|-")
_NAMED = (":requirements", ":objects", ":fixtures", ":obj_of_interest", ":init", ":goal")
_REGION = {":target": "a name", ":ranges": "groups of 4 numbers", ":yaw_rotation": "groups of 2 numbers",
           ":rgba": "4 numbers"}  # fmt: skip

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def arithmetic(node: ast.AST) -> float:
    """Works out a parsed expression of numbers, `pi` and + - * / **, without running it.

    Raises:
        ValueError: It holds anything else, or its value is no finite number.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        value = float(node.value)
    elif isinstance(node, ast.Name) and node.id == "pi":
        value = math.pi
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr == "pi":
        if node.value.id not in ("np", "numpy", "math"):
            raise ValueError(f"{node.value.id}.pi is not known")
        value = math.pi
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](arithmetic(node.operand))
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        try:
            value = _OPERATORS[type(node.op)](arithmetic(node.left), arithmetic(node.right))
        except ArithmeticError as error:
            raise ValueError(str(error)) from None
    else:
        raise ValueError("only numbers, pi and + - * / ** are allowed")
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError("its value is no finite number")
    return value


def number(expression: str) -> float:
    """The value of an expression such as `0.5`, `-pi/2` or `3*np.pi/4`; nothing is evaluated by Python.

    Raises:
        InvalidValueError: It is anything but numbers, `pi` and arithmetic.
    """
    shown = repr(expression if len(expression) <= 60 else f"{expression[:57]}...")
    if len(expression) > _MAX_EXPRESSION:
        raise InvalidValueError(f"{shown} has {len(expression)} characters; expected a number.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return arithmetic(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        why = "it is no expression" if isinstance(error, SyntaxError) else error
        raise InvalidValueError(f"{shown} is no number ({why}).", hint="Numbers, pi and arithmetic are read.") from None


def read_definition(path: Path) -> Words:
    """Reads and checks a task's definition.

    Returns:
        The groups of `(define ...)` that LIBERO reads, with every expression replaced by its value.

    Raises:
        InvalidValueError: The file cannot be read, or is no valid BDDL; the message gives the place.
    """
    try:
        if not path.is_file():
            raise InvalidValueError(f"{path}: there is no such task file.")
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise InvalidValueError(f"{path} has over {_MAX_BYTES:,} bytes; that is no task file.")
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InvalidValueError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{path} is no text in UTF-8 ({error.reason}).") from None
    try:
        return _checked(_groups(text))
    except InvalidValueError as error:
        raise InvalidValueError(f"{path}: {error.problem}", hint=error.hint) from None


def goals_of(definition: Words) -> list[Words]:
    """The conditions of a task's goal, such as `["in", "butter_1", "basket_1_contain_region"]`, of what was read."""
    goal = next(group[1] for group in definition if isinstance(group, list) and group and group[0] == ":goal")
    return goal[1:] if goal and goal[0] == "and" else [goal]


@contextlib.contextmanager
def checked_copy(path: Path) -> Iterator[Path]:
    """A copy of a task's definition that holds nothing but what `read_definition` let through; gone afterwards.

    Raises:
        InvalidValueError: As `read_definition`.
    """
    # LIBERO opens it in the locale's encoding; only words of the instruction, which is not taken from there, have others.
    content = _written(read_definition(path)).encode("ascii", errors="replace")
    if Path("/proc/self/fd").is_dir() and hasattr(os, "memfd_create"):
        # A file without a name: nothing of it is left when this process is killed.
        with open(os.memfd_create("lamp-task"), "wb") as file:
            file.write(content)
            file.flush()
            yield Path(f"/proc/self/fd/{file.fileno()}")
        return
    with tempfile.TemporaryDirectory(prefix="lamp-task-") as folder:
        copy = Path(folder) / "task.bddl"
        copy.write_bytes(content)
        yield copy


def _groups(text: str) -> Words:
    """Splits as LIBERO's parser does: comments from `;` to the end of the line, all in lower case."""
    text = re.sub(r";.*$", "", text.replace("\r\n", "\n").replace("\r", "\n"), flags=re.MULTILINE).lower()
    open_groups: list[Words] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", text):
        if token == "(":
            if len(open_groups) > _MAX_DEPTH:
                raise InvalidValueError(f"more than {_MAX_DEPTH} parentheses are open at once.")
            open_groups.append([])
        elif token == ")":
            if len(open_groups) == 1:
                raise InvalidValueError("a ) closes nothing.")
            closed = open_groups.pop()
            open_groups[-1].append(closed)
        else:
            open_groups[-1].append(token)
    if len(open_groups) > 1:
        raise InvalidValueError(f"{len(open_groups) - 1} ( without ): is the file cut off?")
    if len(open_groups[0]) != 1 or not isinstance(open_groups[0][0], list):
        raise InvalidValueError("expected one (define ...).")
    return open_groups[0][0]


def _checked(groups: Words) -> Words:
    if not groups or groups[0] != "define":
        raise InvalidValueError("expected (define (problem ...) ...).")
    kept: Words = ["define"]
    for group in groups[1:]:
        if not isinstance(group, list) or not group or not isinstance(group[0], str):
            raise InvalidValueError(f"{_shown(group)} stands where a section such as (:objects ...) was expected.")
        head = group[0]
        if head == ":language":
            if not all(isinstance(word, str) for word in group):
                raise InvalidValueError("(:language ...) holds parentheses.")
            kept.append(group)
        elif head == "problem":
            if len(group) != 2:
                raise InvalidValueError(f"{_shown(group)}: expected (problem NAME).")
            kept.append(_names(group, head, nested=False))
        elif head == ":domain":
            if group[1:] != ["robosuite"]:
                raise InvalidValueError(f"{_shown(group)}: expected (:domain robosuite).")
            kept.append(group)
        elif head == ":regions":
            kept.append([head, *map(_region, group[1:])])
        elif head == ":scene_properties":
            raise InvalidValueError("(:scene_properties ...) cannot be read by LIBERO's parser.")
        elif head in _NAMED:
            if head == ":goal" and (len(group) != 2 or not isinstance(group[1], list) or not group[1]):
                raise InvalidValueError(f"{_shown(group)}: expected (:goal (and ...)).")
            kept.append(_names(group, head, nested=head in (":init", ":goal")))
        # LIBERO passes over sections that it does not know: they are left out.
    heads = [group[0] for group in kept[1:]]
    missing = [head for head in ("problem", ":domain", ":goal") if head not in heads]
    if missing:
        raise InvalidValueError(f"there is no ({missing[0]} ...).")
    return kept


def _names(group: Words, head: str, *, nested: bool) -> Words:
    for word in group[1:]:
        if isinstance(word, list):
            if not nested:
                raise InvalidValueError(f"({head} ...) holds {_shown(word)}; expected names.")
            _names(["", *word], head, nested=True)
        elif _NAME.fullmatch(word) is None:
            raise InvalidValueError(
                f"({head} ...) holds {_shown(word)}; expected a name of letters, digits, _ - and dots."
            )
    return group


def _region(region: Any) -> Words:
    if not isinstance(region, list) or not region or not isinstance(region[0], str) or not _NAME.fullmatch(region[0]):
        raise InvalidValueError(f"(:regions ...) holds {_shown(region)}; expected (NAME (:target ...) ...).")
    name = region[0]
    read: Words = [name]
    for attribute in region[1:]:
        if not isinstance(attribute, list) or len(attribute) != 2 or not isinstance(attribute[0], str):
            raise InvalidValueError(
                f"the region {name} holds {_shown(attribute)}; expected (:target ...) and the like."
            )
        key, value = attribute
        if key not in _REGION:
            raise InvalidValueError(f"the region {name} has {_shown(key)}.", hint=f"Known: {', '.join(_REGION)}.")
        try:
            read.append([key, _value(key, value)])
        except InvalidValueError as error:
            raise InvalidValueError(f"the region {name}, {key}: {error.problem}", hint=error.hint) from None
    if not any(attribute[0] == ":target" for attribute in read[1:]):
        raise InvalidValueError(f"the region {name} has no (:target ...).")
    return read


def _value(key: str, value: Any) -> Any:
    if key == ":target":
        if isinstance(value, str) and _NAME.fullmatch(value):
            return value
    elif isinstance(value, list):
        groups, size = ([value], 4) if key == ":rgba" else (value, 4 if key == ":ranges" else 2)
        if all(isinstance(group, list) and len(group) == size for group in groups):
            read = [[_number_word(word) for word in group] for group in groups]
            return read[0] if key == ":rgba" else read
    raise InvalidValueError(f"{_shown(value)} was given; expected {_REGION[key]}.")


def _number_word(word: Any) -> str:
    if not isinstance(word, str):
        raise InvalidValueError(f"{_shown(word)} was given; expected a number.")
    value = number(word)
    return word if _PLAIN_NUMBER.fullmatch(word) else repr(value)


def _written(groups: Any) -> str:
    return groups if isinstance(groups, str) else f"({' '.join(map(_written, groups))})\n"


def _shown(words: Any) -> str:
    text = " ".join(_written(words).split())
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")


def inside(base: Path, name: str, *folders: Path) -> Path:
    """The file that another file names.

    Args:
        base: Folder that the name is relative to.
        name: As it is written there.
        folders: It has to lie in one of these; by default in `base`.

    Raises:
        InvalidValueError: It leads out of the folders, by its own parts or by a link.
    """
    allowed = folders or (base,)
    if "\0" in name:
        raise InvalidValueError(f"{name!a} is no path.")
    path = Path(os.path.normpath(base / name))
    real = path.resolve()
    if not any(real.is_relative_to(folder.resolve()) for folder in allowed):
        raise InvalidValueError(f"{name!a} leads out of {allowed[0]}.")
    return path
