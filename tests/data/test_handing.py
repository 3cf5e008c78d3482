"""What workers hand over arrives as it was, and stays so."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import Slow

from lamp.data.dataloader import DataLoader, PackedBatch, Sampler, SharedMemoryBlock
from lamp.data.image_dataset import LeftOut
from lamp.errors import LampError
from lamp.types import Encoded, PolicyBatch

BATCH = PolicyBatch(
    encoded=Encoded(tokens=torch.randn(2, 3, 4).bfloat16(), mask=torch.tensor([[True, False, True]]).expand(2, 3)),
    state=torch.arange(12.0).reshape(4, 3).T[:2],
    actions=torch.zeros(2, 0, 7),
    action_mask=torch.zeros(2, 0, dtype=torch.bool),
)
VALUES = {
    "batch": BATCH,
    "scalar": torch.tensor(3),
    "numbers": np.arange(5, dtype=np.float16)[::2],
    "left_out": (LeftOut(file="a", episode=1, samples=2, reason="b"), None),
    "weight": torch.nn.Parameter(torch.ones(2)),
}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, PolicyBatch | Encoded):
        return all(equal(value, getattr(other, name)) for name, value in vars(one).items())
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else one == other


@pytest.mark.parametrize("in_memory", [True, False])
def test_values_arrive_as_they_were_and_are_not_changed_by_the_next(
    in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    block = SharedMemoryBlock()
    found = {name: block.take(block.put(value)) for name, value in VALUES.items()}
    assert all(equal(value, found[name]) for name, value in VALUES.items())
    tokens = found["batch"].encoded.tokens
    assert tokens.add_(1).equal(BATCH.encoded.tokens + 1)  # its own, and may be written to


def test_contents_are_not_in_what_goes_through_the_pipe_and_may_take_many_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lamp.data.dataloader.MAX_IO_BYTES", 1000)
    block, large = SharedMemoryBlock(), torch.randn(3, 12345)
    packed = block.put({"images": large, "of": large[:, :7]})
    assert len(pickle.dumps(packed)) < 1000 and sum(packed.sizes) == 4 * 3 * (12345 + 7)
    assert torch.equal(block.take(packed)["images"], large)
    with pytest.raises(LampError, match="4 bytes of a batch are missing"):
        block.take(PackedBatch(packed.head, (*packed.sizes, 4)))


@pytest.mark.long
def test_a_batch_that_was_given_up_does_not_overwrite_another(tmp_path: Path) -> None:
    """One worker still makes it when the loader has gone elsewhere."""
    order = [pick.indices.tolist() for pick, _ in zip(Sampler(1000, 50), range(10), strict=False)]
    marker = tmp_path / "begun"
    loader = DataLoader(Slow(order[1][0], marker), Sampler(1000, 50), workers=2)
    elsewhere = Sampler(1000, 50)
    for _ in range(3):
        next(elsewhere)
    assert next(loader).tolist() == order[0]
    while not marker.exists():
        time.sleep(0.01)
    loader.load_state_dict(elsewhere.state_dict())
    found = [next(loader).tolist()]
    time.sleep(1.3)
    found += [next(loader).tolist() for _ in order[4:]]
    loader.close()
    assert found == order[3:]
