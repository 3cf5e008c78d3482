"""LIBERO's stored initial states: NumPy arrays in torch's zip format, read without torch and without running anything."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError

MAX_BYTES = 8 << 20
"""A file of the benchmark has 83 kB at most."""
_MAX_RATIO = 100
"""Uncompressed to compressed size: states compress by less than 10, what is made to fill memory by 1,000."""

_DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, AttributeError, ImportError,
            LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError)  # fmt: skip
"""What reading something else raises; NotImplementedError and RecursionError are kinds of RuntimeError."""

_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Dtype:
    """What a pickle says of an element type."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in _DTYPES:
            raise pickle.UnpicklingError(f"{str(code)[:20]!r} is no type of numbers")
        self.type = np.dtype(str(code))

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("an element type has no byte order")
        self.type = self.type.newbyteorder(state[1])


class _Array:
    """What a pickle says of an array: its values are the bytes that are there, no more."""

    values: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array holds something else than numbers")
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError("an array has no shape")
        if len(shape) > 8 or math.prod(shape) * dtype.type.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:60]} has {len(data)} bytes")
        self.values = np.frombuffer(data, dtype=dtype.type).reshape(shape, order="F" if fortran else "C")


class _Ndarray:
    """Stands for the class of arrays, which is only ever passed on."""

    def __init__(self) -> None:
        raise pickle.UnpicklingError("an array is made in another way")


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _Ndarray:
        raise pickle.UnpicklingError("something else than an array is to be made")
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes are written in another way than as latin1")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 2
    ("_codecs", "encode"): _encode,
}
"""All that a pickle may name, and what takes its place here: no function of NumPy is called with values from a file."""


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and nothing else: a pickle may otherwise call any function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return _ALLOWED[module, name]


def read_stored_states(path: Path) -> np.ndarray:
    """Reads (k, n) float64: time, joint positions and joint velocities of each state, or (n,) of a single one.

    Raises:
        InvalidValueError: The file is missing, or holds anything but numbers, or unpacks to more than could be meant.
    """
    try:
        states = _array(_pickled(path))
    except FileNotFoundError:
        raise InvalidValueError(f"{path} is missing.", hint="The copy of LIBERO-Plus is incomplete.") from None
    except _DAMAGED as error:
        raise InvalidValueError(f"{path} holds no stored initial states ({type(error).__name__}: {error}).") from None
    if states.ndim not in (1, 2) or not states.size or not np.isfinite(states).all():
        raise InvalidValueError(f"{path} holds an array of shape {states.shape}; expected initial states.")
    return states


def _pickled(path: Path) -> bytes:
    """The pickle in the zip, once its sizes are known to be such as they should be."""
    if path.exists() and not path.is_file():
        raise ValueError("no ordinary file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    with zipfile.ZipFile(path) as archive:
        entry = next((entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")), None)
        if entry is None:
            raise ValueError("no data.pkl in it")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("compressed in another way than torch does")
        if entry.file_size > min(MAX_BYTES, _MAX_RATIO * max(entry.compress_size, 1024)):
            raise ValueError(f"{entry.compress_size:,} bytes unpack to {entry.file_size:,}")
        with archive.open(entry) as stream:
            # What is said above may be untrue, so no more is read than was said.
            data = stream.read(entry.file_size + 1)
    if len(data) != entry.file_size:
        raise ValueError(
            f"data.pkl has {len(data):,} bytes where {entry.file_size:,} were announced: is the file cut off?"
        )
    return data


def _array(data: bytes) -> np.ndarray:
    """Unpickles an array, or a list of equal ones."""
    for operations, (operation, argument, _) in enumerate(pickletools.genops(data)):
        # The unpickler makes as much room as the highest number asks for.
        if operation.name.endswith("PUT") and isinstance(argument, int) and argument > operations:
            raise pickle.UnpicklingError(f"something is kept under the number {argument}")
    found = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    parts = found if isinstance(found, list | tuple) else [found]
    if not parts or not all(isinstance(part, _Array) and hasattr(part, "values") for part in parts):
        raise pickle.UnpicklingError("no array of numbers is in it")
    if sum(part.values.size for part in parts) * 8 > MAX_BYTES * 4:
        raise pickle.UnpicklingError("more numbers are in it than the file could hold")
    arrays = [np.asarray(part.values, dtype=np.float64) for part in parts]
    return np.stack(arrays) if isinstance(found, list | tuple) else arrays[0]
