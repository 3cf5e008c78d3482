"""The errors LaMP raises for its users.

Every message names three things: the value that was given, what was expected, and the alternatives. The command line prints
the message on one line and exits with code 2; code that embeds LaMP can catch `LampError`.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_HASH = re.compile(r"(?<![\w/.-])[0-9a-f]{40,}(?![\w/])")
"""Of contents; those within a path stay as they are."""


class LampError(Exception):
    """Something the user can put right."""

    def __init__(self, *args: object) -> None:
        # Whole hashes make a line unreadable, and their first digits tell them apart.
        shortened = (_HASH.sub(lambda match: match[0][:12], text) if isinstance(text, str) else text for text in args)
        super().__init__(*shortened)


class ConfigError(LampError):
    """A setting, name or flag that does not fit: unknown recipe, task, camera, key."""


class DataError(LampError):
    """A file or folder that is missing, incomplete, corrupt, or not what it says it is."""


class MismatchError(LampError):
    """Two things that do not belong together: checkpoint and backbone, store and grid, dataset and recipe."""


class MissingDependencyError(LampError):
    """A package or system library that is not installed; the message says how to install it."""


def import_extra(module: str, otherwise: str) -> Any:
    """A module of a package that an extra brings.

    Args:
        otherwise: What is said where it cannot be imported, and how to install it, with {} for the reason.

    Raises:
        MissingDependencyError: It, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(otherwise.format(error)) from None


class TerminatedError(KeyboardInterrupt):
    """The system has asked this process to end (SIGTERM, SIGHUP): it tidies up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


class FailedElsewhereError(LampError):
    """Another process of the same training has failed and says why; this one ends without a message."""


_ROOM = "free some{or_elsewhere}; what is finished stays, and the same command continues"
_RIGHTS = "make it writable{or_elsewhere}"
_PLACE = "remove or rename what is there{or_elsewhere}"
_GONE = "are its disk and its network there? The same command continues once they are"
_OPEN = "allow more (ulimit -n 65536), or use fewer workers"
_MEMORY = "use fewer workers or smaller batches; what is finished stays, and the same command continues"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    errno.EROFS: "write elsewhere{elsewhere}",
    **dict.fromkeys((errno.EACCES, errno.EPERM), _RIGHTS),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), _PLACE),
    errno.EISDIR: "a file was expected: name one in it{or_elsewhere}",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EHOSTDOWN), _GONE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _OPEN),
    **dict.fromkeys((errno.ENOMEM, errno.EAGAIN), _MEMORY),
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), "its file system lacks what is needed{or_elsewhere}"
    ),
    errno.ENAMETOOLONG: "choose a shorter name{or_elsewhere}",
    errno.ELOOP: "mend the links{or_elsewhere}",
    errno.ENOENT: "",
}
"""What helps against what may go wrong with files, disks and their limits."""
_TEXTS = {os.strerror(number): number for number in _REMEDIES if number != errno.EAGAIN}
_NUMBER = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)


def system_error(error: BaseException | None) -> OSError | None:
    """What went wrong with a file, a disk or a limit of the system, where that is what an error is about.

    Libraries say it in their own ways: safetensors, pyarrow and FFmpeg have errors of their own, with the number in the text.
    """
    if error is None or isinstance(error, LampError):
        return None
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return error
    if isinstance(error, MemoryError):
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    text = str(error)
    numbers = [int(number) for number in _NUMBER.findall(text)] or [_TEXTS[known] for known in _TEXTS if known in text]
    if numbers and numbers[0] in _REMEDIES:
        return OSError(numbers[0], os.strerror(numbers[0]), getattr(error, "filename", None))
    return system_error(error.__cause__)


def unreadable(path: Path, error: Exception, otherwise: LampError) -> Exception:
    """The error for a file that cannot be read: `otherwise`, unless the system refuses, which says nothing about the file."""
    failure = system_error(error)
    if failure is None or failure.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return otherwise
    return OSError(failure.errno, failure.strerror, str(path))


def describe_system_error(error: OSError, elsewhere: str = "") -> str:
    """One line: what went wrong, with which path, and what helps.

    Args:
        elsewhere: The flags that choose another place, such as `--out FOLDER`.
    """
    what = error.strerror or str(error)
    where = f": {Path(os.fsdecode(error.filename)).absolute()}" if isinstance(error.filename, str | bytes) else ""
    flags = f" ({elsewhere})" if elsewhere else ""
    remedy = _REMEDIES.get(error.errno or 0, "").format(elsewhere=flags, or_elsewhere=f", or write elsewhere{flags}")
    return f"{what}{where}{f'; {remedy}' if remedy else ''}"


def missing(path: Path, what: str, expected: str, *, folder: bool = False) -> DataError:
    """Builds the error for a file or folder that does not exist, with what is there under a like name.

    Args:
        what: What it should be, such as "dataset".
        expected: What to give, in words.
        folder: Whether it should be a folder.
    """
    here = path.parent
    try:
        names = [item.name for item in here.iterdir() if item.is_dir() or not folder]
    except OSError:
        return DataError(f"no {what} at {path}: there is no folder {here}; expected {expected}.")
    near = difflib.get_close_matches(path.name, names, n=3)
    hint = f"; did you mean {' or '.join(str(here / name) for name in near)}?" if near else "."
    return DataError(f"no {what} at {path}{hint} Expected {expected}.")


def unknown(kind: str, value: object, known: Iterable[object]) -> ConfigError:
    """Builds the error for a name that is not among the known ones, with the nearest match first."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ConfigError(f"unknown {kind} {str(value)!r}{hint} Known: {', '.join(names) if names else 'none'}.")
