"""The oracle in an evaluation: the true motion to come, as the suite's scripted expert would make it from the present state.

A second simulator is put into the very state of the evaluated one and the expert acts there for the horizon; what is evaluated is
not touched. The expert sees everything that happens in the episode, as if it had acted itself, so that it knows what it was about
to do; where the policy holds the object by a grasp of its own, the expert carries it on.
"""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32

from lamp.benchmark.flow_errors import FlowProbe
from lamp.collect.episode_recording import HOLD
from lamp.collect.expert import Expert
from lamp.collect.pick_and_place import CLOSE, OPEN
from lamp.collect.scene_state import LiberoScene
from lamp_client.envs import Simulator, StepResult
from lamp_client.types import Observation


class Lookahead:
    """Says what the expert would make of a simulator's present state. Holds an OpenGL context: `close` it.

    Args:
        twin: Another simulator of the same task; it becomes this one's.
        probe: The scene flow that is asked for.
    """

    def __init__(self, twin: Simulator, probe: FlowProbe) -> None:
        from lamp.sceneflow.rendering import BodyDepthRenderer

        self.probe, self._twin = probe, _told(twin)
        size = self._twin.image_size
        # Collision shapes (group 0) are not drawn.
        self._renderer = BodyDepthRenderer(
            self._twin.simulation[0], width=size, height=size, mirrored=True, geom_groups=(1, 2)
        )

    def follow(self, simulator: Simulator, initial_state: int, placement_seed: int | None) -> FollowedSimulator:
        """Follows a simulator that has just been reset to this state, which it goes to as well: fixtures and cameras are the
        same then."""
        self._twin.reset(initial_state, placement_seed)
        if self._twin.simulation[0] is not self._renderer.model:
            raise RuntimeError("a reset has built another model; expected the one that is rendered")
        self._scene = _scene(self._twin)
        return FollowedSimulator(simulator, self)

    def flow(self, simulator: Any, expert: Expert, held: int) -> Float32[np.ndarray, "k t 3"]:
        """Increments of the scene flow from the present state on, in fractions of the image and metres; NaN where not known.

        Args:
            simulator: The one that is evaluated.
            expert: What the expert remembers before it has looked at this state.
            held: Steps for which it has been done.
        """
        from lamp.sceneflow.exact_flow import RayCast, Sampling, episode_flow
        from lamp.sceneflow.sim_states import Playback, Recording
        from lamp.sceneflow.tracks import Supervision, flow_from_tracks

        twin, probe = self._twin, self.probe
        twin.copy_state(simulator)
        ahead = copy.copy(expert)
        ahead.scene = self._scene
        snapshots = [twin.snapshot()]
        # As long as a recorded episode would go on: what lies beyond its end is unknown there, too.
        while len(snapshots) <= probe.horizon * probe.stride:
            twin.step(ahead.decide().action)
            held = held + 1 if ahead.done else 0
            if held >= HOLD:
                break
            snapshots.append(twin.snapshot())
        position, rotation = twin.model_poses()
        recording = Recording(
            states=np.stack([snapshot.state for snapshot in snapshots]),
            body_poses=np.stack([snapshot.body_poses for snapshot in snapshots]),
            model_body_pos=position,
            model_body_quat=rotation,
            metadata={},
        )
        sampling = Sampling(grid=probe.grid, horizon=probe.horizon, stride=probe.stride)
        playback, camera = Playback(twin.simulation[0], recording), twin.camera_names[probe.camera]
        tracks, seen_from = next(episode_flow(playback, self._renderer, camera, [0], sampling, RayCast()))
        found = flow_from_tracks(tracks, seen_from, supervision=Supervision(hidden_points=probe.hidden_points))
        return np.where(found.mask.numpy(), found.increments.numpy(), np.nan).astype(np.float32)

    def close(self) -> None:
        """Frees the simulator and its renderer."""
        self._renderer.close()
        self._twin.close()

    def __enter__(self) -> Lookahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FollowedSimulator:
    """A simulator whose expert watches what a policy does, and knows the motion to come; it passes everything else on.

    Args:
        simulator: What is evaluated, as it has just been reset.
        lookahead: Has been reset alike.
    """

    def __init__(self, simulator: Simulator, lookahead: Lookahead) -> None:
        self._simulator, self._lookahead = _told(simulator), lookahead
        self._expert = Expert(_scene(self._simulator))
        self._command, self._held = OPEN, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)

    def observe(self) -> Observation:
        return self._simulator.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Lets the expert look, as it does before an action of its own, and executes the policy's."""
        self._expert.follow(closing=self._command == CLOSE)
        self._command = CLOSE if action[-1] > 0 else OPEN
        result = self._simulator.step(action)
        self._held = self._held + 1 if self._expert.done else 0
        return result

    def flow(self) -> Float32[np.ndarray, "k t 3"]:
        """What the expert would make of the present state."""
        return self._lookahead.flow(self._simulator, self._expert_now(), self._held)

    def _expert_now(self) -> Expert:
        """The expert before it has looked, but for a grasp that is the policy's own."""
        expert = copy.copy(self._expert)
        expert.recognise_grasp(closing=self._command == CLOSE)
        return expert


def _scene(simulator: Any) -> LiberoScene:
    model, data = simulator.simulation
    return LiberoScene(model, data, simulator.robosuite)


def _told(simulator: Any) -> Any:
    """The simulator itself.

    Raises:
        TypeError: It does not give its state away.
    """
    for name in ("copy_state", "snapshot", "simulation", "robosuite", "model_poses", "camera_names"):
        if not hasattr(simulator, name):
            raise TypeError(f"an oracle needs a simulator that tells its state, and this one has no {name}")
    return simulator
