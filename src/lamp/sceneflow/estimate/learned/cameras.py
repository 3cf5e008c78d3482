"""Learned cameras: calibration, and paths, about which nothing is recorded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lamp.errors import DataError
from lamp.sceneflow.estimate.cameras import RecordedCameras
from lamp.sceneflow.estimate.interfaces import CameraPath, Clip, DepthMaps, check_intrinsics
from lamp.sceneflow.estimate.learned.depth import DA3_METRIC, MOGE2, da3_network, moge_intrinsics, normalised
from lamp.sceneflow.estimate.learned.model import LearnedModel, Licence, default_device, device_of, loaded
from lamp.sceneflow.estimate.rigid import inverse


def _run_moge_cameras(model: Any, clip: Clip, depth: DepthMaps) -> tuple[np.ndarray, np.ndarray | None]:
    return moge_intrinsics(model, clip), None


MOGE2_CAMERAS = replace(MOGE2, run=_run_moge_cameras)


def _run_da3_cameras(model: Any, clip: Clip, depth: DepthMaps) -> tuple[np.ndarray, np.ndarray | None]:
    """Focal lengths and poses of all frames at once; their scale is that of the depth, where there is any."""
    images = normalised(clip.rgb, 504 if len(clip) <= 16 else 224, device_of(model))
    out = model(images[None])
    own = out["depth"][0].float().cpu().numpy()
    pixels = out["intrinsics"][0].double().cpu().numpy()
    cam_from_world = np.tile(np.eye(4), (len(clip), 1, 1))
    cam_from_world[:, :3] = out["extrinsics"][0, :, :3].double().cpu().numpy()
    world_from_cam = inverse(cam_from_world)
    poses = inverse(world_from_cam[:1]) @ world_from_cam
    metres = functional.interpolate(torch.from_numpy(depth.metres)[:, None], own.shape[1:], mode="nearest")[
        :, 0
    ].numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = metres / own
    known = ratio[np.isfinite(ratio) & (own > 0)]
    if len(known) < 100:
        raise DataError(
            f"{clip.name}: Depth Anything 3 finds the camera's path up to its scale, and there is no depth to scale it by; add a "
            "depth model (--depth-model) or use recorded depth"
        )
    poses[:, :3, 3] *= np.median(known)
    focal = np.median(pixels[:, [0, 1], [0, 1]], axis=0) / [images.shape[3], images.shape[2]]
    return np.array([[focal[0], 0, 0.5], [0, focal[1], 0.5], [0, 0, 1]]), poses


DA3_CAMERAS = replace(
    DA3_METRIC,
    name="da3",
    title="Depth Anything 3",
    licence=Licence(text="Apache-2.0 for Small and Base; its Large and Giant weights are CC BY-NC 4.0"),
    weights="depth-anything/DA3-BASE",
    get="hf download depth-anything/DA3-BASE --local-dir DIR",
    load=lambda path: da3_network(DA3_CAMERAS, path, "da3-base"),
    run=_run_da3_cameras,
)

CAMERAS = {model.name: model for model in (DA3_CAMERAS, MOGE2_CAMERAS)}


@dataclass(frozen=True, kw_only=True)
class LearnedCameras:
    """Calibration, and with Depth Anything 3 the path, of cameras about which nothing is recorded; what is, is passed on."""

    model: LearnedModel
    weights: str | None = None
    device: str = field(default_factory=default_device)
    known: RecordedCameras = field(default_factory=RecordedCameras)

    def cameras(self, clip: Clip, depth: DepthMaps) -> CameraPath:
        """The camera at every frame.

        Raises:
            DataError: Its path cannot be found.
        """
        posed = clip.world_from_cam is not None or clip.fixed_camera is True
        if clip.intrinsics is not None and (posed or self.model.name != DA3_CAMERAS.name):
            return self.known.cameras(clip, depth)
        network = loaded(self.model, self.weights, self.device)
        with torch.inference_mode():
            found, poses = self.model.run(network, clip, depth)
        intrinsics = found if clip.intrinsics is None else clip.intrinsics
        check_intrinsics(intrinsics, f"{clip.name}, by {self.model.title},")
        if posed or poses is None:
            return self.known.cameras(replace(clip, intrinsics=intrinsics), depth)
        return CameraPath(intrinsics=intrinsics, world_from_cam=poses, fixed=False)
