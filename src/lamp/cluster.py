"""Joining a Ray cluster: shared by evaluations, whose simulators run there, and by builds of scene flow."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lamp.errors import LampError, MissingDependencyError
from lamp_client.child_processes import ONE_THREAD

INSTALL = "pip install 'lamp-vla[ray]'"
CONNECT_S = 20.0
"""How long an address may take to answer [s]."""


class ClusterError(LampError):
    """The cluster cannot be reached, or does not run what it is given."""


def join_cluster(address: str, *, flag: str, instead: str) -> Any:
    """Joins the cluster at an address, and returns the package ray.

    Args:
        flag: What asks for it on the command line, for messages.
        instead: What can be done without Ray, in a sentence.

    Raises:
        MissingDependencyError: Ray is not installed.
        ClusterError: There is no cluster.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependencyError(
            f"{flag}: the package ray is not installed; install it on this machine and the others: {INSTALL}. {instead}"
        ) from None
    if not ray.is_initialized():
        try:
            check_reachable(address)
            with own_signal_handlers():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterError(
                f"no Ray cluster at {address!r} lets this process in: {lines[0][:300].rstrip('.')}. Expected the address of "
                "one, such as 10.0.0.1:6379, or auto on one of its machines; `ray start --head` starts one. "
                "Where it asks for tokens, as new versions do, RAY_AUTH_MODE=token is needed here too."
            ) from None
    return ray


def task_environment(passed_on: Sequence[str] = ()) -> Mapping[str, Any]:
    """The runtime environment of tasks: one thread each, and the values that some names have here."""
    names = {name: os.environ[name] for name in passed_on if name in os.environ}
    return {"env_vars": {**names, **{name: os.environ.get(name, "1") for name in ONE_THREAD}}}


def cause_of(error: Exception) -> str:
    """Why a task ended, in a line: a task's own error is inside Ray's, whose text begins with where it happened."""
    message = str(getattr(error, "cause", None) or error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Undoes that Ray takes SIGTERM over: a command that is asked to end tidies up first, and says so in its exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere, nobody can have changed them
            for number, handler in before.items():
                if handler is not None:  # None: not Python's, and Ray's stays
                    signal.signal(number, handler)


def check_reachable(address: str) -> None:
    """Looks whether anybody is at an address such as 10.0.0.1:6379: Ray itself goes on trying for a quarter of an hour.

    Raises:
        OSError: Nobody is.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
