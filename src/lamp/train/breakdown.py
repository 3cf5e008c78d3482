"""A loss taken apart for the log: by axis of the scene flow, by dimension of the action, by flow time.

On their way to the log all parts are plain means over samples, so that those of several steps or processes can be averaged;
`Counts` says how many samples each mean is over. A share, such as the mean loss in a part of the flow time, travels as two
rows of means, the sums above the counts, and is divided where it is written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.data.actions import Delta, Relative
from lamp.data.embodiment import Embodiment
from lamp.data.image_dataset import ObservedBatch
from lamp.data.lerobot.format import Feature
from lamp.flow_matching import TAU_BUCKETS
from lamp.train.metrics import Value
from lamp.types import Motion, TokenBatch

AXES = ("u", "v", "d")
"""Of the scene flow: across, down, depth."""
TAU_NAMES = tuple(f"{index / TAU_BUCKETS:.1f}-{(index + 1) / TAU_BUCKETS:.1f}" for index in range(TAU_BUCKETS))
POSE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper")
"""Of an action of seven values, as nearly all datasets of arms have it: position, rotation, gripper."""

Labels = Mapping[str, Sequence[str]]
"""What the entries of a part are called, by the part's name."""


AnyBatch = TokenBatch | ObservedBatch
"""A batch with the backbone's tokens, or with the images that they are computed from."""


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """The loss of one batch, and the parts of it that are worth a line in the log."""

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor]


@torch.no_grad()
def clamped(motion: Motion) -> Float[Tensor, "2 3"]:
    """By axis: the share of increments that supervise and lie on a bound, as clamped ones do, above all that supervise."""
    beyond = (motion.values.abs() >= 1) & motion.mask
    return torch.stack([part.float().mean((0, 1, 2)) for part in (beyond, motion.mask)])


def with_labels(values: Mapping[str, Value], labels: Labels) -> dict[str, Value]:
    """Gives the entries of each part their names, and divides those that are sums above counts.

    An entry of which nothing was counted is left out.
    """
    return {name: _with_labels(value, labels.get(name)) for name, value in values.items()}


def _with_labels(value: Value, names: Sequence[str] | None) -> Value:
    if not isinstance(value, list):
        return value
    rows = [row for row in value if isinstance(row, list)]
    if not rows:
        plain = [float(entry) for entry in value if not isinstance(entry, list)]
        return plain if names is None else dict(zip(names, plain, strict=True))
    sums, counts = rows
    chosen = names or [str(index) for index in range(len(sums))]
    return {name: one / count for name, one, count in zip(chosen, sums, counts, strict=True) if count > 0}


def action_names(features: Mapping[str, Feature], embodiment: Embodiment, width: int) -> tuple[str, ...]:
    """What a dataset calls the dimensions of the action that is learnt; where it does not say, `POSE_NAMES` where they fit,
    else their numbers."""
    names: list[str] = []
    for part in embodiment.action:
        names += (features[part.key].names or ())[part.start : part.stop]
    if len(names) == width == len(set(names)):
        return tuple(names)
    posed = isinstance(embodiment.kind, Delta) or (isinstance(embodiment.kind, Relative) and embodiment.kind.pose)
    return POSE_NAMES if posed and width == len(POSE_NAMES) else tuple(str(index) for index in range(width))


Counts = Mapping[str, Tensor]
"""How many samples each loss of a batch is a mean over: `loss`, and those of its parts that differ; and how many see the `prior`.
The counts of a batch's parts add up to its own."""


def add_counts(counts: Sequence[Counts]) -> dict[str, Tensor]:
    """The counts of all parts together."""
    return {name: torch.stack([count[name] for count in counts]).sum(0) for name in counts[0]}


def weighted(value: Tensor, name: str, count: Counts, totals: Counts, *, parts: int) -> Tensor:
    """What a part contributes to the mean over the whole: contributions add up to it.

    Args:
        value: The mean over the part.
        count: Of the part.
        totals: Of the whole.
        parts: How many there are; a single one's mean is left as it is.
    """
    if parts == 1:
        return value
    mine, whole = (counts.get(name, counts["loss"]) for counts in (count, totals))
    weight = mine / whole.clamp(min=1)
    return value * (float(weight) if weight.ndim == 0 else weight.to(value))
