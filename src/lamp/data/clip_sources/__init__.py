"""Where clips come from: LeRobot datasets (InternData-A1 among them), folders of videos or images with depth, raw trajectories of
BridgeData V2 and DROID, and RealSense recordings."""

from __future__ import annotations

from pathlib import Path

from lamp.data.clip_sources.droid import DroidSource
from lamp.data.clip_sources.folders import VIDEOS, FolderSource
from lamp.data.clip_sources.lerobot import LeRobotCollection, LeRobotSource
from lamp.data.clip_sources.realsense import BAGS, RealSenseSource
from lamp.data.clip_sources.source import ClipReader, ClipSource, SourceSettings
from lamp.errors import DataError, missing

__all__ = [
    "ClipReader",
    "ClipSource",
    "DroidSource",
    "FolderSource",
    "LeRobotCollection",
    "LeRobotSource",
    "RealSenseSource",
    "SourceSettings",
    "find_source",
]


def find_source(path: Path, settings: SourceSettings) -> ClipSource:
    """The source in a folder, or the one recording in a file, by what lies there.

    Raises:
        ConfigError: It has not the camera or depth that was asked for.
        DataError: There is nothing to read clips from.
    """
    if (path / "meta" / "info.json").is_file():
        return LeRobotSource(path, settings)
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return FolderSource(path.parent, settings, only=path)
    if path.is_file() and path.suffix.lower() in BAGS:
        return RealSenseSource(path, settings)
    if not path.is_dir():
        raise missing(
            path,
            "source",
            "a folder of recordings, a video, or a RealSense recording",
            folder=True,
        )
    if datasets := sorted(info.parent.parent for info in path.glob("**/meta/info.json")):
        return LeRobotCollection(path, datasets, settings)
    if any(path.glob("**/metadata_*.json")):
        return DroidSource(path, settings)
    if any(file.suffix in BAGS for file in path.rglob("*")):
        return RealSenseSource(path, settings)
    if archives := sorted(path.glob("**/*.tar.gz")):
        raise DataError(
            f"{path} holds {len(archives)} archives, such as {archives[0].name}, and nothing else that can be read; unpack them "
            f"first: cd {archives[0].parent} && tar -xzf {archives[0].name}"
        )
    return FolderSource(path, settings)
