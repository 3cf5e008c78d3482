"""The simulators that recordings were made in, and a rendering pass that gives every pixel's body and depth.

What is outside the outline of a geom's bounding box cannot meet the geom, so that neither drawing nor rays need consider it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamp.errors import ConfigError, DataError, MissingDependencyError
from lamp.geometry import intrinsics_from_fovy, pose_from_mujoco_camera
from lamp.types import Camera
from lamp_client.envs.rendering import import_mujoco

MjModel: TypeAlias = Any
MjData: TypeAlias = Any
"""`mujoco.MjModel` and `mujoco.MjData`; MuJoCo is imported only when it is used."""

NO_BODY = -1


@dataclass(frozen=True, kw_only=True)
class RenderedView:
    """Depth and bodies as a camera sees them at one moment, in the orientation of the policy's images."""

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

    def render(self, data: MjData, camera: str, world_from_cam: Float[Tensor, "4 4"] | None = None) -> RenderedView:
        """Renders the present state through a camera of the model, or through the same camera held at another pose."""
        mujoco, scene = self._mujoco, self._scene
        index = camera_id(self.model, camera)
        fovy = float(self.model.cam_fovy[index])
        intrinsics = intrinsics_from_fovy(fovy, self.width, self.height, mirrored=self.mirrored)
        position, rotation = (torch.from_numpy(array[index].copy()) for array in (data.cam_xpos, data.cam_xmat))
        present = pose_from_mujoco_camera(position, rotation.reshape(3, 3))
        viewpoint = Camera(intrinsics=intrinsics, world_from_cam=present if world_from_cam is None else world_from_cam)
        fixed = mujoco.MjvCamera()
        fixed.type, fixed.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
        with self._hide_outside(data, viewpoint):
            mujoco.mjv_updateScene(self.model, data, self._options, None, fixed, mujoco.mjtCatBit.mjCAT_ALL, scene)
        if world_from_cam is not None:
            pose = world_from_cam.numpy()
            for eye in scene.camera:  # the left and the right one
                eye.pos[:], eye.forward[:], eye.up[:] = pose[:3, 3], pose[:3, 2], -pose[:3, 1]
        scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        self._gl.make_current()
        mujoco.mjr_render(self._rect, scene, self._context)
        mujoco.mjr_readPixels(self._colours, self._depth, self._rect, self._context)
        body = self._upright(self._bodies())
        # The buffer is 1 at the near plane and 0 at the far plane.
        near, far = self.near, self._far
        metres = (near * far / (self._depth.astype(np.float64) * (far - near) + near)).astype(np.float32)
        depth = torch.where(body == NO_BODY, torch.inf, self._upright(metres))
        return RenderedView(depth=depth, body=body, camera=viewpoint)

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
    def _hide_outside(self, data: MjData, camera: Camera) -> Iterator[None]:
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

    def _bodies(self) -> np.ndarray:
        """Body ids from the colours, which hold the drawn object's number plus one."""
        scene = self._scene
        numbers = self._colours.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
        body_of = np.full(scene.ngeom + 1, NO_BODY, np.int32)
        for geom in scene.geoms[: scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == self._mujoco.mjtObj.mjOBJ_GEOM:
                body_of[geom.segid + 1] = self.model.geom_bodyid[geom.objid]
        return body_of[np.where(numbers <= scene.ngeom, numbers, 0)]


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
class SimulationScene:
    """A simulator's model and how the dataset's images show it."""

    model: MjModel
    cameras: Mapping[str, str]
    """MuJoCo's name for each of the dataset's cameras."""
    geom_groups: tuple[int, ...] = (0, 1, 2)
    """Groups of geoms that the images show."""


LoadScene = Callable[[Mapping[str, Any]], SimulationScene]
"""Builds the simulator of a recording from its metadata."""


def load_scene(metadata: Mapping[str, Any]) -> SimulationScene:
    """The simulator of a recording: LIBERO, or the twin of a rig (`lamp_client.twin`).

    Raises:
        DataError: The metadata name no task.
        LampClientError: The task does not exist, or the simulator is not installed.
    """
    return load_twin_scene(metadata) if metadata.get("suite") == "twin" else load_libero_scene(metadata)


def load_twin_scene(metadata: Mapping[str, Any]) -> SimulationScene:
    """The model of a task in the twin, with the arm that the metadata describe."""
    from lamp_client.rig.description import typed
    from lamp_client.twin import World, make_task
    from lamp_client.twin.scene import ArmModel

    arm = typed(ArmModel, metadata.get("arm"), "the recorded simulation's arm")
    world = World(make_task(str(metadata.get("task"))), arm)
    return SimulationScene(model=world.model, cameras={name: name for name in metadata.get("cameras", ())})


def load_libero_scene(metadata: Mapping[str, Any]) -> SimulationScene:
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
    return SimulationScene(model=env.simulation[0], cameras=env.camera_names, geom_groups=(1, 2))


MARGIN = 1e-6
"""Boxes are larger by this (m), and outlines by as much of the image, so that rounding loses nothing."""
PLANE = 1e4
"""m: half the side of a plane, which has no box."""
CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)))
EDGES = np.array([(i, j) for i, j in product(range(8), repeat=2) if i < j and (CORNERS[i] != CORNERS[j]).sum() == 1])


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The bounding boxes of some geoms at some moments, each in the frame of its geom."""

    centre: Float[np.ndarray, "g 3"]
    half: Float[np.ndarray, "g 3"]
    """m, half the sides."""
    position: Float[np.ndarray, "t g 3"]
    """Of the geom's frame in the world, m."""
    rotation: Float[np.ndarray, "t g 3 3"]
    """``world_from_geom``."""

    @property
    def corners(self) -> Float[np.ndarray, "t g 8 3"]:
        """In the world, m."""
        local = self.centre[:, None] + CORNERS * self.half[:, None]
        return local @ self.rotation.swapaxes(-1, -2) + self.position[..., None, :]


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """The smallest upright cuboids of (u, v, d) around what a camera can see of boxes; empty, infinite, where it is nothing."""

    low: Float[np.ndarray, "t g 3"]
    high: Float[np.ndarray, "t g 3"]

    @property
    def in_image(self) -> Bool[np.ndarray, "t g"]:
        """Whether any of the box may be in the image."""
        return np.asarray((self.low[..., :2] <= 1).all(axis=-1) & (self.high[..., :2] >= 0).all(axis=-1))


def boxes(
    model: Any, geoms: np.ndarray, position: Float[np.ndarray, "t n 3"], rotation: Float[np.ndarray, "t n 9"]
) -> Boxes:
    """Bounding boxes of some geoms of a MuJoCo model, given where all of its geoms are."""
    centre, half = np.split(model.geom_aabb[geoms], 2, axis=1)
    half = np.where(half.any(axis=1, keepdims=True), half, [PLANE, PLANE, 0.0]) + MARGIN
    turned = rotation[:, geoms].reshape(len(rotation), -1, 3, 3)
    return Boxes(centre=centre, half=half, position=position[:, geoms], rotation=turned)


def outlines(corners: Float[np.ndarray, "t g 8 3"], camera: Camera, *, nearest: float) -> Outlines:
    """Outlines of boxes for a camera that sees nothing nearer than `nearest` (m).

    What lies behind is cut off edge by edge: the corners of a box that reaches behind the camera say nothing of its outline.
    """
    pose, intrinsics = camera.world_from_cam.numpy(), camera.intrinsics.numpy()
    seen = (corners - pose[:3, 3]) @ pose[:3, :3]
    one, other = seen[:, :, EDGES[:, 0]], seen[:, :, EDGES[:, 1]]
    near = nearest - MARGIN if nearest > 2 * MARGIN else nearest / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((near - one[..., 2]) / (other[..., 2] - one[..., 2]), 0, 1)[..., None]
        cut = one + share * (other - one)
    ends = np.concatenate([np.where(end[..., 2:] >= near, end, cut) for end in (one, other)], axis=2)
    kept = np.tile((one[..., 2] >= near) | (other[..., 2] >= near), 2)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = (intrinsics[0, 0] * ends[..., 0] + intrinsics[0, 1] * ends[..., 1]) / ends[..., 2] + intrinsics[0, 2]
        v = intrinsics[1, 1] * ends[..., 1] / ends[..., 2] + intrinsics[1, 2]
    image = np.stack([u, v, ends[..., 2]], axis=-1)
    low, high = np.where(kept, image, np.inf).min(axis=2), np.where(kept, image, -np.inf).max(axis=2)
    return Outlines(low=low - MARGIN, high=high + MARGIN)
