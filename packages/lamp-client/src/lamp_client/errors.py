"""What the client raises when the user can put something right.

The package stands alone, so these are no subclasses of LaMP's own errors; LaMP's command line treats both alike.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LampClientError(Exception):
    """A one-line message for the user: what was given, what was expected, what the alternatives are."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{problem} {hint}".strip())
        self.problem = problem
        """What is wrong."""
        self.hint = hint
        """What to do about it; may be empty."""


class UnknownNameError(LampClientError):
    """A suite, task, camera or setting that does not exist."""

    def __init__(self, kind: str, value: object, known: Iterable[object]) -> None:
        names = [str(name) for name in known]
        near = difflib.get_close_matches(str(value), names, n=1)
        guess = f"Did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown {kind} {str(value)!r}.", hint=f"{guess}Known: {', '.join(names) or 'none'}.")


class MissingSoftwareError(LampClientError):
    """A package or a system library that is not installed; the hint is the command that installs it."""


class InvalidValueError(LampClientError):
    """An array or a setting whose value, shape or type does not fit."""


class SimulationError(LampClientError):
    """The simulator cannot do what was requested."""


class ConnectionFailedError(LampClientError):
    """The policy server cannot be reached, refused the client, or went away."""


class ConnectionLostError(ConnectionFailedError):
    """The connection broke; the request may be repeated on another."""


class ServerError(LampClientError):
    """The policy server answered with an error."""


class ServerBusyError(ServerError):
    """The policy server has too much to do just now."""


class WireError(LampClientError):
    """Bytes or values that do not fit the protocol."""
