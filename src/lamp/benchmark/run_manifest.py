"""The folder of an evaluation: what was asked (`run.json`), and what is done so far (`episodes.jsonl`), each episode once.

`sessions.jsonl` keeps how long each call of the command worked on it, a line after each episode, so that no time is lost with a
session that is killed. A run may be split over several machines (`Shard`); the folders are merged afterwards."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired

from typing_extensions import TypedDict

from lamp.benchmark.episodes import EPISODES, EpisodeRecord, EvaluationEpisode, read_records
from lamp.errors import ConfigError, DataError
from lamp.files import atomic_write_text, locked, sha256_of
from lamp.json_files import append_line, check_type, read_json_as, read_json_object, read_lines_as, to_line, write_json
from lamp.model.prior_interventions import PriorKind

MANIFEST = "run.json"
SESSIONS = "sessions.jsonl"
FORMAT = "lamp-evaluation"


class StoredManifest(TypedDict):
    """`run.json`, as it is read."""

    format: str
    config: dict[str, Any]
    conditions: dict[str, str | None]
    planned: int
    instructions: NotRequired[list[str]]
    facts: NotRequired[StoredFacts]


class StoredFacts(TypedDict, total=False):
    """The facts that are read again; there are others."""

    models: dict[str, dict[str, str | None]]
    """Of each condition's policy: its `flow` and `fusion`."""


class StoredSession(TypedDict):
    """A line of `sessions.jsonl`."""

    session: int
    episodes: int
    seconds: float


class StoredSummary(TypedDict, total=False):
    """What is read again of `summary.json`."""

    session_seconds: float


class StoredFlow(TypedDict):
    type: str


class StoredMotion(TypedDict):
    flow: StoredFlow


class StoredModel(TypedDict, total=False):
    """What tells one kind of policy from another, of a checkpoint's `model`."""

    motion: StoredMotion | None
    guidance: StoredFlow | None


class StoredTraining(TypedDict, total=False):
    prior: str | None


class StoredCheckpoint(TypedDict, total=False):
    """The part of a checkpoint's `lamp.json` that an evaluation needs, of whichever version it is."""

    model: StoredModel | None
    training: StoredTraining | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an evaluation folder is the answer to."""

    config: Mapping[str, Any]
    """The settings that change results; a folder belongs to one set of them."""
    conditions: Mapping[str, str]
    """Name of each condition -> its checkpoint's content hash, empty where it has none."""
    instructions: Sequence[str]
    """The instruction of every task of the suite."""
    planned: int
    """Number of episodes."""
    facts: Mapping[str, Any]
    """What is worth knowing but may differ between sessions: paths, code and package versions, workers."""


@dataclass(frozen=True, kw_only=True)
class RunSession:
    """One call of the command that did episodes."""

    number: int
    """From 1."""
    episodes: int
    seconds: float
    """Wall time."""


def read_sessions(folder: Path) -> list[RunSession]:
    """The sessions of an evaluation, in order; none where an earlier version wrote it.

    Raises:
        DataError: The log is damaged.
    """
    found: dict[int, RunSession] = {}
    for line in read_lines_as(folder / SESSIONS, StoredSession):
        session, episodes, seconds = line["session"], line["episodes"], float(line["seconds"])
        found[session] = RunSession(number=session, episodes=episodes, seconds=seconds)
    return [found[number] for number in sorted(found)]


def write_session(folder: Path, session: RunSession) -> None:
    """Notes how far a session is; the last note of each counts."""
    noted = {"session": session.number, "episodes": session.episodes, "seconds": round(session.seconds, 3)}
    append_line(folder / SESSIONS, to_line(noted))


class Run:
    """An evaluation folder opened for writing, by one process at a time.

    Raises:
        ConfigError: The folder holds an evaluation with other settings.
        DataError: Another process is writing to it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        busy = f"another process is evaluating into {folder}; wait for it or choose another --out"
        with ExitStack() as stack:
            stack.enter_context(locked(folder / ".lock", busy))
            _claim(folder, manifest)
            self.records = read_records(folder) if (folder / EPISODES).exists() else []
            self._number, self._started, self._before = 0, 0.0, len(self.records)
            self._held = stack.pop_all()

    def pending(self, episodes: Sequence[EvaluationEpisode]) -> list[EvaluationEpisode]:
        """Returns the episodes that no line records yet, in order."""
        done = {record.key for record in self.records}
        return [episode for episode in episodes if episode.key not in done]

    def add(self, record: EpisodeRecord) -> None:
        """Appends an episode; it is on the disk when this returns."""
        append_line(self.folder / EPISODES, record.to_line())
        self.records.append(record)
        self.note_session()

    def begin_session(self, started: float) -> None:
        """Counts this call among the sessions.

        Args:
            started: When it began, by `time.monotonic`.
        """
        earlier = read_sessions(self.folder)
        if not earlier and self.records and (self.folder / "summary.json").is_file():
            # An earlier version kept the time of the last session only.
            summary = read_json_as(self.folder / "summary.json", StoredSummary, "summary")
            seconds = summary.get("session_seconds", 0.0)
            write_session(self.folder, RunSession(number=1, episodes=len(self.records), seconds=float(seconds)))
            earlier = read_sessions(self.folder)
        self._number, self._started = 1 + max((session.number for session in earlier), default=0), started
        self.note_session()

    def note_session(self) -> None:
        """Notes how long this session has lasted, if it was begun."""
        if self._number:
            seconds, episodes = time.monotonic() - self._started, len(self.records) - self._before
            write_session(self.folder, RunSession(number=self._number, episodes=episodes, seconds=seconds))

    def close(self) -> None:
        """Lets other processes write to the folder."""
        self._held.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _claim(folder: Path, manifest: Manifest) -> None:
    path = folder / MANIFEST
    settings = {"config": dict(manifest.config), "conditions": dict(manifest.conditions)}
    if not path.exists():
        if (folder / EPISODES).exists():
            raise DataError(f"{folder} holds {EPISODES} but no {MANIFEST}; restore it or choose another --out")
        rest = {"planned": manifest.planned, "instructions": list(manifest.instructions), "facts": dict(manifest.facts)}
        write_json(path, {"format": FORMAT, "version": 1, **settings, **rest})
        return
    stored = read_manifest(folder)
    differing = [
        f"{key} is {wanted.get(key)!r}, was {there.get(key)!r}"
        for wanted, there in ((settings["config"], stored["config"]), (settings["conditions"], stored["conditions"]))
        for key in sorted(wanted.keys() | there.keys())
        if wanted.get(key) != there.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{folder} holds an evaluation with other settings ({'; '.join(differing)}); "
            "continue it with the same settings, or choose another --out"
        )


def read_manifest(folder: Path) -> StoredManifest:
    """Reads `run.json`.

    Raises:
        DataError: The folder is none of an evaluation, or the file is damaged.
    """
    path = folder / MANIFEST
    stored = read_json_object(path, "evaluation manifest")
    if stored.get("format") != FORMAT:
        raise DataError(f"{path} is not the manifest of an evaluation; expected the --out of `lamp evaluate`")
    return check_type({"conditions": {}, **stored}, StoredManifest, f"the evaluation manifest {path}")


def model_kind(checkpoint: Path) -> dict[str, str | None]:
    """Returns which scene flow a checkpoint's motion prior knows and what joins it to the policy; None each without a prior."""
    model = (
        read_json_as(_folder(checkpoint) / "lamp.json", StoredCheckpoint, "checkpoint description").get("model") or {}
    )
    motion, fusion = model.get("motion"), model.get("guidance")
    return {"flow": motion["flow"]["type"] if motion else None, "fusion": fusion["type"] if fusion else None}


def trained_with(checkpoint: Path) -> PriorKind:
    """Returns what a checkpoint's z_m were of in training."""
    file = _folder(checkpoint) / "lamp.json"
    stored = read_json_as(file, StoredCheckpoint, "checkpoint description") if file.is_file() else {}
    return "oracle" if (stored.get("training") or {}).get("prior") == "oracle" else "predicted"


def _folder(checkpoint: Path) -> Path:
    return checkpoint / "checkpoint" if (checkpoint / "checkpoint").is_dir() else checkpoint


def checkpoint_hash(checkpoint: Path) -> str:
    """Returns 16 hexadecimal digits that name the content of a checkpoint, or of a run's: its weights and its description.

    Raises:
        DataError: The folder is no checkpoint.
    """
    folder = _folder(checkpoint)
    files = [folder / "lamp.json", folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise DataError(f"{folder} is no checkpoint: {file.name} is missing; expected a folder that training wrote")
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `index` of `count`: every `count`-th scene, with all conditions that meet it, so that they stay comparable."""

    index: int
    count: int

    def of(self, plan: Sequence[EvaluationEpisode]) -> list[EvaluationEpisode]:
        """Returns the shard's episodes, in order."""
        numbers: dict[tuple[Any, ...], int] = {}
        for episode in plan:
            numbers.setdefault(episode.scene, len(numbers))
        return [episode for episode in plan if numbers[episode.scene] % self.count == self.index]


def parse_shard(text: str) -> Shard:
    """Reads `0/4` to `3/4`; an empty text is the whole.

    Raises:
        ConfigError: The text is no such fraction.
    """
    if not text:
        return Shard(index=0, count=1)
    parts = text.split("/")
    if len(parts) == 2 and all(part.isdecimal() for part in parts) and int(parts[0]) < int(parts[1]):
        return Shard(index=int(parts[0]), count=int(parts[1]))
    raise ConfigError(f"shard {text!r}: expected such as '0/4', '1/4', '2/4', '3/4' for four machines")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Joins the folders of `lamp evaluate --shard ...` into one evaluation: every shard once, all with the same settings."""

    shards: tuple[Path, ...]
    """Output folders of `lamp evaluate --shard ...`, all parts of one evaluation."""
    out: Path
    """Folder for the whole; `lamp evaluate` without --shard can go on with it."""


def merge(config: MergeConfig) -> int:
    """Joins the shards of an evaluation and returns the number of episodes.

    Raises:
        ConfigError: The folders are not all the shards of one evaluation, or `out` is not empty.
        DataError: A folder is none of an evaluation, or damaged.
    """
    if config.out.exists() and any(config.out.iterdir()):
        raise ConfigError(f"{config.out} is not empty; expected a new folder for the merged evaluation")
    manifests = {folder: _manifest(folder) for folder in config.shards}
    _check(manifests)
    records = [record for folder in config.shards for record in read_records(folder)]
    _check_none_twice(records)
    first = next(iter(manifests.values()))
    whole = {name: value for name, value in first["config"].items() if name != "shard"}
    planned = sum(manifest["planned"] for manifest in manifests.values())
    facts = {**first.get("facts", {}), "merged": [str(folder) for folder in config.shards]}
    for folder in config.shards:
        if (folder / "videos").is_dir():
            shutil.copytree(folder / "videos", config.out / "videos", dirs_exist_ok=True)
    atomic_write_text(config.out / EPISODES, "".join(record.to_line() + "\n" for record in records))
    sessions = [session for folder in config.shards for session in read_sessions(folder)]
    for number, session in enumerate(sessions, start=1):
        write_session(config.out, replace(session, number=number))
    # Last: a folder without a manifest is no evaluation.
    write_json(config.out / MANIFEST, {**first, "config": whole, "planned": planned, "facts": facts})
    return len(records)


def _manifest(folder: Path) -> StoredManifest:
    manifest = read_manifest(folder)
    if "shard" not in manifest["config"]:
        raise ConfigError(f"{folder} is a whole evaluation; expected folders of `lamp evaluate --shard ...`")
    return manifest


def _check(manifests: Mapping[Path, StoredManifest]) -> None:
    if not manifests:
        raise ConfigError("no shards given; expected the folders of all of them")
    first_folder, first = next(iter(manifests.items()))
    for folder, manifest in manifests.items():
        for ours, others in (
            (first["config"], manifest["config"]),
            (first["conditions"], manifest["conditions"]),
        ):
            differing = [
                name
                for name in sorted(ours.keys() | others.keys())
                if name != "shard" and ours.get(name) != others.get(name)
            ]
            if differing:
                raise ConfigError(
                    f"{folder} and {first_folder} differ in {', '.join(differing)}: no shards of one evaluation"
                )
    shards = [parse_shard(str(manifest["config"]["shard"])) for manifest in manifests.values()]
    counts = {shard.count for shard in shards}
    if len(counts) > 1:
        raise ConfigError(
            f"shards of {' and of '.join(map(str, sorted(counts)))} parts were given; expected one division"
        )
    missing = set(range(counts.pop())) - {shard.index for shard in shards}
    if missing:
        names = ", ".join(f"{index}/{shards[0].count}" for index in sorted(missing))
        raise ConfigError(f"shards {names} are missing; expected all {shards[0].count}")


def _check_none_twice(records: Sequence[EpisodeRecord]) -> None:
    seen = set()
    for record in records:
        if record.key in seen:
            raise ConfigError(f"an episode is in two of the folders: {record.key}; give each shard once")
        seen.add(record.key)
