"""Progress of long operations, shown in one way everywhere: how much is done, the rate, and the time left.

On a terminal there is a bar; elsewhere there are lines, at most one every ten seconds, and one at least every fifteen, also
where nothing moves meanwhile. All of it goes to the error stream, and none of it is there under `--quiet` (LAMP_QUIET=1).
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
from multiprocessing import parent_process
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

QUIET = "LAMP_QUIET"
LINE_EVERY_S = 10.0
"""The least time between two lines of one thing, where there is no terminal. [s]"""
SILENCE_S = 15.0
"""The longest time without one. [s]"""


def quiet() -> bool:
    """Whether progress is not to be shown; of the processes of a launcher, only the main one shows it."""
    return os.environ.get(QUIET, "").lower() not in ("", "0", "false", "no") or os.environ.get("RANK", "0") != "0"


def say(text: str) -> None:
    """Prints a line on the error stream, unless under `--quiet`."""
    if not quiet():
        _display.write(text)


def clock(seconds: int | float) -> str:
    """Formats a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """The progress of one operation.

    Args:
        name: Of the operation.
        total: How much there is to do; None: not known.
        unit: In the plural, such as "episodes".
        done: How much was done before; it does not count for the rate.
        brief: Print no line if it is over in a moment.
    """

    def __init__(
        self, name: str, total: int | float | None = None, unit: str = "", *, done: int | float = 0, brief: bool = False
    ) -> None:
        self.name, self.total, self.unit, self.done, self.note = name, total, unit, done, ""
        self.left_s: float | None = None
        """The time left, where it is known better than by the rate. [s]"""
        self.started = time.monotonic()
        self._since: tuple[float, float] = self.started, done
        self._moved = False
        self._shown, self._last = (done, ""), self.started if brief else -math.inf
        self._brief, self._open = brief, True
        _display.add(self)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, by: int | float = 1, note: str | None = None) -> None:
        """Adds to what has been done."""
        self.update(self.done + by, note=note)

    def update(
        self,
        done: int | float,
        *,
        total: int | float | None = None,
        note: str | None = None,
        left_s: int | float | None = None,
        now: bool = False,
    ) -> None:
        """Sets the progress.

        Args:
            total: How much there is to do, if that has changed.
            note: Shown at the end of the line.
            left_s: The time left, where it is known better than by the rate. [s]
            now: Show it at once, however lately something was shown.
        """
        if done > self.done and not self._moved:
            # The first may have waited for weights to load, and says little about the rate of those that follow.
            self._since, self._moved = (time.monotonic(), done), True
        self.done, self.left_s = done, left_s
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        over = self.total is not None and self.done >= self.total and not self._brief
        _display.show(self, now=now or over)

    def say(self, text: str) -> None:
        """Prints a message under the operation's name."""
        self.tell(f"{self.name}  {text}")

    def tell(self, text: str) -> None:
        """Prints a message without the operation's name."""
        say(text)
        self._last, self._shown = time.monotonic(), (self.done, self.note)

    def close(self) -> None:
        """Ends it, and shows what was not shown yet."""
        if self._open:
            self._open = False
            _display.remove(self)

    @property
    def rate(self) -> float:
        """Units done a second."""
        now = time.monotonic()
        since, before = self._since
        if self.done > before and now > since:
            return (self.done - before) / (now - since)
        return 0.0

    @property
    def line(self) -> str:
        """The text that is shown."""
        parts = []
        if self.total is not None or self.done:
            of = "" if self.total is None else f"/{self.total:g}"
            parts.append(f"{self.done:g}{of} {self.unit}".rstrip())
        rate, left_s = self.rate, self.left_s
        if rate:
            parts.append(_rate(rate, self.unit))
        if left_s is None and self.total is not None and rate:
            left_s = max(0.0, self.total - self.done) / rate
        if left_s is not None:
            parts.append(f"{clock(left_s)} left")
        elif (spent := time.monotonic() - self.started) >= LINE_EVERY_S:
            parts.append(f"{clock(spent)} so far")
        return ", ".join([*parts, *([self.note] if self.note else [])])


def _rate(a_second: float, unit: str) -> str:
    """A rate in the unit of time that leaves a readable number."""
    for factor, name in ((1, "s"), (60, "min"), (3600, "h")):
        if a_second * factor >= 1 or name == "h":
            return f"{a_second * factor:,.1f} {unit}/{name}".replace(" /", "/")
    raise AssertionError


class _Display:
    """All operations of this process, on the error stream."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._running: list[Progress] = []
        self._bars: tuple[Bars, TextIO] | None = None
        self._tasks: dict[int, Any] = {}
        self._watching = False

    def add(self, progress: Progress) -> None:
        with self._lock:
            self._running.append(progress)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="lamp-progress", daemon=True).start()

    def show(self, progress: Progress, *, now: bool = False) -> None:
        if quiet():
            return
        with self._lock:
            if (bars := self._terminal()) is not None:
                self._draw(bars, progress)
            elif now or time.monotonic() - progress._last >= LINE_EVERY_S:
                self._line(progress)

    def remove(self, progress: Progress) -> None:
        with self._lock:
            self._running.remove(progress)
            task = self._tasks.pop(id(progress), None)
            if self._bars is not None and task is not None:
                self._bars[0].remove_task(task)
            new = progress._shown != (progress.done, progress.note)
            if new and (progress._last > progress.started or not progress._brief) and not quiet():
                self._line(progress)
            if self._bars is not None and not self._running:
                self._bars[0].stop()
                self._bars = None

    def write(self, text: str) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars[0].console.print(Text(text), soft_wrap=True)
                return
            try:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()
            except (OSError, ValueError):  # the reader of the stream has gone; the work goes on
                pass

    def stop(self) -> None:
        """Gives the terminal its cursor back."""
        if self._bars is not None:
            self._bars[0].stop()
            self._bars = None

    def _line(self, progress: Progress) -> None:
        progress._last, progress._shown = time.monotonic(), (progress.done, progress.note)
        if text := progress.line:
            self.write(f"{progress.name}  {text}")

    def _terminal(self) -> Bars | None:
        """The bars, where there is a terminal that is this process's alone."""
        if self._bars is not None and self._bars[1] is sys.stderr:
            return self._bars[0]
        if self._bars is not None:
            # While bars are drawn, rich puts a stream of its own in the place of the error stream.
            return self._bars[0] if sys.stderr is not sys.__stderr__ else None
        if parent_process() is not None or not sys.stderr.isatty():
            return None
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        bars = Bars(*columns, console=Console(file=sys.stderr), redirect_stdout=False)
        self._bars = bars, sys.stderr
        bars.start()
        return bars

    def _draw(self, bars: Bars, progress: Progress) -> None:
        status, name = progress.line.replace("[", r"\["), progress.name.replace("[", r"\[")
        if id(progress) not in self._tasks:
            self._tasks[id(progress)] = bars.add_task(name, total=progress.total, status=status)
        bars.update(self._tasks[id(progress)], completed=progress.done, total=progress.total, status=status)

    def _watch(self) -> None:
        """Shows something where nothing has been shown for long."""
        while True:
            time.sleep(0.5)
            with self._lock:
                if not self._running:
                    self._watching = False
                    return
                if quiet():
                    continue
                if self._bars is not None:
                    for progress in self._running:
                        if id(progress) in self._tasks:
                            self._draw(self._bars[0], progress)
                elif time.monotonic() - max(max(one._last, one.started) for one in self._running) >= SILENCE_S:
                    self._line(self._running[-1])  # what the others wait for


_display = _Display()
atexit.register(_display.stop)
