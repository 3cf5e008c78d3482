"""Finding a dataset: a folder on this machine, or an id on the Hugging Face hub, which is copied here whole."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lamp.errors import DataError, MissingDependencyError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_dataset(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder of a dataset. What the hub has sent once is used again without asking it.

    Args:
        source: A folder, or an id such as ``lerobot/pusht``; a folder that exists comes first.
        revision: The hub's branch, tag or commit.

    Raises:
        DataError: There is no such folder, and the hub cannot be reached or has no such dataset.
        MissingDependencyError: A hub id was given, and the hub's package is not installed.
    """
    text = os.fspath(source)
    if Path(text).is_dir() or not _HUB_ID.fullmatch(text) or text.startswith((".", "outputs/")):
        return Path(text)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingDependencyError(
            f"there is no folder {text}; to take it for a hub id, install the hub's package: pip install huggingface_hub"
        ) from None
    for only_local in (True, False):
        try:
            return Path(snapshot_download(text, repo_type="dataset", revision=revision, local_files_only=only_local))
        except Exception as error:  # the hub's package raises errors of several libraries, none of them common to all
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    raise DataError(
        f"{text} is neither a folder nor a dataset that the hub gives us ({reason}); expected a folder with meta/info.json, "
        "or an id on a hub that can be reached"
    )
