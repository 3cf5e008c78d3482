"""Observations and chunks check what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lamp_client.errors import InvalidValueError, UnknownNameError
from lamp_client.layouts import resize
from lamp_client.types import ActionChunk, Observation

IMAGE = np.zeros((4, 6, 3), dtype=np.uint8)
STATE = np.zeros(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": {}}, "no images"),
        ({"images": {"front": IMAGE.astype(np.float32)}}, "'front' is float32"),
        ({"images": {"front": IMAGE[..., 0]}}, "expected uint8"),
        ({"images": {"front": [1, 2]}}, "is list"),
        ({"state": STATE.astype(np.float64)}, "state is float64"),
        ({"state": STATE[None]}, r"state is float32 \(1, 8\)"),
    ],
)
def test_an_observation_refuses_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Observation(**{"images": {"front": IMAGE}, "state": STATE, "instruction": "wait", **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": np.zeros(7, dtype=np.float32)}, "actions is float32"),
        ({"actions": np.zeros((2, 7))}, "float64"),
        ({"actions": np.zeros((0, 7), dtype=np.float32)}, "empty"),
        ({"actions": np.full((1, 7), np.nan, dtype=np.float32)}, "not finite"),
        ({"foresight": np.zeros((2, 3), dtype=np.float32)}, "foresight"),
    ],
)
def test_a_chunk_refuses_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        ActionChunk(**{"actions": np.zeros((2, 7), dtype=np.float32), **changes})


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    error = UnknownNameError("suite", "libero_objct", ["libero_object", "libero_goal"])
    assert str(error) == (
        "unknown suite 'libero_objct'. Did you mean 'libero_object'? Known: libero_object, libero_goal."
    )
    assert error.problem == "unknown suite 'libero_objct'."


def test_resizing_keeps_flat_colours_and_linear_ramps() -> None:
    flat = np.full((256, 256, 3), 77, dtype=np.uint8)
    assert (resize(flat, 224) == 77).all()
    ramp = np.repeat(np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], 128, axis=0), 3, axis=2)
    halved = resize(ramp, 64)[:, :, 0].astype(float)
    # Pixel x of the halved image is centred between source pixels 2x and 2x + 1.
    np.testing.assert_allclose(halved[32, 4:-4], (np.arange(64) * 4 + 1)[4:-4], atol=0.51)
    assert resize(flat, 256) is flat


def test_resizing_matches_the_usual_library() -> None:
    library = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    for size in (24, 100):
        theirs = np.asarray(library.fromarray(image).resize((size, size), library.Resampling.BILINEAR))
        assert np.abs(resize(image, size).astype(int) - theirs).max() <= 1
