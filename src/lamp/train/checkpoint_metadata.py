"""What a checkpoint says about itself: `lamp.json`. Everything needed to use it, and to refuse what does not fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamp.configuration import from_json, to_json
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.policy_dataset import PolicyScaling
from lamp.errors import ConfigError, DataError, MismatchError, unknown
from lamp.json_files import read_json_object, write_json
from lamp.model.lamp import LaMPConfig
from lamp.model.prior_interventions import PriorKind
from lamp.sceneflow.normalization import MotionBounds
from lamp.sceneflow.retiming import ByTime, Retiming
from lamp.sceneflow.tracks import Supervision, grid_points, integrate
from lamp.train.backbones import BackboneConfig
from lamp.train.config import MotionTraining, PolicyTraining

FILE_NAME = "lamp.json"
FORMAT = "lamp-checkpoint"
VERSION = 1
TIME_CONVENTION = "tau = 0 is noise, tau = 1 is data"


@dataclass(frozen=True, kw_only=True)
class CameraInput:
    """A camera as the backbone reads it."""

    name: str
    height: int
    """Of the recorded images, which the backbone resizes itself. [px]"""
    width: int


@dataclass(frozen=True, kw_only=True)
class BackboneRecord:
    """The frozen backbone: it is not part of the checkpoint, so its key must match."""

    key: str | None
    """Content hash of its weights and settings. None where the weights were not at hand when the checkpoint was imported: then
    the settings are all that can be compared."""
    description: dict[str, Any]
    cameras: tuple[CameraInput, ...]
    """In the order in which the tokens are concatenated; the first is the reference camera of the scene flow."""
    prompt: str = "{instruction}"
    """What the backbone makes of an instruction, by itself, before it reads it."""

    def check_images(self, images: Mapping[str, UInt8[np.ndarray, "_ _ 3"]]) -> None:
        """
        Raises:
            MismatchError: A camera is missing, or its image has another size than in training.
        """
        cameras = ", ".join(f"{camera.name} {camera.width}x{camera.height}" for camera in self.cameras)
        for camera in self.cameras:
            image = images.get(camera.name)
            if image is None:
                have = ", ".join(images) or "none"
                raise MismatchError(
                    f"the observation has no camera {camera.name!r}; it has {have}. Expected {cameras}."
                )
            if image.shape[:2] != (camera.height, camera.width):
                height, width = image.shape[:2]
                raise MismatchError(f"image {camera.name!r} is {width}x{height}; expected {cameras}, as in training.")


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The demonstrations."""

    name: str
    fingerprint: str
    """Content hash of what was trained on."""
    episodes: int
    frames: int
    """Training samples; like `episodes`, 0 for imported weights, which do not say."""
    tasks: tuple[str, ...]
    validation_episodes: tuple[int, ...]
    train_episodes: tuple[int, ...] | None = None
    """None where an earlier version did not note them."""
    dataset: str = ""
    """Content hash of the whole dataset, held-out episodes included; empty where it was not noted."""


@dataclass(frozen=True, kw_only=True)
class FlowRecord:
    """The scene flow that the Motion Expert predicts."""

    camera: str
    grid: tuple[int, int]
    """Rows and columns of keypoints."""
    horizon: int
    stride: int
    """Frames of the dataset per flow step."""
    fps: float
    bounds: MotionBounds
    clamped: tuple[float, float, float]
    """Share of the training increments beyond the bounds, per axis."""
    supervision: Supervision = field(default_factory=Supervision)
    """Which steps supervised it; the others are 0 in a true motion."""
    also: tuple[DataRecord, ...] = ()
    """What else the Motion Expert was trained on; `stride` and `fps` are the first dataset's."""
    retiming: Retiming = field(default_factory=ByTime)
    """What a flow step is."""

    def paths(self, motion: Float[Tensor, "*b k t 3"]) -> Float[Tensor, "*b k t1 3"]:
        """The paths that normalised increments make from the grid on, with a depth of 0 at the start."""
        increments = self.bounds.denormalise(motion.float().cpu())
        grid = grid_points(*self.grid).float()
        start = torch.cat([grid, torch.zeros(len(grid), 1)], dim=1).expand(*increments.shape[:-2], 3)
        return integrate(start, increments)

    def check_timed(self, purpose: str) -> None:
        """Refuses scene flow whose steps take no time that is known.

        Raises:
            MismatchError: They are pieces of way.
        """
        if not isinstance(self.retiming, ByTime):
            raise MismatchError(
                f"the Motion Expert was trained on flow steps of equal way (retiming by arc length), which take no fixed time; "
                f"{purpose} needs steps of time: train one without --arc-length"
            )


@dataclass(frozen=True, kw_only=True)
class OtherDataset:
    """A dataset that was mixed in: what it needs to be acted on."""

    root: str
    """Where it was."""
    data: DataRecord
    state_width: int
    scaling: PolicyScaling
    fps: float
    embodiment: Embodiment
    state_features: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PolicyRecord:
    """How observations and actions are mapped to what the model sees, and back."""

    state_width: int
    """Width of the raw state of an observation, before the transform."""
    scaling: PolicyScaling
    """Of what is learnt: with the embodiment's gripper 1 = open, and relative to the state where the embodiment says so."""
    chunk: int
    execute: int
    fps: float
    embodiment: Embodiment = OWN
    """What the actions mean: those relative to a state are put back into the robot's frame."""
    state_features: dict[str, int] = field(default_factory=dict)
    """The dataset's features that the state is taken from, and how many values each has; empty where it was not noted."""
    others: tuple[OtherDataset, ...] = ()
    """What else the policy was trained on, each with a scaling of its own."""
    action_names: tuple[str, ...] = ()
    """What the dataset calls the values of an action; empty where it was not noted."""
    action_units: tuple[str, ...] = ()
    """Their units as recorded; empty where they are not known."""

    @property
    def recorded_state_width(self) -> int:
        """Number of values of the features that the state is taken from; 0 where it was not noted, or no state is wanted."""
        return sum(self.state_features.values()) if self.state_width else 0

    def selected(self, state: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b s"]:
        """The state that the policy was trained with, of one that is given as such, or as the dataset's whole features.

        Raises:
            MismatchError: It is neither.
        """
        width, recorded = state.shape[-1], self.recorded_state_width
        if width == self.state_width:
            return state
        if width == recorded:
            return state[..., list(self.embodiment.state_columns(self.state_features))]
        whole = f", or {recorded} as recorded ({', '.join(self.state_features)})" if recorded > self.state_width else ""
        raise MismatchError(f"the state has {width} values; this policy was trained with {self.state_width}{whole}.")

    def of_dataset(self, name: str) -> PolicyRecord:
        """The record for acting as one of the other datasets' robots.

        Raises:
            ConfigError: The policy was not trained on it.
        """
        for other in self.others:
            if other.data.name == name:
                return replace(
                    self,
                    state_width=other.state_width,
                    scaling=other.scaling,
                    fps=other.fps,
                    embodiment=other.embodiment,
                    state_features=other.state_features,
                    action_names=(),
                    action_units=(),
                )
        raise unknown("dataset", name, [other.data.name for other in self.others])


@dataclass(frozen=True, kw_only=True)
class MotionSource:
    """The Stage-1 checkpoint a policy was trained on; its weights are in the policy's checkpoint."""

    sha256: str
    """Of the Motion Expert's weights."""
    step: int
    data: DataRecord


@dataclass(frozen=True, kw_only=True)
class StartedFrom:
    """The checkpoint whose weights a fine-tune began with."""

    weights_sha256: str
    step: int
    data: DataRecord
    normalizers: Literal["keep", "refit"]
    """Whether its normalisers (of a motion prior, its bounds) were kept, or fitted to the new data."""
    prior: PriorKind = "predicted"
    """What its z_m were of."""


@dataclass(frozen=True, kw_only=True)
class ImportedVlm:
    """The vision-language model that imported weights belong to."""

    source: str
    """Hub id of the model it was trained from."""
    revision: str | None
    folder: str | None
    """Where the checkpoint holds the weights it was trained to, as transformers reads them; None: they are the source's."""
    sha256: str | None
    """Of those weights."""
    described: bool
    """Whether that folder also has the VLM's configuration and tokenizer, so that it stands for itself."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """No run of ours: weights of the authors' release, by `lamp import-released`."""

    source: str
    """Hub id, or the folder's name."""
    revision: str | None
    """The hub's commit."""
    sha256: str
    """Of the `.pt` file."""
    config: dict[str, Any]
    """`config.yaml` as it was."""
    statistics: dict[str, Any]
    """`dataset_statistics.json` as it was."""
    vlm: ImportedVlm
    backbone: BackboneConfig | None = None
    """Settings that build the VLM; where `vlm` says that the checkpoint holds it, `model` is that folder of the checkpoint.
    None: it has to be brought along."""
    loop: ClassVar[None] = None
    """Nothing is known of how it was trained."""

    def backbone_in(self, checkpoint: Path) -> BackboneConfig | None:
        """Returns the settings for a checkpoint that is in this folder now."""
        if self.vlm.folder is None or self.backbone is None:
            return self.backbone
        return self.backbone.stored_in(checkpoint / self.vlm.folder)


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything about a checkpoint but its weights."""

    kind: Literal["motion", "policy"]
    model: LaMPConfig
    backbone: BackboneRecord
    flow: FlowRecord | None
    policy: PolicyRecord | None
    motion_source: MotionSource | None
    training: MotionTraining | PolicyTraining | Imported
    data: DataRecord
    step: int
    averaged: bool
    """Whether the weights are the exponential moving average."""
    exactly_reproducible: bool
    """False where the schedule followed a time budget."""
    code: str
    packages: dict[str, str]
    time_convention: str = TIME_CONVENTION
    format: str = FORMAT
    version: int = VERSION
    weights_sha256: str = ""
    adapter_sha256: str = ""
    """Of the weights of the backbone's adapters; empty where it has none."""
    started_from: StartedFrom | None = None
    """None: the run began with weights drawn at random."""

    @property
    def imported(self) -> Imported | None:
        """Where the weights were imported from; None where they are of a run of ours."""
        return self.training if isinstance(self.training, Imported) else None

    @property
    def motion_training(self) -> MotionTraining | None:
        """The run of Stage 1 that made it, where one of ours did."""
        return self.training if isinstance(self.training, MotionTraining) else None

    @property
    def prior(self) -> PriorKind | None:
        """What a policy's z_m were of in training; None where it has no motion prior."""
        if self.kind != "policy" or self.model.motion is None:
            return None
        return self.training.prior if isinstance(self.training, PolicyTraining) else "predicted"

    def check_usable(self, path: Path | str) -> None:
        """Checks that the policy can act where nobody knows the future.

        Args:
            path: Where it is, for the message.

        Raises:
            MismatchError: It is an oracle's.
        """
        if self.prior == "oracle":
            raise MismatchError(
                f"{path} was trained with --prior oracle: it needs the TRUE motion to come, which nobody has where a policy "
                "acts; evaluate it with `lamp evaluate --prior oracle`, or train one without --prior."
            )

    def write(self, folder: Path) -> None:
        write_json(folder / FILE_NAME, to_json(self))


def checkpoint_folder(path: Path) -> Path:
    """Finds the checkpoint in `path`: the folder itself, or the `checkpoint` folder of a run.

    Raises:
        DataError: There is none.
    """
    for folder in (path, path / "checkpoint"):
        if (folder / "model.safetensors").is_file() or (folder / "training").is_dir():
            return folder
    have = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing" if path.is_dir() else "no folder"
    raise DataError(
        f"no checkpoint at {path} (there is {have}); expected a folder with {FILE_NAME} and model.safetensors."
    )


def read_description(path: Path) -> Description:
    """Reads what a checkpoint (or the run that holds it) says about itself, without its weights.

    Raises:
        DataError: There is no checkpoint, or its description is damaged.
        MismatchError: It was written by a version of the code that describes itself in another way.
    """
    return parse_description(checkpoint_folder(path) / FILE_NAME)


def parse_description(file: Path) -> Description:
    """Reads a description from its file, wherever that is.

    Raises:
        DataError: It is missing or damaged.
        MismatchError: It was written by a version of the code that describes itself in another way.
    """
    obj = read_json_object(file, "checkpoint description")
    if obj.get("format") != FORMAT:
        raise DataError(f"{file} is not the description of a checkpoint; expected format {FORMAT!r}.")
    if obj.get("version") != VERSION:
        raise MismatchError(f"{file} has version {obj.get('version')}; this code reads version {VERSION}.")
    if obj.get("time_convention") != TIME_CONVENTION:
        raise MismatchError(
            f"{file} says {obj.get('time_convention')!r}; this code's convention is {TIME_CONVENTION!r}."
        )
    try:
        with suppress(KeyError, TypeError, AttributeError):  # there is no LoRA, or it is no object: that is told below
            # From before there was a choice: the policy acts as it was trained.
            obj["training"]["backbone"]["lora"].setdefault("prior_reads_adapted", True)
        return from_json(Description, obj, where=str(file))
    except ConfigError as error:
        raise DataError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class StageEpisodes:
    """The episodes of one dataset that each stage behind a policy was trained on; None where a stage did not note them."""

    name: str
    stage_1: tuple[int, ...] | None
    stage_2: tuple[int, ...] | None
    held_out: tuple[int, ...]
    """By the policy's training."""

    @property
    def in_both(self) -> tuple[int, ...] | None:
        """What both stages saw: of these the prior knows nothing that the policy does not."""
        if self.stage_1 is None or self.stage_2 is None:
            return None
        return tuple(sorted({*self.stage_1} & {*self.stage_2}))


def stage_episodes(description: Description) -> list[StageEpisodes]:
    """Which stage saw which episodes of which dataset, the checkpoint's own first."""
    first = [] if description.motion_source is None else [description.motion_source.data]
    if description.kind == "motion":
        first = [description.data]
    first += [] if description.flow is None else [record for record in description.flow.also if record not in first]
    others = description.policy.others if description.policy is not None else ()
    second = [] if description.kind == "motion" else [description.data, *(other.data for other in others)]
    rows = []
    for record in [*second, *(one for one in first if not _is_among(one, second))]:
        motion = next((one for one in first if _same_dataset(one, record)), None)
        policy = record if record in second else None
        rows.append(
            StageEpisodes(
                name=record.name,
                stage_1=() if motion is None else motion.train_episodes,
                stage_2=() if policy is None else policy.train_episodes,
                held_out=record.validation_episodes,
            )
        )
    return rows


def _same_dataset(one: DataRecord, other: DataRecord) -> bool:
    return bool(one.dataset) and one.dataset == other.dataset


def _is_among(one: DataRecord, others: Sequence[DataRecord]) -> bool:
    return any(_same_dataset(one, other) for other in others)
