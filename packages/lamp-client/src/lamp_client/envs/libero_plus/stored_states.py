"""LIBERO's stored initial states: NumPy arrays in torch's zip format, read without torch and without running anything."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError

_ALLOWED = {"_reconstruct", "scalar", "ndarray", "dtype", "encode"}


_DAMAGED = (OSError, EOFError, StopIteration, zipfile.BadZipFile, pickle.UnpicklingError, AttributeError, ImportError,
            LookupError, TypeError, ValueError)  # fmt: skip
"""What reading something else raises."""


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and nothing else: a pickle may otherwise call any function."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED or module.split(".")[0] not in ("numpy", "_codecs"):
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return super().find_class(module, name)


def read_stored_states(path: Path) -> np.ndarray:
    """Reads (k, n) float64: time, joint positions and joint velocities of each state, or (n,) of a single one.

    Raises:
        InvalidValueError: The file is missing, or holds anything but numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(entry) as stream:
                found = _ArraysOnly(stream, encoding="latin1").load()
        states = np.asarray(found, dtype=np.float64)
    except FileNotFoundError:
        raise InvalidValueError(f"{path} is missing.", hint="The copy of LIBERO-Plus is incomplete.") from None
    except _DAMAGED as error:
        raise InvalidValueError(f"{path} holds no stored initial states ({type(error).__name__}: {error}).") from None
    if states.ndim not in (1, 2) or not states.size or not np.isfinite(states).all():
        raise InvalidValueError(f"{path} holds an array of shape {states.shape}; expected initial states.")
    return states
