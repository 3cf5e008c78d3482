"""The small scene, played back and rendered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flow_scene import load_scene, motion, record

from lamp.sceneflow.rendering import BodyDepthRenderer
from lamp.sceneflow.sim_states import Playback


@pytest.fixture(scope="session")
def playback() -> Playback:
    """24 frames in which everything but the table and one box moves, after four frames of rest."""
    return Playback(load_scene({"task": 0}).model, record(motion(24)))


@pytest.fixture(scope="session")
def renderer(playback: Playback) -> Iterator[BodyDepthRenderer]:
    with BodyDepthRenderer(playback.model, width=256, height=256, mirrored=True) as made:
        yield made
