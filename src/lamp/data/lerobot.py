"""LeRobot v3.0 datasets, read and written."""

from lamp.data.consolidation import FileSizes
from lamp.data.episode_table import Episode
from lamp.data.episodes import EpisodeData, recorded_names, stage_episode, staged_names
from lamp.data.lerobot_format import Feature
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.data.lerobot_writer import LeRobotWriter

__all__ = [
    "Episode",
    "EpisodeData",
    "Feature",
    "FileSizes",
    "LeRobotDataset",
    "LeRobotWriter",
    "recorded_names",
    "stage_episode",
    "staged_names",
]
