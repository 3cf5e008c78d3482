"""Two processes that keep a part of every weight each, and what the first of them holds at the fullest moment of a step.

Run as a script, it prints one JSON object of bytes for each of some ways to share out and to take a step in parts.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from typing import Any

import torch
from measured_step import loss_of, most_above, policy, random_batch
from torch import Tensor, nn

from lamp.model.lamp import LaMP
from lamp.seeding import Source
from lamp.train.breakdown import AnyBatch, StepLoss
from lamp.train.config import Float32, FullySharded, PolicyTraining
from lamp.train.distributed import distributed_context
from lamp.train.parallel import FullyShardedDataParallel
from lamp.train.shards import local
from lamp.train.stages import Stage
from lamp.types import MotionBatch, PolicyBatch

SAMPLES, TOKENS = 4, 30
WAYS: dict[str, dict[str, Any]] = {
    "by block": {"sharding": FullySharded()},
    "whole between passes": {"sharding": FullySharded(reshard=False)},
    "in parts": {"sharding": FullySharded(), "accumulate": 2},
}


def training(way: str) -> PolicyTraining:
    made = policy(Float32())
    return replace(made, loop=replace(made.loop, **WAYS[way]))


class Sharded(Stage[Any]):
    """A stage, as far as a strategy has to know it."""

    def __init__(self, training: PolicyTraining) -> None:
        torch.manual_seed(0)
        self.training, self.model = training, LaMP(training.model)
        assert self.model.motion_expert is not None
        self.model.motion_expert.requires_grad_(False)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss:
        assert isinstance(batch, MotionBatch | PolicyBatch)
        return StepLoss(total=loss_of(self.training, self.model, batch), parts={})


def fullest(way: str) -> int:
    chosen = training(way)
    stage, distributed, parts = Sharded(chosen), distributed_context("cpu"), chosen.loop.accumulate
    batch = random_batch(chosen, stage.model, SAMPLES, TOKENS)
    assert isinstance(chosen.loop.sharding, FullySharded)
    strategy = FullyShardedDataParallel(stage, chosen.loop.optimiser, chosen.loop.sharding, distributed)

    def take() -> None:
        for number in range(parts):
            with strategy.micro_batch(last=number == parts - 1):
                strategy.loss(batch, torch.Generator()).total.backward()
        strategy.optimizer_step(1.0)

    take()
    states = [value for state in strategy.optimiser.state.values() for value in state.values()]
    held = [*stage.model.parameters(), *states, *stage.model.buffers(), batch.encoded.tokens]
    return sum(_bytes(tensor) for tensor in held) + most_above(take)


def _bytes(tensor: Tensor) -> int:
    return local(tensor.detach()).untyped_storage().nbytes()


def main() -> None:
    torch.set_num_threads(1)
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1])}
    other = os.fork()
    rank = "0" if other else "1"
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    found = {way: fullest(way) for way in WAYS}
    if other:
        print(json.dumps(found))
        os.waitpid(other, 0)


if __name__ == "__main__":
    main()
