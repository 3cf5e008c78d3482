"""The keyboard beside the rig: keys that hold, stop and answer, and teleoperation by keys."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lamp_client.chunks import ObservationFn
from lamp_client.client import NoiseSeed, Policy
from lamp_client.envs.rotations import matrix_from_axis_angle
from lamp_client.rig.devices import Pose, RigError
from lamp_client.rig.rig import Rig
from lamp_client.rig.trials import preview
from lamp_client.types import ActionChunk, Observation


class Keys:
    """Keys pressed at the terminal, read in a thread: space holds and goes on, q and Escape stop. Without a terminal, none."""

    def __init__(self) -> None:
        self._pressed: list[str] = []
        self._held = False
        self._ended = False
        self._thread: threading.Thread | None = None
        self._saved: Any = None

    def __enter__(self) -> Keys:
        if sys.stdin.isatty():
            import termios
            import tty

            self._saved = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
            self._thread = threading.Thread(target=self._read, name="lamp-keys", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._thread is not None:
            import termios

            self._thread.join(timeout=1.0)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)

    on_stop: Callable[[], None] | None = None

    def _read(self) -> None:
        while not self._ended:
            if not select.select([sys.stdin], [], [], 0.05)[0]:
                continue
            # Not sys.stdin.read: what waits in its buffer is not seen by select.
            keys = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
            if not keys:
                return  # the terminal is gone
            for key in keys:
                if key == " ":
                    self._held = not self._held
                    continue
                if key in ("q", "\x1b") and self.on_stop is not None:
                    self.on_stop()  # at once, and not when the loop comes round
                self._pressed.append(key)

    def taken(self) -> list[str]:
        """The keys since the last time."""
        keys, self._pressed = self._pressed, []
        return keys

    def obey(self, rig: Rig) -> None:
        """Holds while held."""
        self.on_stop = rig.stop
        if not self._held:
            return
        rig.pause()
        print("held; space goes on, q stops", flush=True)
        while self._held:
            rig.watchdog.check()
            rig.clock.sleep(0.05)

    def ask(self, question: str, answers: str) -> str:
        """Waits for one of these keys."""
        print(question, end="", flush=True)
        if self._thread is None:
            raise RigError("nobody can answer: this is no terminal.")
        self.taken()
        while True:
            for key in self.taken():
                if key in answers:
                    print(key)
                    return key
            time.sleep(0.05)

    def confirm(self, observation: Observation, chunk: ActionChunk) -> bool:
        """Shows what a chunk would do, and asks."""
        return self.ask(f"{preview(chunk, observation.state)}: [y]es or [n]o? ", "yn") == "y"


class KeyboardTeleoperation:
    """An executor that follows the keyboard."""

    HELP = "w s: forth, back; a d: left, right; r f: up, down; j l: turn; i k: tilt; g: gripper; e: end; space: hold; q: stop"
    STEP, TURN = 0.01, np.radians(4)

    def __init__(self, rig: Rig, keys: Keys) -> None:
        self.chunk: ActionChunk | None = None
        self.calls, self.done = 0, False
        self._rig, self._keys = rig, keys
        self._target: Pose | None = None
        self._openness = 1.0

    def reset(self) -> None:
        """See `lamp_client.chunks.Executor`."""
        self.done, self._target = False, None

    def next_action(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> np.ndarray:
        """The target, moved by the keys since the step before."""
        pose = self._target or self._rig.commanded or self._rig.arm_state.pose
        moves = {"w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "r": (2, 1), "f": (2, -1)}
        turns = {"j": (2, 1), "l": (2, -1), "i": (1, 1), "k": (1, -1)}
        position, rotation = pose.position.copy(), pose.rotation
        for key in self._keys.taken():
            if key in moves:
                axis, sign = moves[key]
                position[axis] += sign * self.STEP
            elif key in turns:
                axis, sign = turns[key]
                rotation = matrix_from_axis_angle(sign * self.TURN * np.eye(3)[axis]) @ rotation
            elif key == "g":
                self._openness = 1.0 - self._openness
            self.done = self.done or key == "e"
        limits = self._rig.description.limits
        position = np.clip(position, limits.workspace_low, limits.workspace_high)
        self._target = Pose(position=position, rotation=rotation)
        return self._rig.values(self._target, self._openness)
