"""Learned estimators as plug-ins: point trackers, depth and cameras whose networks come from their authors' packages.

None is needed and none is a default. Each says its licence before it is first used; a package or weights that are missing are
named with the command that gets them. Weights are read as safetensors or with `weights_only`: nothing in them is ever executed.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from lamp.errors import ConfigError, DataError, MismatchError, MissingDependencyError, unknown
from lamp.hub import Fetch, HubId, fetch
from lamp.sceneflow.estimate.cameras import RecordedCameras
from lamp.sceneflow.estimate.chain import Chain, Query, as_tracks, chain_named
from lamp.sceneflow.estimate.interfaces import (
    MAX_DEPTH,
    CameraPath,
    Cameras,
    Clip,
    Depth,
    DepthMaps,
    PointTracks,
    RecordedDepth,
    check_intrinsics,
    depth_noise,
    nominal_intrinsics,
)
from lamp.sceneflow.estimate.optical_flow import depth_at, grid_positions, inside
from lamp.sceneflow.estimate.rigid import inverse
from lamp.sceneflow.exact_flow import Sampling

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".ckpt")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 8
"""Frames that a depth model is given at once."""

Followed = tuple[Float[np.ndarray, "t n 2"], Float[np.ndarray, "t n"], Float[np.ndarray, "t n"]]
"""Positions in px with (0, 0) at the centre of the first pixel, probability of being seen, and confidence, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What a model may be used for."""

    text: str
    commercial: bool = True


@dataclass(frozen=True, kw_only=True)
class LearnedModel:
    """A model of somebody else's: where its network and its weights come from."""

    name: str
    """As it is called on the command line."""
    title: str
    licence: Licence
    install: str
    """The command that installs what it is imported from."""
    weights: str
    """The weights that are used where none are named: a hub id, or where they are found."""
    get: str
    """The command that gets them."""
    files: tuple[str, ...] = ("*.safetensors",)
    """Names of weight files in a folder or on the hub, the best first."""
    load: Callable[[Path], Any]
    """Makes the network and reads its weights."""
    run: Callable[..., Any]
    """Estimates; what it takes and gives depends on the kind of model."""
    visible: float = 0.5
    """Of a tracker: a point of a higher probability is seen."""
    both: bool = True
    """Of a tracker: that probability is of being seen and of the place being right, else of being seen alone."""
    needs_gpu: bool = False
    """Its own code moves images to a GPU, whatever it is told."""

    @property
    def notice(self) -> str:
        """Its licence, in one line."""
        use = "" if self.licence.commercial else ": NOT for commercial use, neither what is made with it"
        return f"{self.title} is used under {self.licence.text}{use}"

    def find(self, weights: str | None) -> Path:
        """The file or folder of its weights, copied from the hub where it is not on this machine.

        Raises:
            DataError: There are none, or several.
        """
        named = weights or self.weights
        command = f"get them with: {self.get}, and name the file or folder"
        path = Path(named).expanduser()
        if not path.exists():
            hub = HubId.parse(named)
            if hub is None:
                raise DataError(f"no weights of {self.title} at {named}; {command}")
            instead = f"Where there is a hub, {command}."
            path = fetch(hub, Fetch(patterns=(*self.files, "*.json"), instead=instead, stored_first=True))
        if path.is_file():
            if path.suffix not in WEIGHT_FILES:
                raise DataError(f"{path} are no weights of {self.title}; expected a file {', '.join(WEIGHT_FILES)}")
            return path
        for pattern in self.files:
            found = sorted(path.glob(pattern))
            if len(found) == 1 and found[0].is_file():
                return found[0]
            if found:
                names = ", ".join(file.name for file in found[:5])
                raise DataError(f"{path} holds several weights of {self.title} ({names}); name the file that is meant")
        raise DataError(f"{path} holds no weights of {self.title}; expected {' or '.join(self.files)}; {command}")

    def imported(self, module: str) -> Any:
        """A module of its package.

        Raises:
            MissingDependencyError: It, or something that it needs, is not installed.
        """
        try:
            return importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # torchvision for another torch raises RuntimeError
            raise MissingDependencyError(
                f"{self.title} cannot be imported ({error}); install it: {self.install}"
            ) from None


def read_weights(path: Path, title: str) -> dict[str, Any]:
    """What a weight file holds: tensors by name, under `model` or `state_dict` or by themselves.

    Raises:
        DataError: It is corrupt, or holds something else than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot read {path} as weights of {title} ({first}); expected safetensors, or a PyTorch file of tensors alone, "
            "which nothing is executed of"
        ) from None


def fill(network: torch.nn.Module, path: Path, title: str, prefix: str = "") -> Any:
    """A network with the weights of a file, ready to estimate.

    Args:
        prefix: Of the names in the file, which the network's lack; names without it are taken as they are.

    Raises:
        MismatchError: They are weights of another network.
    """
    content = read_weights(path, title)
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {name.removeprefix(prefix): value for name, value in content.items()}
    wanted = network.state_dict()
    absent = [name for name in wanted if name not in state]
    strange = [name for name in state if name not in wanted]
    other = [name for name in wanted if name in state and getattr(state[name], "shape", None) != wanted[name].shape]
    if absent or strange or other:
        shown = (*(f"{name} is missing" for name in absent[:1]), *(f"{name} is unknown" for name in strange[:1]))
        shown = (*shown, *(f"{name} has another shape" for name in other[:1]))
        raise MismatchError(
            f"{path} holds other weights than those of {title} ({'; '.join(shown)}; {len(absent) + len(strange) + len(other)} "
            f"differences in {len(wanted)}); expected those of {title}"
        )
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


# Point trackers


def _resized(rgb: UInt8[np.ndarray, "t h w 3"], size: tuple[int, int], device: Any, *, corners: bool = False) -> Tensor:
    """Images as (t, 3, h, w) floats of 0 to 255 at another width and height."""
    video = torch.from_numpy(np.ascontiguousarray(rgb)).to(device).permute(0, 3, 1, 2).float()
    if video.shape[2:] == (size[1], size[0]):
        return video
    return functional.interpolate(video, (size[1], size[0]), mode="bilinear", align_corners=corners)


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _cotracker(path: Path) -> Any:
    build = COTRACKER3.imported("cotracker.models.build_cotracker").build_cotracker
    return fill(build(None, offline=True, window_len=60), path, COTRACKER3.title)


def _run_cotracker(model: Any, rgb: UInt8[np.ndarray, "t h w 3"], start: Float[np.ndarray, "n 2"]) -> Followed:
    """Pixel indices, corners on corners, at the network's own size; a coarse grid beside the points steadies them."""
    height, width = model.model_resolution
    factor = np.array([(width - 1) / (rgb.shape[2] - 1), (height - 1) / (rgb.shape[1] - 1)])
    video = _resized(rgb, (width, height), _device(model), corners=True)[None]
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


def _run_bootstapir(model: Any, rgb: UInt8[np.ndarray, "t h w 3"], start: Float[np.ndarray, "n 2"]) -> Followed:
    """Raster coordinates (pixel centres at one half) in images of 256 x 256; queries are (t, y, x), answers (x, y)."""
    width, height = 256, 256
    factor = np.array([width / rgb.shape[2], height / rgb.shape[1]])
    video = _resized(rgb, (width, height), _device(model)).permute(0, 2, 3, 1)[None] / 127.5 - 1
    yx = torch.from_numpy(((start + 0.5) * factor)[:, ::-1].copy()).to(video)
    out = model(video, torch.cat([torch.zeros_like(yx[:, :1]), yx], dim=-1)[None])
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
    factor = np.array([256 / rgb.shape[2], 256 / rgb.shape[1]])
    video = _resized(rgb, (256, 256), _device(model)).permute(0, 2, 3, 1)[None] / 127.5 - 1
    yx = torch.from_numpy(((start + 0.5) * factor)[:, ::-1].copy()).to(video)
    queries, state = torch.cat([torch.zeros_like(yx[:, :1]), yx], dim=-1)[None], None
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
    video = _resized(rgb, (width, height), _device(model))[None]
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
    needs_gpu=True,
)

TRACKERS = {model.name: model for model in (COTRACKER3, BOOTSTAPIR, TAPNEXTPP, ALLTRACKER)}


@lru_cache(maxsize=4)
def loaded(model: LearnedModel, weights: str | None, device: str) -> Any:
    """A network with its weights on a device, once a process.

    Raises:
        LampError: Its package or weights are missing or do not fit, or there is no such device.
    """
    if model.needs_gpu and not device.startswith("cuda"):
        raise ConfigError(
            f"{model.title} computes on a GPU alone, and the device is {device!r}; expected --device cuda on a machine with "
            f"one, or another tracker: {', '.join(name for name, one in TRACKERS.items() if not one.needs_gpu)}"
        )
    with torch.no_grad():
        network = model.load(model.find(weights))
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{model.title} cannot be put on device {device!r} ({str(error).splitlines()[0]}); expected cpu, or cuda:N of a GPU "
            "that is there"
        ) from None


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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


# Depth and cameras


def _normalised(rgb: UInt8[np.ndarray, "n h w 3"], longer: int, device: Any) -> Tensor:
    """Images as a DINOv2 backbone takes them, the longer side of about so many px, both multiples of 14."""
    factor = longer / max(rgb.shape[1:3])
    width, height = (max(round(side * factor / 14), 1) * 14 for side in (rgb.shape[2], rgb.shape[1]))
    images = _resized(rgb, (width, height), device) / 255
    mean, std = (torch.tensor(values).to(images)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def _at_size(maps: Float[Tensor, "n h w"], rgb: np.ndarray) -> Float32[np.ndarray, "n h2 w2"]:
    sized = functional.interpolate(maps[:, None].float(), rgb.shape[1:3], mode="bilinear", align_corners=False)
    return sized[:, 0].cpu().numpy()


def _depth_anything_v2(path: Path) -> Any:
    transformers = DEPTH_ANYTHING_V2.imported("transformers")
    folder = path.parent
    try:
        content = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} has no readable config.json ({error}); expected the folder of a Depth Anything V2"
        ) from None
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != "depth_anything" or content.get("depth_estimation_type") != "metric":
        raise MismatchError(
            f"{folder} is a model of type {kind!r} with depth_estimation_type {content.get('depth_estimation_type')!r}; expected "
            f"a metric Depth Anything V2, such as {DEPTH_ANYTHING_V2.weights}: relative depth has no metres"
        )
    try:
        return transformers.DepthAnythingForDepthEstimation.from_pretrained(folder, use_safetensors=True).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot read the model in {folder} ({str(error).splitlines()[0]})") from None


def _run_depth_anything_v2(model: Any, rgb: UInt8[np.ndarray, "n h w 3"], intrinsics: np.ndarray | None) -> np.ndarray:
    return _at_size(model(pixel_values=_normalised(rgb, 518, _device(model))).predicted_depth, rgb)


DEPTH_ANYTHING_V2 = LearnedModel(
    name="depth_anything_v2",
    title="Depth Anything V2 Metric",
    licence=Licence(text="Apache-2.0 for Small; its Base and Large weights are CC BY-NC 4.0"),
    install="pip install 'lamp-vla[depth]'",
    weights="depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf",
    get="hf download depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf --local-dir DIR",
    load=_depth_anything_v2,
    run=_run_depth_anything_v2,
)


def _da3_network(model: LearnedModel, path: Path, expected: str) -> Any:
    """The network of a Depth Anything 3, without its package's exporters and their many dependencies."""
    config = path.with_name("config.json")
    name = expected
    if config.is_file():
        try:
            name = str(json.loads(config.read_text()).get("model_name", expected))
        except (ValueError, AttributeError) as error:
            raise DataError(f"{config} is no description of a Depth Anything 3 ({error})") from None
    registry = model.imported("depth_anything_3.registry").MODEL_REGISTRY
    metric = "metric" in expected
    fit = [
        known for known in registry if ("metric" in known) == metric and "nested" not in known and "mono" not in known
    ]
    if name not in fit:
        raise MismatchError(f"{path} is {name!r}; {model.title} needs one of {', '.join(fit)}, such as {model.weights}")
    cfg = model.imported("depth_anything_3.cfg")
    return fill(cfg.create_object(cfg.load_config(registry[name])), path, model.title, prefix="model.")


DA3_INSTALL = "pip install --no-deps depth-anything-3 && pip install 'lamp-vla[depth]'"


def _run_da3_metric(model: Any, rgb: UInt8[np.ndarray, "n h w 3"], intrinsics: np.ndarray | None) -> np.ndarray:
    """Metres are the network's answer times the focal length over 300 px."""
    matrix = nominal_intrinsics(rgb.shape[2], rgb.shape[1]) if intrinsics is None else intrinsics
    images = _normalised(rgb, 504, _device(model))
    focal = (abs(matrix[0, 0]) * images.shape[3] + abs(matrix[1, 1]) * images.shape[2]) / 2
    return _at_size(model(images[:, None])["depth"][:, 0] * (focal / 300), rgb)


DA3_METRIC = LearnedModel(
    name="da3_metric",
    title="Depth Anything 3 Metric",
    licence=Licence(text="Apache-2.0 (ByteDance; code and weights)"),
    install=DA3_INSTALL,
    weights="depth-anything/DA3METRIC-LARGE",
    get="hf download depth-anything/DA3METRIC-LARGE --local-dir DIR",
    load=lambda path: _da3_network(DA3_METRIC, path, "da3metric-large"),
    run=_run_da3_metric,
)


def _moge(path: Path) -> Any:
    network = MOGE2.imported("moge.model.v2").MoGeModel
    content = read_weights(path, MOGE2.title)
    if not isinstance(content.get("model_config"), Mapping):
        raise MismatchError(
            f"{path} describes no {MOGE2.title} (no model_config); expected model.pt of {MOGE2.weights}"
        )
    return fill(network(**content["model_config"]), path, MOGE2.title)


def _moge_answer(model: Any, rgb: np.ndarray, fov: float | None) -> Mapping[str, Tensor]:
    images = torch.from_numpy(np.ascontiguousarray(rgb)).to(_device(model)).permute(0, 3, 1, 2).float() / 255
    return model.infer(images, fov_x=fov, use_fp16=images.is_cuda)


def _run_moge(model: Any, rgb: UInt8[np.ndarray, "n h w 3"], intrinsics: np.ndarray | None) -> np.ndarray:
    fov = None if intrinsics is None else float(np.degrees(2 * np.arctan(0.5 / abs(intrinsics[0, 0]))))
    return _moge_answer(model, rgb, fov)["depth"].float().cpu().numpy()


MOGE2 = LearnedModel(
    name="moge2",
    title="MoGe-2",
    licence=Licence(text="MIT (Microsoft; code and weights)"),
    install="pip install --no-deps dlr-moge dlr-utils3d dlr-pipeline && pip install 'lamp-vla[depth]'",
    weights="Ruicheng/moge-2-vits-normal",
    get="hf download Ruicheng/moge-2-vits-normal model.pt --local-dir DIR",
    files=("model.pt",),
    load=_moge,
    run=_run_moge,
)

DEPTHS = {model.name: model for model in (DEPTH_ANYTHING_V2, DA3_METRIC, MOGE2)}


@dataclass(frozen=True, kw_only=True)
class LearnedDepth:
    """Metric depth from a network, of clips that have none; recorded depth is passed on as it is."""

    model: LearnedModel
    weights: str | None = None
    device: str = field(default_factory=default_device)

    def depth(self, clip: Clip) -> DepthMaps:
        """Depth of every frame. Its noise is what flickers from frame to frame, or is uneven within one, whichever is more.

        Raises:
            DataError: The network answers with no distances.
        """
        if clip.depth is not None:
            return RecordedDepth().depth(clip)
        network = loaded(self.model, self.weights, self.device)
        intrinsics = clip.intrinsics if clip.intrinsics is not None else self._calibration(network, clip)
        with torch.inference_mode():
            parts = [
                self.model.run(network, clip.rgb[start : start + BATCH], intrinsics)
                for start in range(0, len(clip), BATCH)
            ]
        found = np.concatenate(parts).astype(np.float32)
        with np.errstate(invalid="ignore"):
            metres = np.where((found > 0) & (found <= MAX_DEPTH), found, np.nan).astype(np.float32)
        if not np.isfinite(metres).any():
            raise DataError(
                f"{clip.name}: {self.model.title} finds no depth up to {MAX_DEPTH:g} m; is it an indoor scene, and are these its "
                "weights?"
            )
        return DepthMaps(metres=metres, noise=max(depth_noise(metres), flicker(metres)))

    def _calibration(self, network: Any, clip: Clip) -> Float64[np.ndarray, "3 3"] | None:
        return moge_intrinsics(network, clip) if self.model is MOGE2 else None


def flicker(metres: Float32[np.ndarray, "n h w"]) -> float:
    """Standard deviation at 1 m, growing as z^2, of what changes from frame to frame at most pixels."""
    picked = np.linspace(0, len(metres) - 2, min(len(metres) - 1, 8)).astype(int)
    with np.errstate(invalid="ignore"):
        change = np.abs(metres[picked + 1] - metres[picked]) / np.square(metres[picked])
    known = change[np.isfinite(change)]
    return float(1.4826 * np.median(known) / np.sqrt(2)) if len(known) else 0.0


def moge_intrinsics(network: Any, clip: Clip) -> Float64[np.ndarray, "3 3"]:
    """The pinhole that MoGe-2 finds in a clip: the median over up to five frames of its focal length, centred."""
    picked = np.linspace(0, len(clip) - 1, min(len(clip), 5)).astype(int)
    with torch.inference_mode():
        found = _moge_answer(network, clip.rgb[picked], None)["intrinsics"].double().cpu().numpy()
    focal = np.median(found[:, [0, 1], [0, 1]], axis=0)
    return np.array([[focal[0], 0, 0.5], [0, focal[1], 0.5], [0, 0, 1]])


def _run_moge_cameras(model: Any, clip: Clip, depth: DepthMaps) -> tuple[np.ndarray, np.ndarray | None]:
    return moge_intrinsics(model, clip), None


MOGE2_CAMERAS = replace(MOGE2, run=_run_moge_cameras)


def _run_da3_cameras(model: Any, clip: Clip, depth: DepthMaps) -> tuple[np.ndarray, np.ndarray | None]:
    """Focal lengths and poses of all frames at once; their scale is that of the depth, where there is any."""
    images = _normalised(clip.rgb, 504 if len(clip) <= 16 else 224, _device(model))
    out = model(images[None])
    own = out["depth"][0].float().cpu().numpy()
    pixels = out["intrinsics"][0].double().cpu().numpy()
    cam_from_world = np.tile(np.eye(4), (len(clip), 1, 1))
    cam_from_world[:, :3] = out["extrinsics"][0, :, :3].double().cpu().numpy()
    world_from_cam = inverse(cam_from_world)
    poses = inverse(world_from_cam[:1]) @ world_from_cam
    metres = functional.interpolate(torch.from_numpy(depth.metres)[:, None], own.shape[1:], mode="nearest")[
        :, 0
    ].numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = metres / own
    known = ratio[np.isfinite(ratio) & (own > 0)]
    if len(known) < 100:
        raise DataError(
            f"{clip.name}: Depth Anything 3 finds the camera's path up to its scale, and there is no depth to scale it by; add a "
            "depth model (--depth-model) or use recorded depth"
        )
    poses[:, :3, 3] *= np.median(known)
    focal = np.median(pixels[:, [0, 1], [0, 1]], axis=0) / [images.shape[3], images.shape[2]]
    return np.array([[focal[0], 0, 0.5], [0, focal[1], 0.5], [0, 0, 1]]), poses


DA3_CAMERAS = replace(
    DA3_METRIC,
    name="da3",
    title="Depth Anything 3",
    licence=Licence(text="Apache-2.0 for Small and Base; its Large and Giant weights are CC BY-NC 4.0"),
    weights="depth-anything/DA3-BASE",
    get="hf download depth-anything/DA3-BASE --local-dir DIR",
    load=lambda path: _da3_network(DA3_CAMERAS, path, "da3-base"),
    run=_run_da3_cameras,
)

CAMERAS = {model.name: model for model in (DA3_CAMERAS, MOGE2_CAMERAS)}


@dataclass(frozen=True, kw_only=True)
class LearnedCameras:
    """Calibration, and with Depth Anything 3 the path, of cameras about which nothing is recorded; what is, is passed on."""

    model: LearnedModel
    weights: str | None = None
    device: str = field(default_factory=default_device)
    known: RecordedCameras = field(default_factory=RecordedCameras)

    def cameras(self, clip: Clip, depth: DepthMaps) -> CameraPath:
        """The camera at every frame.

        Raises:
            DataError: Its path cannot be found.
        """
        posed = clip.world_from_cam is not None or clip.fixed_camera is True
        if clip.intrinsics is not None and (posed or self.model.name != DA3_CAMERAS.name):
            return self.known.cameras(clip, depth)
        network = loaded(self.model, self.weights, self.device)
        with torch.inference_mode():
            found, poses = self.model.run(network, clip, depth)
        intrinsics = found if clip.intrinsics is None else clip.intrinsics
        check_intrinsics(intrinsics, f"{clip.name}, by {self.model.title},")
        if posed or poses is None:
            return self.known.cameras(replace(clip, intrinsics=intrinsics), depth)
        return CameraPath(intrinsics=intrinsics, world_from_cam=poses, fixed=False)


# What is asked for on the command line


@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """Which estimators are used."""

    chain: str = "rgbd"
    """How scene flow is estimated: rgbd, or rgbd_precise, which is slower. Neither needs weights."""
    tracker: str | None = None
    """A learned tracker in place of the chain's own: cotracker3 (non-commercial), bootstapir, tapnextpp or alltracker."""
    tracker_weights: str | None = None
    """Its weights: a file, a folder or a hub id; by default those of its authors."""
    depth_model: str | None = None
    """A learned depth for clips without depth: depth_anything_v2, da3_metric or moge2."""
    depth_weights: str | None = None
    """Likewise."""
    camera_model: str | None = None
    """Learned cameras where calibration or poses are unknown: da3 or moge2."""
    camera_weights: str | None = None
    """Likewise."""
    device: str | None = None
    """Where learned estimators compute: cpu, cuda:0 ...; by default a GPU if there is one."""

    def models(self) -> tuple[tuple[LearnedModel, str | None], ...]:
        """The learned models that are asked for, with their weights.

        Raises:
            ConfigError: One is unknown, or weights are given for none.
        """
        kinds = (
            ("tracker", TRACKERS, self.tracker, self.tracker_weights),
            ("depth model", DEPTHS, self.depth_model, self.depth_weights),
            ("camera model", CAMERAS, self.camera_model, self.camera_weights),
        )
        chosen = []
        for kind, known, name, weights in kinds:
            if name is None and weights is not None:
                raise ConfigError(f"weights {weights} are given, and no {kind}; expected one of {', '.join(known)}")
            if name is not None and name not in known:
                raise unknown(kind, name, known)
            if name is not None:
                chosen.append((known[name], weights))
        return tuple(chosen)

    def make_chain(self) -> Chain:
        """The chain of these estimators; nothing is loaded yet.

        Raises:
            ConfigError: One has no such name.
        """
        chain, device = chain_named(self.chain), self.device or default_device()
        self.models()
        depth: Depth = chain.depth
        cameras: Cameras = chain.cameras
        tracker = chain.tracker
        if self.depth_model is not None:
            depth = LearnedDepth(model=DEPTHS[self.depth_model], weights=self.depth_weights, device=device)
        if self.camera_model is not None:
            cameras = LearnedCameras(model=CAMERAS[self.camera_model], weights=self.camera_weights, device=device)
        if self.tracker is not None:
            tracker = LearnedTracker(model=TRACKERS[self.tracker], weights=self.tracker_weights, device=device)
        parts = (self.chain, self.tracker, self.depth_model, self.camera_model and f"{self.camera_model}_cameras")
        name = "+".join(filter(None, parts))
        return replace(chain, name=name, depth=depth, cameras=cameras, tracker=tracker)

    def prepare(self) -> None:
        """Says the licences of the learned models, and loads each once, so that what is missing is said before any work.

        Raises:
            LampError: A package, weights or a device is missing.
        """
        for model, weights in self.models():
            print(model.notice, file=sys.stderr)
            loaded(model, weights, self.device or default_device())
