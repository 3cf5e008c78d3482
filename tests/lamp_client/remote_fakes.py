"""A simulator without physics for the other side of a `RemoteEnv`.

Run as a script, its last word is the socket's number; before it may come settings.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client.envs import StepResult
from lamp_client.envs.remote import host
from lamp_client.types import Observation


class Line:
    """A place on a line; the goal holds between 0.95 and 1.45, so that it is soon passed at half a unit a step."""

    cameras = ("front",)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.step_limit = int(settings.get("step_limit") or 6)
        self.instruction = f"go right, task {settings.get('task', 0)}"
        self.facts = {"fake": "1.0", "pid": str(os.getpid())}
        self.place, self.state = 0.0, 0
        self.trouble: dict[int, str] = {int(key): value for key, value in settings.get("trouble", {}).items()}
        self.once = Path(settings["once"]) if settings.get("once") else None

    def reset(self, initial_state: int) -> None:
        self.state, self.place = initial_state, -float(initial_state)
        match self.trouble.get(initial_state, ""):
            case "raise":
                raise ValueError("the arrangement is impossible")
            case "die" if self.once is None or not self.once.exists():
                if self.once is not None:
                    self.once.touch()
                print("out of memory, they say", flush=True)
                os._exit(9)
            case "hang":
                time.sleep(600)

    def observe(self) -> Observation:
        image = np.full((480, 640, 3), self.state, np.uint8)
        return Observation(
            images={"front": image}, state=np.array([self.place], np.float32), instruction=self.instruction
        )

    def step(self, action: np.ndarray) -> StepResult:
        self.place += float(action[0])
        holds = 0.95 < self.place < 1.45
        return StepResult(success=holds, done=holds)

    def expert(self) -> Callable[[], np.ndarray]:
        return lambda: np.array([0.5 if self.place < 0.9 else 0.0, 0, 0, 0, 0, 0, 1], np.float32)


if __name__ == "__main__":
    always = json.loads(sys.argv[1]) if len(sys.argv) > 2 else {}
    host(int(sys.argv[-1]), lambda settings: Line({**settings, **always}))
