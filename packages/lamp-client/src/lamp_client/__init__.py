"""Talks to a LaMP policy from any simulator's or robot's environment: NumPy, msgpack and websockets only."""

from lamp_client.chunks import OpenLoop, Replan, SimilarityEnsemble, TemporalEnsemble
from lamp_client.client import InProcessPolicy, Policy, WebsocketPolicy
from lamp_client.errors import LampClientError
from lamp_client.rollout import EpisodeResult, Frame, run_episode
from lamp_client.types import ActionChunk, Observation

__all__ = [
    "ActionChunk",
    "EpisodeResult",
    "Frame",
    "InProcessPolicy",
    "LampClientError",
    "Observation",
    "OpenLoop",
    "Policy",
    "Replan",
    "SimilarityEnsemble",
    "TemporalEnsemble",
    "WebsocketPolicy",
    "run_episode",
]
