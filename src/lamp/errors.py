"""The errors LaMP raises for its users.

Every message names three things: the value that was given, what was expected, and the alternatives. The command line prints
the message on one line and exits with code 2; code that embeds LaMP can catch `LampError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LampError(Exception):
    """Something the user can put right."""


class ConfigError(LampError):
    """A setting, name or flag that does not fit: unknown recipe, task, camera, key."""


class DataError(LampError):
    """A file or folder that is missing, incomplete, corrupt, or not what it says it is."""


class MismatchError(LampError):
    """Two things that do not belong together: checkpoint and backbone, store and grid, dataset and recipe."""


class MissingDependencyError(LampError):
    """A package or system library that is not installed; the message says how to install it."""


class FailedElsewhereError(LampError):
    """Another process of the same training has failed and says why; this one ends without a word."""


def unknown(kind: str, value: object, known: Iterable[object]) -> ConfigError:
    """Builds the error for a name that is not among the known ones, with the nearest match first."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ConfigError(f"unknown {kind} {str(value)!r}{hint} Known: {', '.join(names) if names else 'none'}.")
