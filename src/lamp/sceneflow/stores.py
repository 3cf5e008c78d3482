"""The scene-flow stores of a dataset: they lie side by side, and are found by their settings.

The first is the dataset's folder ``sceneflow``, as the only one always was; one of other settings is ``sceneflow-KEY`` beside it,
where KEY is a hash of its settings.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError, DataError, LampError, MismatchError, unknown
from lamp.files import sha256_of
from lamp.json_files import to_line
from lamp.sceneflow.sim_states import SIMULATION_PATH
from lamp.sceneflow.store import SceneFlowStore, StoreDescription

FOLDER = "sceneflow"


@dataclass(frozen=True, kw_only=True)
class FlowRequirements:
    """What a model needs of a store; None where anything will do."""

    grid: tuple[int, int] | None = None
    """Rows and columns of keypoints."""
    horizon: int = 1
    """Flow steps of the model."""
    stride: int = 1
    """Stored flow steps per step of the model."""
    frames: int | None = None
    """Frames of the dataset per step of the model; `stride` then follows from the store."""
    camera: str | None = None
    every: int | None = None
    """At least every n-th frame that has an image of its own is a reference frame."""

    def span(self, stored: StoreDescription) -> int:
        """Stored flow steps that the model's horizon covers."""
        return self.horizon * (self.stride if self.frames is None else self.frames // stored.sampling.stride)

    def met_by(self, stored: StoreDescription) -> bool:
        """Whether a store has what is needed."""
        sampling = stored.sampling
        return (
            self.grid in (None, sampling.grid)
            and (self.frames is None or self.frames % sampling.stride == 0)
            and self.span(stored) <= sampling.horizon
            and (self.camera is None or self.camera in stored.cameras)
            and (self.every is None or self.every % stored.every == 0)
        )

    def exactly_met_by(self, stored: StoreDescription) -> bool:
        """Whether a store that fits holds nothing more: no finer steps, no longer horizon, no other camera."""
        return (
            self.span(stored) == stored.sampling.horizon
            and self.frames in (None, stored.sampling.stride)
            and (self.camera is None or stored.cameras == (self.camera,))
        )

    def __str__(self) -> str:
        step = f"{self.frames} frames" if self.frames is not None else f"{self.stride} stored ones"
        grid = "any grid" if self.grid is None else f"a {self.grid[0]}x{self.grid[1]} grid"
        camera = "" if self.camera is None else f" in {self.camera}"
        every = "" if self.every is None else f", every {self.every}"
        return f"{grid} over {self.horizon} flow steps of {step}{camera}{every}"


def store_folders(data: Path) -> list[Path]:
    """The folders of a dataset's stores, the first one first."""
    found = [data / FOLDER, *sorted(data.glob(f"{FOLDER}-*"))]
    return [folder for folder in found if (folder / "zarr.json").is_file()]


def settings(stored: StoreDescription) -> str:
    """The settings of a store in a few words, by which one is told from another."""
    sampling = stored.sampling
    return (
        f"{sampling.grid[0]}x{sampling.grid[1]} over {sampling.horizon} steps of {sampling.stride} frames, every {stored.every}, "
        f"{', '.join(stored.cameras)}, {stored.estimator}"
    )


def settings_of(description: Mapping[str, Any]) -> str:
    """The same, of a description as JSON."""
    return settings(from_json(StoreDescription, description, where="description of scene flow"))


def find_store(data: Path, needs: FlowRequirements, name: str | None = None) -> SceneFlowStore:
    """The store of a dataset that has what is needed.

    Of several that do, the one that was made for just this is taken. A dataset's only store is taken whatever it holds: the
    caller reports what it lacks.

    Args:
        name: The store's folder, as `lamp cache list` gives it; None: found by what is needed.

    Raises:
        ConfigError: There is none of that name, or several fit and none is named.
        DataError: There is none at all, or the only one is damaged.
        MismatchError: None of several fits.
    """
    folders = store_folders(data)
    if name is not None:
        if folders and name not in [folder.name for folder in folders]:
            raise unknown(f"scene-flow store of {data}", name, [folder.name for folder in folders])
        return SceneFlowStore(data / (name if folders else FOLDER))
    if len(folders) < 2:
        return SceneFlowStore(folders[0] if folders else data / FOLDER)
    stores, damaged = list[SceneFlowStore](), list[str]()
    for folder in folders:
        try:
            stores.append(SceneFlowStore(folder))
        except LampError as error:
            damaged.append(f"{folder.name} (damaged: {error})")
    fitting = [store for store in stores if needs.met_by(store.description)]
    exact = [store for store in fitting if needs.exactly_met_by(store.description)]
    if len(exact) == 1 or len(fitting) == 1:
        return (exact if len(exact) == 1 else fitting)[0]
    listed = [f"{store.path.name} ({settings(store.description)})" for store in fitting or stores]
    if not fitting:
        raise MismatchError(
            f"none of the scene-flow stores of {data} has {needs}; there are {'; '.join([*listed, *damaged])}. "
            f"`lamp flow build {data}` with the settings that are needed makes another beside them"
        )
    raise ConfigError(
        f"{len(fitting)} scene-flow stores of {data} have {needs}: {'; '.join(listed)}; "
        f"name one with --scene-flow, such as --scene-flow {fitting[0].path.name}"
    )


def folder_for(data: Path, description: StoreDescription) -> Path:
    """Where a dataset's store of some settings is, or is to be made.

    Raises:
        DataError: A store that is there is damaged, so that nobody knows what it is of.
    """
    # A dataset that was copied or renamed keeps its stores.
    wanted, taken = replace(description, source=""), False
    for folder in store_folders(data):
        if replace(SceneFlowStore(folder).description, source="") == wanted:
            return folder
        # One without any episode is what a build left that was stopped before its first.
        taken = taken or (folder.name == FOLDER and any(folder.glob("episode-[0-9]*")))
    key = hashlib.sha256(to_line(to_json(wanted)).encode()).hexdigest()[:8]
    return data / (f"{FOLDER}-{key}" if taken else FOLDER)


PictureHashes = Callable[[int], Mapping[str, str]]
"""Hashes of an episode's pictures, by camera (`lamp.data.feature_cache.shards.picture_hashes`), of those that can be read."""


def made_from(recording: Path, pictures: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What tells a recorded episode from another: what a store notes of the one that it made scene flow from.

    Args:
        pictures: Hashes of its pictures, by camera, where they are known.
    """
    found = recording.stat()
    noted = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": sha256_of(recording)}
    return {"recording": noted, **({"pictures": dict(pictures)} if pictures else {})}


def replaced_pictures(store: SceneFlowStore, episodes: Iterable[int], pictures: PictureHashes) -> list[int]:
    """Episodes whose pictures are others than those that were there when their scene flow was made.

    What earlier versions wrote does not say which those were.
    """
    found = []
    for episode in episodes:
        try:
            noted = store.made_from(episode).get("pictures")
        except DataError:
            continue  # damaged, which is reported when it is read
        if not isinstance(noted, dict) or not noted:
            continue
        now = pictures(episode)
        if any(now.get(camera, known) != known for camera, known in noted.items()):
            found.append(episode)
    return found


def changed_episodes(store: SceneFlowStore, data: Path, episodes: Iterable[int]) -> list[int]:
    """Episodes whose recorded simulation is another than the one that their scene flow was made from.

    A recording is read only where its time has changed and its size has not. What earlier versions wrote does not say what it was
    made from; nor is there anything to compare where a dataset was copied without its simulation.
    """
    found = []
    for episode in episodes:
        try:
            noted = store.made_from(episode).get("recording")
        except DataError:
            continue  # damaged, which is reported when it is read
        recording = data / SIMULATION_PATH.format(episode_index=episode)
        if not isinstance(noted, dict) or not recording.is_file():
            continue
        state = recording.stat()
        if state.st_size != noted.get("bytes") or (
            state.st_mtime_ns != noted.get("mtime_ns") and sha256_of(recording) != noted.get("sha256")
        ):
            found.append(episode)
    return found


def check_current(store: SceneFlowStore, data: Path, episodes: int, pictures: PictureHashes | None = None) -> None:
    """Checks that the recordings and pictures of a dataset's episodes are those that its scene flow was made from.

    Raises:
        MismatchError: One is not.
    """
    present = [episode for episode in store.episodes if episode < episodes]
    changed = changed_episodes(store, data, present)
    replaced = [] if changed or pictures is None else replaced_pictures(store, present, pictures)
    store.keep_index()
    if found := changed or replaced:
        listed = ", ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        recording = data / SIMULATION_PATH.format(episode_index=found[0])
        what = f"{recording} has" if changed else f"the pictures of episode {found[0]} of {data} have"
        raise MismatchError(
            f"{what} changed since the scene flow {store.path} was made "
            f"(episodes {listed}); make theirs again with `{build_command(store, data)}`"
        )


def build_command(store: SceneFlowStore, data: Path) -> str:
    """The command that continues a store."""
    stored = store.description
    words: list[object] = ["lamp", "flow", "build", data, "--grid", *stored.sampling.grid]
    words += ["--horizon", stored.sampling.horizon, "--stride", stored.sampling.stride, "--every", stored.every]
    words += ["--cameras", *stored.cameras, "--image-size", *stored.image_size]
    return shlex.join(map(str, [*words, *([] if stored.mirrored else ["--no-mirrored"])]))
