"""Real-time chunking: a chunk that goes on from what is left of the one before, since the robot moves while it is computed.

The first `delay` actions of a chunk are those of the one before, whatever comes; the others should follow from them. Two ways:

- `Guided` (Black et al., arXiv:2506.07339) needs no training: at each step of the solver, the velocity is corrected by how far
  the chunk that it points at is from what is left.
- `Conditioned` (arXiv:2512.05964) needs a policy that was trained for it (`TrainedDelays`): the committed actions are put into
  the chunk without noise, each with a flow time of its own, 1, and the others are drawn given them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import Velocity
from lamp.seeding import Source, uniform
from lamp.types import OnDevice

TimedVelocity = Callable[[Tensor, Float[Tensor, "b h"] | float], Tensor]
"""(actions (b, h, a), flow time of all or of each action) -> velocity."""


@dataclass(frozen=True, kw_only=True)
class TrainedDelays:
    """Recipe setting: in training, the first d actions of a chunk are shown without noise and are not learnt, with d drawn from 0
    to `largest` for each noise draw, so that the policy can go on from committed actions (`Conditioned`)."""

    largest: int = 7
    """Actions that may be committed when the policy acts."""

    def __post_init__(self) -> None:
        if self.largest < 1:
            raise ConfigError(f"TrainedDelays: largest {self.largest} given, at least 1 action expected.")

    def draw(self, shape: tuple[int, int], chunk: int, source: Source, device: torch.device) -> Bool[Tensor, "b r h"]:
        """Draws which actions of each chunk are committed."""
        delay = (uniform((shape[0] * shape[1],), source) * (self.largest + 1)).floor().unflatten(0, shape).to(device)
        return torch.arange(chunk, device=device) < delay[..., None]


@dataclass(frozen=True, kw_only=True)
class PreviousChunk(OnDevice):
    """What is left of the chunks before, from the present moment on, normalised for it."""

    actions: Float[Tensor, "b h a"]
    """0 where nothing is left."""
    weights: Float[Tensor, "b h"]
    """1 for committed actions, below 1 for others that are left, 0 beyond them."""

    @property
    def committed(self) -> Bool[Tensor, "b h 1"]:
        """Which actions will be executed whatever comes."""
        return (self.weights >= 1)[..., None]

    def kept(self, actions: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """Actions with the committed ones in their places."""
        return torch.where(self.committed, self.actions.to(actions.dtype), actions)


def overlap_weights(chunk: int, left: int, delay: int) -> Float[Tensor, " h"]:
    """How much each action of a new chunk is held to what is left of the one before: 1 for the `delay` committed ones, then
    falling exponentially to 0 where nothing is left.

    Raises:
        MismatchError: More is committed than is left, or more is left than a chunk has.
    """
    if not 0 <= delay <= left <= chunk:
        raise MismatchError(
            f"a delay of {delay} steps with {left} actions left of a chunk of {chunk}; expected 0 <= delay <= left <= chunk."
        )
    share = ((left - torch.arange(chunk)) / (left - delay + 1)).clamp(0, 1)
    soft = share * torch.expm1(share) / math.expm1(1)
    return torch.where(torch.arange(chunk) < delay, torch.ones(()), soft)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """v' = v + min(beta, (1 - tau) / (tau r^2)) J^T [(Y - x1) W], with x1 = x + (1 - tau) v, J = d x1 / d x and
    r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2); Y is what is left, W its weights."""

    jacobian: Literal["exact", "identity"] = "exact"
    """exact: a vector-Jacobian product through the Action Expert, so that what is not committed follows as the network has learnt
    it; about three times the time. identity: J = 1, which moves each action by itself."""
    beta: float = 5.0
    """Largest weight of the correction."""

    @property
    def needs_gradient(self) -> bool:
        """Whether it differentiates the Action Expert."""
        return self.jacobian == "exact"

    def velocity(self, network: TimedVelocity, previous: PreviousChunk) -> Velocity:
        """The corrected velocity."""

        def corrected(x: Tensor, tau: float) -> Tensor:
            weights, weight = previous.weights[..., None].to(x.dtype), self.weight(tau)
            target = previous.actions.to(x.dtype)
            if self.jacobian == "identity":
                v = network(x, tau).to(x.dtype)
                return v + weight * (target - x - (1 - tau) * v) * weights
            with torch.enable_grad():
                start = x.detach().requires_grad_()
                v = network(start, tau).to(x.dtype)
                end = start + (1 - tau) * v
                (pull,) = torch.autograd.grad(end, start, ((target - end) * weights).detach())
            return v.detach() + weight * pull

        return corrected

    def weight(self, tau: float) -> float:
        """Of the correction at a flow time."""
        if tau <= 0:
            return self.beta
        return min(self.beta, (1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2)


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """Committed actions stand in the chunk without noise, at a flow time of 1; nothing else of the chunk before is used."""

    needs_gradient: ClassVar[bool] = False

    def velocity(self, network: TimedVelocity, previous: PreviousChunk) -> Velocity:
        """The velocity given the committed actions; theirs means nothing."""
        committed = previous.committed[..., 0]

        def conditioned(x: Tensor, tau: float) -> Tensor:
            times = torch.where(committed, 1.0, tau)
            return network(previous.kept(x), times)

        return conditioned


RealTimeMethod = Guided | Conditioned
RealTimeName = Literal["auto", "guided", "identity", "trained"]


def real_time_method(name: RealTimeName, trained: TrainedDelays | None, delay: int = 0) -> RealTimeMethod:
    """The method of a name; `auto` is trained where the policy was trained for the delay, else guided.

    Args:
        trained: What the policy was trained for.
        delay: The committed actions of the chunk.

    Raises:
        MismatchError: The policy was not trained for it.
    """
    if name == "trained" and trained is None:
        raise MismatchError(
            "real_time is 'trained', and the policy was trained without delays (model.real_time); expected guided or identity."
        )
    if name in ("guided", "identity"):
        return Guided(jacobian="exact" if name == "guided" else "identity")
    # More committed actions than any chunk of the training had are followed by guidance.
    return Conditioned() if trained is not None and delay <= trained.largest else Guided()
