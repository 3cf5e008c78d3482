from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lamp.data.lerobot.statistics import QUANTILES, FeatureStatistics, aggregate, image_statistics, statistics_of
from lamp.errors import DataError

values = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(-100, 100, width=32)
)


@settings(max_examples=30, deadline=None)
@given(values=values, cut=st.floats(0, 1))
def test_aggregating_parts_gives_the_statistics_of_the_whole(values: np.ndarray, cut: float) -> None:
    place = int(cut * len(values))
    parts = [part for part in (values[:place], values[place:]) if len(part)]
    found, expected = aggregate([statistics_of(part) for part in parts]), statistics_of(values)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)


def test_quantiles_and_shapes() -> None:
    found = statistics_of(np.arange(101))
    assert found.mean.shape == (1,)
    assert [float(getattr(found, name)[0]) for name in QUANTILES] == pytest.approx([1, 10, 50, 90, 99])


def test_image_statistics_are_per_channel_and_between_0_and_1() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    images[..., 2] = 255
    found, flat = image_statistics(images), images.reshape(-1, 3) / 255
    assert found.mean.shape == (3, 1, 1)
    np.testing.assert_allclose(found.mean.ravel(), flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.std.ravel(), flat.std(0), atol=1e-6)
    np.testing.assert_allclose(found.q10.ravel(), np.quantile(flat, 0.1, axis=0), atol=0.005)
    assert found.min[2, 0, 0] == found.max[2, 0, 0] == 1


def test_json_round_trip_and_missing_quantiles() -> None:
    found = statistics_of(np.random.default_rng(0).normal(size=(9, 2)))
    obj = found.to_json()
    again = FeatureStatistics.from_json(obj, where="here")
    np.testing.assert_array_equal(again.q99, found.q99)
    del obj["q10"]
    with pytest.raises(DataError, match=r"stats\.json: action lacks q10"):
        FeatureStatistics.from_json(obj, where="stats.json: action")
