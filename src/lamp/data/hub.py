"""Finding a dataset: a folder on this machine, or an id on the Hugging Face hub, which is copied here whole."""

from __future__ import annotations

import os
from pathlib import Path

from lamp.hub import Fetch, HubId, fetch

WHOLE_DATASET = Fetch(
    kind="dataset",
    instead="Expected a folder with meta/info.json, or an id on a hub that can be reached.",
    stored_first=True,
)


def find_dataset(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder of a dataset. What the hub has sent once is used again without asking it.

    Args:
        source: A folder, or an id such as ``lerobot/pusht`` or ``lerobot/pusht@v2.1``; a folder that exists comes first.
        revision: The hub's branch, tag or commit.

    Raises:
        DataError: There is no such folder, and the hub cannot be reached or has no such dataset.
        MissingDependencyError: A hub id was given, and the hub's package is not installed.
    """
    text = os.fspath(source)
    hub = None if Path(text).is_dir() else HubId.parse(text, revision)
    return Path(text) if hub is None else fetch(hub, WHOLE_DATASET)
