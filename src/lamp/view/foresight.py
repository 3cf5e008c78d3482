"""`lamp view`: a frame of a dataset, the scene flow that followed it, and what a motion prior foresaw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from lamp.data.feature_cache.cache import FrozenBackbone
from lamp.data.lerobot import LeRobotDataset
from lamp.data.observation_encoder import ObservationEncoder
from lamp.errors import MismatchError
from lamp.model.lamp import LaMP
from lamp.sceneflow.motion_mask import DRAWN, leaves_start
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.stores import FlowRequirements, find_store, store_folders
from lamp.train.checkpoint import BackboneCache, Expected, load_checkpoint
from lamp.train.checkpoint_metadata import Description, read_description
from lamp.train.flow_metrics import IMAGE_PX
from lamp.types import Observations
from lamp.view.images import row_of, write_png
from lamp.view.overlay import OverlayStyle, draw_foresight

STYLE = OverlayStyle(scale=2, moving=DRAWN)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Draws predicted beside true scene flow, for one frame of a dataset."""

    data: Path
    """Dataset folder with scene flow."""
    checkpoint: Path | None = None
    """A checkpoint of either stage that has a motion prior; None draws the true scene flow only."""
    episode: int = 0
    """Episode of the dataset."""
    frame: int | None = None
    """Frame of the episode; the nearest one with scene flow is shown. None takes the one with most motion."""
    out: Path = Path("outputs/view.png")
    """The PNG file."""
    samples: int = 4
    """Predictions that are averaged; one alone adds noise to points that are still."""
    seed: int = 0
    """Noise of the predictions."""
    scene_flow: str | None = None
    """The dataset's scene-flow store, by its name in `lamp cache list`, where several would do."""


@dataclass(frozen=True, kw_only=True)
class PredictedPathErrors:
    """Average displacement errors of one frame's paths, over the points that move. [px of a 256-px image]"""

    points: int
    """Points that move."""
    samples: int
    """Predictions that were averaged."""
    predicted: float
    no_motion: float
    """Of the guess that nothing moves."""

    def __str__(self) -> str:
        of = "one sample" if self.samples == 1 else f"the mean of {self.samples} samples"
        return (
            f"average displacement error {self.predicted:.1f} px of a 256-px image ({of}, {self.points} points that move), "
            f"{self.no_motion:.1f} px if nothing moved"
        )


@dataclass(frozen=True, kw_only=True)
class ForesightPicture:
    """A drawn frame."""

    image: UInt8[np.ndarray, "h w 3"]
    episode: int
    frame: int
    caption: str
    errors: PredictedPathErrors | None = None
    """None where nothing is predicted, or no point moves."""
    predicted: bool = False

    def __str__(self) -> str:
        if not self.predicted:
            return f"true motion of {self.caption}; --checkpoint draws a prediction beside it"
        errors = self.errors or "no point moves, so there is no error to measure: try another --frame"
        return f"predicted beside true motion of {self.caption}; {errors}"


def view(config: ViewConfig) -> ForesightPicture:
    """Draws a frame and writes the PNG file.

    Raises:
        DataError: The dataset, its scene flow or the checkpoint is missing.
        ConfigError: There is no such episode.
    """
    renderer = ForesightRenderer(
        config.data, config.checkpoint, samples=config.samples, seed=config.seed, scene_flow=config.scene_flow
    )
    shown = renderer.draw(config.episode, config.frame)
    write_png(config.out, shown.image, shown.caption)
    return shown


class MotionPredictor:
    """The motion prior of a checkpoint of either stage.

    Args:
        backbone: The frozen backbone, where the caller has it.

    Raises:
        MismatchError: The checkpoint has no motion prior, or another backbone.
    """

    def __init__(self, checkpoint: Path, *, backbone: FrozenBackbone | None = None) -> None:
        self.model: LaMP
        self.description: Description
        description = read_description(checkpoint)
        if description.model.motion is None or description.flow is None:
            raise MismatchError(f"{checkpoint} has no motion prior to look at; expected a checkpoint trained with one")
        self.flow = description.flow
        backbone = backbone or BackboneCache().of(checkpoint)
        expected = Expected(backbone_key=backbone.key, backbone=backbone.description)
        self.model, self.description = load_checkpoint(checkpoint, expected=expected)
        self.encoder = ObservationEncoder(backbone)

    @torch.inference_mode()
    def points(
        self, images: dict[str, UInt8[np.ndarray, "_ _ 3"]], instruction: str, *, samples: int, seed: int
    ) -> Float[np.ndarray, "k t1 3"]:
        """Returns the mean of some predicted paths (u, v, depth relative to the start) in the reference camera."""
        batch = {camera: torch.from_numpy(image.copy())[None] for camera, image in images.items()}
        seen = Observations(images=batch, instructions=(instruction,))
        read = self.encoder.encode_for_prior(seen)
        encoded = self.encoder.encode(seen) if read is None else read
        noise = self.model.motion_noise(samples, torch.Generator().manual_seed(seed))
        predicted = [self.model.foresee(encoded, one[None]) for one in noise]
        return self.flow.paths(torch.cat(predicted).mean(0)).numpy()


class ForesightRenderer:
    """Draws frames of a dataset; the checkpoint is opened once, when first needed."""

    def __init__(
        self,
        data: Path,
        checkpoint: Path | None = None,
        *,
        samples: int = 4,
        seed: int = 0,
        backbone: FrozenBackbone | None = None,
        scene_flow: str | None = None,
    ) -> None:
        self.dataset = LeRobotDataset(data)
        self.samples = samples
        self.seed = seed
        self._checkpoint = checkpoint
        self._backbone = backbone
        self.store = self._store(data, scene_flow)

    def _store(self, data: Path, name: str | None) -> SceneFlowStore:
        """The store that the checkpoint's scene flow is compared with; without a checkpoint, the dataset's first."""
        folders = store_folders(data)
        if name is not None or len(folders) < 2:
            return find_store(data, FlowRequirements(), name)
        if self.predictor is None:
            return SceneFlowStore(folders[0])
        flow = self.predictor.flow
        return find_store(
            data, FlowRequirements(grid=flow.grid, horizon=flow.horizon, frames=flow.stride, camera=flow.camera)
        )

    @cached_property
    def predictor(self) -> MotionPredictor | None:
        """The motion prior; None where no checkpoint was given."""
        return None if self._checkpoint is None else MotionPredictor(self._checkpoint, backbone=self._backbone)

    def draw(self, episode: int, frame: int | None = None) -> ForesightPicture:
        """Draws the frame, its true scene flow and, with a checkpoint, the predicted one, beside each other."""
        stored = self.store.frames(episode)
        frame = self.frame_with_most_motion(episode) if frame is None else int(stored[np.abs(stored - frame).argmin()])
        task = self.dataset.instruction(episode, frame)
        images = {camera: self.dataset.frames(camera, episode, [frame])[0] for camera in self.dataset.cameras}
        image = images[self.store.description.cameras[0]]
        pictures = [
            draw_foresight(image, np.zeros((0, 2, 2)), STYLE),
            draw_foresight(image, self.truth(episode, frame), STYLE),
        ]
        captions, errors = ["observation", "true motion"], None
        if self.predictor is not None:
            paths = self.predictor.points(images, task, samples=self.samples, seed=self.seed)
            pictures.append(draw_foresight(image, paths, STYLE))
            captions.append("predicted motion" + (f", mean of {self.samples}" if self.samples > 1 else ""))
            errors = self._errors(self.truth(episode, frame), paths)
        caption = f"{task} (episode {episode}, frame {frame})"
        return ForesightPicture(
            image=row_of(pictures, captions),
            episode=episode,
            frame=frame,
            caption=caption,
            errors=errors,
            predicted=self.predictor is not None,
        )

    def _errors(
        self, truth: Float[np.ndarray, "k t1 3"], paths: Float[np.ndarray, "k t1 3"]
    ) -> PredictedPathErrors | None:
        known = np.asarray(np.isfinite(truth[..., :2]).all(-1))
        moving = np.logical_and(leaves_start(truth - truth[:, :1], known), np.any(known[:, 1:], axis=-1))
        if not moving.any():
            return None

        def error(of: Float[np.ndarray, "k t1 3"]) -> float:
            apart = np.linalg.norm((of - truth)[moving][:, 1:, :2], axis=-1)
            return float(np.nanmean(apart, axis=1).mean()) * IMAGE_PX

        return PredictedPathErrors(
            points=int(moving.sum()),
            samples=self.samples,
            predicted=error(paths),
            no_motion=error(np.repeat(paths[:, :1], paths.shape[1], axis=1)),
        )

    def truth(self, episode: int, frame: int) -> Float[np.ndarray, "k t1 3"]:
        """Returns the true paths, as long as the motion prior's where there is one; not-a-number where unknown."""
        tracks, camera = self.store.read(episode, [frame])
        if self.predictor is not None:
            flow = self.predictor.flow
            # The description counts a flow step in frames, the store may itself keep only every n-th.
            stride = max(1, flow.stride // self.store.description.sampling.stride)
            tracks = flow.retiming.tracks(tracks, camera, stride=stride, horizon=flow.horizon)
        points = tracks.points[0].clone()
        points[~tracks.valid[0]] = torch.nan
        return points.numpy()

    def frame_with_most_motion(self, episode: int) -> int:
        """Returns the frame after which the points move most in all."""
        stored = self.store.frames(episode)
        tracks, _ = self.store.read(episode, stored)
        away = (tracks.points[:, :, :, :2] - tracks.points[:, :, :1, :2]).norm(dim=-1)
        moved = torch.where(tracks.valid, away, torch.zeros(())).amax(dim=2).sum(dim=1)
        return int(stored[int(moved.argmax())])
