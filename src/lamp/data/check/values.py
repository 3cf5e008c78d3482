"""Faults of the numbers in a dataset's data files (rows, columns, widths, clocks, NaN), and of its stored statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool

from lamp.data.check.faults import DatasetFault
from lamp.data.lerobot.episodes import EpisodeMetadata, column_names, read_parquet
from lamp.data.lerobot.format import (
    BOOKKEEPING,
    EPISODE_STATISTICS_LINES,
    EPISODES_LINES,
    INFO_PATH,
    STATISTICS_PATH,
    DatasetMetadata,
    Feature,
    from_arrow,
    is_list,
)
from lamp.data.lerobot.metadata import shown
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.statistics import Moments, joined, moments_of
from lamp.errors import DataError
from lamp.json_files import read_json_object

CLOCK_TOLERANCE_S = 1e-3
"""How far a time stamp may be from frame / fps: far above rounding, far below a frame at any customary rate [s]."""


ELSEWHERE = ("string", "audio", "language")
"""Types of features that LeRobot may keep in other files than the data's."""


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """What holds for all data files of a dataset."""

    root: Path
    meta: DatasetMetadata
    tasks: Mapping[int, str]
    listed: bool
    """Whether all episodes are known, so that a row of no episode is a fault."""


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A data file and the episodes whose rows should be in it."""

    path: Path
    episodes: tuple[EpisodeMetadata, ...]


@dataclass(frozen=True, kw_only=True)
class DataFileResult:
    """What one data file holds."""

    faults: tuple[DatasetFault, ...]
    statistics: Mapping[str, Moments]
    """Per feature, of the episodes where it has no fault."""
    content: Mapping[int, str]
    """A hash of each episode's numbers, without the bookkeeping."""


def check_rows(file: DataFile, rules: CheckContext) -> DataFileResult:
    """Reads all numbers of a data file.

    Columns are looked at whole; only episodes that something is wrong with are looked at one by one, for the words of it.
    """
    name = str(file.path.relative_to(rules.root))
    features = {**rules.meta.features, **BOOKKEEPING}
    try:
        present = column_names(file.path)
        table = read_parquet(file.path, [key for key in features if key in present])
    except DataError as error:
        faults = tuple(DatasetFault(problem=str(error), file=name, episode=episode.index) for episode in file.episodes)
        return DataFileResult(faults=faults, statistics={}, content={})
    faults = [
        DatasetFault(problem=f"the column is missing; the file has {', '.join(present)}", file=name, key=key)
        for key in features
        if key not in present
    ]
    faults += _check_other_features(file.path, rules, present)
    end = max((episode.row + episode.length for episode in file.episodes), default=0)
    if rules.listed and table.num_rows > end:
        problem = f"the file has {table.num_rows} rows; the list of episodes accounts for {end}"
        faults.append(DatasetFault(problem=problem, file=name, episode=_last(file.episodes), key="length"))
    episodes = sorted(file.episodes, key=lambda episode: episode.row)
    whole = _FileColumns.of(table, features, episodes, rules)
    parts: dict[str, list[Moments]] = {key: [moments] for key, moments in whole.moments().items()}
    content = whole.content()
    for episode in (episode for episode, sound in zip(episodes, whole.sound, strict=True) if not sound):
        rows = _EpisodeColumns(file=name, episode=episode, meta=rules.meta, tasks=rules.tasks)
        column_faults, numbers = rows.read(table.slice(episode.row, episode.length), features)
        faults += column_faults
        for key, values in numbers.items():
            if len(values):
                one = moments_of(values, np.array([0]), np.array([len(values)]), np.array([episode.index]))
                parts.setdefault(key, []).append(one)
        indices = dict.fromkeys(numbers.get("task_index", np.zeros(0)).tolist())
        instructions = [rules.tasks.get(int(index), "") for index in indices]
        if any(
            key not in BOOKKEEPING and values.min() < values.max() for key, values in numbers.items() if len(values)
        ):
            content[episode.index] = _digest(instructions or episode.tasks, numbers)
    return DataFileResult(
        faults=tuple(faults), statistics={key: joined(of_key) for key, of_key in parts.items()}, content=content
    )


def _digest(instructions: Sequence[str], numbers: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(repr(instructions).encode())
    for key in sorted(numbers.keys() - BOOKKEEPING.keys()):
        digest.update(np.ascontiguousarray(numbers[key]).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _FileColumns:
    """The columns of a whole file, and which of its episodes nothing is wrong with."""

    episodes: Sequence[EpisodeMetadata]
    """In the order of their rows."""
    sound: Bool[np.ndarray, " e"]
    numbers: Mapping[str, np.ndarray]
    """Empty where a column cannot be taken whole: then no episode is known to be sound."""
    instructions: Sequence[Sequence[str]]
    """The instructions of each sound episode, in the order of its frames."""

    @classmethod
    def of(
        cls, table: pa.Table, features: Mapping[str, Feature], episodes: Sequence[EpisodeMetadata], rules: CheckContext
    ) -> _FileColumns:
        start = np.array([episode.row for episode in episodes], np.int64)
        length = np.array([episode.length for episode in episodes], np.int64)
        stop = start + length
        none = cls(
            episodes=episodes, sound=np.zeros(len(episodes), bool), numbers={}, instructions=[()] * len(episodes)
        )
        # Rows that two episodes lay claim to, and episodes without any, are seen to one by one.
        if not episodes or (length < 1).any() or (start[1:] < stop[:-1]).any() or start[0] < 0:
            return none
        numbers = {}
        for key in table.column_names:
            column, feature = table[key], features[key]
            widths = is_list(column.type) and len(feature.shape) == 1
            if column.null_count or (widths and _widths_differ(column, feature)):
                return none
            try:
                numbers[key] = from_arrow(column, feature, key)
            except (DataError, pa.ArrowException, ValueError):
                return none
        sound = stop <= table.num_rows
        last = int(np.minimum(stop[-1], table.num_rows))
        of_row = np.full(table.num_rows, -1)
        for place, (first, end) in enumerate(zip(start.tolist(), stop.tolist(), strict=True)):
            of_row[first:end] = place
        known = of_row[:last] >= 0
        of_row, row = of_row[:last][known], np.flatnonzero(known)
        frame = row - start[of_row]
        expected = {
            "frame_index": frame,
            "episode_index": np.array([episode.index for episode in episodes])[of_row],
            "index": np.array([episode.start for episode in episodes])[of_row] + frame,
        }
        for key, values in numbers.items():
            wrong = np.zeros(len(row), bool)
            if values.dtype.kind == "f":
                wrong |= ~np.isfinite(values[row]).all(axis=tuple(range(1, values.ndim)))
            if key in expected:
                wrong |= values[row] != expected[key]
            if key == "timestamp":
                wrong |= ~(np.abs(values[row] - frame / rules.meta.fps) <= CLOCK_TOLERANCE_S)
            sound[of_row[wrong]] = False
        instructions: list[Sequence[str]] = [episode.tasks for episode in episodes]
        if "task_index" in numbers and rules.tasks:
            indices = numbers["task_index"][row]
            changes = np.flatnonzero(np.diff(of_row, prepend=-1) | np.diff(indices, prepend=-1))
            runs: list[dict[int, None]] = [{} for _ in episodes]
            for place, index in zip(of_row[changes].tolist(), indices[changes].tolist(), strict=True):
                runs[place][index] = None
            for place, (episode, task_indices) in enumerate(zip(episodes, runs, strict=True)):
                instructions[place] = [rules.tasks.get(int(index), "") for index in task_indices]
                listed = not episode.tasks or all(text in episode.tasks for text in instructions[place])
                sound[place] &= listed and all(text.strip() for text in instructions[place])
        else:
            sound &= np.array([bool(episode.tasks) for episode in episodes])
        return cls(episodes=episodes, sound=sound, numbers=numbers, instructions=instructions)

    def _spans(self) -> list[tuple[EpisodeMetadata, Sequence[str]]]:
        spans = zip(self.episodes, self.instructions, self.sound, strict=True)
        return [(episode, instructions) for episode, instructions, sound in spans if sound]

    def moments(self) -> dict[str, Moments]:
        """Of the sound episodes, per column."""
        episodes = [episode for episode, _ in self._spans()]
        if not episodes:
            return {}
        start, length, index = (
            np.array([getattr(episode, name) for episode in episodes]) for name in ("row", "length", "index")
        )
        return {key: moments_of(values, start, start + length, index) for key, values in self.numbers.items()}

    def content(self) -> dict[int, str]:
        """Of the sound episodes that do something: their hashes."""
        hashes = {}
        for episode, instructions in self._spans():
            rows = slice(episode.row, episode.row + episode.length)
            own = {key: values[rows] for key, values in self.numbers.items() if key not in BOOKKEEPING}
            if any(values.min() < values.max() for values in own.values()):
                hashes[episode.index] = _digest(instructions, own)
        return hashes


def _widths_differ(column: pa.ChunkedArray, feature: Feature) -> bool:
    return bool((pc.call_function("list_value_length", [column]).to_numpy() != feature.shape[0]).any())


def _check_other_features(path: Path, rules: CheckContext, present: Sequence[str]) -> Iterator[DatasetFault]:
    """Features whose type is none of ours, though their columns hold numbers or are not there at all."""
    if not rules.meta.other_features:
        return
    schema = pq.read_schema(path)
    for key, dtype in rules.meta.other_features.items():
        kind = schema.field(key).type if key in present else None
        while kind is not None and is_list(kind):
            kind = kind.value_type
        if kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            problem = f"has the type {shown(dtype)} in {INFO_PATH}; its column holds numbers ({kind})"
            yield DatasetFault(problem=problem, file=str(path.relative_to(rules.root)), key=key)
        elif kind is None and dtype not in ELSEWHERE:
            problem = f"has the type {shown(dtype)} and no column; expected one such as float32, video, image or string"
            yield DatasetFault(problem=problem, file=INFO_PATH, key=key)


def _last(episodes: Sequence[EpisodeMetadata]) -> int | None:
    return episodes[-1].index if len(episodes) == 1 else None


@dataclass(frozen=True, kw_only=True)
class _EpisodeColumns:
    """The rows of one episode."""

    file: str
    episode: EpisodeMetadata
    meta: DatasetMetadata
    tasks: Mapping[int, str]

    def read(
        self, table: pa.Table, features: Mapping[str, Feature]
    ) -> tuple[list[DatasetFault], dict[str, np.ndarray]]:
        """Returns the faults, and the values of the columns that have none."""
        faults, numbers = [], {}
        if table.num_rows != self.episode.length:
            problem = f"has {table.num_rows} rows; its length is {self.episode.length}"
            faults.append(self._fault(problem, "length"))
        for key in table.column_names:
            column_faults = list(self._check_column(table[key], features[key], key))
            faults += column_faults
            if not column_faults:
                numbers[key] = from_arrow(table[key], features[key], key)
        faults += self._check_bookkeeping(numbers)
        return faults, numbers

    def _fault(self, problem: str, key: str, frame: int | None = None) -> DatasetFault:
        return DatasetFault(problem=problem, file=self.file, episode=self.episode.index, frame=frame, key=key)

    def _check_column(self, column: pa.ChunkedArray, feature: Feature, key: str) -> Iterator[DatasetFault]:
        """Missing values, widths, and values that are not finite."""
        empty = column.is_null().to_numpy().astype(bool)
        if empty.any():
            yield self._fault(f"has no value{_likewise(empty)}", key, int(empty.argmax()))
            return
        if is_list(column.type) and len(feature.shape) == 1:
            widths = pc.call_function("list_value_length", [column]).to_numpy()
            wrong = widths != feature.shape[0]
            if wrong.any():
                width = int(widths[wrong.argmax()])
                problem = f"has {width} values; the description says {feature.shape[0]}{_likewise(wrong)}"
                yield self._fault(problem, key, int(wrong.argmax()))
                return
        try:
            values = from_arrow(column, feature, key)
        except (DataError, pa.ArrowException, ValueError) as error:
            yield self._fault(str(error).splitlines()[0], key)
            return
        if values.dtype.kind == "f" and len(values):
            wrong = np.asarray(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
            if wrong.any():
                bad = values.reshape(len(values), -1)[wrong.argmax()]
                places = np.flatnonzero(~np.isfinite(bad))
                problem = f"is {bad[places[0]]} in dimension {places[0]}; expected finite numbers{_likewise(wrong)}"
                yield self._fault(problem, key, int(wrong.argmax()))

    def _check_bookkeeping(self, numbers: Mapping[str, np.ndarray]) -> Iterator[DatasetFault]:
        length = min((len(values) for values in numbers.values()), default=0)
        count = np.arange(length)
        expected = {
            "frame_index": count,
            "episode_index": np.full(length, self.episode.index),
            "index": self.episode.start + count,
        }
        for key, wanted in expected.items():
            if key in numbers and (wrong := np.not_equal(numbers[key], wanted)).any():
                first = int(wrong.argmax())
                yield self._fault(f"is {numbers[key][first]}; expected {wanted[first]}{_likewise(wrong)}", key, first)
        if "timestamp" in numbers:
            yield from self._check_timestamps(numbers["timestamp"])
        if "task_index" in numbers and self.tasks:
            yield from self._check_tasks(numbers["task_index"])
        elif not self.episode.tasks:
            yield self._no_instruction()

    def _check_timestamps(self, times: np.ndarray) -> Iterator[DatasetFault]:
        fps = self.meta.fps
        wrong = np.abs(times - np.arange(len(times)) / fps) > CLOCK_TOLERANCE_S
        if wrong.any():
            first, step = int(wrong.argmax()), float(np.median(np.diff(times))) if len(times) > 1 else 0.0
            rate = f"; its frames run at {1 / step:.4g} fps, the description says {fps:g}" if step > 0 else ""
            same = abs(step * fps - 1) < 0.01
            problem = f"is {times[first]:.6g} s; expected {first / fps:.6g} s" + ("" if same else rate)
            yield self._fault(problem, "timestamp", first)

    def _no_instruction(self) -> DatasetFault:
        file = EPISODES_LINES if self.meta.one_file_per_episode else "meta/episodes"
        problem = "has no task text; expected an instruction in words"
        return DatasetFault(problem=problem, file=file, episode=self.episode.index, key="tasks")

    def _check_tasks(self, indices: np.ndarray) -> Iterator[DatasetFault]:
        """Each frame's task is listed, has a text, and is among those that the list of episodes gives the episode."""
        numbers = np.unique(indices).tolist()
        unknown = np.isin(indices, [number for number in numbers if number not in self.tasks])
        if unknown.any():
            first = int(unknown.argmax())
            listed = f"the tasks are 0 to {max(self.tasks)}" if self.tasks else "no task is listed"
            yield self._fault(f"is {indices[first]}; {listed}", "task_index", first)
            return
        blank = np.isin(indices, [number for number in numbers if not self.tasks[number].strip()])
        if blank.all() and not self.episode.tasks:
            yield self._no_instruction()
        elif blank.any():
            first = int(blank.argmax())
            problem = f"is {indices[first]}, which has no text; expected an instruction in words{_likewise(blank)}"
            yield self._fault(problem, "task_index", first)
        texts = {number: self.tasks[number] for number in numbers}
        instructions = [number for number, text in texts.items() if text in self.episode.tasks or not text.strip()]
        others = ~np.isin(indices, instructions)
        if self.episode.tasks and others.any():
            first = int(others.argmax())
            listed = ", ".join(map(repr, self.episode.tasks))
            problem = f"is {indices[first]}, {self.tasks[int(indices[first])]!r}; the list of episodes says {listed}"
            yield self._fault(problem, "task_index", first)


def _likewise(wrong: np.ndarray) -> str:
    others = int(wrong.sum()) - 1
    return f" ({others} later {'frame' if others == 1 else 'frames'} likewise)" if others else ""


COMPARED = ("min", "max", "mean", "std", "count")
"""Quantiles are left out: LeRobot's own, over a dataset, are averages of the episodes'."""
TOLERANCE = 1e-3
"""Relative to the larger of the value's range and size: statistics are written in float32 by some."""


def check_statistics(dataset: LeRobotDataset, computed: Mapping[str, Moments]) -> Iterator[DatasetFault]:
    """Compares stored statistics with computed ones. Missing files are no fault: they are optional.

    Args:
        computed: Per feature, of the episodes where it has no fault.
    """
    try:
        if (dataset.root / STATISTICS_PATH).is_file():
            stored = read_json_object(dataset.root / STATISTICS_PATH, "file of dataset statistics")
            for key in dataset.features:
                if key in stored and key in computed and len(computed[key].episode) == len(dataset):
                    yield from _compare(stored[key], computed[key].together(), 0, STATISTICS_PATH, key)
        rows = {
            key: (of_key, {episode: row for row, episode in enumerate(of_key.episode.tolist())})
            for key, of_key in computed.items()
            if key in dataset.features
        }
        for episode, recorded in dataset.table.each_recorded_statistics():
            for key, (of_key, row) in rows.items():
                if key in recorded and episode in row:
                    yield from _compare(recorded[key], of_key, row[episode], EPISODE_STATISTICS_LINES, key, episode)
    except DataError as error:
        yield DatasetFault(problem=str(error), file=STATISTICS_PATH)


def _compare(
    stored: Any, computed: Moments, row: int, file: str, key: str, episode: int | None = None
) -> Iterator[DatasetFault]:
    if not isinstance(stored, Mapping):
        problem = f"is {shown(stored)}; expected an object with the feature's statistics"
        yield DatasetFault(problem=problem, file=file, episode=episode, key=key)
        return
    data = {name: computed.of(name)[row].reshape(-1) for name in COMPARED}
    size = np.maximum(np.maximum(np.abs(data["max"]), np.abs(data["min"])), 1e-6)
    wrong = [name for name in COMPARED if name in stored and not _alike(stored[name], data[name], name, size)]
    if wrong:
        mismatch = f"{wrong[0]} is {shown(stored[wrong[0]])}; the data's is {_short(data[wrong[0]])}"
        more = f" (and {', '.join(wrong[1:])})" if wrong[1:] else ""
        yield DatasetFault(
            problem=f"the stored statistics do not match: {mismatch}{more}", file=file, episode=episode, key=key
        )


def _alike(stored: Any, computed: np.ndarray, name: str, size: np.ndarray) -> bool:
    try:
        array = np.asarray(stored, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    if array.shape != computed.shape:
        return False
    allowed = 0.5 if name == "count" else TOLERANCE * size
    return bool((np.abs(array - computed) <= allowed).all())


def _short(values: np.ndarray) -> str:
    flat: Sequence[float] = values.reshape(-1).tolist()
    return f"[{', '.join(f'{value:.6g}' for value in flat[:4])}{', ...' if len(flat) > 4 else ''}]"
