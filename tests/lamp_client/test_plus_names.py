"""Names of LIBERO-Plus tasks: all 10,030 are read, and what is no such name is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from plus_fakes import names

from lamp_client.envs.libero_plus.names import (
    SIZES,
    SUITES,
    Added,
    CameraView,
    Lighting,
    Moved,
    Noise,
    RobotStart,
    Surfaces,
    Wording,
    instruction_from_name,
    parse,
)
from lamp_client.errors import InvalidValueError


def test_every_task_has_one_change_and_the_dimensions_have_their_published_sizes() -> None:
    found = names()
    assert {suite: len(own) for suite, own in found.items()} == SUITES and sum(SUITES.values()) == 10_030
    read = [parse(name) for own in found.values() for name in own]
    assert Counter(task.category for task in read) == SIZES
    assert all(task.name.startswith(f"{task.base}_") for task in read)
    assert len({task.base for task in read}) == 40
    kinds = Counter(type(task.change).__name__ for task in read)
    assert (kinds["Added"], kinds["Moved"]) == (829, 696)
    assert {task.change.number for task in read if isinstance(task.change, Noise)} == set(range(1, 51))
    assert max(task.change.number for task in read if isinstance(task.change, RobotStart)) == 500


def test_cleaned_prompts_are_liberos_own_and_raw_ones_are_not() -> None:
    read = [parse(name) for own in names().values() for name in own]
    told = [task for task in read if not isinstance(task.change, Wording)]
    cleaned = {instruction_from_name(task.base) for task in told}
    assert len(cleaned) == 40 and not any(
        character.isdigit() or character == "_" for text in cleaned for character in text
    )
    assert (
        "turn on the stove and put the moka pot on it" in cleaned and "open the middle drawer of the cabinet" in cleaned
    )
    assert (
        all(any(character.isdigit() for character in instruction_from_name(task.name)) for task in told)
        and len(told) == 8493
    )
    assert (
        instruction_from_name("put_the_bowl_view_0_0_100_2_352_initstate_0")
        == "put the bowl view 0 0 100 2 352 initstate 0"
    )


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("_view_30_15_100_0_0_initstate_0", CameraView(azimuth=30, elevation=15, distance=100, pan=0, tilt=0)),
        ("_view_0_0_100_0_0_initstate_352", RobotStart(number=352)),
        ("_view_0_0_100_0_0_initstate_0_noise_17", Noise(number=17)),
        ("_language_5_view_0_0_100_0_0_initstate_0", Wording(number=5)),
        ("_light_3", Lighting(number=3)),
        ("_table_4", Surfaces(number=4, walls=False)),
        ("_tb_4", Surfaces(number=4, walls=True)),
        ("_add_12", Added(number=12)),
        ("_level2_sample4", Moved(distance=2, sample=4)),
        ("_moved_level5_sample1", Moved(distance=5, sample=1)),
    ],
)
def test_each_kind_of_change_is_read(suffix: str, change: object) -> None:
    # The base holds the very words that changes begin with.
    base = "LIVING_ROOM_SCENE2_put_the_table_light_on_the_table_view_of_the_plate"
    assert (parse(base + suffix).base, parse(base + suffix).change) == (base, change)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("turn_on_the_stove", "no name of a LIBERO-Plus task"),
        ("turn_on_the_stove_light_", "no name of a LIBERO-Plus task"),
        ("turn_on_the_stove_view_0_0_100_0_initstate_0", "no name of a LIBERO-Plus task"),
        ("_light_3", "no name of a LIBERO-Plus task"),
        ("turn_on_the_stove_view_0_0_100_0_0_initstate_0", "names 0 changes"),
        ("turn_on_the_stove_view_9_0_100_0_0_initstate_4", "names 2 changes"),
        ("turn_on_the_stove_language_2_view_0_0_100_0_0_initstate_4", "names 2 changes"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        parse(name)
