"""Off-screen MuJoCo images, rendered on a CPU by default."""

from __future__ import annotations

import contextlib
import os
from types import ModuleType
from typing import Any, Literal

import numpy as np

from lamp_client.errors import MissingSoftwareError, SimulationError, UnknownNameError

RenderQuality = Literal["exact", "fast"]
"""``exact``: multisampling as the model sets it, equal to robosuite's images. ``fast``: no multisampling, half the time."""

_HIDDEN_GEOM_GROUP = 0
"""robosuite keeps collision shapes in this group and does not draw it."""


def import_mujoco() -> ModuleType:
    """Imports MuJoCo with CPU rendering unless the environment variables choose another backend.

    Sets, where unset: ``MUJOCO_GL=osmesa``, ``PYOPENGL_PLATFORM`` to the same, ``LP_NUM_THREADS=1`` (Mesa's software
    rasteriser would otherwise start a thread per core for every context).

    Raises:
        MissingSoftwareError: if MuJoCo or the OpenGL library is not installed.
    """
    backend = os.environ.setdefault("MUJOCO_GL", "osmesa")
    if backend in ("osmesa", "egl"):
        os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise MissingSoftwareError(f"{error.name} is not installed.", hint="pip install mujoco PyOpenGL") from error
    except (ImportError, OSError, AttributeError) as error:
        raise _no_opengl(error) from error
    return mujoco


class Renderer:
    """Renders one model at one size; images come turned by 180 degrees as LIBERO's users have them.

    MuJoCo reads its buffer bottom-up, so the turn leaves the image upright but mirrored left to right.

    Raises:
        MissingSoftwareError: if no OpenGL context can be made.
        SimulationError: if the image is larger than the model's off-screen buffer.
    """

    def __init__(self, model: Any, size: int, quality: RenderQuality) -> None:
        mujoco = import_mujoco()
        if quality not in ("exact", "fast"):
            raise UnknownNameError("render quality", quality, ("exact", "fast"))
        limit = min(model.vis.global_.offwidth, model.vis.global_.offheight)
        if size > limit:
            raise SimulationError(f"image size {size} is too large; the model's off-screen buffer allows {limit}.")
        self.model = model
        self._options = mujoco.MjvOption()
        self._options.geomgroup[_HIDDEN_GEOM_GROUP] = 0
        samples = model.vis.quality.offsamples
        # MuJoCo reads the number of samples from the model, once, when it makes the context.
        try:
            model.vis.quality.offsamples = samples if quality == "exact" else 0
            self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # the platforms raise everything from AttributeError to FatalError here
            raise _no_opengl(error) from error
        finally:
            model.vis.quality.offsamples = samples

    def image(self, data: Any, camera: str) -> np.ndarray:
        """Returns (H, W, 3) uint8 of the present kinematics."""
        self._renderer.update_scene(data, camera, self._options)
        # `render` already turned the bottom-up buffer top-down; mirroring completes the 180 degrees.
        return np.ascontiguousarray(self._renderer.render()[:, ::-1])

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._renderer.close()


def _no_opengl(error: BaseException) -> MissingSoftwareError:
    backend = os.environ.get("MUJOCO_GL", "")
    return MissingSoftwareError(
        f"MuJoCo cannot render off screen with MUJOCO_GL={backend!r} ({type(error).__name__}: {error}).",
        hint="Install the software renderer with: apt-get install libosmesa6 libegl1 libgl1-mesa-dri; "
        "and set MUJOCO_GL=osmesa before anything imports mujoco.",
    )
