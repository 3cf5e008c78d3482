from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lamp.configuration import from_json, to_json
from lamp.data.actions import AxisAngle, RollPitchYaw
from lamp.data.normalizers import (
    ByDeviation,
    ByQuantiles,
    ByRange,
    ClampedRange,
    ContinuousRotation,
    HardlyMoved,
    Identity,
    MinMax,
    Normaliser,
    NormaliserFit,
    RawState,
    Standardise,
    StateTransform,
    Unchanged,
    floors,
)
from lamp.errors import ConfigError, MismatchError

FITS: list[NormaliserFit] = [ByDeviation(), ByRange(), ByQuantiles(), Unchanged()]
numbers = st.floats(-50, 50, width=32)
data = arrays.arrays(np.float32, st.tuples(st.integers(2, 20), st.just(3)), elements=numbers)


@settings(max_examples=30, deadline=None)
@given(data=data, fit=st.sampled_from(FITS), values=arrays.arrays(np.float32, (4, 2, 3), elements=numbers))
def test_inverting_undoes_normalising(data: np.ndarray, fit: NormaliserFit, values: np.ndarray) -> None:
    normaliser = fit.fit(data, binary=(-1,))
    there = normaliser.normalise(values)
    assert there.dtype == np.float32
    np.testing.assert_allclose(normaliser.invert(there), values, atol=1e-3)
    as_tensor = normaliser.normalise(torch.from_numpy(values))
    np.testing.assert_array_equal(as_tensor.numpy(), there)


@settings(max_examples=20, deadline=None)
@given(data=data, fit=st.sampled_from(FITS))
def test_json_round_trip(data: np.ndarray, fit: NormaliserFit) -> None:
    normaliser = fit.fit(data, masked=(0,), binary=(2,))
    assert from_json(Normaliser, json.loads(json.dumps(to_json(normaliser)))) == normaliser
    assert from_json(NormaliserFit, to_json(fit)) == fit


def test_each_normaliser_by_hand() -> None:
    values = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]], np.float32)
    np.testing.assert_allclose(MinMax.fit(values).normalise(values)[:, 0], [-1, 0, 1])
    np.testing.assert_allclose(
        Standardise.fit(values).normalise(values)[:, 0], np.array([-1, 0, 1]) / np.sqrt(2 / 3), rtol=1e-6
    )
    np.testing.assert_allclose(MinMax.fit(values).normalise(values)[:, 1], 0)
    np.testing.assert_array_equal(Identity.fit(values).normalise(values), values)
    still = ByDeviation(least=2.0).fit(values)
    assert still.std == (2.0, 2.0)
    np.testing.assert_allclose(still.normalise(values)[:, 0], [-0.5, 0, 0.5])
    wide = np.arange(101, dtype=np.float32)[:, None]
    np.testing.assert_allclose(
        ByQuantiles(low=0.1, high=0.9).fit(wide).normalise(np.array([[10.0], [90.0]])), [[-1], [1]]
    )


def demonstrated() -> np.ndarray:
    """A joint, one that trembles, millimetres that come and go, a constant, a zero, and a gripper of 0 and 1."""
    random, frame = np.random.default_rng(0), np.arange(400)
    columns = [
        np.cumsum(random.normal(0, 0.05, 400)),
        1.57 + 1e-4 * random.normal(size=400),
        0.004 * np.sign(np.sin(frame / 9)),
        np.full(400, 70.0),
        np.zeros(400),
        (frame // 50) % 2,
    ]
    return np.stack(columns, axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", [ByDeviation, ByRange, ByQuantiles])
def test_what_hardly_moved_is_not_divided_by_its_noise(kind: type[ByDeviation | ByRange | ByQuantiles]) -> None:
    values = demonstrated()
    plain = kind().fit(values, binary=(-1,)).centre_and_scale()[1]
    shown = kind(hardly_moved=HardlyMoved()).fit(values, binary=(-1,))
    said = kind(hardly_moved=HardlyMoved(at_most=10.0)).fit(values, binary=(-1,))
    for fitted in (shown, said):
        scale = fitted.centre_and_scale()[1]
        # What moves is divided by its own spread, be it 4 mm; the gripper as ever.
        np.testing.assert_allclose(scale[[0, 2, 5]], plain[[0, 2, 5]], rtol=1e-6)
        assert fitted.floored == (1, 3, 4)
        np.testing.assert_allclose(fitted.invert(fitted.normalise(values)), values, atol=1e-6)
        assert from_json(Normaliser, json.loads(json.dumps(to_json(fitted)))) == fitted
    # A state that was never seen stays small.
    np.testing.assert_allclose(shown.centre_and_scale()[1][[1, 3, 4]], plain[0], rtol=1e-6)
    # Of an action, noise is a tenth of what moves, and what never moved comes back as it was, whatever the model's error.
    scale = said.centre_and_scale()[1]
    np.testing.assert_allclose(scale[1], 10 * plain[1], rtol=1e-3)
    wrong = said.invert(said.normalise(values) + np.float32(0.1))
    assert np.abs(wrong - values)[:, 3:5].max() < 1e-3
    assert floors(said, "abcdef").startswith("b by ")


@pytest.mark.parametrize("kind", [ByDeviation, ByRange, ByQuantiles])
def test_the_units_do_not_matter(kind: type[ByDeviation | ByRange | ByQuantiles]) -> None:
    """A dimension in other units is seen as the same by the model, even where all its values are below a millionth."""
    values, fit = demonstrated()[:, [0, 2]], kind(hardly_moved=HardlyMoved(at_most=10.0))
    for units in ((1e-9, 1e-9), (1.0, 1e3), (1e4, 1e-2)):
        scaled = values * np.array(units, np.float32)
        np.testing.assert_allclose(
            fit.fit(scaled).normalise(scaled), fit.fit(values).normalise(values), rtol=1e-3, atol=1e-5
        )


def test_without_anything_that_moves() -> None:
    still = np.tile(np.array([[70.0, 0.0]], np.float32), (5, 1))
    for rule in (HardlyMoved(), HardlyMoved(at_most=10.0)):
        fitted = ByDeviation(hardly_moved=rule).fit(still)
        np.testing.assert_array_equal(fitted.invert(fitted.normalise(still)), still)
        assert np.isfinite(fitted.normalise(still + 1)).all()
    # Seldom, so that no quantile shows it.
    seldom = np.zeros((400, 1), np.float32)
    seldom[200] = 1
    assert ByQuantiles(hardly_moved=HardlyMoved()).fit(seldom).centre_and_scale()[1] == pytest.approx(0.5)
    for wrong in ({"share": 1.0}, {"at_most": 0.5}):
        with pytest.raises(ConfigError, match="HardlyMoved"):
            HardlyMoved(**wrong)


def test_normalisers_from_before_the_rule_mean_what_they_meant() -> None:
    old = {"type": "Standardise", "masked": [], "binary": [], "mean": [0.0, 1.0], "std": [5e-7, 2.0]}
    fitted = from_json(Normaliser, old)
    np.testing.assert_array_equal(fitted.centre_and_scale()[1], [1, 2])
    assert fitted.floored == () and from_json(NormaliserFit, {"type": "ByRange"}) == ByRange()


def test_masked_dimensions_stay_and_binary_ones_become_signs() -> None:
    values = np.random.default_rng(0).normal(5, 3, (50, 3)).astype(np.float32)
    values[:, 2] = np.arange(50) % 2
    found = Standardise.fit(values, masked=(1,), binary=(-1,)).normalise(values)
    np.testing.assert_array_equal(found[:, 1], values[:, 1])
    np.testing.assert_array_equal(found[:, 2], values[:, 2] * 2 - 1)


def test_what_does_not_fit_is_refused() -> None:
    normaliser = Standardise(mean=(0.0, 0.0), std=(1.0, 1.0))
    with pytest.raises(MismatchError, match="3 dimensions; this normaliser is made for 2"):
        normaliser.normalise(np.zeros((1, 3), np.float32))
    with pytest.raises(ConfigError, match="distinct"):
        Standardise(mean=(0.0,), std=(1.0,), masked=(0,), binary=(0,))
    with pytest.raises(ConfigError, match="in 0 to 0"):
        Standardise(mean=(0.0,), std=(1.0,), binary=(1,))


@settings(max_examples=30, deadline=None)
@given(axis=arrays.arrays(np.float64, 3, elements=st.floats(-1, 1)), angle=st.floats(0.0, 3.5))
def test_rotation_columns_are_orthonormal_and_continuous_in_the_sign(axis: np.ndarray, angle: float) -> None:
    if np.linalg.norm(axis) < 0.1:
        axis = np.array([0.0, 0.0, 1.0])
    unit = axis / np.linalg.norm(axis)
    state = np.zeros((2, 8))
    state[0, 3:6], state[1, 3:6] = unit * angle, unit * (angle - 2 * np.pi)
    found = ContinuousRotation().apply(state)
    assert found.shape == (2, 11)
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)
    first, second = found[0, 3:6], found[0, 6:9]
    assert first @ first == pytest.approx(1) and second @ second == pytest.approx(1)
    assert first @ second == pytest.approx(0, abs=1e-9)
    # The axis is left in place by the rotation: R v = v.
    rotation = np.stack([first, second, np.cross(first, second)], axis=1)
    np.testing.assert_allclose(rotation @ unit, unit, atol=1e-9)
    assert np.trace(rotation) == pytest.approx(1 + 2 * np.cos(angle), abs=1e-9)


def test_rotation_by_hand_and_as_tensor() -> None:
    state = np.arange(8, dtype=np.float32)
    state[3:6] = [0, 0, np.pi / 2]
    expected = [0, 1, 2, 0, 1, 0, -1, 0, 0, 6, 7]
    found = ContinuousRotation().apply(torch.from_numpy(state))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(ContinuousRotation().apply(state), expected, atol=1e-6)
    assert ContinuousRotation().width(8) == 11 and RawState().width(8) == 8
    np.testing.assert_array_equal(RawState().apply(state), state)
    with pytest.raises(MismatchError, match="5 values has no rotation of three values at 3; expected at least 6"):
        ContinuousRotation().apply(np.zeros(5, np.float32))


def test_a_rotation_of_another_kind_is_shown_as_its_matrix_too() -> None:
    state = np.arange(8, dtype=np.float32)
    angles = np.array([0.3, -0.4, 3.1])
    for form in (RollPitchYaw(), RollPitchYaw(degrees=True), AxisAngle(degrees=True)):
        state[3:6] = np.degrees(angles) if form.degrees else angles
        matrix = (RollPitchYaw() if isinstance(form, RollPitchYaw) else AxisAngle()).matrix(angles)
        found = ContinuousRotation(rotation=form).apply(state)
        np.testing.assert_allclose(found[3:9], [*matrix[:, 0], *matrix[:, 1]], atol=1e-6)
        np.testing.assert_array_equal(found[[0, 1, 2, 9, 10]], [0, 1, 2, 6, 7])
    assert from_json(StateTransform, {"type": "ContinuousRotation", "start": 3}) == ContinuousRotation()


def test_state_transforms_round_trip_as_json() -> None:
    for transform in (RawState(), ContinuousRotation(start=2), ContinuousRotation(rotation=RollPitchYaw(degrees=True))):
        assert from_json(StateTransform, to_json(transform)) == transform


def test_clamped_range_by_hand() -> None:
    ours = ClampedRange(low=(-2.0, 3.0, 0.0, 5.0), high=(2.0, 5.0, 1.0, 5.0), switches=(2,), hidden=(1,))
    values = np.array([[1.0, 4.5, 0.51, 7.0], [-4.0, 3.0, 0.5, 5.0]], np.float32)
    # A range, a hidden value, a switch, and a value that never varied.
    np.testing.assert_array_equal(ours.normalise(values), np.array([[0.5, 0, 1, 0], [-2, 0, 0, 0]], np.float32))
    said = np.array([[0.5, 0.0, 0.51, 0.7], [-3.0, 9.0, 0.5, -8.0]], np.float32)
    np.testing.assert_array_equal(ours.invert(said), np.array([[1, 4, 1, 5], [-2, 5, 0, 5]], np.float32))
    for there in (ours.normalise, ours.invert):
        assert there(said).dtype == np.float32
        np.testing.assert_array_equal(there(torch.from_numpy(said)).numpy(), there(said))
    assert from_json(Normaliser, json.loads(json.dumps(to_json(ours)))) == ours
    refused: tuple[dict[str, Any], ...] = ({"switches": (4,)}, {"hidden": (-1,)})
    for wrong in refused:
        with pytest.raises(ConfigError, match="must be in 0 to 3"):
            ClampedRange(low=ours.low, high=ours.high, **wrong)
