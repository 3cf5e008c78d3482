"""Learned depth, of clips that have none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from lamp.errors import DataError, MismatchError
from lamp.sceneflow.estimate.interfaces import (
    MAX_DEPTH,
    Clip,
    DepthMaps,
    RecordedDepth,
    depth_noise,
    nominal_intrinsics,
)
from lamp.sceneflow.estimate.learned.model import (
    LearnedModel,
    Licence,
    default_device,
    device_of,
    fill,
    loaded,
    read_weights,
    resized,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 8
"""Frames that a depth model is given at once."""


def normalised(rgb: UInt8[np.ndarray, "n h w 3"], longer: int, device: Any) -> Tensor:
    """Images as a DINOv2 backbone takes them, the longer side of about so many px, both multiples of 14."""
    factor = longer / max(rgb.shape[1:3])
    width, height = (max(round(side * factor / 14), 1) * 14 for side in (rgb.shape[2], rgb.shape[1]))
    images = resized(rgb, (width, height), device) / 255
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
    return _at_size(model(pixel_values=normalised(rgb, 518, device_of(model))).predicted_depth, rgb)


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


def da3_network(model: LearnedModel, path: Path, expected: str) -> Any:
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
    images = normalised(rgb, 504, device_of(model))
    focal = (abs(matrix[0, 0]) * images.shape[3] + abs(matrix[1, 1]) * images.shape[2]) / 2
    return _at_size(model(images[:, None])["depth"][:, 0] * (focal / 300), rgb)


DA3_METRIC = LearnedModel(
    name="da3_metric",
    title="Depth Anything 3 Metric",
    licence=Licence(text="Apache-2.0 (ByteDance; code and weights)"),
    install=DA3_INSTALL,
    weights="depth-anything/DA3METRIC-LARGE",
    get="hf download depth-anything/DA3METRIC-LARGE --local-dir DIR",
    load=lambda path: da3_network(DA3_METRIC, path, "da3metric-large"),
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
    images = torch.from_numpy(np.ascontiguousarray(rgb)).to(device_of(model)).permute(0, 3, 1, 2).float() / 255
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
