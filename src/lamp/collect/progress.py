"""One line that says how far a collection is and how long it will take."""

from __future__ import annotations

import sys
import time

PLAIN_INTERVAL = 10.0
"""Least time between two lines where the output is not a terminal [s]."""


def duration(seconds: float) -> str:
    """Such as `45 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Shows the number of recorded episodes; rewrites its line on a terminal, adds one now and then elsewhere."""

    def __init__(self, total: int, before: int) -> None:
        self.stream = sys.stderr
        self.total, self.before, self.done, self.failed = total, before, before, 0
        self.begun = time.monotonic()
        self._written = 0.0
        if before:
            self._write(f"{before} of {total} episodes are there already")

    def success(self) -> None:
        """Counts one more episode."""
        self.done += 1
        self._show()

    def failure(self) -> None:
        """Counts one more attempt that came to nothing."""
        self.failed += 1
        self._show()

    def line(self) -> str:
        """What is shown."""
        minutes = (time.monotonic() - self.begun) / 60
        rate = (self.done - self.before) / max(minutes, 1e-6)
        parts = [f"collect {self.done}/{self.total} episodes"]
        if rate > 0:
            parts += [f"{rate:.1f} a minute", f"{duration((self.total - self.done) / rate * 60)} left"]
        if self.failed:
            parts.append(f"{self.failed} attempt{'s' if self.failed > 1 else ''} failed")
        return ", ".join(parts)

    def close(self) -> None:
        """Ends a terminal's line."""
        if self.stream.isatty() and self._written:
            self._write("")

    def _show(self) -> None:
        now = time.monotonic()
        if self.stream.isatty():
            self.stream.write(f"\r\033[K{self.line()}")
            self.stream.flush()
            self._written = now
        elif now - self._written > PLAIN_INTERVAL or self.done == self.total:
            self._write(self.line())
            self._written = now

    def _write(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()
