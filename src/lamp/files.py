"""Atomic file writes, file names from untrusted names, and file locks.

Temporary files live in a hidden sibling folder (``.tmp-...``) of the target, under the target's own name, so that writers that
look at the suffix work and readers that list a folder skip them. The writer locks that folder; the lock ends with the process,
and the next writer removes what a killed one left.
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

from lamp.errors import DataError, system_error

PathLike = str | os.PathLike[str]

TEMPORARY = ".tmp-"
"""How the names of temporary folders begin."""
ABANDONED_S = 3600.0
"""A temporary folder whose lock cannot be seen from here counts as abandoned after this time without a write. [s]"""
_REPLACED = ".replaced"
_swept: set[str] = set()
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
NAME_LENGTH = 120
"""Longest file name that `safe_file_name` makes. [bytes of UTF-8]"""


def is_file_name(name: str) -> bool:
    """Whether an untrusted name can be used as a file name unchanged: no separator, no leading dot, printable."""
    return (
        0 < len(name.encode(errors="replace")) <= NAME_LENGTH
        and not name.startswith((".", "-", " "))
        and not name.endswith((" ", "."))
        and not set(name) & set('/\\:*?"<>|')
        and name.isprintable()
        and unicodedata.is_normalized("NFC", name)
    )


def safe_file_name(name: str) -> str:
    """Turns an untrusted name, such as a camera's or an episode's, into the name of one file or folder.

    A valid file name (`is_file_name`) is returned unchanged. In any other, invalid characters become underscores and a hash of
    the whole name is appended, so that similar names stay distinct. The result is never a path, hidden, or too long.
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
    """Whether links in a path lead out of `root`, other than into a hub cache's ``blobs`` or from a folder directly in `root`."""
    real = Path(os.path.realpath(path))
    if real.parent.name == "blobs" and real.parent.parent.name.startswith(("datasets--", "models--")):
        return False
    folders = Path(path).relative_to(root).parts
    homes = [root, os.path.join(root, folders[0])] if (folders and os.path.isdir(path)) or len(folders) > 1 else [root]
    return not any(real.is_relative_to(os.path.realpath(home)) for home in homes)


def path_inside(root: PathLike, relative: str, what: str = "path") -> Path:
    """Joins an untrusted relative path to a folder, and refuses one that leads out of it.

    Symbolic links that lead out are refused too, except into a hub cache's blobs and for a folder directly in `root` that is
    itself a link. `what` names in errors where the path comes from, such as "video_path of meta/info.json".

    Raises:
        DataError: It is empty, absolute, too long, holds ``..`` or a NUL character, or leads out through a link.
    """
    parts = PurePosixPath(relative).parts
    shown = f"the {what} {relative if len(relative) <= 200 else relative[:200] + '...'!r}"
    if not parts or relative.startswith("/") or ".." in parts or "\0" in relative:
        raise DataError(f"{shown} leads out of {root}; expected a relative path inside the folder, without '..'")
    if any("\ud800" <= letter <= "\udfff" for letter in relative):  # JSON may hold unpaired surrogates
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
            with open(file, "rb") as opened:
                os.fsync(opened)


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
    """Locks a temporary folder and returns the descriptor that holds the lock; None where the file system has no locks.

    Raises:
        BlockingIOError: Another process or thread holds the lock.
        FileNotFoundError: The folder has been removed.
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
    """A locked temporary folder inside `parent`, removed at the end."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{_host()}-", dir=parent))
        try:
            descriptor = _lock_of(holder)
            break
        except (BlockingIOError, FileNotFoundError):
            continue  # another process has just removed it as abandoned
    try:
        yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def remove_leftovers(folder: PathLike) -> None:
    """Removes the temporary folders that killed processes left in a folder, and finishes interrupted replacements.

    What another process or machine is still writing stays: see `ABANDONED_S`.
    """
    folder = Path(folder)
    for holder in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            descriptor = _lock_of(holder)
            try:
                ours = descriptor is not None and holder.name.startswith(f"{TEMPORARY}{_host()}-")
                written = [holder, *(path for path in holder.rglob("*") if path.is_file())]
                if not ours and time.time() - max(path.stat().st_mtime for path in written) <= ABANDONED_S:
                    continue
                for aside in holder.glob(f"*{_REPLACED}"):  # killed between the renames of `_exchange`: finish them
                    staged = aside.with_name(aside.name.removesuffix(_REPLACED))
                    if staged.exists() and not (folder / staged.name).exists():
                        os.rename(staged, folder / staged.name)
                shutil.rmtree(holder, ignore_errors=True)
            finally:
                if descriptor is not None:
                    os.close(descriptor)


def remove_folder(path: PathLike) -> None:
    """Removes a folder, if there is one, atomically: readers see all of it or nothing, even if this process is killed.

    Of a link or a mount point only the contents are removed, files first.
    """
    path = Path(path)
    if not path.is_dir():
        return
    with naming_errors(path):
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
        return int(Path("/proc/self/status").read_text().partition("Umask:")[2].split()[0], 8)
    except (OSError, IndexError, ValueError):
        umask = os.umask(0o022)  # without /proc it can only be read by setting it
        os.umask(umask)
        return umask


def _apply_umask(path: Path) -> None:
    """Applies the umask to a new file or folder; some libraries write files that only the owner can read."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    for item in (path, *inside):
        if not item.is_symlink():
            private = 0o700 if item.is_dir() else 0o600
            if item.stat().st_mode & 0o777 == private:
                item.chmod((0o777 if item.is_dir() else 0o666) & ~_umask())


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Gives a temporary path to write a file or folder to; it replaces `path` if the block succeeds, else `path` stays as it was.

    A file never takes the place of a folder, nor a folder that of a file.

    Raises:
        DataError: The block wrote nothing.
        OSError: It could not be written, whichever way a library reports that; `filename` is the path.
    """
    target = Path(path)
    with naming_errors(target):
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
            _apply_umask(staged)
            sync(staged)
            if target.is_dir():
                if not staged.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
                _exchange(staged, target)
            else:
                os.replace(staged, target)


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Makes system errors in the block, a library's own included, name `path` where they name none or a temporary one."""
    try:
        yield
    except Exception as error:
        failure = system_error(error)
        if failure is None:
            raise
        named = failure.filename
        if isinstance(named, str) and TEMPORARY not in named:
            path = Path(named)
        raise OSError(failure.errno, failure.strerror, str(path)) from error


def atomic_write_bytes(path: PathLike, data: bytes) -> None:
    """Writes a file atomically."""
    with atomic_path(path) as staged:
        staged.write_bytes(data)


def atomic_write_text(path: PathLike, text: str) -> None:
    """Writes a UTF-8 file atomically."""
    atomic_write_bytes(path, text.encode())


def link_or_copy(source: PathLike, target: PathLike) -> None:
    """Gives a file that is never changed in place a second name, or where the file system cannot, copies it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: PathLike) -> str:
    """Returns the sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            with naming_errors(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads(path.read_text(encoding="utf-8"))
                where = "" if known["host"] == socket.gethostname() else f" on {known['host']}"
                otherwise += f" (process {known['process']}{where}, since {known['since']}: {known['command']})"
            raise DataError(otherwise) from None
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        holder = {"process": os.getpid(), "host": socket.gethostname(), "command": command}
        with suppress(OSError):  # the lock holds even if the note cannot be written
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({**holder, "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode(), 0)
        yield
    finally:
        os.close(descriptor)
