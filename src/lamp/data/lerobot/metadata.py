"""The types of a dataset's metadata, checked once, where they are read, so that nobody has to doubt them later.

Lenient where another writer's habit says the same thing (a whole float is an integer, a text is a list of one, null is nothing
where nothing is allowed), and strict otherwise: every wrong value becomes a `Problem` that names row, key, value and expectation.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pyarrow as pa
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from lamp.errors import DataError
from lamp.files import path_inside
from lamp.json_files import expectation, key_of, shown

MOST_FRAMES = 100_000_000
"""Frames of an episode at most: more is a slip of the pen, and would be a slip of the memory."""
MOST_SIDE = 32_768
"""Height and width of a picture at most. [px]"""
PICTURES = ("video", "image")
PATH_FIELDS = frozenset({"chunk_index", "file_index", "video_key", "episode_chunk", "episode_index"})
"""What a path's template may name."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One value of the metadata that cannot be right."""

    text: str
    """What is there and what was expected, in words."""
    file: Path
    key: str
    row: int | None = None
    """In a file of rows or lines, counted from 0."""
    episode: int | None = None
    """Of that row, where that is known."""
    later: tuple[int | None, ...] = ()
    """The episodes, where they are known, of later rows with the same problem."""

    def __str__(self) -> str:
        places = [str(self.file)]
        if self.episode is not None:
            places.append(f"episode {self.episode}")
        elif self.row is not None:
            places.append(f"row {self.row}")
        return f"{', '.join(places)}: {self.key} {self.words}"

    @property
    def words(self) -> str:
        """The text, and how many rows are alike."""
        rows = "row" if len(self.later) == 1 else "rows"
        return f"{self.text} ({len(self.later)} later {rows} likewise)" if self.later else self.text


class MetadataError(DataError):
    """Metadata that cannot be right, with all that is wrong with them."""

    def __init__(self, problems: Sequence[Problem]):
        more = f" (and {len(problems) - 1} more; `lamp data check` lists them)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles with all fields: worker processes send their errors to the parent."""
        return MetadataError, (self.problems,)


def is_numeric(dtype: str) -> bool:
    """Whether a column of this type holds numbers; others are text, or what newer versions may add, and are left aside."""
    try:
        return re.fullmatch(r"[<>=|]?[A-Za-z?]+\d{0,3}", dtype) is not None and np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def _number(value: object) -> object:
    """Neither a text nor a truth is a number, whatever can be made of it."""
    match value:
        case bool() | str() | bytes():
            raise PydanticCustomError("number", "expected a number")
    return value


def _text(value: object) -> object:
    return "" if value is None else value


def _whole_characters(value: str) -> str:
    """JSON may hold halves of characters, which neither a terminal nor a tokenizer takes."""
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise PydanticCustomError("text", "expected whole characters")
    return value


def _as_sequence(value: object) -> object:
    """Null is nothing; one text, or one number (the width of a vector), is a sequence of one."""
    match value:
        case None:
            return ()
        case bool():
            return value
        case str() | int() | float():
            return (value,)
    return value


def _axis_names(value: object) -> object:
    """LeRobot gives names as a list, or as a list under some key; other tools as lists of lists, of which nothing is made."""
    match value:
        case Mapping():
            return _axis_names(next((entry for entry in value.values() if isinstance(entry, list)), None))
        case None:
            return None
        case str():
            return (value,)
        case list() | tuple():
            return tuple(str(name) for name in value if isinstance(name, str | int | float))
    raise PydanticCustomError("names", "expected a list of names")


def _template(value: str) -> str:
    """Checks a path's template: only known fields, plain widths, and inside the folder whatever the numbers."""
    try:
        fields = [
            (name, spec, conversion)
            for _, name, spec, conversion in string.Formatter().parse(value)
            if name is not None
        ]
    except ValueError as error:
        raise PydanticCustomError("template", "expected a path with fields such as {episode_index:06d}") from error
    for name, spec, conversion in fields:
        if name not in PATH_FIELDS or conversion or not re.fullmatch(r"(0?[1-9]\d?)?d?", spec or ""):
            raise PydanticCustomError(
                "template",
                "expected a path with fields such as {known}",
                {"known": "{chunk_index:03d}, {file_index:03d}, {video_key}, {episode_chunk:03d}, {episode_index:06d}"},
            )
        if name == "video_key" and spec:
            raise PydanticCustomError("template", "expected {video_key} without a width")
    try:
        path_inside("/dataset", value.format(**dict.fromkeys(PATH_FIELDS, 0)))
    except (DataError, ValueError) as error:
        raise PydanticCustomError("template", "expected a path inside the dataset's folder") from error
    return value


Whole = Annotated[int, BeforeValidator(_number), Field(ge=0, le=1 << 53)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=1 << 53)]
Length = Annotated[int, BeforeValidator(_number), Field(ge=0, le=MOST_FRAMES)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False, ge=0, le=1e9)]
Name = Annotated[str, AfterValidator(_whole_characters)]
Text = Annotated[str, BeforeValidator(_text), AfterValidator(_whole_characters)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_sequence)]
Template = Annotated[str, AfterValidator(_whole_characters), AfterValidator(_template)]


class FeatureEntry(BaseModel):
    """One feature's entry in `meta/info.json`; of features that are neither numbers nor pictures only the type is read."""

    model_config = ConfigDict(frozen=True)

    dtype: Annotated[str, Field(max_length=100)]
    shape: Annotated[tuple[Whole, ...], BeforeValidator(_as_sequence)] = ()
    names: Annotated[tuple[str, ...] | None, BeforeValidator(_axis_names)] = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None
    """Where older datasets have what newer ones have in `info`."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_used(cls, entry: object) -> object:
        match entry:
            case {"dtype": str(dtype)} if dtype not in PICTURES and not is_numeric(dtype):
                return {"dtype": dtype}
        return entry

    @field_validator("shape")
    @classmethod
    def _of_pictures(cls, shape: tuple[int, ...], info: Any) -> tuple[int, ...]:
        if info.data.get("dtype") in PICTURES and not (
            len(shape) == 3 and all(1 <= side <= MOST_SIDE for side in shape)
        ):
            raise PydanticCustomError("shape", "expected height, width and channels")
        return shape

    @property
    def is_numeric(self) -> bool:
        """Whether its column holds numbers; one without any values per frame holds none."""
        return is_numeric(self.dtype) and 0 not in self.shape

    @property
    def picture_info(self) -> dict[str, Any]:
        """What is known of a picture's encoding."""
        return {**(self.video_info or {}), **(self.info or {})}


class Info(BaseModel):
    """`meta/info.json`."""

    model_config = ConfigDict(frozen=True)

    fps: Annotated[float, BeforeValidator(_number), Field(gt=0, le=1e6, allow_inf_nan=False)]
    total_episodes: Whole
    total_frames: Whole
    total_tasks: Whole | None = None
    chunks_size: Count | None = None
    features: Annotated[dict[Name, FeatureEntry], Field(min_length=1)]
    data_path: Template | None = None
    video_path: Template | None = None


@dataclass(frozen=True, kw_only=True)
class DepthCode:
    """How LeRobot quantises depth: evenly from `depth_min` to `depth_max`, or evenly in log(depth + shift). [m]"""

    depth_min: float
    depth_max: float
    shift: float
    use_log: bool


class DepthInfo(BaseModel):
    """A depth map's encoding, as a feature's `info` describes it."""

    model_config = ConfigDict(frozen=True)

    depth_min: Real | None = Field(None, alias="video.depth_min", ge=0)
    depth_max: Real | None = Field(None, alias="video.depth_max")
    shift: Real | None = Field(None, alias="video.shift")
    use_log: Annotated[bool, Field(strict=True)] | None = Field(None, alias="video.use_log")
    depth_unit: Literal["m", "mm"] | None = None

    @field_validator("depth_max")
    @classmethod
    def _above(cls, depth_max: float | None, info: Any) -> float | None:
        low = info.data.get("depth_min")
        if depth_max is not None and low is not None and not depth_max > low:
            raise PydanticCustomError("depth", "expected more than video.depth_min")
        return depth_max

    @field_validator("use_log")
    @classmethod
    def _with_shift(cls, use_log: bool | None, info: Any) -> bool | None:
        low, shift = info.data.get("depth_min"), info.data.get("shift")
        if use_log and low is not None and not low + (shift or 0.0) > 0:
            raise PydanticCustomError("depth", "expected video.depth_min + video.shift above 0 for a logarithm")
        return use_log

    @property
    def code(self) -> DepthCode | None:
        """How it is quantised; None where the description is incomplete."""
        if self.depth_min is None or self.depth_max is None or self.use_log is None:
            return None
        if self.use_log and self.shift is None:
            return None
        return DepthCode(
            depth_min=self.depth_min, depth_max=self.depth_max, shift=self.shift or 0.0, use_log=self.use_log
        )

    @property
    def metres(self) -> float | None:
        """What 1 stands for in images [m]; None where the description lacks it."""
        return None if self.depth_unit is None else {"m": 1.0, "mm": 1e-3}[self.depth_unit]


class EpisodeLine(TypedDict):
    """A line of `meta/episodes.jsonl`, v2."""

    episode_index: Whole
    length: Length
    tasks: NotRequired[Texts]


class Indexed(TypedDict):
    """A line or row that is about an episode."""

    episode_index: Whole


class TaskLine(TypedDict):
    """A task: a line of `meta/tasks.jsonl`, or a row of `meta/tasks.parquet`."""

    task_index: Whole
    task: Text


INFO, DEPTH = TypeAdapter(Info), TypeAdapter(DepthInfo)
EPISODES, TASKS, INDEXED = TypeAdapter(list[EpisodeLine]), TypeAdapter(list[TaskLine]), TypeAdapter(list[Indexed])


@lru_cache(maxsize=64)
def episode_rows(places: tuple[str, ...]) -> TypeAdapter:
    """The type of the rows of a v3.0 episode table.

    Args:
        places: Prefixes of the columns with the places of a camera's pictures, such as ``videos/observation.images.front``.
    """
    columns: dict[str, Any] = {
        "episode_index": Whole,
        "length": Length,
        "tasks": NotRequired[Texts],
        "dataset_from_index": Whole,
        "data/chunk_index": Whole,
        "data/file_index": Whole,
        "dataset_to_index": NotRequired[Whole],
        "meta/episodes/chunk_index": NotRequired[Whole],
        "meta/episodes/file_index": NotRequired[Whole],
    }
    for prefix in places:
        columns |= {f"{prefix}/chunk_index": Whole, f"{prefix}/file_index": Whole, f"{prefix}/from_timestamp": Seconds}
        columns |= {f"{prefix}/to_timestamp": NotRequired[Seconds]}
    row: Any = TypedDict("EpisodeRow", columns)  # pyright: ignore
    return TypeAdapter(list[row])  # pyright: ignore


def _problem(place: Sequence[int | str], entry: Any, file: Path) -> Problem:
    text = "is missing" if entry["type"] == "missing" else f"is {shown(entry['input'])}; {expectation(entry)}"
    return Problem(text=text, file=file, key=key_of(place) or "the content")


def checked(adapter: TypeAdapter, value: object, file: Path) -> Any:
    """A value of the type that it should have.

    Raises:
        MetadataError: It is of another.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problems = [_problem(entry["loc"], entry, file) for entry in error.errors(include_url=False)]
        raise MetadataError(problems) from None


def checked_rows(adapter: TypeAdapter, rows: Sequence[Any], file: Path) -> tuple[dict[int, Any], list[Problem]]:
    """Those rows that are as they should be, by their number, and what is wrong with the others: a problem a key and kind."""
    try:
        return dict(enumerate(adapter.validate_python(rows))), []
    except ValidationError as error:
        by_kind: dict[tuple[Any, ...], tuple[Problem, list[int | None]]] = {}
        wrong = set[int]()
        for entry in error.errors(include_url=False):
            row, *place = entry["loc"]
            row = int(row)
            wrong.add(row)
            kind = *place, entry["type"]
            if kind in by_kind:
                by_kind[kind][1].append(_episode_of(rows[row]))
            else:
                problem = _problem(place, entry, file)
                by_kind[kind] = replace(problem, row=row, episode=_episode_of(rows[row])), []
    good = [number for number in range(len(rows)) if number not in wrong]
    checked_good = dict(zip(good, adapter.validate_python([rows[number] for number in good]), strict=True))
    return checked_good, [replace(problem, later=tuple(later)) for problem, later in by_kind.values()]


def by_episode(rows: Sequence[Any], file: Path) -> dict[int, Any]:
    """Rows or lines by the episode that each is about, the last where there are several.

    Raises:
        MetadataError: One lacks its episode index.
    """
    good, problems = checked_rows(INDEXED, rows, file)
    if problems:
        raise MetadataError(problems)
    return {row["episode_index"]: rows[number] for number, row in good.items()}


def _episode_of(row: Any) -> int | None:
    """The episode of a row; None where it has no valid index."""
    match row:
        case {"episode_index": bool()}:
            return None
        case {"episode_index": int(index) | float(index)} if math.isfinite(index) and index == int(index):
            return int(index)
    return None


def as_rows(table: pa.Table, file: Path) -> list[dict[str, Any]]:
    """A table's rows as plain values.

    Raises:
        DataError: It holds what cannot be read, such as text that is not UTF-8.
    """
    try:
        return table.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"cannot read {file} ({reason}); it is corrupt") from None
