"""`lamp flow validate` and `lamp flow stats`: what is wrong with a scene-flow store, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamp.checksums import CHECKSUMS, compare, read_checksums
from lamp.errors import DataError, LampError, missing
from lamp.json_files import read_json_object, read_lines_json
from lamp.progress import Progress
from lamp.sceneflow.normalization import BoundsRule
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.stores import store_folders
from lamp.sceneflow.tracks import Supervision, flow_from_tracks, grid_pixels, moving_points, pixel_centres

MANIFEST = "manifest.jsonl"
"""In a store that was estimated from video: a line for each clip, of which the last counts."""


@dataclass(frozen=True, kw_only=True)
class StoreFault:
    """One thing that is wrong."""

    store: str
    problem: str
    episode: int | None = None
    camera: str | None = None

    def __str__(self) -> str:
        where = self.store if self.episode is None else f"{self.store}, episode {self.episode}"
        return f"{where}{'' if self.camera is None else f', {self.camera}'}: {self.problem}"


def find_stores(path: Path) -> list[Path]:
    """A store's folder itself, or the stores of a dataset.

    Raises:
        DataError: There is none.
    """
    if (path / "zarr.json").is_file():
        return [path]
    folders = store_folders(path)
    if not path.is_dir():
        raise missing(path, "scene-flow store", "a store, or a dataset with one", folder=True)
    if not folders:
        raise DataError(f"no scene-flow store in {path}; `lamp flow build` makes one")
    return folders


def validate(path: Path) -> list[StoreFault]:
    """Reads all stores of a folder whole and returns every fault.

    Raises:
        DataError: There is no store.
    """
    return [fault for folder in find_stores(path) for fault in _store_faults(folder)]


def _store_faults(folder: Path) -> Iterator[StoreFault]:
    try:
        store = SceneFlowStore(folder)
    except LampError as error:
        yield StoreFault(store=folder.name, problem=str(error))
        return
    lengths = _lengths(folder.parent)
    if not store.episodes:
        yield StoreFault(store=folder.name, problem="it holds no episode")
    with Progress("reading", len(store.episodes), "episodes", brief=True) as progress:
        for episode in store.episodes:
            found = False
            for problem in _file_faults(folder / f"episode-{episode:06d}"):
                found = True
                yield StoreFault(store=folder.name, episode=episode, problem=problem)
            for camera in () if found else store.description.cameras:
                try:
                    for problem in _array_faults(store, episode, camera, lengths.get(episode)):
                        yield StoreFault(store=folder.name, episode=episode, camera=camera, problem=problem)
                except (LampError, RuntimeError, ValueError) as error:
                    yield StoreFault(store=folder.name, episode=episode, camera=camera, problem=str(error))
            if lengths and episode not in lengths:
                yield StoreFault(store=folder.name, episode=episode, problem="the dataset has no such episode")
            progress.advance()


def _lengths(dataset: Path) -> dict[int, int]:
    """Frames of each of a dataset's episodes; empty where that is not to be found without reading it."""
    if not (dataset / "meta" / "info.json").is_file():
        return {}
    total = read_json_object(dataset / "meta" / "info.json").get("total_episodes")
    lines = dataset / "meta" / "lamp_episodes.jsonl"
    if not isinstance(total, int) or not lines.is_file():
        return {}
    rows = [row for row in read_lines_json(lines) if isinstance(row, dict) and "length" in row]
    return {int(row["episode_index"]): int(row["length"]) for row in rows if row["episode_index"] < total}


def _file_faults(folder: Path) -> Iterator[str]:
    if not (folder / CHECKSUMS).is_file():
        return  # written by somebody else, or by an early version
    try:
        noted = read_checksums(folder / CHECKSUMS)
    except LampError as error:
        yield str(error)
        return
    for fault in compare(folder, noted):
        yield f"{fault.file.relative_to(folder)} {fault.problem}"


def _array_faults(store: SceneFlowStore, episode: int, camera: str, length: int | None) -> Iterator[str]:
    description = store.description
    frames = store.frames(episode, camera)
    if not len(frames):
        yield "it holds no query frame"
        return
    if (np.diff(frames) <= 0).any() or frames[0] < 0:
        yield "its query frames are not ascending"
    if length is not None and frames[-1] >= length:
        yield f"query frame {frames[-1]} of an episode of {length} frames"
    tracks, pose = store.read(episode, frames, camera)
    rows, columns = description.sampling.grid
    expected = (len(frames), rows * columns, description.sampling.horizon + 1)
    if tuple(tracks.points.shape) != (*expected, 3) or tuple(tracks.visible.shape) != expected:
        yield f"points of shape {tuple(tracks.points.shape)}; expected {(*expected, 3)}"
        return
    points, valid = tracks.points, tracks.valid
    if not points[..., :2][valid].isfinite().all():
        yield "u or v of a known point is not finite"
    depth = points[..., 2][valid]
    if (depth[depth.isfinite()] <= 0).any():
        yield "a known point has a depth of zero or less"
    if depth.isinf().any():
        yield "a known point has an infinite depth"
    if (tracks.visible & ~valid).any():
        yield "a point is visible where it is not known"
    width, height = description.image_size
    grid = pixel_centres(grid_pixels(rows, columns, width, height), width, height)
    start = valid[..., 0]
    if (points[..., 0, :2] - grid.float()).abs()[start].max() > 1e-4 if start.any() else False:
        yield f"known points do not start at the {rows}x{columns} grid of {width}x{height} px"
    if not (
        pose.intrinsics.isfinite().all()
        and (pose.intrinsics[..., 1, 1] > 0).all()
        and (pose.intrinsics[..., 0, 0] != 0).all()
    ):
        yield "the intrinsics are no camera's"
    rotation = pose.world_from_cam[..., :3, :3]
    if not torch.allclose(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-3):
        yield "the camera's pose is no rigid motion"


def statistics(path: Path) -> list[dict[str, Any]]:
    """What each store of a folder holds, in numbers.

    Raises:
        DataError: There is no store, or it cannot be read.
    """
    return [_statistics(folder) for folder in find_stores(path)]


def _statistics(folder: Path) -> dict[str, Any]:
    store = SceneFlowStore(folder)
    flows, shares, depth, visible, known, steps = [], [], [], [], [], []
    episodes = store.episodes
    for episode in episodes[:: max(len(episodes) // 64, 1)]:
        frames = store.frames(episode)
        if not len(frames):
            continue
        tracks, camera = store.read(episode, frames[:: max(len(frames) // 8, 1)])
        flow = flow_from_tracks(tracks, camera, supervision=Supervision(hidden_points=True))
        moves = moving_points(flow)
        flows.append(flow)
        shares.append(moves.float().mean().item())
        depth.append(tracks.points[..., 0, 2].isfinite().float().mean().item())
        visible.append(tracks.visible.float().mean().item())
        known.append(tracks.valid.float().mean().item())
        steps.append(flow.increments[moves][..., :2].norm(dim=-1).flatten().numpy())
    moving_steps = np.concatenate(steps) if steps else np.empty(0)
    bounds = BoundsRule().fit(flows) if flows else None

    def mean(values: list[float]) -> float:
        return round(float(np.mean(values)), 4) if values else 0.0

    return {
        "store": folder.name,
        **store.describe(),
        "moving_share": mean(shares),
        "depth_share": mean(depth),
        "visible_share": mean(visible),
        "known_share": mean(known),
        "moving_step_median": round(float(np.median(moving_steps)), 6) if len(moving_steps) else None,
        "bounds": None if bounds is None else [float(end) for end in bounds.high],
        "clips": manifest_counts(folder),
    }


def manifest_lines(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of the manifest of a store that was estimated from video, by clip, the last one of each; empty without one."""
    rows = read_lines_json(folder / MANIFEST)
    return {row["clip"]: row for row in rows if type(row) is dict and "clip" in row}


def manifest_counts(folder: Path) -> Mapping[str, Any]:
    """What the manifest of a store that was estimated from video counts; empty where there is none."""
    if not (folder / MANIFEST).is_file():
        return {}
    lines = manifest_lines(folder)
    left_out: dict[str, int] = {}
    for row in lines.values():
        for name, count in (row.get("left_out") or {}).items():
            left_out[name] = left_out.get(name, 0) + count
    failed = {name: row["error"] for name, row in lines.items() if row.get("error")}
    return {
        "built": len(lines) - len(failed),
        "failed": failed,
        "query_frames": sum(row.get("query_frames", 0) for row in lines.values()),
        "left_out": left_out,
        "processor_seconds": round(sum(row.get("seconds", 0.0) for row in lines.values()), 1),
    }
