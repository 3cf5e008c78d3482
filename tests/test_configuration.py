"""Configurations survive JSON, and what does not fit is refused with its place."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """No settings."""


@dataclass(frozen=True, kw_only=True)
class Beta:
    alpha: float
    beta: float = 1.0


Sampling = Uniform | Beta


@dataclass(frozen=True, kw_only=True)
class Expert:
    width: int = 96
    grid: tuple[int, int] = (20, 20)
    cameras: tuple[tuple[str, int], ...] = (("agentview", 224),)
    tau: Sampling = field(default_factory=Uniform)


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str
    expert: Expert | None = None
    limit: float | None = None
    mode: Literal["exact", "fast"] = "exact"
    shift: int | float | str = 0
    where: Path = Path("out")
    colour: Colour = Colour.RED
    notes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layers: list[int] = field(default_factory=list)
    flag: Annotated[bool, "command line"] = False
    extra: Any = None


SAMPLINGS = st.just(Uniform()) | st.builds(Beta, alpha=st.floats(0.1, 9), beta=st.floats(0.1, 9))
EXPERTS = st.builds(
    Expert,
    width=st.integers(),
    grid=st.tuples(st.integers(), st.integers()),
    cameras=st.lists(st.tuples(st.text(), st.integers())).map(tuple),
    tau=SAMPLINGS,
)
MODELS = st.builds(
    Model,
    name=st.text(),
    expert=st.none() | EXPERTS,
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    mode=st.sampled_from(["exact", "fast"]),
    shift=st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    where=st.sampled_from([Path("."), Path("/a/b"), Path("c d")]),
    colour=st.sampled_from(Colour),
    notes=st.dictionaries(st.text(), st.lists(st.integers()).map(tuple)),
    layers=st.lists(st.integers()),
    flag=st.booleans(),
    extra=st.none() | st.integers() | st.lists(st.text()),
)


@given(config=MODELS)
@settings(max_examples=30, deadline=None)
def test_round_trip_through_text(config: Model) -> None:
    text = json.dumps(to_json(config), allow_nan=False)
    back = from_json(Model, json.loads(text))
    assert back == config
    assert type(back.shift) is type(config.shift)


def test_what_is_written_is_plain_to_read() -> None:
    assert to_json(Expert(tau=Beta(alpha=1.5))) == {
        "type": "Expert",
        "width": 96,
        "grid": [20, 20],
        "cameras": [["agentview", 224]],
        "tau": {"type": "Beta", "alpha": 1.5, "beta": 1.0},
    }


def test_defaults_and_the_type_may_be_left_out() -> None:
    assert from_json(Expert, {"tau": {"type": "Uniform"}}) == Expert()
    assert from_json(Model, {"name": "x", "expert": {}}) == Model(name="x", expert=Expert())


def test_a_union_at_the_top() -> None:
    assert from_json(Sampling, to_json(Beta(alpha=2.0))) == Beta(alpha=2.0)


def test_a_whole_number_serves_as_a_float() -> None:
    assert isinstance(from_json(Beta, {"alpha": 2}).alpha, float)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({"name": "x", "widht": 3}, r"unknown key in cfg \(Model\) 'widht'.*Known: name, expert"),
        (
            {"name": "x", "expert": {"widht": 3}},
            r"unknown key in cfg\.expert \(Expert\) 'widht'; did you mean 'width'\?",
        ),
        ({}, r"cfg \(Model\): missing name"),
        ({"name": 3}, r"cfg\.name: 3 is not what is expected here, str"),
        ({"name": "x", "flag": 1}, r"cfg\.flag: 1 .* bool"),
        ({"name": "x", "limit": True}, r"cfg\.limit: True .* float"),
        ({"name": "x", "mode": "exat"}, r"unknown value for cfg\.mode 'exat'; did you mean 'exact'\?"),
        ({"name": "x", "colour": "GREEN"}, r"Known: RED, BLUE"),
        ({"name": "x", "shift": []}, r"cfg\.shift: \[\] .* int or float or str"),
        ({"name": "x", "notes": {"a": [1, "b"]}}, r"cfg\.notes\.a\[1\]: 'b' .* int"),
        ({"name": "x", "expert": {"grid": [1, 2, 3]}}, r"cfg\.expert\.grid: \[1, 2, 3\] .* tuple\[int, int\]"),
        ({"name": "x", "expert": {"width": 1.5}}, r"cfg\.expert\.width: 1\.5 .* int"),
        ({"name": "x", "expert": {"tau": {}}}, r"cfg\.expert\.tau: 'type' is missing; expected one of Uniform, Beta"),
        ({"name": "x", "expert": {"tau": {"type": "Bta"}}}, r"'Bta'; did you mean 'Beta'\?"),
        ({"type": "Expert", "name": "x"}, r"unknown cfg type 'Expert'.*Known: Model"),
        ([1], r"cfg: \[1\] is not what is expected here, Model"),
        (None, r"cfg: None is not what is expected here, Model"),
    ],
)
def test_errors_say_where_and_what(obj: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(Model, obj, where="cfg")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), print, object()])
def test_values_without_a_json_form_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="cannot"):
        to_json(Model(name="x", extra=value))


def test_values_that_a_class_refuses_keep_its_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Positive:
        steps: int

        def __post_init__(self) -> None:
            if self.steps < 1:
                raise ConfigError(f"steps is {self.steps}; it must be at least 1")

    with pytest.raises(ConfigError, match="at least 1"):
        from_json(Positive, {"steps": 0})
