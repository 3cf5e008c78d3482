"""What a recipe may be: a whole experiment, the training of both stages or of Stage 1 alone, or a model alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lamp.benchmark.evaluate import EvaluateConfig
from lamp.collect.collect import CollectConfig
from lamp.model.lamp import LaMPConfig
from lamp.sceneflow.build import FlowBuildConfig
from lamp.train.backbones import BackboneConfig
from lamp.train.config import AllEpisodes, MotionTraining, PolicyTraining

OWN_PRIOR_DROPOUT = 0.5
"""Of a prior that may have learnt from the very demonstrations of the policy, which else leans on it (EXPERIMENTS.md)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment from nothing to a table: collect, scene flow, features, Stage 1, Stage 2, evaluation."""

    name: str
    summary: str
    collect: CollectConfig
    flow: FlowBuildConfig
    backbone: BackboneConfig
    motion: MotionTraining
    policy: PolicyTraining
    without_motion: PolicyTraining
    """The same policy without the motion prior."""
    evaluations: tuple[EvaluateConfig, ...]
    """Each is run with both policies; its `out` is the name of its folder. The last is what the experiment is for: `success` and
    `pairs` of summary.json are its figures."""
    prior: str | None = None
    """The motion checkpoint that the policy starts from, such as `pretrained/libero_object`, in place of a Stage 1 on the
    demonstrations of the policy itself, from which it would know nothing that the policy does not."""

    @property
    def flow_frames(self) -> int:
        """Frames of the dataset in a flow step of the model."""
        return self.flow.stride * self.motion.flow_stride

    def policy_with(self, motion: str | None) -> PolicyTraining:
        """Stage 2 with a motion checkpoint, None for one that is yet to be trained: as it is with the recipe's own, and careful
        with any other."""
        if self.prior is None or motion == self.prior:
            return self.policy
        return replace(self.policy, prior_dropout=OWN_PRIOR_DROPOUT)

    @property
    def new_tasks(self) -> tuple[int, ...]:
        """The tasks of the main evaluation of which the policy has no demonstration."""
        return tuple(task for task in self.evaluations[-1].task if task not in self.collect.tasks)

    @property
    def models(self) -> dict[str, LaMPConfig]:
        """The model of each training."""
        policies = {"policy": self.policy.model, "without_motion": self.without_motion.model}
        return {"motion": self.motion.model, **policies}


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Both stages of training, on data that is there already."""

    name: str
    summary: str
    motion: MotionTraining | None
    """None: there is no motion prior to train."""
    policy: PolicyTraining
    gpus: int = 1
    """How many the paper shares each batch among; `loop.batch_size` counts all samples of a step."""
    flow: ClassVar[None] = None
    """The data bring their scene flow."""

    @property
    def backbone(self) -> BackboneConfig:
        """The frozen backbone of both stages."""
        return self.policy.backbone

    def policy_with(self, motion: str | None) -> PolicyTraining:
        """Stage 2 with a motion checkpoint, None for one that is yet to be trained."""
        return self.policy

    @property
    def without_motion(self) -> PolicyTraining:
        """The same policy without the motion prior."""
        return without_motion(self.policy)

    @property
    def models(self) -> dict[str, LaMPConfig]:
        """The model of each training."""
        motion = {"motion": self.motion.model} if self.motion else {}
        return {**motion, "policy": self.policy.model}


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe:
    """Stage 1 from nothing to a motion prior that others start from: motion collected without actions, its scene flow,
    features, the Motion Expert."""

    name: str
    summary: str
    collect: CollectConfig
    flow: FlowBuildConfig
    backbone: BackboneConfig
    motion: MotionTraining

    @property
    def models(self) -> dict[str, LaMPConfig]:
        """The model that is trained."""
        return {"motion": self.motion.model}


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """A model alone, for measuring it with random weights."""

    name: str
    summary: str
    model: LaMPConfig
    tokens: int
    """Backbone tokens of one observation."""

    @property
    def models(self) -> dict[str, LaMPConfig]:
        """The model, by the name that the other kinds use."""
        return {"policy": self.model}


AnyRecipe = Recipe | TrainingRecipe | PretrainingRecipe | ModelRecipe


def without_motion(policy: PolicyTraining) -> PolicyTraining:
    """Returns the same training without the motion prior: the No-Motion ablation."""
    plain = replace(policy.model, motion=None, guidance=None)
    return replace(
        policy,
        model=plain,
        cached_hidden_draws=0,
        hidden_noise=None,
        prior_dropout=0.0,
        prior_from=0.0,
        prior_on=AllEpisodes(),
        prior="predicted",
    )
