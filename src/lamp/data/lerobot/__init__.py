"""LeRobot v3.0 datasets, read and written."""

from lamp.data.lerobot.episodes import EpisodeMetadata
from lamp.data.lerobot.format import Feature
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.staging import EpisodeData, recorded_names, stage_episode, staged_names
from lamp.data.lerobot.writer import FileSizes, LeRobotWriter

__all__ = [
    "EpisodeData",
    "EpisodeMetadata",
    "Feature",
    "FileSizes",
    "LeRobotDataset",
    "LeRobotWriter",
    "recorded_names",
    "stage_episode",
    "staged_names",
]
