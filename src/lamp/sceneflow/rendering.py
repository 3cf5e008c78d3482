"""The simulators that recordings were made in, and a rendering pass that gives every pixel's body and depth."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamp.errors import ConfigError, DataError, MissingDependencyError
from lamp.geometry import intrinsics_from_fovy, pose_from_mujoco_camera
from lamp.sceneflow.bounding_boxes import boxes, outlines
from lamp.types import Camera
from lamp_client.envs.rendering import import_mujoco

MjModel: TypeAlias = Any
MjData: TypeAlias = Any
"""`mujoco.MjModel` and `mujoco.MjData`; MuJoCo is imported only when it is used."""

NO_BODY = -1


@dataclass(frozen=True, kw_only=True)
class View:
    """What a camera sees at one moment, in the orientation of the policy's images."""

    depth: Float[Tensor, "h w"]
    """m along the optical axis; infinite where there is no geometry."""
    body: Int[Tensor, "h w"]
    """MuJoCo body id, `NO_BODY` where there is no geometry."""
    camera: Camera


def camera_id(model: MjModel, name: str) -> int:
    """Index of a camera.

    Raises:
        ConfigError: The model has no such camera.
    """
    names = [model.camera(index).name for index in range(model.ncam)]
    if name not in names:
        raise ConfigError(f"unknown camera {name!r} in the simulation; known: {', '.join(names) or 'none'}")
    return names.index(name)


def camera_intrinsics(model: MjModel, name: str, width: int, height: int, *, mirrored: bool) -> Float[Tensor, "3 3"]:
    """Intrinsics of a model's camera in image fractions."""
    fovy = float(model.cam_fovy[camera_id(model, name)])
    return intrinsics_from_fovy(fovy, width, height, mirrored=mirrored)


def camera_pose(data: MjData, index: int) -> Float[Tensor, "4 4"]:
    """``world_from_cam`` of a camera in the present state."""
    position = torch.from_numpy(data.cam_xpos[index].copy())
    return pose_from_mujoco_camera(position, torch.from_numpy(data.cam_xmat[index].reshape(3, 3).copy()))


class BodyDepthRenderer:
    """Renders body ids and depth in one pass, without the multisampling that would blend ids.

    Use as a context manager, or call `close`: it holds an OpenGL context.
    """

    def __init__(
        self, model: MjModel, *, width: int, height: int, mirrored: bool, geom_groups: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        mujoco = self._mujoco = import_mujoco()
        self.model, self.width, self.height, self.mirrored = model, width, height, mirrored
        self.geom_groups = geom_groups
        self.near = float(model.vis.map.znear * model.stat.extent)
        self._far = float(model.vis.map.zfar * model.stat.extent)
        self._gl = _gl_context(mujoco, width, height)
        with _plain_offscreen_buffer(model, width, height):
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=2 * model.ngeom + 1000)
        self._options = mujoco.MjvOption()
        self.ray_groups = np.array([group in geom_groups for group in range(len(self._options.geomgroup))], np.uint8)
        self._options.geomgroup[:] = self.ray_groups
        for decoration in (self._options.sitegroup, self._options.tendongroup, self._options.actuatorgroup):
            decoration[:] = 0
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._colours = np.empty((height, width, 3), np.uint8)
        self._depth = np.empty((height, width), np.float32)

    def render(self, data: MjData, camera: str, world_from_cam: Float[Tensor, "4 4"] | None = None) -> View:
        """Renders the present state through a camera of the model, or through the same camera held at another pose."""
        mujoco, scene = self._mujoco, self._scene
        index = camera_id(self.model, camera)
        intrinsics = camera_intrinsics(self.model, camera, self.width, self.height, mirrored=self.mirrored)
        pose = camera_pose(data, index) if world_from_cam is None else world_from_cam
        looking = Camera(intrinsics=intrinsics, world_from_cam=pose)
        eye = mujoco.MjvCamera()
        eye.type, eye.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
        with self._nothing_beside(data, looking):
            mujoco.mjv_updateScene(self.model, data, self._options, None, eye, mujoco.mjtCatBit.mjCAT_ALL, scene)
        if world_from_cam is not None:
            _hold(scene, world_from_cam)
        scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        self._gl.make_current()
        mujoco.mjr_render(self._rect, scene, self._context)
        mujoco.mjr_readPixels(self._colours, self._depth, self._rect, self._context)
        body = self._upright(self._bodies())
        depth = torch.where(body == NO_BODY, torch.inf, self._upright(self._metres()))
        return View(depth=depth, body=body, camera=looking)

    def close(self) -> None:
        """Frees the OpenGL context; further calls do nothing."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None

    def __enter__(self) -> BodyDepthRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _nothing_beside(self, data: MjData, camera: Camera) -> Iterator[None]:
        """Leaves geoms that are wholly outside the image out of a scene, for every one costs its vertices; pixels stay the same.

        They are put into a group that is not drawn, if there is one, and back.
        """
        groups, before = self.model.geom_group, self.model.geom_group.copy()
        around = boxes(self.model, np.arange(self.model.ngeom), data.geom_xpos[None], data.geom_xmat[None])
        seen = outlines(around.corners, camera, nearest=self.near).in_image[0]
        try:
            if not self.ray_groups.all():
                groups[~seen] = self.ray_groups.argmin()
            yield
        finally:
            groups[:] = before

    def _upright(self, buffer: np.ndarray) -> Tensor:
        """Turns a bottom-up buffer into the policy's image: upright, and mirrored where the images are."""
        return torch.from_numpy(np.ascontiguousarray(buffer[::-1, ::-1] if self.mirrored else buffer[::-1]))

    def _metres(self) -> np.ndarray:
        """Depth in m from the buffer, which is 1 at the near plane and 0 at the far plane."""
        near, far = self.near, self._far
        return (near * far / (self._depth.astype(np.float64) * (far - near) + near)).astype(np.float32)

    def _bodies(self) -> np.ndarray:
        """Body ids from the colours, which hold the drawn object's number plus one."""
        scene = self._scene
        numbers = self._colours.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
        body_of = np.full(scene.ngeom + 1, NO_BODY, np.int32)
        for drawn in scene.geoms[: scene.ngeom]:
            if drawn.segid >= 0 and drawn.objtype == self._mujoco.mjtObj.mjOBJ_GEOM:
                body_of[drawn.segid + 1] = self.model.geom_bodyid[drawn.objid]
        return body_of[np.where(numbers <= scene.ngeom, numbers, 0)]


def _hold(scene: Any, world_from_cam: Tensor) -> None:
    """Puts the scene's camera (both eyes of it) at a pose of ours."""
    pose = world_from_cam.numpy()
    for eye in scene.camera:
        eye.pos[:], eye.forward[:], eye.up[:] = pose[:3, 3], pose[:3, 2], -pose[:3, 1]


def _gl_context(mujoco: Any, width: int, height: int) -> Any:
    try:
        context = mujoco.GLContext(width, height)
        context.make_current()
    except Exception as error:
        raise MissingDependencyError(
            f"no OpenGL context with MUJOCO_GL={os.environ.get('MUJOCO_GL')} ({error}); "
            "run `apt-get install libosmesa6 libegl1 libgl1-mesa-dri` or set MUJOCO_GL to egl or osmesa"
        ) from None
    return context


@contextmanager
def _plain_offscreen_buffer(model: MjModel, width: int, height: int) -> Iterator[None]:
    """Asks for a single-sampled offscreen buffer of this size while a context is made; the model is left as it was."""
    quality, shape = model.vis.quality, model.vis.global_
    before = quality.offsamples, quality.shadowsize, shape.offwidth, shape.offheight
    try:
        quality.offsamples, quality.shadowsize, shape.offwidth, shape.offheight = 0, 0, width, height
        yield
    finally:
        quality.offsamples, quality.shadowsize, shape.offwidth, shape.offheight = before


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A simulator's model and how the dataset's images show it."""

    model: MjModel
    cameras: Mapping[str, str]
    """MuJoCo's name for each of the dataset's cameras."""
    geom_groups: tuple[int, ...] = (0, 1, 2)
    """Groups of geoms that the images show."""


LoadScene = Callable[[Mapping[str, Any]], Scene]
"""Builds the simulator of a recording from its metadata."""


def load_libero_scene(metadata: Mapping[str, Any]) -> Scene:
    """The model of a LIBERO task; collision shapes (group 0) are not drawn.

    Raises:
        DataError: The metadata name no task.
        LampClientError: The task does not exist, or LIBERO is not installed.
    """
    from lamp_client.envs.libero import LiberoEnv, load_task

    if "suite" not in metadata or "task" not in metadata:
        raise DataError(
            f"a recorded simulation names no suite and task in its metadata {dict(metadata)}; collect it again"
        )
    env = LiberoEnv(load_task(metadata["suite"], metadata["task"]))
    return Scene(model=env.simulation[0], cameras=env.camera_names, geom_groups=(1, 2))
