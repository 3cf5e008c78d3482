"""The settings of `lerobot-train --policy.type=lamp`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore[reportMissingImports]
from lerobot.configs.types import NormalizationMode  # pyright: ignore[reportMissingImports]
from lerobot.optim.optimizers import AdamWConfig  # pyright: ignore[reportMissingImports]
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig  # pyright: ignore[reportMissingImports]

from lamp.errors import ConfigError
from lamp.train.config import PolicyTraining
from lerobot_policy_lamp.building import Plan, make_plan, settings_of


@PreTrainedConfig.register_subclass("lamp")
@dataclass
class LampConfig(PreTrainedConfig):
    """A LaMP recipe as a policy of LeRobot; what is None is the recipe's."""

    recipe: str = "demo"
    """The sizes, the backbone and how Stage 2 is trained: a name that `lamp recipe list` shows."""
    motion: str | None = None
    """A Stage-1 checkpoint of `lamp train motion`, a folder or a hub id; None: a policy without the motion prior."""
    vlm: str | None = None
    """A folder or hub id in place of the vision-language model that the recipe names."""
    cameras: dict[str, str] = field(default_factory=dict)
    """LaMP's name of each camera, in order, and its image feature; empty: all images, by their own names."""
    instruction: str = ""
    """The instruction, for an environment or a dataset without one; empty: they must have one."""

    chunk_size: int | None = None
    """Actions in a chunk."""
    n_action_steps: int | None = None
    """How many of them are executed before the next request."""
    noise_draws: int | None = None
    """Noise draws of the action loss per sample."""
    state_noise: float | None = None
    """Standard deviation of the noise added to the normalised state in training."""
    token_dropout: float | None = None
    """Share of the backbone's tokens hidden in training."""
    prior_dropout: float | None = None
    """Share of the training samples from which the motion prior is withheld."""

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            # The backbone is frozen and normalises images as it was trained.
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )
    optimizer_lr: float | None = None
    optimizer_weight_decay: float | None = None
    optimizer_grad_clip_norm: float | None = None
    scheduler_decay_lr: float | None = None
    scheduler_decay_steps: int | None = None
    """Steps until the cosine reaches its smallest rate; a shorter training takes its own number."""

    plan: str = ""
    """Written by the policy when it is first built: what it is made of, so that a saved one can be built again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = self.settings
        assert settings.model.action is not None
        self.chunk_size = settings.model.action.chunk if self.chunk_size is None else self.chunk_size
        if self.n_action_steps is None:
            self.n_action_steps = min(settings.execute, self.chunk_size)
        if self.n_obs_steps != 1:
            raise ConfigError(f"n_obs_steps is {self.n_obs_steps}; LaMP sees one moment: expected 1.")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ConfigError(f"n_action_steps is {self.n_action_steps}; expected 1 to chunk_size, {self.chunk_size}.")

    @property
    def settings(self) -> PolicyTraining:
        """The recipe's Stage 2, with the settings that this configuration overrides."""
        training = settings_of(self.recipe, motion=self.motion)
        own = {name: getattr(self, name) for name in ("noise_draws", "state_noise", "token_dropout", "prior_dropout")}
        return replace(training, **{name: value for name, value in own.items() if value is not None})

    def planned(self) -> Plan:
        """What is built: as it was saved, or made from the recipe and the features.

        Raises:
            ConfigError: The recipe, a camera or the chunk does not fit.
            MismatchError: The motion prior was trained with other cameras, or is none.
        """
        if self.plan:
            return Plan.from_text(self.plan)
        self.validate_features()
        state, action = self.robot_state_feature, self.action_feature
        return make_plan(
            self.recipe,
            images=list(self.image_features),
            cameras=self.cameras,
            state_width=state.shape[0] if state else 0,
            action_width=action.shape[0],
            chunk=self.chunk_size,
            motion=self.motion,
            vlm=self.vlm,
        )

    def validate_features(self) -> None:
        """Checks that there are images and actions.

        Raises:
            ConfigError: There are none.
        """
        if not self.image_features:
            raise ConfigError(
                "LaMP needs at least one image feature, such as observation.images.agentview; there is none."
            )
        if self.action_feature is None:
            raise ConfigError(f"LaMP needs the feature action; the outputs are {list(self.output_features or ())}.")

    def keep_features(self, used: Collection[str]) -> None:
        """Drops inputs that the policy does not read: LeRobot would normalise them all, and fail at flags and counters."""
        self.input_features = {key: value for key, value in (self.input_features or {}).items() if key in used}

    def get_optimizer_preset(self) -> AdamWConfig:
        loop, clip = self.settings.loop, self.optimizer_grad_clip_norm
        return AdamWConfig(
            lr=_or(self.optimizer_lr, loop.optimiser.lr),
            betas=loop.optimiser.betas,
            eps=loop.optimiser.eps,
            weight_decay=_or(self.optimizer_weight_decay, loop.optimiser.weight_decay),
            grad_clip_norm=_or(clip, loop.clip),
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """The cosine of Tables III and IV, without warm-up."""
        loop = self.settings.loop
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=0,
            num_decay_steps=self.scheduler_decay_steps or loop.steps,
            peak_lr=_or(self.optimizer_lr, loop.optimiser.lr),
            decay_lr=_or(self.scheduler_decay_lr, loop.min_lr),
        )

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The present action and those after it: A_{t:t+H}."""
        assert self.chunk_size is not None
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None


def _or(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given
