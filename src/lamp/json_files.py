"""JSON files and logs of JSON lines: written whole, and read with their types checked.

What is read may have been edited, cut short or written by something else: `read_json_as` and `read_lines_as` compare it with a
type, once, so that no code behind them has to doubt it, and say in one line which entry of which file is wrong.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from lamp.errors import DataError
from lamp.files import PathLike, atomic_write_text, naming_errors

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""JSON may hold these, UTF-8 may not."""
_SHOW = reprlib.Repr()
_SHOW.maxlevel, _SHOW.maxstring, _SHOW.maxother, _SHOW.maxlist, _SHOW.maxdict = 2, 60, 60, 4, 4


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def to_line(obj: Any) -> str:
    """One line of strict JSON; numpy scalars and arrays and paths become plain values."""
    return json.dumps(obj, default=_plain, allow_nan=False, ensure_ascii=False)


def to_text(obj: Any) -> str:
    """Strict JSON (no NaN), indented, as `write_json` writes it."""
    return json.dumps(obj, default=_plain, allow_nan=False, ensure_ascii=False, indent=2) + "\n"


def write_json(path: PathLike, obj: Any) -> None:
    """Writes strict JSON (no NaN), indented, atomically."""
    atomic_write_text(path, to_text(obj))


def read_json(path: PathLike, what: str = "file") -> Any:
    """Reads a JSON file; `what` names it in errors, such as "dataset description".

    Raises:
        DataError: The file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no {what} at {path}") from None
    except OSError as error:
        raise DataError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the {what} {path} is not valid JSON ({error}); restore or remove it") from None


def read_json_object(path: PathLike, what: str = "file") -> dict[str, Any]:
    """As `read_json`, of a file that holds a JSON object.

    Raises:
        DataError: The same, or it holds something else.
    """
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise DataError(f"the {what} {path} is not a JSON object; restore or remove it")
    return value


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # where JSON is read: it takes a moment to import

    return TypeAdapter(shape)


@overload
def check_type(value: Any, shape: type[T], where: str) -> T: ...
@overload
def check_type(value: Any, shape: Any, where: str) -> Any: ...
def check_type(value: Any, shape: Any, where: str) -> Any:
    """Compares a parsed JSON value with a type; keys that a TypedDict or a dataclass does not name may be there.

    Args:
        shape: A TypedDict or a dataclass, which the value is then made into, or any type built from them. A list becomes a
            tuple where that is expected; no text becomes a number, nor a number a truth.
        where: The value, for errors, such as "the manifest run.json".

    Raises:
        DataError: Something is missing or of another type; names the first such entry.
    """
    from pydantic import ValidationError

    try:
        # As JSON, so that "strict" is what JSON can tell apart.
        text = _HALF_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", json.dumps(value, allow_nan=False, ensure_ascii=False))
        read = _adapter(shape).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise DataError(f"{where} is nested too deeply; restore or remove it") from None
        problem = "is missing" if first["type"] == "missing" else f"is {shown(first['input'])}; {expectation(first)}"
        at = key_of(first["loc"])
        raise DataError(f"{where}{': ' * bool(at)}{at} {problem}; restore or remove it") from None
    except ValueError:
        raise DataError(f"{where} holds a number that is not finite; restore or remove it") from None
    return value if type(read) is dict else read


@overload
def read_json_as(path: PathLike, shape: type[T], what: str = ...) -> T: ...
@overload
def read_json_as(path: PathLike, shape: Any, what: str = ...) -> Any: ...
def read_json_as(path: PathLike, shape: Any, what: str = "file") -> Any:
    """As `read_json`, of a file whose content has the type `shape`, by `check_type`.

    Raises:
        DataError: The same, or something is missing or of another type.
    """
    return check_type(read_json(path, what), shape, f"the {what} {path}")


def shown(value: object) -> str:
    """A foreign value for a message: as JSON writes it, cut short, and printable on any terminal."""
    known = {None: "null", True: "true", False: "false"}
    text = known[value] if value is None or isinstance(value, bool) else _SHOW.repr(value)
    return text.encode("ascii" if not text.isprintable() else "utf-8", "backslashreplace").decode()


def expectation(error: Mapping[str, Any]) -> str:
    """What was expected, of one of pydantic's errors."""
    kind, context = error["type"], error.get("ctx") or {}
    if str(error["msg"]).startswith("expected "):  # our own validators' words
        return str(error["msg"])
    if kind in ("int_type", "int_from_float", "int_parsing", "int_parsing_size"):
        return "expected a whole number"
    infinite = isinstance(error["input"], float) and not math.isfinite(error["input"])
    if kind in ("float_type", "float_parsing", "finite_number") or infinite:
        return "expected a finite number"
    if kind.startswith("string"):
        return "expected a text"
    if kind == "too_short":
        return "expected at least one entry"
    if kind in ("tuple_type", "list_type"):
        return "expected a list"
    if kind == "bool_type":
        return "expected true or false"
    if kind in ("dict_type", "dataclass_type", "model_type", "model_attributes_type"):
        return "expected an object with named entries"
    limits = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le"}
    if kind in limits:
        words = {"ge": "at least", "gt": "above", "le": "at most"}[limits[kind]]
        return f"expected {words} {context[limits[kind]]:g}"
    return str(error["msg"]).removeprefix("Input should be ").join(("expected ", ""))


def key_of(place: Sequence[int | str]) -> str:
    """The place of an entry, as pydantic gives it, as it would be written: `features.action.shape[0]`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place if part != "[key]"]
    return "".join(parts).removeprefix(".").encode("utf-8", "backslashreplace").decode()[:200]


def _mend_tail(descriptor: int) -> None:
    """Removes a last line that a crash cut short, so that the next line does not continue it."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    content = os.pread(descriptor, size, 0)
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
        os.write(descriptor, b"\n")
    except (ValueError, RecursionError):
        os.ftruncate(descriptor, start)


def append_line(path: PathLike, text: str) -> None:
    """Appends one line of JSON to a log and waits until it is on the disk; several processes may append to the same file.

    A last line that a crash cut short is removed first.

    Raises:
        OSError: It could not be written; the log is unchanged.
        ValueError: The text holds a line break.
    """
    if "\n" in text:
        raise ValueError("a log line must not hold a line break")
    path = Path(path)
    with naming_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _mend_tail(descriptor)
            data, size, written = (text + "\n").encode(), os.fstat(descriptor).st_size, 0
            try:
                while written < len(data):  # on an almost full disk a write may be partial
                    written += os.write(descriptor, data[written:])
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def each_line_json(path: PathLike) -> Iterator[Any]:
    """Yields the rows of `read_lines_json` one at a time, for logs that are too large for memory."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    if not line.endswith(b"\n"):
                        return
                    reason = f"line {number} of {path} is not valid JSON; remove the line or restore the file"
                    raise DataError(reason) from None
                yield row
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot read the log {path}: {error.strerror}") from None


def read_lines_json(path: PathLike) -> list[Any]:
    """Reads a log of JSON lines; a last line cut short by a crash is dropped, a missing file is an empty log.

    Raises:
        DataError: A line before the last is not JSON.
    """
    return list(each_line_json(path))


@overload
def read_lines_as(path: PathLike, shape: type[T], what: str = ...) -> list[T]: ...
@overload
def read_lines_as(path: PathLike, shape: Any, what: str = ...) -> list[Any]: ...
def read_lines_as(path: PathLike, shape: Any, what: str = "log") -> list[Any]:
    """As `read_lines_json`, of a log whose lines have the type `shape`, by `check_type`.

    Raises:
        DataError: A line is not JSON or of another type; names its number among those that are not empty.
    """
    return [
        check_type(row, shape, f"line {number} of the {what} {path}")
        for number, row in enumerate(each_line_json(path), start=1)
    ]
