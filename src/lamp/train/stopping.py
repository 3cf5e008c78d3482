"""Being asked to stop: by the user, by the system, or by the clock."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest(threading.Event):
    """Set once the process is asked to stop."""

    number: int | None = None
    """Of the signal that asked."""


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request to stop after the present step; a second one acts at once.

    A hangup that the process was started to ignore (`nohup`) stays ignored.
    """
    event = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {name: signal.getsignal(name) for name in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def request(number: int, frame: FrameType | None) -> None:
        event.number = number
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
