"""Talks to a LaMP policy from any simulator's or robot's environment: NumPy, msgpack and websockets only."""

from lamp_client.asynchronous import Asynchronous, RealTime
from lamp_client.chunks import OpenLoop, Replan, SimilarityEnsemble, TemporalEnsemble
from lamp_client.client import InProcessPolicy, Policy, WebsocketPolicy
from lamp_client.control import Robot, drive
from lamp_client.errors import LampClientError
from lamp_client.recording import Recorder
from lamp_client.rollout import EpisodeResult, Frame, run_episode
from lamp_client.types import ActionChunk, Committed, GripperUnits, Observation

__all__ = [
    "ActionChunk",
    "Asynchronous",
    "Committed",
    "EpisodeResult",
    "Frame",
    "GripperUnits",
    "InProcessPolicy",
    "LampClientError",
    "Observation",
    "OpenLoop",
    "Policy",
    "RealTime",
    "Recorder",
    "Replan",
    "Robot",
    "SimilarityEnsemble",
    "TemporalEnsemble",
    "WebsocketPolicy",
    "drive",
    "run_episode",
]
