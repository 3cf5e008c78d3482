"""Acting with the motion prior changed, and nothing else.

Each intervention replaces one step of Algorithm 2 and leaves the others, the noise of the actions among them, as they are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.errors import MismatchError
from lamp.model.guidance import MotionGuidance, PathTokenizer
from lamp.model.lamp import LaMP, required
from lamp.model.prior_interventions import (
    ActionSteps,
    Denoised,
    Gate,
    Intervention,
    Redrawn,
    Shuffled,
    WrongPriorInstruction,
    Zeroed,
)
from lamp.types import Encoded, Guided


class OracleActor:
    """Acts like `LaMP.act`, but for z_m, which is of the true motion to come.

    Raises:
        MismatchError: The model has no motion prior.
    """

    def __init__(self, model: LaMP) -> None:
        if model.motion_expert is None or model.guidance is None:
            raise MismatchError("an oracle tells the motion prior the true motion, and this policy has none")
        self.model = model

    @torch.no_grad()
    def act(
        self,
        encoded: Encoded,
        state: Float[Tensor, "b s"],
        *,
        true_motion: Float[Tensor, "b k t 3"],
        action_noise: Float[Tensor, "b h a"],
        prior: Encoded | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Returns a normalised action chunk; `true_motion` is normalised, too."""
        hidden = self.model.oracle_hidden(encoded if prior is None else prior, true_motion)
        return self.model.decode(self.model.guide(encoded, hidden), state, action_noise)


class InterveningActor:
    """Acts like `LaMP.act`, but for one intervention.

    Raises:
        MismatchError: The model has no motion prior, or not what the intervention changes.
    """

    def __init__(self, model: LaMP, intervention: Intervention) -> None:
        if model.motion_expert is None or model.guidance is None:
            raise MismatchError(f"{intervention.name} changes the motion prior, and this policy has none")
        if isinstance(intervention, Gate) and not isinstance(model.guidance, MotionGuidance):
            raise MismatchError(f"{intervention.name} sets the gate of Eq. 4, and this policy's fusion has no gate")
        if isinstance(intervention, Denoised) and intervention.steps > model.config.solver_steps:
            solver = model.config.solver_steps
            raise MismatchError(f"{intervention.name}: the solver has {solver} steps; expected 0 to {solver}")
        self.model, self.intervention = model, intervention

    @torch.no_grad()
    def act(
        self,
        encoded: Encoded,
        state: Float[Tensor, "b s"],
        *,
        motion_noise: Float[Tensor, "b k t 3"] | None,
        action_noise: Float[Tensor, "b h a"],
        prior: Encoded | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Returns a normalised action chunk.

        Args:
            encoded: What the Action Expert is guided from.
            prior: What the Motion Expert reads in place of `encoded`: another task's observation for `Shuffled`, the same one
                with another instruction for `WrongPriorInstruction`.

        Raises:
            MismatchError: `prior` is missing where the intervention is of it.
        """
        if prior is None and isinstance(self.intervention, Shuffled | WrongPriorInstruction):
            raise MismatchError(
                f"{self.intervention.name}: what the Motion Expert reads instead is missing; expected `prior`."
            )
        hidden = self._hidden(encoded if prior is None else prior, required(motion_noise, "motion_noise"))
        steps = self.intervention.steps if isinstance(self.intervention, ActionSteps) else None
        return self.model.decode(self._guided(encoded, hidden), state, action_noise, steps=steps)

    def _hidden(self, encoded: Encoded, noise: Float[Tensor, "b k t 3"]) -> Float[Tensor, "b m dm"]:
        if isinstance(self.intervention, Redrawn):
            # Independent at every point of the old noise there, and as repeatable.
            noise = noise.roll((noise.shape[1] // 2 + 1, 1), dims=(1, 2)).flip(-1)
        taken = self.intervention.steps if isinstance(self.intervention, Denoised) else None
        hidden = self.model.motion_hidden(encoded, noise, taken=taken)
        if not isinstance(self.intervention, Zeroed):
            return hidden
        # A path's zero, once it is standardised.
        guidance = self.model.guidance
        return guidance.centre.expand_as(hidden) if isinstance(guidance, PathTokenizer) else torch.zeros_like(hidden)

    def _guided(self, encoded: Encoded, hidden: Float[Tensor, "b m dm"]) -> Guided:
        guided, guidance = self.model.guide(encoded, hidden), self.model.guidance
        if isinstance(self.intervention, Gate) and isinstance(guidance, MotionGuidance):
            read = self.model.policy_tokens(encoded)
            z, z_m = (part.to(guided.tokens.dtype) for part in (read.tokens, hidden))
            return replace(guided, tokens=z + self.intervention.opening * guidance.update(z, z_m))
        return guided
