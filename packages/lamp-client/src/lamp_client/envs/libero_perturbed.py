"""A LIBERO task in which something is changed: camera, arm, lights, images, or the instruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lamp_client.envs import StepResult, libero_simulation
from lamp_client.envs.libero import CAMERA_NAMES, LiberoEnv
from lamp_client.envs.libero_tasks import LiberoTask
from lamp_client.envs.perturbations import (
    NOTHING,
    ArmStart,
    CameraPose,
    Effects,
    Lights,
    SampledPerturbation,
    StandardScene,
)
from lamp_client.envs.rendering import RenderQuality
from lamp_client.errors import InvalidValueError, SimulationError
from lamp_client.types import Observation

REFERENCE = next(iter(CAMERA_NAMES))
"""The camera that is moved, and whose images are corrupted."""

_ATTEMPTS = 30

Draw = Callable[[np.random.Generator, StandardScene], SampledPerturbation]
"""Decides what is changed in an episode."""


class PerturbedLibero(LiberoEnv):
    """`LiberoEnv` with a change that is drawn anew at every reset.

    The physics differ from the standard task's only where the arm starts elsewhere. The change is taken back at the next reset,
    so that an episode does not depend on what ran before.

    Args:
        draw: Draws the change of each episode; may be replaced between episodes.
        seed: Seeds the draws too, with the initial state's index and the placement's seed.
    """

    def __init__(
        self,
        task: LiberoTask,
        draw: Draw,
        *,
        image_size: int = 256,
        render: RenderQuality = "exact",
        placement_shift: float = 0.0,
        seed: int = 7,
    ) -> None:
        super().__init__(task, image_size=image_size, render=render, placement_shift=placement_shift, seed=seed)
        self.draw = draw
        self.effects = NOTHING
        self.variation = {}
        """What was drawn at the last reset, as JSON values."""
        model, _ = self.simulation
        self._camera = model.camera(CAMERA_NAMES[REFERENCE]).id
        robot = self.robosuite.robots[0].robot_model
        self.standard = StandardScene(
            camera=self._read_camera(),
            lights=self._read_lights(),
            joints=np.array(robot.init_qpos, dtype=np.float64),
            robot=type(robot).__name__,
            instruction=task.instruction,
        )
        self._steps = 0
        self._noise: tuple[int, ...] = ()

    def switch_task(self, task: LiberoTask, draw: Draw) -> None:
        """Takes over another task of the same scene, which the next reset begins.

        Args:
            task: Its definition, or what is equal to it but for the instruction, must be this one's.
        """
        if (task.bddl_path, task.scene_assets) != (self.task.bddl_path, self.task.scene_assets):
            raise InvalidValueError(f"{task.name} has another scene than {self.task.name}: {task.bddl_path}.")
        self.task, self.draw, self.effects = task, draw, NOTHING
        self.standard = replace(self.standard, instruction=task.instruction)

    @property
    def instruction(self) -> str:
        return self.effects.instruction or self.task.instruction

    def reset(self, initial_state: int, placement_seed: int | None = None) -> None:
        """Takes back the last change, draws one, and goes to a stored initial state as `LiberoEnv.reset` does.

        Args:
            placement_seed: Tells draws, and displacements, of one initial state apart; None displaces nothing.

        Raises:
            UnknownNameError: for an initial state that does not exist.
            SimulationError: if no start of the arm was found at which it touches nothing.
        """
        self._noise = (self.seed, initial_state, 0 if placement_seed is None else placement_seed)
        generator = np.random.default_rng((0x91A5, *self._noise))
        for _ in range(_ATTEMPTS):
            sampled = self.draw(generator, self.standard)
            if self._arm_is_free(sampled.effects.arm, initial_state):
                break
        else:
            raise SimulationError(
                f"in {_ATTEMPTS} attempts the arm touched something at its start: {self.task.name}, "
                f"initial state {initial_state}.",
                hint="Use a lower level.",
            )
        self.effects, self.variation = sampled.effects, dict(sampled.numbers)
        self.arm = sampled.effects.arm
        self._write_camera(sampled.effects.camera or self.standard.camera)
        self._write_lights(sampled.effects.lights or self.standard.lights)
        super().reset(initial_state, placement_seed)
        # What was written to the model shows only once poses have been computed anew.
        libero_simulation.refresh(self.robosuite)
        self._steps = 0

    def step(self, action: np.ndarray) -> StepResult:
        self._steps += 1
        return super().step(action)

    def observe(self) -> Observation:
        """As `LiberoEnv.observe`, the reference camera's image corrupted; how depends on the moment, not on who looked before."""
        seen = super().observe()
        images = dict(seen.images)
        if self.effects.corruption is not None:
            generator = np.random.default_rng((0xC0, *self._noise, self._steps))
            # LIBERO-Plus corrupts images as the simulator gives them, which is before they are turned.
            turned = np.ascontiguousarray(images[REFERENCE][::-1, ::-1])
            images[REFERENCE] = np.ascontiguousarray(self.effects.corruption(turned, generator)[::-1, ::-1])
        return Observation(images=images, state=seen.state, instruction=self.instruction)

    def _arm_is_free(self, arm: ArmStart | None, initial_state: int) -> bool:
        """Whether the arm touches nothing at its start; not computed for an arm that is not moved."""
        if arm is None or not arm.moved or not 0 <= initial_state < len(self.task.initial_states):
            return True
        libero_simulation.reset_to(
            self.robosuite, self.task.initial_states[initial_state], (self.seed, initial_state), arm
        )
        return not libero_simulation.arm_touches(self.robosuite)

    def _read_camera(self) -> CameraPose:
        model, _ = self.simulation
        index = self._camera
        return CameraPose(
            position=model.cam_pos[index].copy(),
            quaternion=model.cam_quat[index].copy(),
            fov=float(model.cam_fovy[index]),
        )

    def _write_camera(self, pose: CameraPose) -> None:
        model, _ = self.simulation
        model.cam_pos[self._camera] = pose.position
        model.cam_quat[self._camera] = pose.quaternion / np.linalg.norm(pose.quaternion)
        model.cam_fovy[self._camera] = pose.fov

    def _read_lights(self) -> Lights:
        model, _ = self.simulation
        head = model.vis.headlight
        return Lights(
            diffuse=model.light_diffuse.copy(),
            specular=model.light_specular.copy(),
            position=model.light_pos.copy(),
            direction=model.light_dir.copy(),
            shadows=model.light_castshadow.astype(bool),
            focus=np.where(_from_afar(self._mujoco, model), 0.0, model.light_exponent),
            head=np.stack([head.ambient, head.diffuse, head.specular]),
        )

    def _write_lights(self, lights: Lights) -> None:
        model, _ = self.simulation
        model.light_diffuse[:], model.light_specular[:] = lights.diffuse, lights.specular
        model.light_pos[:], model.light_dir[:] = lights.position, lights.direction
        model.light_castshadow[:] = lights.shadows
        head = model.vis.headlight
        head.ambient[:], head.diffuse[:], head.specular[:] = lights.head


def _from_afar(mujoco: Any, model: Any) -> np.ndarray:
    """Which lights are directional, (l,) bool: newer versions of MuJoCo have a type of light in place of the flag."""
    if hasattr(model, "light_type"):
        return model.light_type == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    return model.light_directional.astype(bool)


def unchanged(generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
    """The draw that changes nothing."""
    return SampledPerturbation(effects=Effects())
