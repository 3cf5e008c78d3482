"""Files that are either whole or absent: atomic writes, JSON with clear errors, and logs that survive a crash.

Temporary files live in a hidden sibling folder (``.tmp-...``) of the target, under the target's own name, so that
writers that look at the suffix work and readers that list a folder do not stumble over them. Whoever writes holds a lock on
that folder, which ends with the process: the next one that writes beside it removes what a killed one left.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lamp.errors import DataError, system_error

PathLike = str | os.PathLike[str]

TEMPORARY = ".tmp-"
"""How the names of temporary folders begin."""
ABANDONED_S = 3600.0
"""How long nothing has been written to a temporary folder of another machine, whose locks may not reach here, or of an earlier
version, which held none, before it counts as abandoned. [s]"""
_REPLACED = ".replaced"
_swept: set[str] = set()
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


NAME_LENGTH = 120
"""Longest file name that `safe_file_name` makes. [bytes of UTF-8]"""


def is_file_name(name: str) -> bool:
    """Whether a foreign name can be the name of one file or folder as it is: no separator, no dot in front, printable."""
    return (
        0 < len(name.encode(errors="replace")) <= NAME_LENGTH
        and not name.startswith((".", "-", " "))
        and not name.endswith((" ", "."))
        and not set(name) & set('/\\:*?"<>|')
        and name.isprintable()
        and unicodedata.is_normalized("NFC", name)
    )


def safe_file_name(name: str) -> str:
    """Makes the name of one file or folder of a foreign name, such as a camera's or an episode's.

    A name that can be a file's (`is_file_name`) stays as it is. Of any other, what cannot be in a file's name becomes an
    underscore, and a hash of the whole name keeps it apart from names that look alike then. The result never leads to another
    folder, is never hidden and never too long.
    """
    if is_file_name(name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    kept = "".join(
        letter if letter.isalnum() or letter in "._-" else "_" for letter in unicodedata.normalize("NFC", name)
    )
    kept = kept.encode(errors="replace")[: NAME_LENGTH - 9].decode(errors="ignore").strip(".-_")
    return f"{kept}-{digest}" if kept else digest


@lru_cache(maxsize=4096)
def _leads_out(path: str, root: str) -> bool:
    """Whether following links leads out of a folder, and neither to where a hub's cache keeps files nor to another disk.

    Files in a hub's cache are links to its ``blobs``; a folder directly in `root` may be its owner's link to another disk.
    """
    real = Path(os.path.realpath(path))
    if real.parent.name == "blobs" and real.parent.parent.name.startswith(("datasets--", "models--")):
        return False
    folders = Path(path).relative_to(root).parts
    homes = [root, os.path.join(root, folders[0])] if (folders and os.path.isdir(path)) or len(folders) > 1 else [root]
    return not any(real.is_relative_to(os.path.realpath(home)) for home in homes)


def _halves(text: str) -> bool:
    """Whether a text holds halves of characters, as JSON may."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def path_inside(root: PathLike, relative: str, what: str = "path") -> Path:
    """The path of a file that foreign data name relative to a folder, which must not lead out of that folder.

    A link that leads out is refused as well, but for those to the blobs of a hub's cache and for a folder directly in `root` that
    is itself a link.

    Args:
        root: The folder, such as a dataset's.
        relative: As the data name it, with ``/`` between folders.
        what: Says in errors what the path is of, such as "video_path of meta/info.json".

    Raises:
        DataError: It is empty, absolute, too long, holds ``..`` or a NUL character, or leads out of the folder through a link.
    """
    parts = PurePosixPath(relative).parts
    shown = f"the {what} {relative if len(relative) <= 200 else relative[:200] + '...'!r}"
    if not parts or relative.startswith("/") or ".." in parts or "\0" in relative:
        raise DataError(f"{shown} leads out of {root}; expected a relative path inside the folder, without '..'")
    if _halves(relative):
        raise DataError(f"{shown} holds half a character; expected a relative path inside {root}")
    if len(relative) > 4000 or max(len(part.encode(errors="replace")) for part in parts) > 255:
        raise DataError(f"{shown} is too long for a file's name; expected a relative path inside {root}")
    home = os.path.abspath(root)
    path = os.path.join(home, *parts)
    if _leads_out(os.path.dirname(path), home) or (os.path.islink(path) and _leads_out(path, home)):
        raise DataError(f"{shown} leads out of {root} through a link; expected a file inside the folder")
    return Path(root, *parts)


def sync(path: Path) -> None:
    """Flushes a file, or every file of a folder, to the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swaps two paths in one system call; where the file system cannot, in two renames."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if renameat2 is not None and renameat2(*arguments) == 0:
        return
    aside = one.with_name(one.name + _REPLACED)
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode(errors="replace")).hexdigest()[:6]


def _lock_of(holder: Path) -> int | None:
    """Locks a temporary folder and returns the descriptor that holds the lock; None where the file system has no such locks.

    Raises:
        BlockingIOError: Another process, or thread, is at work there.
        FileNotFoundError: It is gone.
    """
    descriptor = os.open(holder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(holder)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder beside what is to be written, which is locked as long as it is in use, and then is gone."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{_host()}-", dir=parent))
        try:
            descriptor = _lock_of(holder)
            break
        except (BlockingIOError, FileNotFoundError):
            continue  # it has just been taken for abandoned
    try:
        yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def remove_leftovers(folder: PathLike) -> None:
    """Removes the temporary folders that killed processes left in a folder, and finishes a replacement that one was killed in.

    What is still being written stays, by whatever process or machine: see `ABANDONED_S`.
    """
    folder = Path(folder)
    for holder in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            descriptor = _lock_of(holder)
            try:
                ours = descriptor is not None and holder.name.startswith(f"{TEMPORARY}{_host()}-")
                if ours or _is_abandoned(holder):
                    _finish_exchange(holder, folder)
                    shutil.rmtree(holder, ignore_errors=True)
            finally:
                if descriptor is not None:
                    os.close(descriptor)


def _is_abandoned(holder: Path) -> bool:
    written = [holder, *(path for path in holder.rglob("*") if path.is_file())]
    return time.time() - max(path.stat().st_mtime for path in written) > ABANDONED_S


def _finish_exchange(holder: Path, folder: Path) -> None:
    """Puts the new folder in its place, where the old one had been taken away in the first of two renames (`_exchange`)."""
    for aside in holder.glob(f"*{_REPLACED}"):
        staged = aside.with_name(aside.name.removesuffix(_REPLACED))
        if staged.exists() and not (folder / staged.name).exists():
            os.rename(staged, folder / staged.name)


def remove_folder(path: PathLike) -> None:
    """Removes a folder, if there is one, so that whoever looks sees all of it or nothing, even where this is killed meanwhile.

    Of a link and of what is mounted there only the contents are removed, files first.
    """
    path = Path(path)
    if not path.is_dir():
        return
    with about(path):
        try:
            if not path.is_symlink():
                with _temporary_folder(path.parent) as holder:
                    os.rename(path, holder / path.name)
                return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM):
                raise
        with _temporary_folder(path) as holder:
            for item in sorted(path.iterdir(), key=lambda item: item.is_dir() and not item.is_symlink()):
                if item != holder:
                    os.rename(item, holder / item.name)


def _umask() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration, ValueError):
        # It can be read in no other way than by setting it.
        found = os.umask(0o022)
        os.umask(found)
        return found


def _as_the_umask_says(path: Path) -> None:
    """Gives a new file, or folder with all in it, the permissions of any other; some libraries write for their owner only."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    for item in (path, *inside):
        if not item.is_symlink():
            private = 0o700 if item.is_dir() else 0o600
            if item.stat().st_mode & 0o777 == private:
                item.chmod((0o777 if item.is_dir() else 0o666) & ~_umask())


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Gives a temporary path to write a file or a folder to, which takes the place of `path` if the block succeeds.

    The caller creates the file or folder. One that exists at `path` is replaced; if the block raises, it stays. Others may read
    what is written as the umask says, whatever wrote it.

    Raises:
        DataError: The block wrote nothing.
        OSError: It could not be written, for whatever reason a library may give; `filename` is the path.
    """
    target = Path(path)
    with about(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        where = os.path.abspath(target.parent)
        if where not in _swept and TEMPORARY not in where:
            _swept.add(where)  # once, since a folder may hold many files
            remove_leftovers(where)
        with _temporary_folder(target.parent) as holder:
            staged = holder / target.name
            yield staged
            if not staged.exists():
                raise DataError(f"nothing was written for {target}; expected a file or a folder at the temporary path")
            _as_the_umask_says(staged)
            sync(staged)
            if target.is_dir():
                _exchange(staged, target)
            else:
                os.replace(staged, target)


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Has errors of the system inside the block name the path, where they name none or a temporary one.

    Raises:
        OSError: For what a library said in its own way, too.
    """
    try:
        yield
    except Exception as error:
        found = system_error(error)
        if found is None:
            raise
        named = found.filename
        if isinstance(named, str) and TEMPORARY not in named:
            path = Path(named)
        raise OSError(found.errno, found.strerror, str(path)) from error


def atomic_write_bytes(path: PathLike, data: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    with atomic_path(path) as staged:
        staged.write_bytes(data)


def atomic_write_text(path: PathLike, text: str) -> None:
    """Writes a UTF-8 file so that a reader sees the old content or the new, never a part."""
    atomic_write_bytes(path, text.encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def to_line(obj: Any) -> str:
    """One line of strict JSON; numpy scalars and arrays and paths become plain values."""
    return json.dumps(obj, default=_plain, allow_nan=False, ensure_ascii=False)


def to_text(obj: Any) -> str:
    """Strict JSON (no NaN), indented, as `write_json` writes it."""
    return json.dumps(obj, default=_plain, allow_nan=False, ensure_ascii=False, indent=2) + "\n"


def write_json(path: PathLike, obj: Any) -> None:
    """Writes strict JSON (no NaN), indented, atomically."""
    atomic_write_text(path, to_text(obj))


def read_json(path: PathLike, what: str = "file") -> Any:
    """Reads a JSON file; `what` says in errors what the file is, such as "dataset description".

    Raises:
        DataError: The file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no {what} at {path}") from None
    except OSError as error:
        raise DataError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the {what} {path} is not valid JSON ({error}); restore or remove it") from None


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _mend_tail(descriptor: int) -> None:
    """Removes a last line that a crash cut short, so that the next line does not continue it."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    content = os.pread(descriptor, size, 0)
    start = content.rfind(b"\n") + 1
    if _is_json(content[start:]):
        os.write(descriptor, b"\n")
    else:
        os.ftruncate(descriptor, start)


def _append(descriptor: int, data: bytes) -> None:
    """Writes all of it, or nothing: on a disk that is almost full, the system writes a part."""
    size, written = os.fstat(descriptor).st_size, 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def append_line(path: PathLike, text: str) -> None:
    """Appends one line of JSON to a log in a single write and waits until it is on the disk.

    Several processes may append to the same file. A last line that a crash cut short is removed first.

    Raises:
        OSError: It could not be written; the log is as it was.
        ValueError: The text holds a line break.
    """
    if "\n" in text:
        raise ValueError("a log line must not hold a line break")
    path = Path(path)
    with about(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _mend_tail(descriptor)
            _append(descriptor, (text + "\n").encode())
        finally:
            os.close(descriptor)


def sha256_of(path: PathLike) -> str:
    """Returns the sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hold(descriptor: int) -> None:
    """Notes in a lock file who holds it."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    known = {"process": os.getpid(), "host": socket.gethostname(), "command": shlex.join(words)[:200]}
    with suppress(OSError):  # the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, to_line({**known, "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode(), 0)


def _holder(path: Path) -> str:
    """Who holds a lock file, as far as it says."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        where = "" if known["host"] == socket.gethostname() else f" on {known['host']}"
        return f" (process {known['process']}{where}, since {known['since']}: {known['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextmanager
def locked(path: PathLike, otherwise: str) -> Iterator[None]:
    """Holds a lock file for this process; the lock ends with the process, however it ends.

    Raises:
        DataError: Another process holds it; the message is `otherwise`, and which process that is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            with about(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{otherwise}{_holder(path)}") from None
        _hold(descriptor)
        yield
    finally:
        os.close(descriptor)


def each_line_json(path: PathLike) -> Iterator[Any]:
    """The lines of `read_lines_json`, one at a time: a log may be larger than what memory is to be taken by it."""
    path = Path(path)
    if not path.exists():
        return
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    if not line.endswith(b"\n"):
                        return
                    raise DataError(
                        f"line {number} of {path} is not valid JSON; remove the line or restore the file"
                    ) from None
                yield row
    except OSError as error:
        raise DataError(f"cannot read the log {path}: {error.strerror}") from None


def read_lines_json(path: PathLike) -> list[Any]:
    """Reads a log of JSON lines; a last line cut short by a crash is dropped, a missing file is an empty log.

    Raises:
        DataError: A line before the last is not JSON.
    """
    return list(each_line_json(path))
