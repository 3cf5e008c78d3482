"""The settings of a training run, and how weights, gradients and the optimizer's state are sharded over processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

import torch
import tyro
from torch import nn

from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.episode_selection import ALL_EPISODES, EpisodeSelection
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.normalizers import ByDeviation, ContinuousRotation, NormaliserFit, StateTransform
from lamp.data.policy_dataset import EpisodeSplit, split_episodes
from lamp.errors import ConfigError
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.model.prior_interventions import PriorKind
from lamp.model.small import SmallBackboneConfig
from lamp.sceneflow.normalization import BoundsRule, MotionBounds
from lamp.sceneflow.retiming import ByArcLength, ByTime, Retiming
from lamp.sceneflow.tracks import Supervision
from lamp.seeding import Noise, PerBatch
from lamp.train.backbones import BackboneConfig
from lamp.train.metrics import TensorBoard, Tracker
from lamp.train.optimizer import AdamW


@dataclass(frozen=True, kw_only=True)
class Replicated:
    """Every process has everything (DistributedDataParallel): the fastest where it fits."""


@dataclass(frozen=True, kw_only=True)
class FullySharded:
    """Each process keeps a part of every tensor (FSDP2) and gathers a block's weights when the block is computed."""

    reshard: bool = True
    """Let go of a block's weights after its forward pass, and gather them again for the backward pass; False takes more memory
    and less time."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeed:
    """ZeRO-2 in configurations of earlier versions: they are read as before, but several processes no longer train with it."""

    offload: bool = False


Sharding = Replicated | FullySharded | DeepSpeed


@dataclass(frozen=True, kw_only=True)
class Float32:
    """Full precision."""

    DTYPE: ClassVar[torch.dtype] = torch.float32

    def autocast(self, device: str) -> AbstractContextManager[object]:
        return nullcontext()


def multiplies_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16.

    A processor without them (AVX2) takes 22 times float32's time: 6400x192 by 192x576, one thread of an AMD EPYC, torch 2.13.
    """
    return torch.device(device).type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True, kw_only=True)
class BFloat16:
    """Matrix products in bfloat16 (autocast), but on processors that have no instructions for it; weights, optimizer and loss
    stay in float32."""

    DTYPE: ClassVar[torch.dtype] = torch.bfloat16

    def autocast(self, device: str) -> AbstractContextManager[object]:
        if not multiplies_bfloat16(device):
            return nullcontext()
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


Precision = Float32 | BFloat16


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how a stage is optimised; the same for both stages."""

    steps: int
    """Optimizer steps."""
    batch_size: int = 32
    """Samples of a step, over all processes."""
    optimiser: AdamW = field(default_factory=AdamW)
    min_lr: float = 1e-6
    clip: float = 1.0
    """Largest norm of the gradient over all trained parameters."""
    precision: Precision = field(default_factory=Float32)
    ema: float | None = None
    """Decay of the averaged weights; where given, the averaged weights are the ones a checkpoint is used with."""
    log_every: int = 10
    checkpoint_every: int = 500
    validate_every: int = 500
    seed: int = 0
    time_limit_s: float | None = None
    """Stops cleanly after this long, unfinished; the cosine stays over `steps`, and the next call continues. [s]"""
    time_budget_s: float | None = None
    """Plans the whole run for this long: the schedule follows max(step / steps, elapsed / budget) and the run is finished when
    that reaches 1. Such a run depends on the machine's speed, so it cannot be repeated exactly; its checkpoint says so. [s]"""
    threads: int = 2
    """CPU threads of this process: 2 for one training alone, 1 each for two side by side."""
    device: str = "cpu"
    """cpu, cuda, or one GPU such as cuda:1. Of several processes, each takes a GPU of its own."""
    accumulate: int = 1
    """Parts that each process takes its samples of a step in, one after the other: less memory, the same step."""
    recompute: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: less memory, more time."""
    sharding: Sharding = field(default_factory=Replicated)
    """How weights and the optimizer's state lie on several processes."""
    workers: int = 0
    """Processes that make batches ahead, for each process that trains; 0: none, which is best where features are cached."""
    noise: Noise = field(default_factory=PerBatch)
    trackers: Annotated[tuple[Tracker, ...], tyro.conf.Suppress] = (TensorBoard(),)
    """Where metrics go besides `metrics.jsonl`."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "validate_every", "threads", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.workers < 0:
            raise ConfigError(f"workers is {self.workers}; it must be 0 (none) or more.")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise ConfigError(
                f"ema is {self.ema}; it must lie between 0 and 1 (0.995, 0.999), or be None for no averaging."
            )
        if self.clip <= 0.0:
            raise ConfigError(f"clip is {self.clip}; it must be positive (the paper's code uses 1.0).")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which episodes are held out; whole episodes, so that no frame is close to a held-out one."""

    validation_share: float = 0.1
    """At least one episode where this is above 0; 0 trains on everything."""
    seed: int = 0
    episodes: Annotated[EpisodeSelection, tyro.conf.Suppress] = ALL_EPISODES
    """Which of the run's own dataset are used at all."""
    held_out: Annotated[EpisodeSelection | None, tyro.conf.Suppress] = None
    """Which are held out, in place of a share; none of them is trained on."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation_share < 1.0:
            raise ConfigError(f"validation_share is {self.validation_share}; it must lie in [0, 1), such as 0.1.")

    def of(self, dataset: LeRobotDataset) -> EpisodeSplit:
        """Splits a dataset's selected episodes.

        Raises:
            ConfigError: Nothing meets a selection.
        """
        dataset.check_episodes()
        if self.held_out is not None:
            validation = self.held_out.select(dataset)
            return EpisodeSplit(train=self.episodes.select(dataset, leave_out=validation), validation=validation)
        chosen = self.episodes.select(dataset)
        # An episode of several instructions is held out among those of the same ones.
        tasks = [" / ".join(dataset.instructions(episode)[0]) for episode in chosen]
        parts = split_episodes(tasks, validation_share=self.validation_share, seed=self.seed)
        train, validation = (tuple(chosen[place] for place in part) for part in (parts.train, parts.validation))
        return EpisodeSplit(train=train, validation=validation)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Through which backbone a dataset is seen."""

    backbone: BackboneConfig = field(default_factory=SmallBackboneConfig)
    augmentation: Augmentation = NO_AUGMENTATION
    """Augmented views of the pictures that are encoded besides themselves."""


@dataclass(frozen=True, kw_only=True)
class MixedIn:
    """Another dataset that is trained on besides the run's own; a policy's is scaled by normalisers of its own."""

    data: str
    """Its folder, or a hub id."""
    embodiment: Embodiment = OWN
    episodes: EpisodeSelection = ALL_EPISODES

    def split(self, run: Split, *, own: bool) -> Split:
        """How its episodes are split: as the run says, whose selection is of the run's own dataset."""
        return run if own else replace(run, episodes=self.episodes, held_out=None)


RateMixing = Literal["equal", "resampled", "recorded"]
"""What becomes of datasets of different rates: they are refused; brought to one rate, by whole numbers of frames; or mixed as
they are, so that a chunk or a flow step takes another time in each."""


@dataclass(frozen=True, kw_only=True)
class MotionTraining:
    """Stage 1 (Section III-F): the Motion Expert on scene flow; the backbone is frozen."""

    model: LaMPConfig
    loop: LoopConfig
    backbone: BackboneConfig = field(default_factory=SmallBackboneConfig)
    embodiment: Annotated[Embodiment, tyro.conf.Suppress] = OWN
    """How the dataset records its robot; of it, only the cameras matter here."""
    also: Annotated[tuple[MixedIn, ...], tyro.conf.Suppress] = ()
    """Further datasets, with scene flow of the same grid; bounds are found over all of them."""
    weights: tuple[float, ...] | None = None
    """The share of samples from each dataset, the run's own first, relative to the others'; by length where not given."""
    rates: RateMixing = "equal"
    """Whether flow steps of the datasets must take the same time, are brought to the first one's, or may differ."""
    flow_stride: int = 1
    """Stored flow steps per step of the model: a horizon of 8 at stride 4 covers 32 frames."""
    flow_frames: int | None = None
    """Frames of the dataset per step of the model, whatever the store's steps are; `flow_stride` then follows from the store."""
    arc_length: float | None = None
    """Retime by arc length: a flow step is so much of the way that things come, in fractions of the image's width, such as
    0.02, however long it took (`lamp.sceneflow.retiming`). `flow_stride` and `flow_frames` then count for nothing."""
    arc_floor: float = ByArcLength.floor
    """Of retiming by arc length: less than this is taken for noise. [fraction of the image's width]"""
    scene_flow: str | None = None
    """The dataset's scene-flow store, by its name in `lamp cache list`, where several have what the model needs."""
    bounds: BoundsRule | MotionBounds = field(default_factory=BoundsRule)
    """How increments are mapped to [-1, 1]: fitted to the training episodes, or given."""
    fit_data_std: bool = False
    """Take `model.motion.preconditioning.data_std` from this run's own scene flow; the recipe's is that of other data."""
    supervision: Supervision = field(default_factory=Supervision)
    draws: int = 1
    """Noise draws per sample and step."""
    token_dropout: float = 0.0
    """Share of the backbone's tokens hidden from the Motion Expert in each training sample."""
    targets: Literal["true", "shuffled"] = "true"
    """`shuffled` is a control: each picture is trained with the motion of another episode's, so that nothing but how motion is
    distributed can be learnt. What is held out is measured as it is."""
    cache_features: bool = True
    """Read the frozen backbone's tokens from the feature cache. False: decode and encode pictures in every step, which needs no
    disk and allows any number of augmented views, and takes the backbone's time and memory (docs/training.md)."""
    split: Split = field(default_factory=Split)
    validation_samples: int = 32
    """Held-out samples measured at each validation during the run; each takes all solver steps once."""
    final_samples: int = 128
    """Held-out samples of the measurement at the end, `flow.json`; each takes all solver steps four times."""
    action_samples: ClassVar[int] = 0
    """As in `PolicyTraining`: no actions are measured."""

    def backbone_in(self, checkpoint: Path) -> BackboneConfig:
        """As of `Imported`: the same wherever the checkpoint is."""
        return self.backbone

    def trained_parts(self, model: LaMP) -> list[nn.Module]:
        """What of the model is trained."""
        return [part for part in (model.motion_expert,) if part is not None]

    @property
    def retiming(self) -> Retiming:
        """What a flow step is."""
        return ByTime() if self.arc_length is None else ByArcLength(interval=self.arc_length, floor=self.arc_floor)

    @property
    def motion(self) -> MotionExpertConfig:
        """The Motion Expert's settings, which are there in Stage 1."""
        return cast(MotionExpertConfig, self.model.motion)

    def __post_init__(self) -> None:
        if self.model.motion is None:
            raise ConfigError(
                "model.motion is None; Stage 1 trains the Motion Expert, so it needs a MotionExpertConfig."
            )
        if self.model.action is not None:
            raise ConfigError("model.action is given; Stage 1 trains no Action Expert: leave it None.")
        if self.backbone.lora is not None:
            raise ConfigError("backbone.lora is given; Stage 1 leaves the backbone frozen: train adapters in Stage 2.")
        _check_share("token_dropout", self.token_dropout)
        _ = self.retiming  # refuses what cannot be


@dataclass(frozen=True, kw_only=True)
class AllEpisodes:
    """Every training sample sees the motion prior: right where Stage 1 had other data than Stage 2, or very much."""


@dataclass(frozen=True, kw_only=True)
class UnseenEpisodes:
    """Only samples of episodes that Stage 1 held out see the motion prior; the others train the policy without it.

    z_m may be better on the episodes that Stage 1 was trained on than on any other, and a policy that sees it there expects
    too much of it.
    """


@dataclass(frozen=True, kw_only=True)
class FlowTargets:
    """Which scene flow a policy's flow head learns to predict; as for Stage 1 (`MotionTraining`)."""

    stride: int = 1
    """Stored flow steps per step of the head."""
    frames: int | None = None
    """Frames of the dataset per step of the head, whatever the store's steps are; `stride` then follows from the store."""
    bounds: BoundsRule | MotionBounds = field(default_factory=BoundsRule)
    """How increments are mapped to [-1, 1]: fitted to the training episodes, or given."""
    supervision: Supervision = field(default_factory=Supervision)


PATH_NOISE = 0.4
"""Of a path's standard deviation: without it, a few hundred frames are told apart by their paths and learnt by heart."""


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """Stage 2 (Section III-G, Algorithm 1): guidance and Action Expert; backbone and Motion Expert are frozen."""

    model: LaMPConfig
    """`motion` must be that of the motion checkpoint, or None for the policy without motion."""
    loop: LoopConfig
    backbone: BackboneConfig = field(default_factory=SmallBackboneConfig)
    embodiment: Annotated[Embodiment, tyro.conf.Suppress] = OWN
    """How the dataset records its robot: cameras, state, action, gripper, and what is learnt of the actions."""
    also: Annotated[tuple[MixedIn, ...], tyro.conf.Suppress] = ()
    """Further datasets, of the same widths of state and action."""
    rates: RateMixing = "equal"
    """Whether the datasets must have one rate, are brought to the slowest one's (targets only), or may differ."""
    augmentation: Augmentation = NO_AUGMENTATION
    """Augmented views of the pictures, in which training sees each sample at one epoch or another."""
    cache_features: bool = True
    """Read the frozen backbone's tokens from the feature cache. False: decode and encode pictures in every step, which needs no
    disk and allows any number of augmented views, and takes the backbone's time and memory (docs/training.md)."""
    weights: tuple[float, ...] | None = None
    """The share of samples from each dataset, the policy's own first, relative to the others'; by length where not given."""
    execute: int
    """How many actions of a chunk are carried out before the policy is asked again."""
    noise_draws: int = 2
    """Noise draws of the action loss per sample, sharing one guided context."""
    cached_hidden_draws: int = 0
    """0 computes z_m at every step; n > 0 computes n draws for every training sample before the loop and picks one a step."""
    hidden_noise: float | None = None
    """Standard deviation of the noise added in training to what the Motion Expert hands over, as a share of the standard
    deviation that each of its values has over the training samples, so that its exact values cannot be learnt by heart. None:
    0.4 where a path is handed over (`PathFusion`), else 0."""
    state_noise: float = 0.0
    """Standard deviation of the noise added to the normalised state in training."""
    token_dropout: float = 0.0
    """Share of the backbone's tokens hidden from guidance and Action Expert in each training sample."""
    prior_dropout: float = 0.0
    """Share of the training samples from which the motion prior is withheld, drawn anew at every step."""
    prior_from: float = 0.0
    """Share of the steps after which the motion prior joins. One that is there from the start is leant on, since its coarse
    answer is learnt sooner than a fine one from the tokens; the Action Expert then never learns to look closely."""
    prior_on: AllEpisodes | UnseenEpisodes = field(default_factory=AllEpisodes)
    """In which episodes training samples see the motion prior at all."""
    prior: PriorKind = "predicted"
    """`oracle`: z_m is of the TRUE motion that followed, from the dataset's scene flow. That is a ceiling for any prior; such a
    policy can be evaluated with `lamp evaluate --prior oracle` alone."""
    scene_flow: str | None = None
    """The dataset's scene-flow store that an oracle or a flow head reads, by its name in `lamp cache list`, where several have
    what is needed."""
    flow: FlowTargets = field(default_factory=FlowTargets)
    """The scene flow that a flow head learns from; read only where the model has one (`FlowHead`)."""
    state_transform: StateTransform = field(default_factory=ContinuousRotation)
    state_fit: NormaliserFit = field(default_factory=ByDeviation)
    action_fit: NormaliserFit = field(default_factory=ByDeviation)
    gripper: int | tuple[int, ...] | None = -1
    """The action's dimension that holds the gripper (0 or 1), one for each arm, or None."""
    split: Split = field(default_factory=Split)
    validation_samples: int = 256
    """Held-out samples whose loss is measured at each validation."""
    action_samples: int = 64
    """Held-out samples for which a whole chunk is drawn at each validation, with all solver steps; 0: none."""
    final_samples: ClassVar[int] = 0
    """As in `MotionTraining`: nothing more is measured at the end."""

    def backbone_in(self, checkpoint: Path) -> BackboneConfig:
        """As of `Imported`: the same wherever the checkpoint is."""
        return self.backbone

    def trained_parts(self, model: LaMP) -> list[nn.Module]:
        """What of the model is trained."""
        return [part for part in (model.guidance, model.action_expert) if part is not None]

    @property
    def action(self) -> ActionExpertConfig:
        """The Action Expert's settings, which are there in Stage 2."""
        return cast(ActionExpertConfig, self.model.action)

    @property
    def stored_draws(self) -> int:
        """How many z_m of every training sample are computed before the loop: an oracle's, which has no noise, once; 0: none."""
        return 1 if self.prior == "oracle" else self.cached_hidden_draws

    @property
    def hidden_noise_share(self) -> float:
        """`hidden_noise`, or what stands for None."""
        if self.hidden_noise is not None:
            return self.hidden_noise
        return PATH_NOISE if self.model.fusion and self.model.path else 0.0

    def gripper_dims(self, width: int) -> tuple[int, ...]:
        """Where the grippers are in an action of so many values."""
        dims = (self.gripper,) if isinstance(self.gripper, int) else self.gripper or ()
        return tuple(dim % width if -width <= dim < width else dim for dim in dims)

    def __post_init__(self) -> None:
        if self.model.action is None:
            raise ConfigError(
                "model.action is None; Stage 2 trains the Action Expert, so it needs an ActionExpertConfig."
            )
        if not 1 <= self.execute <= self.model.action.chunk:
            raise ConfigError(
                f"execute is {self.execute}; it must lie between 1 and the chunk, {self.model.action.chunk}."
            )
        if self.prior == "oracle" and self.model.motion is None:
            raise ConfigError(
                "prior is 'oracle', but model.motion is None: z_m of the true motion is the Motion Expert's; give --motion "
                "CHECKPOINT with a recipe that has a motion prior, or leave out --prior."
            )
        if self.cached_hidden_draws and self.model.motion is None:
            raise ConfigError("cached_hidden_draws is set, but model.motion is None: there is no z_m; set it to 0.")
        for name in ("prior_dropout", "prior_from", "hidden_noise"):
            if getattr(self, name) and self.model.motion is None:
                raise ConfigError(f"{name} is set, but model.motion is None: there is no prior; set it to 0.")
        if self.model.flow_head:
            for name, is_set in {"also": bool(self.also), "backbone.lora": self.backbone.lora is not None}.items():
                if is_set:
                    raise ConfigError(
                        f"{name} is given, and the model has a flow head, which learns from one dataset's scene flow and a "
                        f"frozen backbone; expected one of the two: leave {name} out, or model.guidance None."
                    )
        _check_share("token_dropout", self.token_dropout)
        _check_share("prior_dropout", self.prior_dropout)
        _check_share("prior_from", self.prior_from)
        for name in ("cached_hidden_draws", "state_noise", "hidden_noise"):
            if not 0 <= (getattr(self, name) or 0) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative.")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{name} is {value}; it must lie in [0, 1), such as 0.3.")
