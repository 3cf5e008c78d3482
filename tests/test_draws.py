"""Draws for the rows of a batch: the same in whatever parts it is computed."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamp.data.dataloader import BatchShare
from lamp.seeding import Noise, PerBatch, PerSample, Source, beta, generator_at, normal, uniform


def everything(source: Source, rows: int) -> list[Tensor]:
    """What a loss may ask for: several entries a row, axes behind, different kinds."""
    return [normal((2 * rows, 3, 2), source), beta(1.5, 1.0, 3 * rows, source), uniform((rows, 5), source)]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    processes=st.integers(1, 4),
    parts=st.integers(1, 3),
    noise=st.sampled_from([PerBatch(), PerSample()]),
)
def test_parts_of_a_batch_draw_what_the_whole_does(rows: int, processes: int, parts: int, noise: Noise) -> None:
    if rows < processes * parts:
        return
    whole = everything(noise.at(1, "loss", 5, rows=rows).part(0, rows), rows)
    found: list[list[Tensor]] = []
    for index in range(processes):
        of_process = noise.at(1, "loss", 5, rows=rows)
        for share in BatchShare(index=index, of=processes).parts(parts):
            some = share.rows(rows)
            found.append(everything(of_process.part(some.start, len(some)), len(some)))
    for number, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in found]), expected)


def test_a_whole_batch_draws_as_its_generator_does() -> None:
    one, other = generator_at(0, "x"), PerBatch().at(0, "x", rows=4).part(0, 4)
    assert torch.equal(torch.randn(4, 2, generator=one), normal((4, 2), other))


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 50), processes=st.integers(1, 8), parts=st.integers(1, 4))
def test_shares_cover_a_batch_in_order_and_are_nearly_equal(total: int, processes: int, parts: int) -> None:
    shares = [BatchShare(index=index, of=processes) for index in range(processes)]
    assert [row for share in shares for row in share.rows(total)] == list(range(total))
    sizes = [len(share.rows(total)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        assert [row for part in share.parts(parts) for row in part.rows(total)] == list(share.rows(total))
