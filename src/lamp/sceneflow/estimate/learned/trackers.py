"""Learned point trackers; where their points go in space is read from the depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from lamp.errors import DataError
from lamp.sceneflow.estimate.interfaces import CameraPath, Clip, DepthMaps, PointTracks
from lamp.sceneflow.estimate.learned.model import (
    LearnedModel,
    Licence,
    default_device,
    device_of,
    fill,
    loaded,
    resized,
)
from lamp.sceneflow.estimate.optical_flow import depth_at, grid_positions, inside
from lamp.sceneflow.estimate.query import Query, as_tracks
from lamp.sceneflow.exact_flow import Sampling

Followed = tuple[Float[np.ndarray, "t n 2"], Float[np.ndarray, "t n"], Float[np.ndarray, "t n"]]
"""Positions in px with (0, 0) at the centre of the first pixel, probability of being seen, and confidence, 0 to 1."""


def _cotracker(path: Path) -> Any:
    build = COTRACKER3.imported("cotracker.models.build_cotracker").build_cotracker
    return fill(build(None, offline=True, window_len=60), path, COTRACKER3.title)


def _run_cotracker(model: Any, rgb: UInt8[np.ndarray, "t h w 3"], start: Float[np.ndarray, "n 2"]) -> Followed:
    """Pixel indices, corners on corners, at the network's own size; a coarse grid beside the points steadies them."""
    height, width = model.model_resolution
    factor = np.array([(width - 1) / (rgb.shape[2] - 1), (height - 1) / (rgb.shape[1] - 1)])
    video = resized(rgb, (width, height), device_of(model), corners=True)[None]
    support = grid_positions(6, 6, width, height)
    xy = torch.from_numpy(np.concatenate([start * factor, support])).to(video)
    queries = torch.cat([torch.zeros_like(xy[:, :1]), xy], dim=-1)[None]
    tracks, seen, sure, _ = model(video=video, queries=queries, iters=6)
    found, count = tracks[0, :, : len(start)].double().cpu().numpy() / factor, len(start)
    return found, seen[0, :, :count].cpu().numpy(), sure[0, :, :count].cpu().numpy()


COTRACKER3 = LearnedModel(
    name="cotracker3",
    title="CoTracker3",
    licence=Licence(text="CC BY-NC 4.0 (Meta; code and weights)", commercial=False),
    install="pip install 'cotracker @ git+https://github.com/facebookresearch/co-tracker'",
    weights="facebook/cotracker3",
    get="hf download facebook/cotracker3 scaled_offline.pth --local-dir DIR",
    files=("scaled_offline.safetensors", "scaled_offline.pth"),
    load=_cotracker,
    run=_run_cotracker,
    visible=0.6,  # of visibility times confidence, as its online predictor has it
)

TAPNET = (
    "pip install --no-deps 'tapnet @ git+https://github.com/google-deepmind/tapnet' && pip install 'lamp-vla[trackers]'"
)


def _bootstapir(path: Path) -> Any:
    tapir = BOOTSTAPIR.imported("tapnet.torch.tapir_model")
    return fill(tapir.TAPIR(pyramid_level=1), path, BOOTSTAPIR.title)


def _tapnet_inputs(
    model: Any, rgb: UInt8[np.ndarray, "t h w 3"], start: Float[np.ndarray, "n 2"]
) -> tuple[Float[Tensor, "1 t 256 256 3"], Float[Tensor, "1 n 3"], Float[np.ndarray, "2"]]:
    """The clip in [-1, 1]; queries (t, y, x) in its raster coordinates; its size over that of the images (x, y)."""
    factor = np.array([256 / rgb.shape[2], 256 / rgb.shape[1]])
    video = resized(rgb, (256, 256), device_of(model)).permute(0, 2, 3, 1)[None] / 127.5 - 1
    yx = torch.from_numpy(((start + 0.5) * factor)[:, ::-1].copy()).to(video)
    return video, torch.cat([torch.zeros_like(yx[:, :1]), yx], dim=-1)[None], factor


def _run_bootstapir(model: Any, rgb: UInt8[np.ndarray, "t h w 3"], start: Float[np.ndarray, "n 2"]) -> Followed:
    """Raster coordinates (pixel centres at one half) in images of 256 x 256; queries are (t, y, x), answers (x, y)."""
    video, queries, factor = _tapnet_inputs(model, rgb, start)
    out = model(video, queries)
    tracks = out["tracks"][0].transpose(0, 1).double().cpu().numpy() / factor - 0.5
    seen, sure = (1 - out[name][0].T.sigmoid().cpu().numpy() for name in ("occlusion", "expected_dist"))
    return tracks, seen, sure


BOOTSTAPIR = LearnedModel(
    name="bootstapir",
    title="BootsTAPIR",
    licence=Licence(text="Apache-2.0 (Google DeepMind; code and weights)"),
    install=TAPNET,
    weights="https://storage.googleapis.com/dm-tapnet/bootstap/bootstapir_checkpoint_v2.pt",
    get="wget https://storage.googleapis.com/dm-tapnet/bootstap/bootstapir_checkpoint_v2.pt",
    files=("bootstapir*.safetensors", "bootstapir*.pt"),
    load=_bootstapir,
    run=_run_bootstapir,
)


def _tapnextpp(path: Path) -> Any:
    network = TAPNEXTPP.imported("tapnet.tapnext.tapnext_torch").TAPNext(image_size=(256, 256))
    return fill(network, path, TAPNEXTPP.title, prefix="tapnext.")


def _run_tapnextpp(model: Any, rgb: UInt8[np.ndarray, "t h w 3"], start: Float[np.ndarray, "n 2"]) -> Followed:
    """Raster coordinates in images of 256 x 256; queries are (t, y, x) and answers (y, x). Frames go in one by one."""
    video, queries, factor = _tapnet_inputs(model, rgb, start)
    state = None
    tracks, seen, sure = [], [], []
    for frame in range(video.shape[1]):
        asked = {"query_points": queries} if state is None else {"state": state}
        place, logits, visible, state = model(video=video[:, frame : frame + 1], **asked)
        tracks.append(place[0, 0].double().cpu().numpy()[:, ::-1] / factor - 0.5)
        seen.append(visible[0, 0, :, 0].sigmoid().cpu().numpy())
        # How much of what each axis' softmax says lies within 8 px of the answer.
        near = [
            (
                half.softmax(-1) * ((torch.arange(half.shape[-1], device=half.device) + 0.5 - at[..., None]).abs() <= 8)
            ).sum(-1)
            for half, at in zip(logits[0, 0].chunk(2, dim=-1), place[0, 0].unbind(-1), strict=True)
        ]
        sure.append((near[0] * near[1]).cpu().numpy())
    return np.stack(tracks), np.stack(seen), np.stack(sure)


TAPNEXTPP = LearnedModel(
    name="tapnextpp",
    title="TAPNext++",
    licence=Licence(text="Apache-2.0 (Google DeepMind; code and weights)"),
    install=TAPNET,
    weights="https://storage.googleapis.com/dm-tapnet/tapnextpp/tapnextpp_ckpt.pt",
    get="wget https://storage.googleapis.com/dm-tapnet/tapnextpp/tapnextpp_ckpt.pt",
    files=("tapnextpp*.safetensors", "tapnextpp*.pt", "tapnextpp*.ckpt"),
    load=_tapnextpp,
    run=_run_tapnextpp,
    both=False,
)


def _alltracker(path: Path) -> Any:
    net = ALLTRACKER.imported("nets.alltracker").Net
    settings = {"use_basicencoder": True, "no_split": True} if "tiny" in path.name else {"init_weights": False}
    return fill(net(16, **settings), path, ALLTRACKER.title)


def _run_alltracker(model: Any, rgb: UInt8[np.ndarray, "t h w 3"], start: Float[np.ndarray, "n 2"]) -> Followed:
    """A dense flow from the first frame, in px of images whose sides are multiples of 8; looked up at the points."""
    factor = max(1.0, 384 / max(rgb.shape[1:3]))
    width, height = (max(round(side * factor / 8), 2) * 8 for side in (rgb.shape[2], rgb.shape[1]))
    scale = np.array([width / rgb.shape[2], height / rgb.shape[1]])
    video = resized(rgb, (width, height), device_of(model))[None]
    flows, maps, *_ = model.forward_sliding(video, iters=4, sw=None, is_training=False)
    flows, maps = (values.float().cpu().reshape(-1, 2, height, width) for values in (flows, maps))
    if len(flows) < len(rgb):  # of two frames it gives the second alone
        flows = torch.cat([torch.zeros_like(flows[:1]), flows])
        maps = torch.cat([torch.ones_like(maps[:1]), maps])
    place = (start + 0.5) * scale
    where = torch.from_numpy(2 * place / [width, height] - 1).float().expand(len(rgb), 1, -1, -1)
    flow, shown = (
        functional.grid_sample(values, where, align_corners=False, padding_mode="border")[:, :, 0]
        .permute(0, 2, 1)
        .numpy()
        for values in (flows, maps)
    )
    return (place + flow) / scale - 0.5, shown[..., 0], shown[..., 1]


ALLTRACKER = LearnedModel(
    name="alltracker",
    title="AllTracker",
    licence=Licence(text="MIT (Adam W. Harley; code and weights)"),
    install="pip install 'lamp-vla[trackers]' && git clone https://github.com/aharley/alltracker && "
    "export PYTHONPATH=$PWD/alltracker",
    weights="aharley/alltracker",
    get="hf download aharley/alltracker alltracker.pth --local-dir DIR",
    files=("alltracker.safetensors", "alltracker.pth"),
    load=_alltracker,
    run=_run_alltracker,
    visible=0.1,  # of visibility times confidence
    instead_of_gpu=(COTRACKER3.name, BOOTSTAPIR.name, TAPNEXTPP.name),
)

TRACKERS = {model.name: model for model in (COTRACKER3, BOOTSTAPIR, TAPNEXTPP, ALLTRACKER)}


@dataclass(frozen=True, kw_only=True)
class LearnedTracker:
    """A learned point tracker; where its points go in space is read from the depth."""

    model: LearnedModel
    weights: str | None = None
    device: str = field(default_factory=default_device)
    jump: float = 0.04
    """m: by more than this, and what noise explains, no depth changes from one frame to the next while a point is seen."""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Tracks of each query frame, each found in its own horizon."""
        network = loaded(self.model, self.weights, self.device)
        grid = grid_positions(*sampling.grid, *clip.size)
        for frame in frames:
            query = Query.of(clip, depth, cameras, frame, sampling.horizon * sampling.stride)
            with torch.inference_mode():
                xy, shown, sure = self._followed(network, query, grid)
            yield self._lifted(query, sampling, xy, shown, sure)

    def _followed(self, network: Any, query: Query, grid: np.ndarray) -> Followed:
        if len(query.frames) < 2:
            ones = np.ones((1, len(grid)))
            return grid[None].copy(), ones, ones
        xy, shown, sure = self.model.run(network, query.rgb[query.frames], grid)
        expected = (len(query.frames), len(grid))
        if xy.shape != (*expected, 2) or shown.shape != expected or not np.isfinite(xy).all():
            raise DataError(
                f"{self.model.title} answered with tracks of shape {xy.shape} for {expected}, or with no numbers; are these its "
                "weights?"
            )
        return xy, shown, sure

    def _lifted(
        self,
        query: Query,
        sampling: Sampling,
        xy: Float[np.ndarray, "t1 n 2"],
        shown: Float[np.ndarray, "t1 n"],
        sure: Float[np.ndarray, "t1 n"],
    ) -> PointTracks:
        """With depth where a point is seen, and NaN where it is hidden: there only its place in the image is known."""
        xy[0] = grid = np.asarray(grid_positions(*sampling.grid, *query.size))
        visible: Bool[np.ndarray, "t1 n"] = (shown * sure if self.model.both else shown) > self.model.visible
        visible &= inside(xy, *query.size)
        visible[0] = True
        z = np.full(visible.shape, np.nan)
        latest = z[0] = query.depth_of(grid)
        unseen = np.ones(len(grid))  # frames since a point was last seen with a depth
        for t in range(1, len(xy)):
            found = depth_at(query.depth.metres[query.frames[t]], xy[t], latest)
            with np.errstate(invalid="ignore"):  # a track that slips off an edge lands on another surface
                slips = np.abs(found - latest) > self.jump * unseen + query.depth.tolerance(np.nan_to_num(latest))
            visible[t] &= ~slips
            z[t] = np.where(visible[t], found, np.nan)
            latest = np.where(np.isfinite(z[t]), z[t], latest)
            unseen = np.where(np.isfinite(z[t]), 1, unseen + 1)
        held, far = query.held(xy, z)
        return as_tracks(
            query, sampling, held, far, visible, np.ones_like(visible), sure * shown, np.zeros(len(grid), bool)
        )
