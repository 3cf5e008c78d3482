"""Files of a model's repository on the hub, or those of them that were downloaded before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamp.errors import DataError, MissingDependencyError

ANSWER_S = 10.0
"""How long the hub may take to answer. [s]"""


def fetch(name: str, revision: str | None, patterns: Sequence[str], *, instead: str) -> Path:
    """Downloads what is not in the local cache yet, and returns the folder, whose name is the commit.

    Args:
        name: Of the repository, such as Qwen/Qwen3-VL-4B-Instruct.
        revision: Commit, tag or branch; None: the newest.
        patterns: Which files.
        instead: What the user can do where the hub cannot be reached, for the error.

    Raises:
        DataError: The hub does not give it, and the cache does not have it.
        MissingDependencyError: `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import model_info, snapshot_download
    except ImportError:
        raise MissingDependencyError(
            f"{name} is no folder, and fetching it from the hub needs huggingface_hub: pip install huggingface_hub. {instead}"
        ) from None
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns)}
    # Offline, unknown name, no access, full disk: the hub's client and its transport each have their own exceptions.
    try:
        # A download tries again and again where there is no connection; this says so at once.
        model_info(name, revision=revision, timeout=ANSWER_S)
    except Exception as error:
        try:
            return Path(snapshot_download(name, local_files_only=True, **wanted))
        except Exception:
            raise _unavailable(name, revision, error, instead) from error
    try:
        return Path(snapshot_download(name, **wanted))
    except Exception as error:
        raise _unavailable(name, revision, error, instead) from error


def _unavailable(name: str, revision: str | None, error: Exception, instead: str) -> DataError:
    at = f" at revision {revision}" if revision else ""
    # An answer of the hub's has its number on the first line and what it means on the next.
    told = [line.strip(" .") for line in str(error).splitlines() if line.strip()][:2] or [type(error).__name__]
    return DataError(f"no folder {name}, and the model hub does not give it{at} ({'. '.join(told)}). {instead}")
