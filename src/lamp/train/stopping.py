"""Being asked to stop: by the user, by the system, or by the clock."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the present step; a second one acts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        event.set()
        for name, handler in before.items():
            signal.signal(name, handler)

    for name in before:
        signal.signal(name, request)
    try:
        yield event
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
