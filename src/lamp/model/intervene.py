"""Acting with the motion prior changed, and nothing else.

Each intervention replaces one step of Algorithm 2 and leaves the others, the noise of the actions among them, as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.errors import MismatchError
from lamp.model.lamp import LaMP, required
from lamp.model.prior_interventions import Intervention, Redrawn, Zeroed
from lamp.types import Encoded


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
        if intervention.gate is not None and model.gate is None:
            raise MismatchError(f"{intervention.name} sets the gate of Eq. 4, and this policy's fusion has no gate")
        solver = model.config.solver_steps
        if (intervention.denoised_steps or 0) > solver:
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
        if prior is None and self.intervention.reads_other:
            raise MismatchError(
                f"{self.intervention.name}: what the Motion Expert reads instead is missing; expected `prior`."
            )
        hidden = self._hidden(encoded if prior is None else prior, required(motion_noise, "motion_noise"))
        guided = self.model.guide(encoded, hidden, gate=self.intervention.gate)
        return self.model.decode(guided, state, action_noise, steps=self.intervention.euler_steps)

    def _hidden(self, encoded: Encoded, noise: Float[Tensor, "b k t 3"]) -> Float[Tensor, "b m dm"]:
        if isinstance(self.intervention, Redrawn):
            # Independent at every point of the old noise there, and as repeatable.
            noise = noise.roll((noise.shape[1] // 2 + 1, 1), dims=(1, 2)).flip(-1)
        hidden = self.model.motion_hidden(encoded, noise, taken=self.intervention.denoised_steps)
        guidance = required(self.model.guidance, "guidance")
        return guidance.blank(hidden) if isinstance(self.intervention, Zeroed) else hidden
