"""Converts recordings of `lamp_client.recording` to LeRobot datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from lamp.configuration import from_json, to_json
from lamp.data.actions import Gripper
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.lerobot.format import INFO_PATH
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.staging import EpisodeData
from lamp.data.lerobot.video import frame_rate
from lamp.data.lerobot.writer import LeRobotWriter
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.files import safe_file_name
from lamp.json_files import read_json, to_line, write_json
from lamp_client.errors import InvalidValueError
from lamp_client.recording import RecordedEpisode, RecordingError, read_episode, recorded_names
from lamp_client.types import SIMULATION, GripperUnits

EMBODIMENT_PATH = "meta/embodiment.json"
"""In an imported dataset: what its actions mean, for `--embodiment` and `--also`."""
RATE_TOLERANCE = 0.05
"""Rates that differ by no more are the same."""
MAX_SPEEDUP = 2.0
"""No robot's loop is so many times faster than it is meant to be: what is was written as fast as a computer can, by a simulator
or from other data, and its times mean nothing."""
PAUSE = 2.5
"""A step that takes so many times as long as the median one is a pause, in which the robot held still."""
Resample = Literal["none", "absolute"]


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """The result of importing a recording."""

    episodes: int
    """New episodes in the dataset."""
    frames: int
    skipped: tuple[str, ...]
    """Names of episodes that were left out, with the reason."""
    notes: tuple[str, ...] = ()
    """Rates that were overruled, and pauses."""
    embodiment: Path | None = None
    """The file with the meaning of the actions; None where the recorded policy's metadata lack it."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRate:
    """The rate at which an episode really ran."""

    declared: float
    """Steps per second that its loop was meant to make."""
    rate: float | None
    """Steps per second that it made, pauses aside; None where there are too few steps."""
    timed: bool
    """Whether the times are certainly those of the world in which the robot moved."""
    pauses: tuple[tuple[int, float], ...]
    """(step before it, seconds) of each."""

    @classmethod
    def of(cls, episode: RecordedEpisode) -> MeasuredRate:
        """Measures an episode by the times of its frames.

        Raises:
            RecordingError: They are not finite, or run backwards.
        """
        steps = np.diff(_times(episode))
        median = float(np.median(steps)) if len(steps) > 1 else 0.0
        if median <= 0:
            return cls(declared=episode.fps, rate=None, timed=episode.timed, pauses=())
        long = steps > PAUSE * max(median, 1.0 / episode.fps)
        pauses = tuple((int(at), float(steps[at])) for at in np.flatnonzero(long))
        rate = float(1.0 / steps[~long].mean())
        return cls(declared=episode.fps, rate=rate, timed=episode.timed, pauses=pauses)


def import_recording(
    recording: Path,
    out: Path,
    *,
    robot_type: str = "panda",
    successes_only: bool = False,
    fps: float | int | None = None,
    resample: Resample = "none",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportResult:
    """Adds a recording's episodes to a LeRobot dataset, which is made where there is none.

    Episodes that are in the dataset already, by name, are left as they are, so the same command goes on after an interruption
    and takes up what was recorded since. Everything is compared before anything is written.

    Args:
        successes_only: Leave out episodes that nobody called a success.
        fps: Frames per second of the dataset, whatever the recording declares; None: what it declares, which the frames' times
            must confirm.
        resample: "absolute": take the frame that was recorded nearest to each of the dataset's moments, with its action, which is
            right where actions are absolute targets, and wrong for increments.
        progress: Called with the number of episodes read so far, and of all.

    Raises:
        DataError: There is nothing to import.
        ConfigError: Episodes were recorded at different frame rates, or ran at another than they declare, and neither `fps` nor
            `resample` settles it.
        MismatchError: Episodes differ in cameras, sizes, or widths of state and action, or in what their actions mean.
    """
    names = recorded_names(recording)
    if not names:
        raise DataError(f"{recording} holds no recorded episodes; expected files of lamp_client.recording.Recorder")
    rates, skipped, robot = _survey(recording, names, out, successes_only, resample)
    if not rates:
        raise DataError(f"no episode of {recording} can be imported: {'; '.join(skipped[:4])}")
    before = _known_embodiment(out)
    if resample != "none" and before is not None and before.kind.are_increments:
        raise _cannot_resample(f"{out} holds")
    rate, notes = _dataset_rate(rates, out, fps, resample)
    writer = LeRobotWriter(out, fps=rate, robot_type=robot_type)
    known, frames = writer.names(), 0
    for number, name in enumerate(rates):
        if name not in known:
            episode = read_episode(recording, name)
            if resample != "none":
                episode = resampled(episode, rate)
            writer.add_episode(episode_data(episode), name)
            frames += len(episode.frames)
        progress(number + 1, len(rates))
    added = writer.finalize({"recorded": "lamp_client.recording"})
    if robot is not None:
        cameras = {name: camera.key for name, camera in LeRobotDataset(out).meta.cameras.items()}
        write_json(out / EMBODIMENT_PATH, to_json(replace(robot, cameras=cameras, fps=float(rate))))
    described = None if robot is None else out / EMBODIMENT_PATH
    return ImportResult(episodes=added, frames=frames, skipped=tuple(skipped), notes=tuple(notes), embodiment=described)


def _survey(
    recording: Path, names: Sequence[str], out: Path, successes_only: bool, resample: Resample
) -> tuple[dict[str, MeasuredRate], list[str], Embodiment | None]:
    """The measured rates of the episodes that can be imported, the others with the reason, and what the actions mean.

    Raises:
        DataError: Actions that are to be resampled are increments.
        MismatchError: Episodes, or the dataset that is there, differ in cameras, sizes or widths, or in what their actions mean.
    """
    robot = _known_embodiment(out)
    rates, skipped = dict[str, MeasuredRate](), list[str]()
    first = _existing_shapes(out)
    for name in names:
        try:
            episode = read_episode(recording, name, pixels=False)
            if reason := _reason_to_skip(episode, successes_only):
                skipped.append(f"{name}: {reason}")
                continue
            measured = MeasuredRate.of(episode)
            if resample != "none" and _has_delta_actions(episode):
                raise _cannot_resample(f"{name} holds")
        except RecordingError as error:
            skipped.append(f"{name}: {error}")
            continue
        shapes = _shapes(episode)
        if first is None:
            first = (f"the episode {name}", shapes)
        where, expected = first
        for key in sorted(shapes.keys() | expected.keys()):
            if shapes.get(key) != expected.get(key):
                raise MismatchError(
                    f"{name}: {key} is {_shown(shapes.get(key))}, in {where} {_shown(expected.get(key))}; expected the same: "
                    "import it into another dataset."
                )
        robot = _common_embodiment(robot, episode, out)
        rates[name] = measured
    return rates, skipped, robot


def _dataset_rate(
    rates: dict[str, MeasuredRate], out: Path, fps: float | int | None, resample: Resample
) -> tuple[float | int, list[str]]:
    """The dataset's frames per second, and notes for the user.

    Raises:
        ConfigError: It is not known.
    """
    declared = sorted({_plain(pace.declared) for pace in rates.values()})
    if fps is None and len(declared) > 1:
        raise ConfigError(
            f"episodes were recorded at {' and '.join(f'{each:g}' for each in declared)} frames per second; "
            f"expected one rate: give it by --fps, with --resample absolute where actions are absolute targets."
        )
    if fps is not None and not 0 < fps <= 1000:
        raise ConfigError(f"fps is {fps:g}; expected above 0 and up to 1000.")
    rate = declared[0] if fps is None else _plain(fps)
    if (out / INFO_PATH).exists() and (old := LeRobotDataset(out).fps) != rate:
        raise ConfigError(
            f"{out} has {old:g} frames per second, the recording {rate:g}; give another --out, or --fps {old:g}."
        )
    off = {name: one.rate for name, one in rates.items() if one.rate and abs(one.rate / rate - 1) > RATE_TOLERANCE}
    unreal = {name for name, measured in off.items() if measured > MAX_SPEEDUP * rates[name].declared}
    certain = {name: measured for name, measured in off.items() if rates[name].timed and name not in unreal}
    notes = _pauses(rates, resample)
    if not off or (resample != "none" and not unreal):
        return rate, notes
    name, measured = next(iter((certain or off).items()))
    deviation = (
        f"{name} ran at {measured:.3g} frames per second, not at {rate:g} ({len(off)} of {len(rates)} episodes are off)"
    )
    if resample != "none":
        raise ConfigError(
            f"{min(unreal)}: its frames were taken faster than any robot's, so they cannot be resampled by their times; expected "
            "--resample none."
        )
    if fps is None and certain:
        raise ConfigError(
            f"{deviation}. --fps {_round(measured):g} takes the rate at which it ran, right whatever the actions are; --resample "
            f"absolute takes the nearest frames at {rate:g}, where actions are absolute targets; --fps {rate:g} insists on "
            f"{rate:g}, where the times are not the robot's."
        )
    why = "as asked" if fps is not None else "as declared: those are hardly the times of a robot"
    return rate, [f"{deviation}; taken as {rate:g}, {why}", *notes]


def _pauses(rates: dict[str, MeasuredRate], resample: Resample) -> list[str]:
    """A line for each episode in which the robot held still for a while."""
    notes = []
    for name, pauses in ((name, measured.pauses) for name, measured in rates.items() if measured.pauses):
        step, longest = max(pauses, key=lambda pause: pause[1])
        total = sum(seconds for _, seconds in pauses)
        often = "once" if len(pauses) == 1 else f"{len(pauses)} times"
        cut = "" if resample == "none" else ", as each is cut to one step"
        line = f"{name} paused {often}, for {total:.3g} s in all, longest {longest:.3g} s after frame {step}"
        notes.append(f"{line}; the dataset goes on without them{cut}")
    return notes


def resampled(episode: RecordedEpisode, fps: float | int) -> RecordedEpisode:
    """Takes the frame that was recorded nearest to each moment of a steady rate; a pause counts as one step.

    Raises:
        DataError: Its actions are increments, which belong to the time between two frames.
    """
    if _has_delta_actions(episode):
        raise _cannot_resample(f"{episode.name} holds")
    times = _times(episode)
    steps = np.diff(times)
    if not len(steps) or (median := float(np.median(steps))) <= 0:
        return episode
    moments = np.concatenate([[0.0], np.cumsum(np.where(steps > PAUSE * median, median, steps))])
    wanted = np.arange(int(moments[-1] * fps + 1e-6) + 1) / fps
    nearest = np.searchsorted((moments[1:] + moments[:-1]) / 2, wanted)
    return replace(episode, frames=tuple(episode.frames[at] for at in nearest))


def _has_delta_actions(episode: RecordedEpisode) -> bool:
    """Whether its actions are increments by the policy's metadata; without any, the user's --resample decides."""
    robot = _embodiment(episode) if "embodiment" in episode.policy else None
    return episode.policy.get("actions") == "delta" or (robot is not None and robot.kind.are_increments)


def _cannot_resample(where: str) -> DataError:
    return DataError(
        f"{where} actions that are increments, each for the time until the next frame, which cannot be resampled (targets can); "
        "expected --resample none, and --fps with the rate at which it ran."
    )


def _times(episode: RecordedEpisode) -> Float[np.ndarray, " n"]:
    """When each frame was taken [s].

    Raises:
        RecordingError: They are no times.
    """
    times = np.array([float(frame["time_s"]) for frame in episode.frames])
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise RecordingError(f"{episode.name}: the times of its frames are not finite, or run backwards.")
    return times


def _plain(fps: float | int) -> float | int:
    """A rate as it is written down: a whole number where it is one, else the fraction that is meant."""
    rate = frame_rate(fps)
    return int(rate) if rate.denominator == 1 else float(rate)


def _round(rate: float) -> float | int:
    """A measured rate as it was probably meant."""
    whole = round(rate)
    return whole if whole and abs(rate / whole - 1) < RATE_TOLERANCE / 2 else round(rate, 1)


def _shapes(episode: RecordedEpisode) -> dict[str, tuple[int, ...]]:
    """Sizes of an episode's columns, as the dataset names them."""
    frame = episode.frames[0]
    images = {f"camera {safe_file_name(name)}": tuple(image.shape[:2]) for name, image in frame["images"].items()}
    return images | {"state": (np.size(frame["state"]),), "action": (np.size(frame["action"]),)}


def _existing_shapes(out: Path) -> tuple[str, dict[str, tuple[int, ...]]] | None:
    """The same of the dataset that is there, with its name; None where there is none."""
    if not (out / INFO_PATH).exists():
        return None
    old = LeRobotDataset(out)
    shapes = {f"camera {name}": tuple(size) for name, size in old.image_sizes.items()}
    for column, name in (("observation.state", "state"), ("action", "action")):
        shapes[name] = tuple(old.features[column].shape) if column in old.features else (0,)
    return str(out), shapes


def _shown(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "missing"
    return f"{shape[1]}x{shape[0]}" if len(shape) == 2 else f"{shape[0]} values"


def _known_embodiment(out: Path) -> Embodiment | None:
    path = out / EMBODIMENT_PATH
    return from_json(Embodiment, read_json(path, "embodiment"), where=str(path)) if path.is_file() else None


def _embodiment(episode: RecordedEpisode) -> Embodiment | None:
    """What the columns of an episode mean; None where it was recorded without the policy's word on it.

    State and action are in the policy's units and order, whatever features they had in what it was trained on.

    Raises:
        DataError: The recorded policy's metadata cannot be read.
    """
    policy = episode.policy
    if "embodiment" not in policy and "gripper" not in policy:
        return None
    try:
        grippers = tuple(Gripper(**one.plain) for one in GripperUnits.all_of(policy))
        own = from_json(Embodiment, policy["embodiment"], where="embodiment") if "embodiment" in policy else OWN
    except (InvalidValueError, ConfigError) as error:
        raise DataError(f"{episode.name}: what is recorded of the policy cannot be read: {error}") from None
    read = (grippers[0] if len(grippers) == 1 else grippers) if grippers else None
    # The columns are the policy's, one after another, so that its rotations are at the same places.
    return Embodiment(name=f"{own.name}_recorded", gripper=read, rotations=own.rotations, kind=own.kind)


def _common_embodiment(robot: Embodiment | None, episode: RecordedEpisode, out: Path) -> Embodiment | None:
    """What the actions of the episodes so far and of one more mean.

    Raises:
        MismatchError: Not the same.
    """
    own = _embodiment(episode)
    if robot is None or own is None:
        return robot or own
    if (own.grippers, own.kind) != (robot.grippers, robot.kind):
        raise MismatchError(
            f"{episode.name}: actions are {_meaning(own)}, but {_meaning(robot)} in other episodes of {out}; "
            "expected the same: import them into another dataset."
        )
    return robot


def _meaning(robot: Embodiment) -> str:
    opened = [f"a gripper {one.opened:g} = open, {one.closed:g} = closed" for one in robot.grippers]
    return f"{type(robot.kind).__name__.lower()} with {' and '.join(opened) or 'no known gripper'}"


def _reason_to_skip(episode: RecordedEpisode, successes_only: bool) -> str:
    """Why an episode is left out; empty where it is not."""
    if not episode.frames:
        return "it has no frames"
    if not all(frame.get("instruction", episode.instruction).strip() for frame in episode.frames):
        return "it has no instruction"
    if not 0 < episode.fps <= 1000:
        return f"it declares {episode.fps} frames per second"
    if successes_only and episode.success is not True:
        return "it was no success"
    cameras = {tuple((name, image.shape) for name, image in frame["images"].items()) for frame in episode.frames}
    if len(cameras) > 1:
        return "its cameras or their sizes change"
    if len({safe_file_name(name) for name, _ in next(iter(cameras))}) < len(next(iter(cameras))):
        return "two of its cameras have names of which the same file name is made"
    for key in ("state", "action", "executed"):
        values = [np.asarray(frame.get(key, frame["action"])) for frame in episode.frames]
        if len({each.size for each in values}) > 1:
            return f"the width of its {key} changes"
        if not all(each.dtype.kind in "fiub" and np.isfinite(each).all() for each in values):
            return f"its {key} holds what are no finite numbers"
    try:
        _simulation(episode)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"what it keeps of its simulator is damaged ({str(error)[:100]})"
    return ""


def episode_data(episode: RecordedEpisode) -> EpisodeData:
    """Turns a recorded episode into columns.

    `action` is what the policy chose, in its units, which are those of what it was trained on; `action.executed` what was
    sent. `policy.call` counts the chunks, -1 before the first, and `policy.time` is when the frame was really taken [s since
    the episode's beginning].
    """
    frames = episode.frames
    columns: dict[str, np.ndarray] = {
        "observation.state": _column(frames, "state", np.float32),
        "action": _column(frames, "action", np.float32),
        "policy.call": np.array([frame.get("call", -1) for frame in frames], dtype=np.int64),
        "policy.time": np.array([frame["time_s"] for frame in frames], dtype=np.float64),
    }
    if not columns["observation.state"].shape[1]:
        del columns["observation.state"]
    executed = [frame.get("executed", frame["action"]) for frame in frames]
    columns["action.executed"] = np.stack(executed).astype(np.float32)
    images = {
        safe_file_name(camera): np.stack([frame["images"][camera] for frame in frames])
        for camera in frames[0]["images"]
    }
    extra: dict[str, Any] = {
        "success": episode.success,
        "complete": episode.complete,
        "recorder": {name: value for name, value in episode.metadata.items() if name != "simulator"},
    }
    texts = tuple(frame.get("instruction", episode.instruction) for frame in frames)
    changes = texts if len(set(texts)) > 1 else None
    simulation, described = _simulation(episode)
    return EpisodeData(
        frames=columns, images=images, task=texts[0], instructions=changes, extra=extra, simulation=simulation,
        simulation_metadata=described,
    )  # fmt: skip


def _simulation(episode: RecordedEpisode) -> tuple[dict[str, np.ndarray] | None, dict[str, str]]:
    """The states of the simulator in which an episode was recorded, from which `lamp flow build` computes exact scene flow.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: They are damaged.
    """
    names, frames = ("states", "body_poses"), episode.frames
    simulator = episode.metadata.get("simulator")
    if not simulator or not all(f"{SIMULATION}{name}" in frame.get("extra", {}) for frame in frames for name in names):
        return None, {}
    arrays = {name: np.stack([frame["extra"][f"{SIMULATION}{name}"] for frame in frames]) for name in names}
    arrays |= {f"model_{name}": np.array(value, np.float64) for name, value in simulator.get("model", {}).items()}
    height, width = next(iter(frames[0]["images"].values())).shape[:2]
    described = {**simulator, "image_size": [width, height], "mirrored": False}
    return arrays, {name: to_line(value) for name, value in described.items() if name != "model"}


def _column(frames: Iterable[dict[str, Any]], key: str, dtype: type[np.generic]) -> np.ndarray:
    return np.stack([np.asarray(frame[key], dtype=dtype).reshape(-1) for frame in frames])
