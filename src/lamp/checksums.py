"""Lists of files with their sizes and SHA-256: written last, so that they say what was whole, and compared on demand."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp.errors import DataError
from lamp.files import TEMPORARY, sha256_of
from lamp.json_files import read_json_object, to_line, write_json

CHECKSUMS = "checksums.json"
FORMAT, VERSION = "lamp-checksums", 1
OWN = "checksum"
"""Key under which a JSON object keeps the hash of the rest of itself."""


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """A file's size and hash when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ChecksumFault:
    """A file that is not as it was written."""

    file: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


Listed = Mapping[str, Checksum]
"""By path relative to a folder, with `/` between its parts."""


def checksum_of(path: Path) -> Checksum:
    """Reads a file for its checksum."""
    return Checksum(bytes=path.stat().st_size, sha256=sha256_of(path))


def checksums_of(folder: Path, files: Iterable[Path]) -> dict[str, Checksum]:
    """Reads files of a folder and lists them."""
    return {path.relative_to(folder).as_posix(): checksum_of(path) for path in sorted(files)}


def files_in(folder: Path, without: Iterable[str] = ()) -> list[Path]:
    """All files of a folder but temporary and hidden ones, and those left out, by their paths relative to the folder."""
    left_out, files = set(without), []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((TEMPORARY, ".")))
        for path in (Path(parent, name) for name in sorted(names) if not name.startswith(".")):
            if path.relative_to(folder).as_posix() not in left_out:
                files.append(path)
    return files


def to_json(listed: Listed) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": checksum.bytes, "sha256": checksum.sha256} for name, checksum in sorted(listed.items())}


def parse(obj: Any, where: Path) -> dict[str, Checksum]:
    """Reads what `to_json` made; strictly, since the list itself may be damaged.

    Raises:
        DataError: It is anything else.
    """
    listed: dict[str, Checksum] = {}
    for name, entry in obj.items() if type(obj) is dict else [("", None)]:
        checksum = _entry(entry)
        if checksum is None or not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DataError(f"the list of checksums in {where} is damaged, at {name[:80]!r}; restore the file")
        listed[name] = checksum
    return listed


def _entry(obj: Any) -> Checksum | None:
    match obj:
        case {"bytes": int(size), "sha256": str(digest), **rest} if not rest and type(size) is int:
            return Checksum(bytes=size, sha256=digest) if size >= 0 and len(digest) == 64 else None
    return None


def write_checksums(path: Path, listed: Listed, **entries: Any) -> None:
    """Writes a list, and further entries, to a file of its own."""
    write_json(path, with_own({"format": FORMAT, "version": VERSION, **entries, "files": to_json(listed)}))


def read_checksums(path: Path) -> dict[str, Checksum]:
    """Reads what `write_checksums` wrote.

    Raises:
        DataError: It is missing, damaged, or something else.
    """
    obj = read_json_object(path, "list of checksums")
    if (obj.get("format"), obj.get("version")) != (FORMAT, VERSION):
        raise DataError(f"{path} is no list of checksums ({FORMAT} {VERSION}); restore or remove it")
    if not is_intact(obj):
        raise DataError(f"the list of checksums {path} is not as it was written itself; restore or remove it")
    return parse(obj.get("files"), path)


def compare(folder: Path, listed: Listed, *, hash_below: int | None = None) -> list[ChecksumFault]:
    """Compares files with a list.

    Args:
        hash_below: Only the sizes of larger files are compared. [bytes]
    """
    faults = []
    for name, wanted in listed.items():
        path = folder / name
        try:
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                faults.append(ChecksumFault(file=path, problem="is missing"))
            elif size != wanted.bytes:
                faults.append(ChecksumFault(file=path, problem=f"has {size:,} bytes, {wanted.bytes:,} were written"))
            elif hash_below is None or size < hash_below:
                sha256 = sha256_of(path)
                if sha256 != wanted.sha256:
                    what = f"is not as it was written (sha256 {sha256[:12]}, was {wanted.sha256[:12]})"
                    faults.append(ChecksumFault(file=path, problem=what))
        except OSError as error:
            faults.append(ChecksumFault(file=path, problem=f"cannot be read ({error.strerror})"))
    return faults


def with_own(obj: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the hash of itself in it."""
    return {**obj, OWN: _own(obj)}


def is_intact(obj: Mapping[str, Any]) -> bool | None:
    """Whether a JSON object is as `with_own` made it; None where it has no hash of itself."""
    return None if OWN not in obj else obj[OWN] == _own(obj)


def _own(obj: Mapping[str, Any]) -> str:
    plain = json.loads(to_line({key: obj[key] for key in obj if key != OWN}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]
