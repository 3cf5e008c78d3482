"""Flow matching, and the only module that knows which way time runs: tau = 0 is noise, tau = 1 is data.

    x^tau = (1 - tau) noise + tau data          (Eq. 2)
    v     = data - noise                        (Eq. 3, Eq. 5)

Time and noise stay in float32 whatever the precision of the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lamp.errors import ConfigError
from lamp.seeding import Source, beta, normal, uniform

Velocity = Callable[[Tensor, float], Tensor]
"""v(x^tau, tau): the state and a flow time give the velocity, of the state's shape. In a solver, all samples are at one time."""


def interpolate(
    noise: Float[Tensor, "*shape"], data: Float[Tensor, "*shape"], tau: Float[Tensor, "*lead"]
) -> Float[Tensor, "*shape"]:
    """Returns x^tau (Eq. 2); the axes of `tau` are the leading axes of `noise` and `data`."""
    tau = tau.reshape(tau.shape + (1,) * (noise.ndim - tau.ndim))
    return (1 - tau) * noise + tau * data


def velocity_target(noise: Float[Tensor, "*shape"], data: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns the velocity that carries `noise` to `data` in unit time (Eq. 3)."""
    return data - noise


def velocity_errors(
    predicted: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], axes: int = 1
) -> tuple[Float[Tensor, "*lead"], Bool[Tensor, "*lead"]]:
    """Returns the mean squared error over what is supervised, for each element of the first `axes` axes, and whether anything
    of it is; 0 where nothing is."""
    weight = mask.float()
    squared = (predicted.float() - target.float()).square() * weight
    supervised = weight.flatten(axes).sum(axes)
    return squared.flatten(axes).sum(axes) / supervised.clamp(min=1), supervised > 0


def masked_velocity_loss(
    predicted: Float[Tensor, " b *shape"], target: Float[Tensor, " b *shape"], mask: Bool[Tensor, " b *shape"]
) -> Float[Tensor, ""]:
    """Mean squared error over each sample's supervised elements, then over the samples that have any.

    Deviation: Eq. 3 has no mask. A mean over all elements would weigh a sample by how much of it happens to be visible.
    """
    per_sample, supervised = velocity_errors(predicted, target, mask)
    return per_sample.sum() / supervised.sum().clamp(min=1)


@torch.no_grad()
def per_channel_loss(
    predicted: Float[Tensor, "*shape c"], target: Float[Tensor, "*shape c"], mask: Bool[Tensor, "*shape c"]
) -> Float[Tensor, " c"]:
    """Returns `masked_velocity_loss` over each entry of the last axis alone."""
    channels = zip(predicted.unbind(-1), target.unbind(-1), mask.unbind(-1), strict=True)
    return torch.stack([masked_velocity_loss(*channel) for channel in channels])


TAU_BUCKETS = 5
"""Equal parts of the flow time, from noise to data, in which losses are told apart."""


@dataclass(frozen=True, kw_only=True)
class PerDrawLoss:
    """The loss of each noise draw, detached."""

    loss: Float[Tensor, " n"]
    tau: Float[Tensor, " n"]
    """Each draw's flow time."""
    supervised: Bool[Tensor, " n"]
    """False where nothing of a draw supervises; its loss is then 0."""

    @classmethod
    @torch.no_grad()
    def of(cls, predicted: Tensor, target: Tensor, mask: Tensor, tau: Float[Tensor, "*lead"]) -> PerDrawLoss:
        """The errors of velocities whose leading axes are those of `tau`."""
        loss, supervised = velocity_errors(predicted, target, mask, axes=tau.ndim)
        return cls(loss=loss.flatten(), tau=tau.flatten(), supervised=supervised.flatten())

    @torch.no_grad()
    def by_tau(self) -> Float[Tensor, "2 n"]:
        """Returns the loss of the draws in each part of the flow time, and their share of all draws."""
        bucket = (self.tau * TAU_BUCKETS).long().clamp(0, TAU_BUCKETS - 1)
        inside = (bucket[:, None] == torch.arange(TAU_BUCKETS, device=bucket.device)) & self.supervised[:, None]
        return torch.stack([(inside * self.loss[:, None]).mean(0), inside.float().mean(0)])


def gaussian(shape: Sequence[int], source: Source, device: torch.device | str) -> Tensor:
    """Draws float32 standard noise where the generator lives, so that a seed means the same on every device."""
    return normal(tuple(shape), source).to(device)


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """tau ~ U(0, 1): the Motion Expert's flow times (the paper does not say which)."""

    def sample(self, n: int, source: Source, device: torch.device | str) -> Float[Tensor, " n"]:
        """Draws `n` flow times."""
        return uniform((n,), source).to(device)


@dataclass(frozen=True, kw_only=True)
class Beta:
    """The NOISE LEVEL 1 - tau is `scale` Beta(alpha, beta) + (1 - scale), which favours noisy actions.

    Deviation: Algorithm 1 writes tau ~ Beta(1.5, 1.0); see `LiteralBeta`.
    """

    alpha: float = 1.5
    beta: float = 1.0
    scale: float = 0.999

    def __post_init__(self) -> None:
        _check_beta(self.alpha, self.beta)
        if not 0 < self.scale <= 1:
            raise ConfigError(f"Beta: scale {self.scale} given, a number above 0 and up to 1 expected.")

    def sample(self, n: int, source: Source, device: torch.device | str) -> Float[Tensor, " n"]:
        """Draws `n` flow times."""
        noise_level = self.scale * beta(self.alpha, self.beta, n, source) + (1 - self.scale)
        return (1 - noise_level).to(device)


@dataclass(frozen=True, kw_only=True)
class LiteralBeta:
    """tau ~ Beta(alpha, beta), Algorithm 1 to the letter: favours nearly clean actions."""

    alpha: float = 1.5
    beta: float = 1.0

    def __post_init__(self) -> None:
        _check_beta(self.alpha, self.beta)

    def sample(self, n: int, source: Source, device: torch.device | str) -> Float[Tensor, " n"]:
        """Draws `n` flow times."""
        return beta(self.alpha, self.beta, n, source).to(device)


TauSampling = Uniform | Beta | LiteralBeta


def _check_beta(alpha: float, beta: float) -> None:
    if alpha <= 0 or beta <= 0:
        raise ConfigError(f"Beta distribution: alpha {alpha} and beta {beta} given, positive numbers expected.")


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """Lets a network predict the part of the velocity that the noisy state alone does not tell, at unit scale at every time.

    For data of standard deviation s, x^tau tells a part `skip` x^tau of the velocity (its best linear estimate), and the rest
    has standard deviation `out`. A network with v = skip x + out F(scale_in x) starts at that estimate, and its loss in F
    weighs all times alike. The prediction is still the velocity of Eq. 3; for s = 1 this is nearly the plain network.

    Deviation: the paper's network predicts v itself. Most points of a scene hold still, so increments mapped to [-1, 1] are
    small beside the noise, and nearly all of the plain loss is the inversion of that noise.
    """

    data_std: tuple[float, ...]
    """s of each value of the last axis."""

    def __post_init__(self) -> None:
        if not self.data_std or min(self.data_std) <= 0:
            raise ConfigError(f"Preconditioning: data_std {self.data_std} given, positive numbers expected.")

    def coefficients(self, tau: Float[Tensor, " b"], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (scale_in, skip, out) for flow times `tau`, shaped to multiply tensors such as `like`."""
        # Filled in on the device: a tensor of the host's numbers would be copied there, which no CUDA graph can record.
        std = torch.cat([torch.full((1,), std, device=like.device) for std in self.data_std])
        return preconditioning(tau.reshape(-1, *(1,) * (like.ndim - 2)), std)


def preconditioning(
    tau: Float[Tensor, "*lead"], std: Float[Tensor, "*data"]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Returns (scale_in, skip, out) of `Preconditioning` at flow times `tau`, for data whose values have these deviations."""
    tau = tau.float().reshape(tau.shape + (1,) * std.ndim)
    variance = (1 - tau) ** 2 + (tau * std) ** 2
    return variance.rsqrt(), (tau * std**2 - (1 - tau)) / variance, std * variance.rsqrt()


def flow_times(tau: Float[Tensor, "*lead"] | float, axes: int, device: torch.device) -> Float[Tensor, "*lead"]:
    """Returns flow times as a tensor of so many axes; a number stands for every sample, along axes of length 1."""
    return tau if isinstance(tau, Tensor) else torch.full((1,) * axes, tau, device=device)


def step_times(steps: int) -> list[float]:
    """Returns the `steps` + 1 times 0, 1/N, ..., 1 between which a solver of N = `steps` steps moves.

    Deviation: Algorithm 2, line 8, evaluates at (n-1)/(N-1), which does not meet the previous step's end n/N.
    """
    return [n / steps for n in range(steps + 1)]


def euler(
    velocity: Velocity, noise: Float[Tensor, " b *shape"], steps: int = 10, stop_after: int | None = None
) -> Float[Tensor, " b *shape"]:
    """Carries noise (tau = 0) towards data (tau = 1) with uniform Euler steps (Algorithm 2, lines 7 to 10).

    Args:
        velocity: The network, see `Velocity`.
        noise: The state at tau = 0.
        steps: N, the number of steps from 0 to 1.
        stop_after: Take only this many of them; the state returned is at tau = stop_after / steps.
    """
    taken = steps if stop_after is None else stop_after
    if steps < 1 or not 0 <= taken <= steps:
        raise ConfigError(f"euler: {taken} of {steps} steps asked for, 0 to {max(steps, 1)} of at least 1 expected.")
    x = noise
    for now, then in pairwise(step_times(steps)[: taken + 1]):
        x = x + (then - now) * velocity(x, now).to(x.dtype)
    return x
