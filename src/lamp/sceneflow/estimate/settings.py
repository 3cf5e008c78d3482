"""Which estimators are asked for on the command line, and the chain that they make."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal

from lamp.errors import ConfigError, unknown
from lamp.sceneflow.estimate.chain import Chain, chain_named
from lamp.sceneflow.estimate.interfaces import Cameras, Depth
from lamp.sceneflow.estimate.learned.cameras import CAMERAS, LearnedCameras
from lamp.sceneflow.estimate.learned.depth import DEPTHS, LearnedDepth
from lamp.sceneflow.estimate.learned.model import LearnedModel, default_device, loaded
from lamp.sceneflow.estimate.learned.trackers import TRACKERS, LearnedTracker
from lamp.sceneflow.estimate.robot import RobotTracker


@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """Which estimators are used."""

    chain: str = "rgbd"
    """How scene flow is estimated: rgbd, or rgbd_precise, which is slower. Neither needs weights."""
    tracker: str | None = None
    """A learned tracker in place of the chain's own: cotracker3 (non-commercial), bootstapir, tapnextpp or alltracker."""
    tracker_weights: str | None = None
    """Its weights: a file, a folder or a hub id; by default those of its authors."""
    depth_model: str | None = None
    """A learned depth for clips without depth: depth_anything_v2, da3_metric or moge2."""
    depth_weights: str | None = None
    """Likewise."""
    camera_model: str | None = None
    """Learned cameras where calibration or poses are unknown: da3 or moge2."""
    camera_weights: str | None = None
    """Likewise."""
    robot: Literal["no", "with", "only"] = "no"
    """Whether points on the robot move as its joint states and URDF say: not; they do, and other points as the chain finds; or
    they do, and others are not known."""
    device: str | None = None
    """Where learned estimators compute: cpu, cuda:0 ...; by default a GPU if there is one."""

    def models(self) -> tuple[tuple[LearnedModel, str | None], ...]:
        """The learned models that are asked for, with their weights.

        Raises:
            ConfigError: One is unknown, or weights are given for none.
        """
        kinds = (
            ("tracker", TRACKERS, self.tracker, self.tracker_weights),
            ("depth model", DEPTHS, self.depth_model, self.depth_weights),
            ("camera model", CAMERAS, self.camera_model, self.camera_weights),
        )
        chosen = []
        for kind, known, name, weights in kinds:
            if name is None and weights is not None:
                raise ConfigError(f"weights {weights} are given, and no {kind}; expected one of {', '.join(known)}")
            if name is not None and name not in known:
                raise unknown(kind, name, known)
            if name is not None:
                chosen.append((known[name], weights))
        return tuple(chosen)

    def make_chain(self) -> Chain:
        """The chain of these estimators; nothing is loaded yet.

        Raises:
            ConfigError: One has no such name.
        """
        chain, device = chain_named(self.chain), self.device or default_device()
        self.models()
        depth: Depth = chain.depth
        cameras: Cameras = chain.cameras
        tracker = chain.tracker
        if self.depth_model is not None:
            depth = LearnedDepth(model=DEPTHS[self.depth_model], weights=self.depth_weights, device=device)
        if self.camera_model is not None:
            cameras = LearnedCameras(model=CAMERAS[self.camera_model], weights=self.camera_weights, device=device)
        if self.tracker is not None:
            tracker = LearnedTracker(model=TRACKERS[self.tracker], weights=self.tracker_weights, device=device)
        if self.robot == "only":
            return replace(chain, name="robot", depth=depth, cameras=cameras, tracker=RobotTracker())
        if self.robot == "with":
            tracker = RobotTracker(others=tracker)
        cameras_name = self.camera_model and f"{self.camera_model}_cameras"
        parts = (self.chain, self.tracker, self.depth_model, cameras_name, "robot" if self.robot == "with" else None)
        name = "+".join(filter(None, parts))
        return replace(chain, name=name, depth=depth, cameras=cameras, tracker=tracker)

    def prepare(self) -> None:
        """Says the licences of the learned models, and loads each once, so that what is missing is said before any work.

        Raises:
            LampError: A package, weights or a device is missing.
        """
        for model, weights in self.models():
            print(model.notice, file=sys.stderr)
            loaded(model, weights, self.device or default_device())
