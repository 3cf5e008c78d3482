"""Recordings of `lamp_client.recording` made LeRobot datasets: what a robot saw and did, ready for training or looking at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamp.data.episodes import EpisodeData
from lamp.data.lerobot_writer import LeRobotWriter
from lamp.errors import ConfigError, DataError
from lamp_client.recording import RecordedEpisode, read_episode, recorded_names


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was made of a recording."""

    episodes: int
    """In the dataset that are new."""
    frames: int
    skipped: tuple[str, ...]
    """Names of episodes that were left out, with the reason."""


def import_recording(
    recording: Path,
    out: Path,
    *,
    robot_type: str = "panda",
    successes_only: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Adds a recording's episodes to a LeRobot dataset, which is made where there is none.

    Episodes that are in the dataset already, by name, are left as they are, so the same command goes on after an interruption
    and takes up what was recorded since.

    Args:
        recording: The recorder's folder.
        out: The dataset's folder.
        robot_type: As written in the dataset's description.
        successes_only: Leave out episodes that nobody called a success.
        progress: Told how many episodes of how many have been read.

    Raises:
        DataError: There is nothing to import.
        ConfigError: Episodes were recorded at different frame rates.
        MismatchError: Episodes differ in cameras, sizes, or widths of state and action.
    """
    names = recorded_names(recording)
    if not names:
        raise DataError(
            f"{recording} holds no recorded episodes; expected files that lamp_client.recording.Recorder wrote"
        )
    writer: LeRobotWriter | None = None
    skipped, frames, known = list[str](), 0, set[str]()
    for number, name in enumerate(names):
        episode = read_episode(recording, name)
        reason = _unfit(episode, successes_only)
        if reason:
            skipped.append(f"{name}: {reason}")
            continue
        fps = round(episode.fps)
        if abs(fps - episode.fps) > 1e-6 or fps < 1:
            raise ConfigError(
                f"{name} was recorded at {episode.fps} frames per second; a dataset needs a whole number."
            )
        if writer is None:
            writer = LeRobotWriter(out, fps=fps, robot_type=robot_type)
            known = writer.names()
        if fps != writer.wanted.fps:
            raise ConfigError(f"{name} was recorded at {fps} frames per second, others at {writer.wanted.fps}.")
        if name not in known:
            writer.add_episode(episode_data(episode), name)
            frames += len(episode.frames)
        progress(number + 1, len(names))
    if writer is None:
        raise DataError(f"no episode of {recording} can be imported: {'; '.join(skipped[:4])}")
    added = writer.finalize({"recorded": "lamp_client.recording"})
    return Imported(episodes=added, frames=frames, skipped=tuple(skipped))


def _unfit(episode: RecordedEpisode, successes_only: bool) -> str:
    """Why an episode is left out; empty where it is not."""
    if not episode.frames:
        return "it has no frames"
    if not episode.instruction:
        return "it has no instruction"
    if successes_only and episode.success is not True:
        return "it was no success"
    cameras = {tuple((name, image.shape) for name, image in frame["images"].items()) for frame in episode.frames}
    return "" if len(cameras) == 1 else "its cameras or their sizes change"


def episode_data(episode: RecordedEpisode) -> EpisodeData:
    """Turns a recorded episode into columns.

    `action` is what the policy chose, in its units; `action.executed` what was sent. `policy.call` counts the chunks, -1 before
    the first, and `policy.time` is when the frame was really taken [s since the episode's beginning].
    """
    frames = episode.frames
    columns: dict[str, np.ndarray] = {
        "observation.state": _stacked(frames, "state", np.float32),
        "action": _stacked(frames, "action", np.float32),
        "policy.call": np.array([frame.get("call", -1) for frame in frames], dtype=np.int64),
        "policy.time": np.array([frame["time_s"] for frame in frames], dtype=np.float64),
    }
    if not columns["observation.state"].shape[1]:
        del columns["observation.state"]
    executed = [frame.get("executed", frame["action"]) for frame in frames]
    columns["action.executed"] = np.stack(executed).astype(np.float32)
    images = {camera: np.stack([frame["images"][camera] for frame in frames]) for camera in frames[0]["images"]}
    extra: dict[str, Any] = {
        "success": episode.success,
        "complete": episode.complete,
        "recorder": dict(episode.metadata),
    }
    return EpisodeData(frames=columns, images=images, task=episode.instruction, extra=extra)


def _stacked(frames: Iterable[dict[str, Any]], key: str, dtype: type[np.generic]) -> np.ndarray:
    return np.stack([np.asarray(frame[key], dtype=dtype).reshape(-1) for frame in frames])
