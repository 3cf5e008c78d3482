"""Held-out episodes: the loss with the same noise every time, and the error of predicted action chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lamp.data.dataloader import BatchSource
from lamp.data.image_dataset import AnyPolicySamples
from lamp.flow_matching import gaussian
from lamp.model.lamp import LaMP
from lamp.progress import Progress
from lamp.seeding import Source, WholeBatch, generator_at
from lamp.train.breakdown import AnyBatch, Counts, StepLoss, add_counts, weighted
from lamp.train.config import LoopConfig
from lamp.train.metrics import Value
from lamp.types import PolicyBatch

B = TypeVar("B", bound=AnyBatch)


def spread(total: int, wanted: int) -> Int64[np.ndarray, " n"]:
    """Returns up to `wanted` indices, evenly spread over `total`: the same ones every time."""
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(np.int64))


@torch.no_grad()
def held_out_loss(
    loss: Callable[[B, Source], StepLoss],
    counts: Callable[[B], Counts],
    samples: BatchSource[B],
    indices: Int64[np.ndarray, " n"],
    loop: LoopConfig,
    at_once: int | None = None,
) -> dict[str, Value]:
    """Returns the mean loss over some held-out samples and its parts, with the same noise every time.

    Args:
        loss: A stage's, of a batch.
        counts: How many samples each loss of a batch is a mean over.
        at_once: Samples that go through the model together; a batch by default. The noise does not depend on it.
    """
    sums: dict[str, Tensor] = {}
    with Progress("held-out loss", len(indices), "samples", brief=True) as progress:
        for number, part in enumerate(batches(indices, loop.batch_size)):
            noise = WholeBatch(generator=generator_at(loop.seed, "validation", number), rows=len(part))
            size = min(at_once or len(part), len(part))
            pieces = [(first, samples.batch(part[first : first + size])) for first in range(0, len(part), size)]
            counted = [counts(piece) for _, piece in pieces]
            totals = add_counts(counted)
            for (first, piece), count in zip(pieces, counted, strict=True):
                with loop.precision.autocast(loop.device):
                    step = loss(piece.to(loop.device), noise.part(first, len(part[first : first + size])))
                for name, value in {"loss": step.total, **step.parts}.items():
                    mean = weighted(value.detach().float().cpu(), name, count, totals, parts=len(pieces))
                    sums[name] = sums.get(name, torch.zeros(())) + mean * len(part)
            progress.advance(len(part))
    return {name: (total / len(indices)).tolist() for name, total in sums.items()}


def batches(indices: Int64[np.ndarray, " n"], size: int) -> Iterator[Int64[np.ndarray, " b"]]:
    """Cuts indices into batches, the last one smaller where they do not divide."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


@torch.no_grad()
def measure_actions(
    model: LaMP,
    encode: Callable[[Any], PolicyBatch],
    samples: AnyPolicySamples,
    indices: Int64[np.ndarray, " n"],
    *,
    loop: LoopConfig,
    at_once: int,
) -> dict[str, Value]:
    """Draws one action chunk for each sample, with the same noise every time, and compares it with the demonstrated one.

    Args:
        encode: Adds the backbone's tokens to a batch.
        at_once: Samples that go through the model together; the noise does not depend on it.

    Returns:
        `action_error`: the mean absolute error of the normalised actions that count; `action_error_per_dim`: by dimension, in
        the unit that it is learnt in (m, rad; deltas and relative actions as such); where several tasks are measured,
        `action_error_by_task`: the former of each.
    """
    normalised, by_dim, counted = torch.zeros(()), torch.zeros(()), torch.zeros(())
    of_tasks: dict[str, list[float]] = {}
    with Progress("action errors", len(indices), "samples", brief=True) as progress:
        for number, start in enumerate(range(0, len(indices), loop.batch_size)):
            whole = indices[start : start + loop.batch_size]
            noise = WholeBatch(generator=generator_at(loop.seed, "validation actions", number), rows=len(whole))
            for first in range(0, len(whole), at_once):
                part = whole[first : first + at_once]
                # Not under autocast, which refuses some 16-bit operations on a CPU.
                seen = samples.batch(part).to(loop.device)
                with loop.precision.autocast(loop.device):
                    batch = encode(seen)
                    sampled = _sample_actions(model, batch, noise.part(first, len(part)))
                error = ((sampled.float() - batch.actions).abs() * batch.action_mask[..., None]).cpu()
                counts, sums = batch.action_mask.sum(1).cpu(), error.mean(-1).sum(1)
                for task, one, count in zip(_tasks(samples, part), sums.tolist(), counts.tolist(), strict=True):
                    so_far = of_tasks.setdefault(task, [0.0, 0.0])
                    so_far[0], so_far[1] = so_far[0] + one, so_far[1] + count
                counted += counts.sum()
                normalised += sums.sum()
                by_dim = by_dim + (error * _scales(samples, part)[:, None].float()).sum((0, 1))
            progress.advance(len(whole))
    total = counted.clamp(min=1)
    measured: dict[str, Value] = {
        "action_error": (normalised / total).item(),
        "action_error_per_dim": (by_dim / total).tolist(),
    }
    if len(of_tasks) > 1:
        measured["action_error_by_task"] = {
            task: one / count for task, (one, count) in sorted(of_tasks.items()) if count
        }
    return measured


def _tasks(samples: AnyPolicySamples, indices: Int64[np.ndarray, " b"]) -> list[str]:
    """What each sample's episode is told to do, all its instructions where they change on the way."""
    parts, of = samples.parts, samples.part_of(indices)
    starts = np.cumsum([0, *map(len, parts)])
    places = [
        (part, int(parts[part].episode[place - starts[part]]))
        for part, place in zip(of.tolist(), indices.tolist(), strict=True)
    ]
    instructions = {}  # each episode's are read once
    for part, episode in set(places):
        instructions[part, episode] = " / ".join(parts[part].dataset.instructions(episode)[0])
    return [instructions[place] for place in places]


def _sample_actions(model: LaMP, batch: PolicyBatch, source: Source) -> Float[Tensor, "b h a"]:
    hidden = batch.motion_hidden
    if hidden is None and model.motion_expert is not None:
        hidden = model.motion_hidden(batch.for_prior, model.motion_noise(len(batch.state), source, batch.state.device))
    noise = gaussian(batch.actions.shape, source, batch.state.device)
    return model.decode(model.guide(batch.encoded, hidden, batch.prior_seen), batch.state, noise)


def _scales(samples: AnyPolicySamples, indices: Int64[np.ndarray, " b"]) -> Float[Tensor, "b a"]:
    """What one unit of the normalised action is, for each sample's own dataset."""
    scales = np.stack([part.scaling.actions.centre_and_scale()[1] for part in samples.parts])
    return torch.from_numpy(scales[samples.part_of(indices)])
