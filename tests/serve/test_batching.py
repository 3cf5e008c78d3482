"""The batcher by itself: what is computed together, in which order, and what happens to requests that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_fakes import SIDE, observation

from lamp.serve.batching import Batcher, BusyError, PolicyFailedError
from lamp.serve.message_values import MAX_SEED_PARTS, seed_from
from lamp.serve.policy_spec import FakePolicy, fingerprint
from lamp_client.errors import InvalidValueError
from lamp_client.types import ActionChunk, Observation


class Journal(FakePolicy):
    """Notes who was computed with whom."""

    def __init__(self, pause_s: float = 0.02) -> None:
        super().__init__(side=SIDE, pause_s=pause_s)
        self.seen: list[tuple[bool, list[int]]] = []

    def act_batch(
        self, observations: Sequence[Observation], noise_seeds: Sequence[tuple[int, ...]], foresight: bool = False
    ) -> list[ActionChunk]:
        self.seen.append((foresight, [seed[0] for seed in noise_seeds]))
        return super().act_batch(observations, noise_seeds, foresight)


def run(policy: FakePolicy, work: Callable[[Batcher], Coroutine[Any, Any, Any]], **changes: Any) -> Any:
    async def all_of_it() -> Any:
        options = {"gather_s": 0.05, "max_batch": 4, "max_queue": 20, "active_clients": lambda: 100} | changes
        batcher = Batcher(policy, **options)
        batcher.start()
        try:
            async with asyncio.timeout(20):
                return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(all_of_it())


def ask(batcher: Batcher, *numbers: int, foresight: bool = False) -> Coroutine[Any, Any, Any]:
    seen = [observation(number) for number in numbers]
    return batcher.ask(seen, [(number,) for number in numbers], foresight=foresight, client=numbers[0])


def test_order_is_kept_and_flow_is_computed_for_those_who_asked() -> None:
    policy = Journal()

    async def work(batcher: Batcher) -> list[Any]:
        asked = [ask(batcher, number, foresight=number in (2, 5)) for number in range(7)]
        return await asyncio.gather(*asked)

    answers = run(policy, work)
    for number, (answer,) in enumerate(answers):
        np.testing.assert_array_equal(answer.chunk.actions[:2], fingerprint(observation(number), (number,)))
        assert (answer.chunk.foresight is not None) == (number in (2, 5))
        assert answer.queue_ms >= 0 and answer.infer_ms >= 20
    assert policy.seen == [(False, [0, 1, 3, 4]), (True, [2, 5]), (False, [6])]
    assert [answer.batch for (answer,) in answers] == [4, 4, 2, 4, 4, 2, 1]


def test_a_request_of_many_observations_is_spread_over_batches() -> None:
    policy = Journal()
    answers = run(policy, lambda batcher: ask(batcher, *range(10)))
    assert [len(numbers) for _, numbers in policy.seen] == [4, 4, 2]
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.chunk.actions[:2], fingerprint(observation(number), (number,)))


def test_questions_that_nobody_waits_for_are_not_computed() -> None:
    policy = Journal(pause_s=0.1)

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(ask(batcher, 0))
        await asyncio.sleep(0.02)
        left = [asyncio.ensure_future(ask(batcher, number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.02)
        left[0].cancel()
        left[2].cancel()
        await asyncio.gather(first, *left, return_exceptions=True)
        assert left[1].result()[0].batch == 1

    run(policy, work, gather_s=0.0)
    assert [numbers for _, numbers in policy.seen] == [[0], [2]]


def test_a_request_that_does_not_fit_into_the_queue_is_refused_whole() -> None:
    policy = Journal(pause_s=0.1)

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(ask(batcher, 0))
        await asyncio.sleep(0.03)
        second = asyncio.ensure_future(ask(batcher, 1, 2))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="2 observations wait, and it accepts 3"):
            await ask(batcher, 3, 4)
        await asyncio.gather(first, second, ask(batcher, 5))

    run(policy, work, gather_s=0.0, max_queue=3)
    assert sorted(number for _, numbers in policy.seen for number in numbers) == [0, 1, 2, 5]


def test_a_policy_that_answers_too_few_is_ours_to_mend() -> None:
    class Short(FakePolicy):
        def act_batch(self, *arguments: Any, **options: Any) -> list[ActionChunk]:
            return super().act_batch(*arguments, **options)[:-1]

    with pytest.raises(PolicyFailedError, match="0 chunks for 1 observations"):
        run(Short(side=SIDE), lambda batcher: ask(batcher, 0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=MAX_SEED_PARTS))
def test_noise_seeds_are_read_from_lists_arrays_and_numbers(parts: list[int]) -> None:
    assert seed_from(parts, "seed") == seed_from(np.array(parts, dtype=np.int64), "seed") == tuple(parts)
    assert seed_from(parts[0], "seed") == seed_from(np.int64(parts[0]), "seed") == (parts[0],)
    assert seed_from(None, "seed") is None


OTHERS = [[], [True], ["1"], [1.0], [-1], [2**63], [1] * 9, "7", {"a": 1}, [[1]], np.zeros(2), np.ones((1, 1), int)]


@pytest.mark.parametrize("value", OTHERS)
def test_other_noise_seeds_are_refused(value: Any) -> None:
    with pytest.raises(InvalidValueError, match="expected 1 to 8 whole numbers"):
        seed_from(value, "seed")


def test_what_nobody_waits_for_is_not_kept() -> None:
    """Its images may be views of a message of many megabytes."""

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(ask(batcher, 0))
        await asyncio.sleep(0.02)
        gone = [asyncio.ensure_future(ask(batcher, number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.01)
        waiting = batcher.waiting
        for request in gone:
            request.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert waiting >= 2 and batcher.waiting == 0
        await first

    run(FakePolicy(side=SIDE, pause_s=0.3), work, max_batch=1)
