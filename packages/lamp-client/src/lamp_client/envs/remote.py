"""A simulator in another Python environment, as if it were in this one: for benchmarks whose packages fit with nothing else.

The other environment needs `lamp_client` and its simulator only. It is started as a process and asked over a socket, one question
and one answer at a time, in the codec of the policy server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from subprocess import DEVNULL, STDOUT, TimeoutExpired
from typing import Any, Protocol

import numpy as np

from lamp_client import wire
from lamp_client.child_processes import open_program
from lamp_client.envs import StepResult
from lamp_client.errors import SimulationError
from lamp_client.types import Observation

_LENGTH = struct.Struct(">Q")
_MAX_OUTPUT = 2000
"""Characters of a dead simulator's output that are shown."""
_CLOSING_S = 5.0


class MessageSocket:
    """One end of a socket between two processes that trust each other: whole messages, in turn."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, message: Mapping[str, Any]) -> None:
        encoded = wire.pack(dict(message))
        self._end.sendall(_LENGTH.pack(len(encoded)) + encoded)

    def receive(self) -> dict[str, Any]:
        """Waits for a message.

        Raises:
            EOFError: The other end is gone.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return wire.unpack(self._exactly(length))

    def close(self) -> None:
        self._end.close()

    def _exactly(self, count: int) -> bytes:
        parts, missing = [], count
        while missing:
            part = self._end.recv(min(missing, 1 << 20))
            if not part:
                raise EOFError("the other process is gone")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the other process is started."""

    command: tuple[str, ...]
    """It is given the number of its end of the socket as one more word."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it has besides this process's own."""


class RemoteEnv:
    """An environment that lives in another process.

    Args:
        launch: How to start it.
        settings: What it is to open, as `host` on the other side understands it.
        convert: Converts an action from the dataset's convention to the environment's.

    Raises:
        SimulationError: The other side refused.
        ConnectionError: It died.
    """

    placement: Mapping[str, Any] = {}
    """Nothing is displaced."""
    variation: Mapping[str, Any] = {}

    def __init__(
        self, launch: Launch, settings: Mapping[str, Any], convert: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.action_from_policy = convert
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = open_program(
                [*launch.command, str(theirs.fileno())],
                stdin=DEVNULL,
                stdout=self._output,
                stderr=STDOUT,
                env={**os.environ, **launch.environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the process that decides what it means
            )
        self._socket = MessageSocket(ours)
        try:
            reply = self._request("open", settings=dict(settings))
        except BaseException:
            self.close()
            raise
        self.cameras: tuple[str, ...] = tuple(reply["cameras"])
        self.instruction = str(reply["instruction"])
        self.step_limit = int(reply["step_limit"])
        self.facts: dict[str, Any] = dict(reply["facts"])
        """Versions and settings of the other side, for the run's manifest."""

    def reset(self, initial_state: int, placement_seed: int | None = None) -> None:
        self._request("reset", initial_state=int(initial_state))

    def observe(self) -> Observation:
        reply = self._request("observe")
        return Observation(images=reply["images"], state=reply["state"], instruction=reply["instruction"])

    def step(self, action: np.ndarray) -> StepResult:
        reply = self._request("step", action=np.asarray(action, dtype=np.float64))
        return StepResult(success=bool(reply["success"]), done=bool(reply["done"]))

    def expert(self) -> Callable[[], np.ndarray]:
        self._request("expert")
        return lambda: self._request("expert_action")["action"]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()  # the end of the link is what tells it
        try:
            self._process.wait(_CLOSING_S)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def __enter__(self) -> RemoteEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, method: str, **details: Any) -> dict[str, Any]:
        try:
            self._socket.send({"do": method, **details})
            reply = self._socket.receive()
        except (EOFError, OSError) as error:
            raise ConnectionResetError(self._death_report()) from error
        if "error" in reply:
            print(reply["trace"], file=sys.stderr, flush=True)
            raise SimulationError(f"the simulator's process failed: {reply['error']}")
        return reply

    def _death_report(self) -> str:
        with contextlib.suppress(TimeoutExpired):
            self._process.wait(_CLOSING_S)
        self._output.seek(0)
        words = self._output.read().decode(errors="replace").strip()[-_MAX_OUTPUT:]
        text = f"the simulator's process died (exit code {self._process.returncode}); the end of its output: {words or 'none'}"
        print(text, file=sys.stderr, flush=True)
        return text


class HostedEnv(Protocol):
    """An environment that `host` can show to another process."""

    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def instruction(self) -> str: ...
    @property
    def step_limit(self) -> int: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    def reset(self, initial_state: int) -> None: ...
    def observe(self) -> Observation: ...
    def step(self, action: np.ndarray) -> StepResult: ...
    def expert(self) -> Callable[[], np.ndarray]: ...


def host(descriptor: int, open_env: Callable[[dict[str, Any]], HostedEnv]) -> None:
    """Answers the questions of a `RemoteEnv` until it is gone.

    Args:
        descriptor: File descriptor of this end of the socket.
        open_env: Opens an environment by its settings.
    """
    messages = MessageSocket(socket.socket(fileno=descriptor))
    answering = _Host(open_env)
    while True:
        try:
            request = messages.receive()
        except (EOFError, OSError):
            return
        try:
            answer = answering(request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        messages.send(answer)


class _Host:
    def __init__(self, open_env: Callable[[dict[str, Any]], HostedEnv]) -> None:
        self._opened = open_env
        self._env: HostedEnv | None = None
        self._expert: Callable[[], np.ndarray] | None = None

    def __call__(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if question["do"] == "open":
            return self._open(question["settings"])
        env = self._env
        if env is None:
            raise ValueError(f"{question['do']!r} was requested before any environment was opened")
        match question["do"]:
            case "reset":
                env.reset(question["initial_state"])
                return {}
            case "observe":
                seen = env.observe()
                return {"images": dict(seen.images), "state": seen.state, "instruction": seen.instruction}
            case "step":
                result = env.step(question["action"])
                return {"success": bool(result.success), "done": bool(result.done)}
            case "expert":
                self._expert = env.expert()
                return {}
            case "expert_action":
                if self._expert is None:
                    raise ValueError("an action of the expert was requested before the expert")
                return {"action": self._expert()}
        raise ValueError(f"unknown request {question['do']!r}")

    def _open(self, settings: dict[str, Any]) -> dict[str, Any]:
        self._env = env = self._opened(settings)
        return {
            "cameras": list(env.cameras),
            "instruction": env.instruction,
            "step_limit": env.step_limit,
            "facts": dict(env.facts),
        }
