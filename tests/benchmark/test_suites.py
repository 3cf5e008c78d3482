from __future__ import annotations

import pytest

from lamp.benchmark.episodes import plan
from lamp.benchmark.suites import LiberoSimulators, noise_seed, parse_states, placement_seed
from lamp.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("3", (3,)),
        ("30:33", (30, 31, 32)),
        ("0:9:4", (0, 4, 8)),
        ("1,4:6", (1, 4, 5)),
        ("47:", (47, 48, 49)),
        (":2", (0, 1)),
    ],
)
def test_states_are_read_as_slices(text: str, states: tuple[int, ...]) -> None:
    assert parse_states(text) == states


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "50", "-1", "3,3", "5:5", "0:4:0", "1.5"])
def test_other_states_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="initial states"):
        parse_states(text)


def test_noise_seed_is_the_released_formula() -> None:
    assert noise_seed("libero_spatial", 0, 0) == 7
    assert noise_seed("libero_goal", 3, 21) == 7 + 200_000 + 3_000 + 21
    assert noise_seed("libero_goal", 3, 21, repeat=2) == 7 + 200_000 + 3_000 + 121


def test_placement_does_not_depend_on_what_else_is_evaluated() -> None:
    few = plan(conditions=[("a", "x")], suite="libero_object", tasks=[4], states=[7], repeats=1, seed=3)
    many = plan(
        conditions=[("b", ""), ("a", "x")], suite="libero_object", tasks=range(10), states=range(50), repeats=2, seed=3
    )
    assert len({episode.key for episode in many}) == len(many) == 2000
    assert len({episode.name for episode in many}) == 2000
    assert {episode.scene for episode in few} < {episode.scene for episode in many}
    assert placement_seed(3, "libero_object", 4, 7) != placement_seed(4, "libero_object", 4, 7)


def test_an_unknown_suite_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"libero_objects.*libero_object"):
        LiberoSimulators(suite="libero_objects")
