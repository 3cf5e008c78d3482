"""How far what a policy foresaw is from what then happened, episode by episode: is the prior better where the policy succeeds?

The truth is exact scene flow of the evaluated episode itself, computed after it from the simulator's states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamp.errors import ConfigError
from lamp_client.envs import Simulator, StepResult
from lamp_client.types import Observation


@dataclass(frozen=True, kw_only=True)
class FlowProbe:
    """The scene flow that a policy foresees."""

    camera: str
    grid: tuple[int, int]
    """Rows and columns of keypoints."""
    horizon: int
    stride: int
    """Simulation steps a flow step."""
    hidden_points: bool = False
    """Whether steps that begin or end hidden count."""


class FlowRecorder:
    """A simulator that remembers every state it was in, and passes everything else on.

    Raises:
        ConfigError: The simulator does not give its states away.
    """

    def __init__(self, simulator: Simulator) -> None:
        if not all(hasattr(simulator, name) for name in ("snapshot", "simulation", "model_poses", "camera_names")):
            raise ConfigError("flow errors need a simulator that tells its states; expected one of LIBERO's suites")
        self._simulator: Any = simulator
        self.snapshots: list[Any] = [self._simulator.snapshot()]
        self.foreseen: list[tuple[int, np.ndarray]] = []
        """The step at which each foresight (k, t + 1, 3) was had."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)

    def observe(self) -> Observation:
        return self._simulator.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Executes an action and remembers where that led."""
        result = self._simulator.step(action)
        self.snapshots.append(self._simulator.snapshot())
        return result

    def note(self, foresight: np.ndarray | None) -> None:
        """Keeps what was foreseen at the present step."""
        if foresight is not None:
            self.foreseen.append((len(self.snapshots) - 1, foresight))

    def errors(self, probe: FlowProbe, *, image_size: int = 256) -> dict[str, float | int | None]:
        """Mean path errors over the points that moved, of the foresight and of no motion at all [px of a 256-px image]."""
        from lamp.sceneflow.sim_states import Playback, Recording

        states = np.stack([snapshot.state for snapshot in self.snapshots])
        poses = np.stack([snapshot.body_poses for snapshot in self.snapshots])
        position, rotation = self._simulator.model_poses()
        recording = Recording(
            states=states, body_poses=poses, model_body_pos=position, model_body_quat=rotation, metadata={}
        )
        model = self._simulator.simulation[0]
        camera = self._simulator.camera_names[probe.camera]
        return _measured(Playback(model, recording), camera, probe, self.foreseen, image_size)


def _measured(
    playback: Any, camera: str, probe: FlowProbe, foreseen: Sequence[tuple[int, np.ndarray]], image_size: int
) -> dict[str, float | int | None]:
    import torch

    from lamp.sceneflow.exact_flow import RayCast, Sampling, episode_flow
    from lamp.sceneflow.rendering import BodyDepthRenderer
    from lamp.sceneflow.tracks import flow_from_tracks
    from lamp.train.flow_metrics import PathErrorSums
    from lamp.types import SceneFlow

    sums = PathErrorSums()
    sampling = Sampling(grid=probe.grid, horizon=probe.horizon, stride=probe.stride)
    # Collision shapes (group 0) are not drawn.
    with BodyDepthRenderer(
        playback.model, width=image_size, height=image_size, mirrored=True, geom_groups=(1, 2)
    ) as renderer:
        true = episode_flow(playback, renderer, camera, [step for step, _ in foreseen], sampling, RayCast())
        for (_, foresight), (tracks, seen_from) in zip(foreseen, true, strict=True):
            flow = flow_from_tracks(tracks, seen_from)
            flow = SceneFlow(
                start=flow.start[None],
                increments=flow.increments[None],
                visible=flow.visible[None],
                mask=flow.mask[None],
                camera=_alone(seen_from),
            )
            path = torch.from_numpy(foresight)[None]
            sums.add(flow, {"foresight": path.diff(dim=2), "zero_motion": torch.zeros_like(flow.increments)})
    if not foreseen:
        return {"queries": 0, "points": 0, "ade_px": None, "zero_motion_ade_px": None}
    found = sums.means("foresight", moving=True)
    still = sums.means("zero_motion", moving=True)
    return {
        "queries": len(foreseen),
        "points": found.points,
        "ade_px": _rounded(found.ade_px),
        "zero_motion_ade_px": _rounded(still.ade_px),
    }


def _alone(camera: Any) -> Any:
    from lamp.types import Camera

    return Camera(intrinsics=camera.intrinsics[None], world_from_cam=camera.world_from_cam[None])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def of_episode(extra: Mapping[str, Any]) -> tuple[float, float] | None:
    """(error, error of no motion) of an episode line's `extra`; None where nothing was measured or nothing moved."""
    measured = extra.get("flow") or {}
    error, still = measured.get("ade_px"), measured.get("zero_motion_ade_px")
    return None if error is None or still is None else (error, still)
