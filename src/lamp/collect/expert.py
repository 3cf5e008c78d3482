"""A scripted expert for LIBERO's pick-and-place tasks: a closed loop from the simulator's exact state to an action.

The expert remembers its phase and the grasp it has chosen, and nothing else. Within a phase the action is a smooth function of
the present state, so that a policy can imitate it; when the object slips away or the fingers close on nothing, the phase goes
back to the approach, so that demonstrations disturbed by noise contain the recovery.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from lamp.collect import pick_and_place
from lamp.collect.grasping import TIP, Grasp
from lamp.collect.pick_and_place import Action, PickPlaceState, ramp
from lamp.collect.scene_state import LiberoScene


class Phase(Enum):
    """What the expert is about to do."""

    APPROACH = "approach"
    CLOSE = "close"
    CARRY = "carry"
    RELEASE = "release"
    RETREAT = "retreat"
    DONE = "done"


SKILLS = {
    Phase.APPROACH: pick_and_place.reach,
    Phase.CLOSE: pick_and_place.close,
    Phase.CARRY: pick_and_place.carry,
    Phase.RELEASE: pick_and_place.release_object,
    Phase.RETREAT: pick_and_place.retreat,
    Phase.DONE: pick_and_place.retreat,
}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One step of the expert."""

    action: Action
    """In the environment's units: six deltas in [-1, 1], gripper -1 open, +1 close."""
    phase: Phase
    precision: float
    """How little disturbance the step bears: 0 far from everything, 1 while grasping and letting go."""
    reach: float
    """Distance of the hand from the grasp in [m]; infinite where none is chosen."""


class Expert:
    """Brings the task's object to its goal, one decision at a time."""

    def __init__(self, scene: LiberoScene) -> None:
        self.scene = scene
        self.phase = Phase.APPROACH
        self.grasp: Grasp | None = None
        self.retries = 0
        """How often an attempt at the grasp or at the goal had to be given up."""

    def decide(self) -> Decision:
        """Looks at the present state, moves on to the phase it calls for, and returns the action."""
        now = pick_and_place.read_state(self.scene, self.grasp)
        if self.phase is Phase.APPROACH and not self._grasp_fits(now):
            self.grasp = pick_and_place.choose_grasp(self.scene, now) or self.grasp
            now = pick_and_place.read_state(self.scene, self.grasp)
        phase = self._next(now)
        if phase is Phase.APPROACH and self.phase is not Phase.APPROACH:
            self.retries += 1
            self.grasp = pick_and_place.choose_grasp(self.scene, now)
            now = pick_and_place.read_state(self.scene, self.grasp)
        self.phase = phase
        return Decision(action=SKILLS[phase](now), phase=phase, precision=_precision(phase, now), reach=now.reach)

    def follow(self, *, closing: bool) -> None:
        """Looks at the present state as `decide` does, while somebody else acts.

        Args:
            closing: Whether the gripper was last told to close.
        """
        self.recognise_grasp(closing=closing)
        self.decide()

    def recognise_grasp(self, *, closing: bool) -> None:
        """Goes on to carry what somebody else has grasped, whichever grasp that was.

        Args:
            closing: Whether the gripper was last told to close.
        """
        if not closing or self.phase not in (Phase.APPROACH, Phase.CLOSE):
            return
        stalled = abs(self.scene.closing_speed) < 0.01 and self.scene.opening < pick_and_place.WIDE_OPEN
        if stalled and all(self.scene.touching):
            self.phase = Phase.CARRY

    @property
    def done(self) -> bool:
        """Whether the goal is reached, the object let go, and the hand clear of it."""
        return self.phase is Phase.DONE

    def _grasp_fits(self, now: PickPlaceState) -> bool:
        """Whether the chosen grasp is one from above still; it is not after the object fell over."""
        if self.grasp is None or now.goal is None:
            return False
        tilt = abs(float((self.scene.object_rotation @ self.grasp.closing)[2]))
        return tilt < 0.2 and bool(now.goal[2] > now.volumes.bottom + TIP - 0.004)

    def _next(self, now: PickPlaceState) -> Phase:
        """The phase that the present state calls for."""
        match self.phase:
            case Phase.APPROACH:
                if now.goal is None or now.misalignment > 1.0:
                    return Phase.APPROACH
                # What stops the hand on its last centimetre may be what it is to grasp.
                close = abs(now.goal[2] - now.hand[2]) < (0.015 if now.still else 0.006)
                return Phase.CLOSE if close else Phase.APPROACH
            case Phase.CLOSE:
                stalled = abs(now.closing_speed) < 0.01 and now.opening < 0.075
                if now.opening < 0.002 or (stalled and not any(now.touching)):
                    return Phase.APPROACH
                return Phase.CARRY if stalled else Phase.CLOSE
            case Phase.CARRY:
                # A contact may be missing for a moment; the object is lost when it is elsewhere, too.
                if not any(now.touching) and (now.opening < 0.002 or now.reach > 0.03):
                    return Phase.RETREAT if now.success else Phase.APPROACH
                return Phase.RELEASE if pick_and_place.over_goal(now) else Phase.CARRY
            case Phase.RELEASE:
                return Phase.RETREAT if pick_and_place.has_released(now) else Phase.RELEASE
            case Phase.RETREAT if not pick_and_place.is_clear(now):
                return Phase.RETREAT
            case Phase.RETREAT | Phase.DONE:
                return Phase.DONE if now.success else Phase.APPROACH


def _precision(phase: Phase, now: PickPlaceState) -> float:
    """Rises towards the grasp and towards the goal; what is held is not shaken much anywhere."""
    if phase is Phase.APPROACH:
        return 1.0 - ramp(now.reach, 0.02, 0.12)
    if phase is Phase.CARRY:
        return 0.5 + 0.5 * (1.0 - ramp(float(np.linalg.norm(now.offset)), 0.02, 0.08))
    return 0.5 if phase in (Phase.RETREAT, Phase.DONE) else 1.0
