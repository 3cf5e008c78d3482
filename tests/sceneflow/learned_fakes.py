"""Stand-ins for the networks of learned estimators: called as the real ones are and answering in the real ones' coordinates.

Each says that everything moves by `MOVE` of the image a frame; what it is given is checked as the real one would need it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

MOVE = (0.02, -0.01)
"""u and v a frame."""
SURE, SEEN = 0.9, 0.95


def logit(value: float) -> float:
    return float(torch.logit(torch.tensor(value)))


class CoTracker(nn.Module):
    model_resolution = (384, 512)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, video: Tensor, queries: Tensor, iters: int) -> tuple[Tensor, Tensor, Tensor, None]:
        _, frames, channels, height, width = video.shape
        assert (channels, height, width) == (3, *self.model_resolution) and video.max() > 1.5 and iters == 6
        assert (queries[..., 0] == 0).all()
        # Pixel indices, corners on corners: the image of W px is stretched so that its first and last centres stay.
        step = torch.tensor([MOVE[0] * self.source[0], MOVE[1] * self.source[1]])
        step = step * torch.tensor([(width - 1) / (self.source[0] - 1), (height - 1) / (self.source[1] - 1)])
        times = torch.arange(frames)[None, :, None, None]
        tracks = queries[:, None, :, 1:] + times * step
        seen = torch.full(tracks.shape[:3], SEEN)
        return tracks, seen, torch.full_like(seen, SURE), None

    source = (0, 0)
    """Width and height of the clip: the test sets it."""


class Tapir(nn.Module):
    def __init__(self, pyramid_level: int) -> None:
        super().__init__()
        assert pyramid_level == 1
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, video: Tensor, queries: Tensor) -> dict[str, Tensor]:
        _, frames, height, width, channels = video.shape
        assert channels == 3 and video.min() >= -1 and video.max() <= 1 and queries.shape[-1] == 3
        step = torch.tensor([MOVE[0] * width, MOVE[1] * height])
        tracks = queries[:, :, None, [2, 1]] + torch.arange(frames)[None, None, :, None] * step
        logits = torch.full(tracks.shape[:3], logit(1 - SEEN))
        return {"tracks": tracks, "occlusion": logits, "expected_dist": torch.full_like(logits, logit(1 - SURE))}


class TapNext(nn.Module):
    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        assert image_size == (256, 256)
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, video: Tensor, query_points: Tensor | None = None, state: Any = None) -> tuple[Any, ...]:
        assert video.shape[1:] == (1, 256, 256, 3)
        if state is None:
            assert query_points is not None
            state = SimpleNamespace(step=0, query_points=query_points)
        step, start = state.step, state.query_points
        tracks = start[:, None, :, 1:] + step * torch.tensor([MOVE[1] * 256, MOVE[0] * 256])  # (y, x)
        bins = torch.arange(256) + 0.5
        logits = torch.cat([-(bins - tracks[..., i : i + 1]).square() for i in range(2)], dim=-1)
        seen = torch.full((*tracks.shape[:3], 1), logit(SEEN))
        return tracks, logits, seen, SimpleNamespace(step=step + 1, query_points=start)


class AllTracker(nn.Module):
    def __init__(self, seqlen: int, **settings: Any) -> None:
        super().__init__()
        assert seqlen == 16
        self.weight = nn.Parameter(torch.zeros(3))

    def forward_sliding(self, images: Tensor, iters: int, sw: None, is_training: bool) -> tuple[Any, ...]:
        _, frames, channels, height, width = images.shape
        assert channels == 3 and height % 8 == 0 and width % 8 == 0 and images.max() > 1.5 and not is_training
        step = torch.tensor([MOVE[0] * width, MOVE[1] * height])[:, None, None]
        flow = torch.arange(frames)[None, :, None, None, None] * step.expand(1, 1, 2, height, width)
        shown = torch.tensor([SEEN, SURE])[:, None, None].expand(1, frames, 2, height, width)
        return (flow[:, 1], shown[:, 1], [], []) if frames == 2 else (flow, shown, None, None)


class MoGe(nn.Module):
    def __init__(self, far: float) -> None:
        super().__init__()
        self.weight, self.far = nn.Parameter(torch.zeros(3)), far

    def infer(self, images: Tensor, fov_x: float | None, use_fp16: bool) -> dict[str, Tensor]:
        count, channels, height, width = images.shape
        assert channels == 3 and images.min() >= 0 and images.max() <= 1 and (fov_x is None or 5 < fov_x < 170)
        depth = torch.full((count, height, width), self.far)
        depth[:, : height // 4] = torch.inf  # masked: sky
        matrix = torch.tensor([[0.9, 0, 0.5], [0, 0.9 * width / height, 0.5], [0, 0, 1]])
        return {"depth": depth, "intrinsics": matrix.expand(count, 3, 3)}


class DepthAnything3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """One batch of n views for cameras; n batches of one view for metric depth."""
        batch, views, _, height, width = images.shape
        assert height % 14 == 0 and width % 14 == 0 and images.min() < -0.5
        depth = torch.full((batch, views, height, width), 0.5)
        pose = torch.eye(4)[:3].repeat(batch, views, 1, 1)
        pose[..., 0, 3] = -0.01 * torch.arange(views)  # camera from world
        pixels = torch.tensor([[1.1 * width, 0, width / 2], [0, 1.2 * height, height / 2], [0, 0, 1]])
        return {"depth": depth, "extrinsics": pose, "intrinsics": pixels.expand(batch, views, 3, 3)}


def put(patch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """Makes a module importable, and the packages that it is in."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        package = ModuleType(".".join(parts[:end]))
        package.__path__ = []
        patch.setitem(sys.modules, package.__name__, package)
    module = ModuleType(name)
    vars(module).update(content)
    patch.setitem(sys.modules, name, module)


def install(patch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """Makes all stand-ins importable in the place of the authors' packages."""
    patch.setattr(CoTracker, "source", size)
    put(patch, "cotracker.models.build_cotracker", build_cotracker=lambda checkpoint, offline, window_len: CoTracker())
    put(patch, "tapnet.torch.tapir_model", TAPIR=Tapir)
    put(patch, "tapnet.tapnext.tapnext_torch", TAPNext=TapNext)
    put(patch, "nets.alltracker", Net=AllTracker)
    put(patch, "moge.model.v2", MoGeModel=MoGe)
    registry = {name: name for name in ("da3-base", "da3-small", "da3metric-large", "da3nested-giant-large")}
    put(patch, "depth_anything_3.registry", MODEL_REGISTRY=registry)
    create: Callable[[str], nn.Module] = lambda config: DepthAnything3()  # noqa: E731
    put(patch, "depth_anything_3.cfg", load_config=str, create_object=create)
    patch.setattr(sys.modules["tapnet.tapnext.tapnext_torch"], "TAPNext", TapNext)


def write_weights(folder: Path, name: str) -> Path:
    """The file of a stand-in's weights, under the name that the real one's has."""
    state, file = (
        {"weight": torch.ones(3)},
        {
            "cotracker3": "scaled_offline.pth",
            "bootstapir": "bootstapir_checkpoint_v2.pt",
            "tapnextpp": "tapnextpp_ckpt.pt",
            "alltracker": "alltracker.pth",
            "moge2": "model.pt",
            "da3": "model.safetensors",
            "da3_metric": "model.safetensors",
        }[name],
    )
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith("safetensors"):
        from safetensors.torch import save_file

        save_file({"model.weight": torch.ones(3)}, folder / file)
        return folder / file
    content: dict[str, Any] = state
    if name == "moge2":
        content = {"model_config": {"far": 1.5}, "model": state}
    elif name == "alltracker":
        content = {"model": state}
    elif name == "tapnextpp":
        content = {"state_dict": {"tapnext.weight": torch.ones(3)}}
    torch.save(content, folder / file)
    return folder / file
