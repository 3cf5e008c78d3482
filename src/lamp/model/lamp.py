"""LaMP as a whole; reads top to bottom like Figure 3.

(a) `motion_loss` trains the Motion Expert; (b) `action_loss` trains guidance and Action Expert on its frozen hidden state;
`act` is Algorithm 2 from the backbone's tokens on; `foresee` draws the whole scene flow, for pictures only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import (
    Beta,
    PerDrawLoss,
    TauSampling,
    Uniform,
    euler,
    gaussian,
    interpolate,
    masked_velocity_loss,
    per_channel_loss,
    step_times,
    velocity_target,
)
from lamp.model.action_expert import ActionExpert, ActionExpertConfig
from lamp.model.guidance import withhold_prior
from lamp.model.layers import ExpertBlock
from lamp.model.motion_expert import MotionExpert, MotionExpertConfig
from lamp.model.motion_fusion import FlowHead, FlowPredictor, FusionConfig, PathFusion, build_fusion, pooled_path
from lamp.model.realtime import Guided as GuidedByPrevious
from lamp.model.realtime import PreviousChunk, RealTimeMethod, TrainedDelays
from lamp.model.token_pooling import TokenPooling
from lamp.seeding import Source
from lamp.types import Encoded, Guided, MotionBatch, PolicyBatch, TokenBatch

Present = TypeVar("Present")


ORACLE_TAU = 0.99
"""The flow time at which an oracle's z_m is read: the motion is the true one, with no noise in it."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """z_m is read where the first step lands, tau = 1/N: two evaluations of the Motion Expert (as the release does)."""

    STEPS: ClassVar[int] = 1
    """Taken before z_m is read."""


@dataclass(frozen=True, kw_only=True)
class Departure:
    """z_m is read where the first step starts, tau = 0: one evaluation of the Motion Expert."""

    STEPS: ClassVar[int] = 0


@dataclass(frozen=True, kw_only=True)
class LaMPConfig:
    """Which parts there are, and how time runs in them.

    One configuration serves both stages and the ablation: without `action` it is the Stage-1 model, without `motion` the
    policy that has no motion prior. Guidance is built where both are present.
    """

    token_width: int
    """Width of the backbone's tokens z."""
    motion: MotionExpertConfig | None
    guidance: FusionConfig | None
    """How the motion prior reaches the Action Expert: Eq. 4, or an ablation."""
    action: ActionExpertConfig | None
    solver_steps: int = 10
    """N: Euler steps from noise to data."""
    hidden_at: Arrival | Departure = field(default_factory=Arrival)
    action_noise_std: float = 1.0
    """Standard deviation of a^0 when the policy acts. At 0 it always starts in the middle, and its actions are reproducible;
    training is not concerned. Deviation: 1 in Algorithm 2."""
    pooling: TokenPooling | None = None
    """What guidance and Action Expert read of z; None: all of it, as in the paper."""
    motion_tau: TauSampling = field(default_factory=Uniform)
    action_tau: TauSampling = field(default_factory=Beta)
    real_time: TrainedDelays | None = None
    """Whether the policy learns to go on from committed actions (`lamp.model.realtime`); None: it does not, as in the paper."""

    def __post_init__(self) -> None:
        if self.motion is None and self.action is None:
            raise ConfigError(
                "LaMP: neither a Motion Expert nor an Action Expert is configured; at least one is expected."
            )
        if self.motion is not None and self.action is not None and self.guidance is None:
            raise ConfigError(
                "LaMP: a Motion Expert and an Action Expert are configured, and no guidance between them."
            )
        for part in (self.motion, self.guidance, self.action):
            width = getattr(part, "token_width", self.token_width)
            if width != self.token_width:
                message = f"token_width {width} in {type(part).__name__}, {self.token_width} in LaMPConfig"
                raise ConfigError(f"LaMP: {message}; both are the width of the backbone's tokens.")
        if self.guidance and self.motion:
            self.guidance.check(self.motion)
        if not 0 <= self.action_noise_std <= 1:
            raise ConfigError(f"LaMP: action_noise_std {self.action_noise_std} given, 0 to 1 expected.")
        if self.real_time and self.action and self.real_time.largest >= self.action.chunk:
            raise ConfigError(
                f"LaMP: real_time.largest {self.real_time.largest} given, less than the chunk of {self.action.chunk} expected."
            )
        if self.solver_steps < 1:
            raise ConfigError(f"LaMP: solver_steps {self.solver_steps} given, at least 1 expected.")

    @property
    def evaluations(self) -> dict[str, int]:
        """How often a chunk of actions asks each network."""
        motion = self.hidden_steps + 1 if self.motion else 0
        return {
            "motion": motion,
            "guidance": int(self.fusion is not None and self.motion is not None),
            "action": self.solver_steps if self.action else 0,
        }

    @property
    def hidden_steps(self) -> int:
        """Steps of the solver that are taken before what is handed over is read: none where that is a path."""
        return 0 if self.path else self.hidden_at.STEPS

    @property
    def hidden_shape(self) -> tuple[int, int] | None:
        """Tokens and width of what the Motion Expert hands over: z_m's, or a path's; None without a Motion Expert."""
        if self.motion is None:
            return None
        return self.guidance.hidden_shape(self.motion) if self.guidance else (self.motion.tokens, self.motion.width)

    @property
    def path(self) -> PathFusion | None:
        """The guidance, where it reads a decoded path in place of z_m."""
        return self.guidance if isinstance(self.guidance, PathFusion) else None

    @property
    def flow_head(self) -> FlowHead | None:
        """The guidance, where it is a head that learns scene flow in Stage 2."""
        return self.guidance if self.action and isinstance(self.guidance, FlowHead) else None

    @property
    def fusion(self) -> FusionConfig | None:
        """The guidance that is built: None where one of the two that it connects is missing. A flow head needs but one."""
        return (
            self.guidance if self.action and self.guidance and (self.motion or not self.guidance.needs_prior) else None
        )


@dataclass(frozen=True, kw_only=True)
class MotionLoss:
    """L_motion (Eq. 3)."""

    total: Float[Tensor, ""]
    per_axis: Float[Tensor, " 3"]
    """The same over (du, dv, dd) alone, detached."""
    draws: PerDrawLoss


@dataclass(frozen=True, kw_only=True)
class ActionLoss:
    """L_action (Eq. 5)."""

    total: Float[Tensor, ""]
    per_dim: Float[Tensor, " a"]
    """The same over each action value alone, detached."""
    draws: PerDrawLoss
    flow: Float[Tensor, ""] | None = None
    """That of the flow head, which `total` has its weight of in training, detached; None where there is none."""


class LaMP(nn.Module):
    """P(A, M | z) = P(A | z, M) P(M | z) (Eq. 1): the Motion Expert, the guidance, the Action Expert."""

    def __init__(self, config: LaMPConfig) -> None:
        super().__init__()
        self.config = config
        fusion, action = config.fusion, config.action
        self.motion_expert = MotionExpert(config.motion) if config.motion else None
        self.guidance = build_fusion(fusion, action, config.motion) if fusion and action else None
        self.action_expert = ActionExpert(action, fusion.joined_width if fusion else 0) if action else None
        self.pooling = config.pooling.build() if config.pooling and action else None

    def motion_loss(self, batch: MotionBatch, source: Source, draws: int = 1) -> MotionLoss:
        """Stage 1: the Motion Expert learns the velocity from noise to the observed scene flow.

        Args:
            source: Of noise and flow times.
            draws: Noise draws per sample.
        """
        expert, motion = required(self.motion_expert, "Motion Expert"), batch.motion
        encoded, mask = (
            _repeat(kept_tokens(batch), draws),
            expert.supervised(motion.mask.repeat_interleave(draws, dim=0)),
        )
        data = expert.modelled_part(motion.values.repeat_interleave(draws, dim=0))
        noise = expert.modelled_part(gaussian(data.shape, source, data.device))
        tau = self.config.motion_tau.sample(len(data), source, data.device)
        noisy = interpolate(noise, data, tau)
        scale = expert.error_scale(tau, noisy)
        predicted, target = expert(noisy, tau, encoded) / scale, velocity_target(noise, data) / scale
        return MotionLoss(
            total=masked_velocity_loss(predicted, target, mask),
            per_axis=per_channel_loss(predicted, target, mask),
            draws=PerDrawLoss.of(predicted, target, mask, tau),
        )

    @torch.no_grad()
    def motion_hidden(
        self, encoded: Encoded, noise: Float[Tensor, "b k t 3"], *, taken: int | None = None
    ) -> Float[Tensor, "b m dm"]:
        """Returns z_m, the hidden state of one step of the solver, or, where a path is handed over (`PathFusion`), that of the
        flow which the step points at: the same in Stage 2 and at inference, without gradient.

        Args:
            encoded: What the Motion Expert is conditioned on.
            noise: Where the solver starts.
            taken: Steps of the solver before that; None takes the configuration's.
        """
        expert = required(self.motion_expert, "Motion Expert")
        noise = expert.modelled_part(noise)
        taken = self.config.hidden_steps if taken is None else taken
        steps, condition = self.config.solver_steps, expert.condition(encoded)
        partial = euler(lambda m, tau: expert(m, tau, encoded, condition), noise, steps, stop_after=taken)
        if self.config.path:
            if taken < steps:  # the rest of the way in one step
                tau = step_times(steps)[taken]
                partial = partial + (1 - tau) * expert(partial, tau, encoded, condition).to(partial.dtype)
            return pooled_path(partial, expert.config.grid, self.config.path)
        return expert.hidden(partial, step_times(steps)[taken], encoded, condition)

    @torch.no_grad()
    def oracle_hidden(self, encoded: Encoded, motion: Float[Tensor, "b k t 3"]) -> Float[Tensor, "b m dm"]:
        """Returns what an oracle hands over: z_m of the true motion that follows, instead of partly denoised noise, or its path.

        Args:
            encoded: What the Motion Expert is conditioned on.
            motion: Normalised scene flow, 0 where it is not known.
        """
        expert = required(self.motion_expert, "Motion Expert")
        if self.config.path:
            return pooled_path(expert.modelled_part(motion), expert.config.grid, self.config.path)
        return expert.hidden(expert.modelled_part(motion), ORACLE_TAU, encoded)

    def motion_noise(self, count: int, source: Source, device: torch.device | str = "cpu") -> Float[Tensor, "b k t 3"]:
        """Draws m^0, where the solver of so many samples' scene flow starts."""
        return gaussian((count, *required(self.motion_shape, "Motion Expert")), source, device)

    def guide(
        self,
        encoded: Encoded,
        hidden: Float[Tensor, "b m dm"] | None,
        seen: Bool[Tensor, " b"] | None = None,
        *,
        unguided: bool = False,
        gate: float | None = None,
    ) -> Guided:
        """Returns z_guided (Eq. 4), or z itself where the model has no motion prior or a sample has not `seen` it.

        In every fusion but Eq. 4, z stays as it is and the prior comes beside it. Where the whole batch is `unguided`, guidance
        is not computed; a `gate` takes the place of that of Eq. 4.
        """
        encoded = self.policy_tokens(encoded)
        guided = Guided(tokens=encoded.tokens, mask=encoded.mask, whole=encoded.whole)
        if self.guidance is not None and self.flow_head is None and not unguided:
            hidden, fusion = required(hidden, "motion hidden state"), self.guidance
            guided = fusion.guide(encoded, hidden) if gate is None else fusion.guide_through(encoded, hidden, gate)
            guided = guided if seen is None else withhold_prior(guided, encoded, seen)
        if self.config.action is None or not self.config.action.sees_t_1:
            return guided
        t_1 = torch.full((len(encoded.mask),), step_times(self.config.solver_steps)[1], device=encoded.mask.device)
        return replace(guided, t_1=t_1)

    def policy_tokens(self, encoded: Encoded) -> Encoded:
        """Returns what guidance and Action Expert read of z."""
        return encoded if self.pooling is None else self.pooling(encoded)

    def _unguided(self, batch: PolicyBatch) -> bool:
        """Whether no sample of the step sees the prior, so that guidance need not be computed."""
        if self.guidance is None or not self.guidance.skippable or batch.prior_seen is None:
            return False
        return not (bool(batch.prior_seen.any()) if batch.guided is None else batch.guided)

    def action_loss(
        self,
        batch: PolicyBatch,
        source: Source,
        noise_draws: int = 2,
        *,
        hidden_noise: Float[Tensor, "*m dm"] | None = None,
    ) -> ActionLoss:
        """Stage 2 (Algorithm 1): guidance and Action Expert learn the velocity from noise to the expert's actions.

        Args:
            batch: Tokens, state and actions; its `motion_hidden` spares the Motion Expert's evaluation.
            source: Of motion noise, action noise and flow times.
            noise_draws: Action-noise draws per sample, which share z_guided.
            hidden_noise: Standard deviation of the noise that is added to what the Motion Expert hands over; None: nothing is.
        """
        expert, actions = required(self.action_expert, "Action Expert"), batch.actions
        hidden = batch.motion_hidden
        unguided = self._unguided(batch)
        if hidden is None and self.motion_expert is not None and not unguided:
            noise = self.motion_noise(len(actions), source, actions.device)
            # Of all tokens, `kept` or not: where a policy acts nothing is hidden, and z_m is the same (Section III-G).
            hidden = self.motion_hidden(batch.for_prior, noise)
        if hidden is not None and hidden_noise is not None and not unguided:
            hidden = hidden + hidden_noise * gaussian(hidden.shape, source, hidden.device)
        context = expert.context(self.guide(kept_tokens(batch), hidden, batch.prior_seen, unguided=unguided))

        data = actions[:, None].expand(-1, noise_draws, -1, -1)
        noise = gaussian(data.shape, source, data.device)
        tau = self.config.action_tau.sample(data.shape[0] * noise_draws, source, data.device)
        tau = tau.unflatten(0, (-1, noise_draws))
        mask, times = batch.action_mask[:, None, :, None].expand(data.shape), tau
        if self.config.real_time is not None:
            committed = self.config.real_time.draw((len(data), noise_draws), data.shape[2], source, data.device)
            times, mask = torch.where(committed, 1.0, tau[..., None]), mask & ~committed[..., None]
        predicted, target = (
            expert(interpolate(noise, data, times), times, batch.state, context),
            velocity_target(noise, data),
        )
        scale = expert.error_scale(times)
        predicted, target = predicted / scale, target / scale
        total, flow = masked_velocity_loss(predicted, target, mask), None
        head = self.flow_head
        if head is not None and (batch.motion is not None or head.training):
            motion = required(batch.motion, "scene flow of the batch, which the flow head learns,")
            errors = head.errors(expert.states(context), context.mask, motion)
            # A mean over the same samples as the actions' loss, so that parts of a batch weigh alike in both.
            counted = batch.action_mask.any(1)
            flow = (errors * counted).sum() / counted.sum().clamp(min=1)
            total = total + head.config.weight * flow if head.training else total
        return ActionLoss(
            total=total,
            flow=None if flow is None else flow.detach(),
            per_dim=per_channel_loss(predicted, target, mask),
            draws=PerDrawLoss.of(predicted, target, mask, tau),
        )

    @torch.no_grad()
    def act(
        self,
        encoded: Encoded,
        state: Float[Tensor, "b s"],
        *,
        motion_noise: Float[Tensor, "b k t 3"] | None,
        action_noise: Float[Tensor, "b h a"],
        prior: Encoded | None = None,
        previous: PreviousChunk | None = None,
        real_time: RealTimeMethod | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Returns a normalised action chunk (Algorithm 2); a model without motion prior takes no `motion_noise`.

        `prior` is what the Motion Expert is conditioned on where that is not `encoded`; `previous` and `real_time` are as for
        `decode`.

        Deviation: the Action Expert sees t_1, a constant of the solver, only where its configuration says so.
        """
        hidden = None
        if self.motion_expert is not None:
            read = encoded if prior is None else prior
            hidden = self.motion_hidden(read, required(motion_noise, "motion_noise"))
        guided = self.guide(encoded, hidden)
        return self.decode(guided, state, action_noise, previous=previous, real_time=real_time)

    @torch.no_grad()
    def decode(
        self,
        guided: Guided,
        state: Float[Tensor, "b s"],
        action_noise: Float[Tensor, "b h a"],
        *,
        steps: int | None = None,
        previous: PreviousChunk | None = None,
        real_time: RealTimeMethod | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Returns a normalised action chunk from what the Action Expert is conditioned on (Algorithm 2, lines 6 to 10).

        Args:
            action_noise: Where the solver starts.
            steps: Euler steps; None takes the configuration's.
            previous: What is left of the chunk before, which the new one goes on from; None: nothing.
            real_time: How it goes on; None: guided.
        """
        expert = required(self.action_expert, "Action Expert")
        context = expert.context(guided)

        def network(a: Tensor, tau: Tensor | float) -> Tensor:
            return expert(a[:, None], tau[:, None] if isinstance(tau, Tensor) else tau, state, context)[:, 0]

        velocity = network if previous is None else (real_time or GuidedByPrevious()).velocity(network, previous)
        actions = euler(velocity, self.config.action_noise_std * action_noise, steps or self.config.solver_steps)
        return actions if previous is None else previous.kept(actions)

    @torch.no_grad()
    def foresee(
        self, encoded: Encoded, noise: Float[Tensor, "b k t 3"], steps: int | None = None
    ) -> Float[Tensor, "b k t 3"]:
        """Returns fully denoised, normalised scene-flow increments: for pictures, no action depends on them."""
        expert = required(self.motion_expert, "Motion Expert")
        noise, condition = expert.modelled_part(noise), expert.condition(encoded)
        return euler(lambda m, tau: expert(m, tau, encoded, condition), noise, steps or self.config.solver_steps)

    @property
    def blocks(self) -> dict[nn.Module, tuple[str, ...]]:
        """The experts' blocks, each with those of its methods (besides `forward`) that compute with its weights."""
        return {module: module.WITH_WEIGHTS for module in self.modules() if isinstance(module, ExpertBlock)}

    @property
    def gate(self) -> float | None:
        """How far the gate of Eq. 4 is open; None where there is none."""
        opening = None if self.guidance is None else self.guidance.opening()
        return None if opening is None else float(opening.detach())

    @property
    def flow_head(self) -> FlowPredictor | None:
        """What learns the scene flow along with the actions; None where nothing does."""
        return self.guidance if isinstance(self.guidance, FlowPredictor) else None

    @property
    def motion_shape(self) -> tuple[int, int, int] | None:
        """(k, t, 3) of one sample's scene flow; None without a Motion Expert."""
        return self.config.motion.shape if self.config.motion else None

    @property
    def action_shape(self) -> tuple[int, int] | None:
        """(h, a) of one action chunk; None without an Action Expert."""
        return self.config.action.shape if self.config.action else None

    def parameter_table(self) -> dict[str, int]:
        """Returns how many parameters each part has; `lamp.model.parameter_count` gets the same from the configuration."""
        parts = ("motion_expert", "guidance", "action_expert")
        table = {name: sum(p.numel() for p in part.parameters()) for name in parts if (part := getattr(self, name))}
        return table | {"total": sum(table.values())}


def required(value: Present | None, what: str) -> Present:
    """Returns the value itself.

    Raises:
        MismatchError: It is missing.
    """
    if value is None:
        raise MismatchError(f"LaMP: {what} is missing; this step needs it.")
    return value


def kept_tokens(batch: TokenBatch) -> Encoded:
    """Returns the backbone's tokens without those that this step drops (token dropout)."""
    if batch.kept is None:
        return batch.encoded
    return replace(batch.encoded, mask=batch.encoded.mask & batch.kept, whole=None)


def _repeat(encoded: Encoded, draws: int) -> Encoded:
    tokens, mask = (x.repeat_interleave(draws, dim=0) for x in (encoded.tokens, encoded.mask))
    return replace(encoded, tokens=tokens, mask=mask)
