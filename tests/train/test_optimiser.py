"""Schedule, optimizer state, random states, tensors on disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lamp.data.feature_cache.shards import content_hash
from lamp.errors import ConfigError, DataError
from lamp.seeding import generator_at, global_states, restore_global_states, seed_everything, seed_of
from lamp.train.config import LoopConfig
from lamp.train.optimizer import AdamW, Rates, cosine, optimiser_tensors, restore_optimiser, set_learning_rates
from lamp.train.shards import read_tensors, write_tensors


def test_the_cosine_goes_from_the_rate_to_the_least_rate() -> None:
    assert cosine(0.0, lr=1.0, min_lr=0.1) == 1.0
    assert cosine(0.5, lr=1.0, min_lr=0.1) == pytest.approx(0.55)
    assert cosine(1.0, lr=1.0, min_lr=0.1) == pytest.approx(0.1)
    assert cosine(7.0, lr=1.0, min_lr=0.1) == pytest.approx(0.1)


def test_an_optimizer_continues_from_its_tensors() -> None:
    def make() -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
        parameters = {"a": nn.Parameter(torch.ones(3)), "b.c": nn.Parameter(torch.zeros(2, 2))}
        return parameters, AdamW(lr=0.1).build(parameters)

    def step(parameters: dict[str, nn.Parameter], optimiser: torch.optim.AdamW, n: int) -> None:
        loss = sum(((value - n) ** 2).sum() for value in parameters.values())
        assert isinstance(loss, torch.Tensor)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    one, first = make()
    for n in range(3):
        step(one, first, n)
    two, second = make()
    with torch.no_grad():
        for name, value in two.items():
            value.copy_(one[name])
    restore_optimiser(second, two, optimiser_tensors(first, one))
    step(one, first, 3)
    step(two, second, 3)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_modules_have_learning_rates_of_their_own() -> None:
    names = ("guidance.g", "action_expert.a", "vlm.layers.0.lora_A", "action_expert.b")
    parameters = {name: nn.Parameter(torch.ones(1)) for name in names}
    optimiser = AdamW(lr=1.0, rates=Rates(guidance=0.5, vlm=0.0)).build(parameters)

    def rates(fraction: float) -> dict[str, float]:
        set_learning_rates(optimiser, fraction, min_lr=0.1)
        of = {id(member): group["lr"] for group in optimiser.param_groups for member in group["params"]}
        return {name: of[id(parameter)] for name, parameter in parameters.items()}

    assert list(rates(0.0).values()) == [0.5, 1.0, 0.0, 1.0]
    assert list(rates(0.5).values()) == pytest.approx([0.3, 0.55, 0.0, 0.55])
    assert list(rates(1.0).values()) == pytest.approx([0.1, 0.1, 0.0, 0.1])
    with pytest.raises(ConfigError, match="a learning rate of motion_expert is given, which this run does not train"):
        AdamW(rates=Rates(motion_expert=1.0)).build(parameters)
    with pytest.raises(ConfigError, match="must not be negative"):
        Rates(vlm=-1.0)


def test_global_random_states_come_back() -> None:
    seed_everything("test", 1)
    np.random.standard_normal()  # leaves a cached value behind, part of numpy's state
    tensors, plain = global_states()
    drawn = (torch.rand(3), np.random.standard_normal(3), random.random())
    restore_global_states(tensors, plain)
    again = (torch.rand(3), np.random.standard_normal(3), random.random())
    assert torch.equal(drawn[0], again[0]) and np.array_equal(drawn[1], again[1]) and drawn[2] == again[2]


def test_seeds_depend_on_the_whole_address() -> None:
    addresses = [(1, 2), (2, 1), (12,), (1, "2"), ("1", 2), (1, 2, 0), ()]
    assert len({seed_of(*address) for address in addresses}) == len(addresses)
    assert torch.equal(torch.rand(4, generator=generator_at(3, "x")), torch.rand(4, generator=generator_at(3, "x")))
    assert seed_of(7, "loss", 3) == 8205230029722514873  # sha256 of "int:7/str:loss/int:3": must never change


def test_tensors_on_disk_are_whole_or_an_error(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors)
    back = read_tensors(path)
    assert content_hash(back) == content_hash(tensors)
    assert content_hash({**tensors, "a": torch.tensor(4)}) != content_hash(tensors)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"x\.safetensors is not a whole"):
        read_tensors(path)
    with pytest.raises(DataError, match="no file"):
        read_tensors(tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"ema": 1.5}, {"clip": 0.0}, {"log_every": 0}, {"accumulate": 0}, {"workers": -1}]
)
def test_settings_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        LoopConfig(**{"steps": 10, **change})  # pyright: ignore[reportArgumentType]
