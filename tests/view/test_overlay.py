from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lamp.view.images import evenly, read_caption, row_of, strip, write_png
from lamp.view.overlay import LATER, NOW, ForesightArtist, OverlayStyle, draw_foresight, moving_points, time_colour


def path(start: tuple[float, float], end: tuple[float, float], steps: int = 9) -> np.ndarray:
    return np.linspace(start, end, steps)[None]


def test_time_runs_from_blue_to_red() -> None:
    assert time_colour(0.0) == NOW and time_colour(1.0) == LATER and time_colour(7.0) == LATER
    red = [time_colour(share)[0] for share in np.linspace(0, 1, 20)]
    assert red == sorted(red)


def test_a_trajectory_is_blue_at_its_start_and_red_at_its_end() -> None:
    grey = np.full((100, 200, 3), 128, np.uint8)
    drawn = draw_foresight(grey, path((0.2, 0.5), (0.8, 0.5)), OverlayStyle(width=8.0, opacity=1.0))
    start, end = drawn[50, 44].astype(int), drawn[50, 157].astype(int)
    assert start[2] > 200 > start[0] + 50
    assert end[0] > 200 > end[2] + 50
    untouched = drawn.copy()
    untouched[40:61, 30:171] = 128
    assert (untouched == 128).all()


def test_edges_are_anti_aliased() -> None:
    drawn = draw_foresight(np.zeros((64, 64, 3), np.uint8), path((0.1, 0.2), (0.9, 0.7)), OverlayStyle(width=3.0))
    assert len(np.unique(drawn[..., 2])) > 30


def test_depth_does_not_change_the_picture() -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    flat = path((0.1, 0.1), (0.6, 0.9))
    deep = np.concatenate([flat, np.linspace(1, 2, 9)[None, :, None]], axis=-1)
    np.testing.assert_array_equal(draw_foresight(image, flat), draw_foresight(image, deep))


def test_still_points_are_faint_dots() -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    still = np.full((1, 5, 2), 0.5)
    drawn = draw_foresight(image, still)
    assert 0 < drawn.max() < 128 and (drawn > 0).any(axis=-1).sum() < 12
    assert draw_foresight(image, still, OverlayStyle(dots=False)).max() == 0


def test_unknown_moments_interrupt_a_line() -> None:
    image = np.zeros((50, 100, 3), np.uint8)
    points = path((0.1, 0.5), (0.9, 0.5), 9)
    points[0, 4:6] = np.nan
    drawn = draw_foresight(image, points)
    assert drawn[25, 20].any() and drawn[25, 80].any() and not drawn[25, 50].any()
    assert not draw_foresight(image, np.full((3, 4, 2), np.nan)).any()


def test_moving_means_leaving_the_start() -> None:
    points = np.concatenate([path((0.2, 0.2), (0.21, 0.2)), path((0.2, 0.2), (0.2, 0.3))])
    there_and_back = points[1:].copy()
    there_and_back[0, -1] = there_and_back[0, 0]
    both = np.concatenate([points, there_and_back])
    np.testing.assert_array_equal(moving_points(both, 0.05), [False, True, True])


def test_the_picture_is_enlarged() -> None:
    assert draw_foresight(np.zeros((30, 40, 3), np.uint8), path((0, 0), (1, 1)), OverlayStyle(scale=3)).shape == (
        90,
        120,
        3,
    )


def test_rows_and_strips(tmp_path: Path) -> None:
    frames = [np.full((20, 30, 3), value, np.uint8) for value in range(50)]
    sheet = strip(frames, shown=5, gap=2)
    assert sheet.shape == (20, 5 * 30 + 4 * 2, 3)
    assert [int(sheet[0, index * 32, 0]) for index in range(5)] == [0, 12, 24, 37, 49]
    assert row_of(frames[:2], ["a", "b"]).shape == (46, 68, 3)
    with pytest.raises(ValueError, match="heights"):
        row_of([frames[0], np.zeros((21, 30, 3), np.uint8)])
    write_png(tmp_path / "a" / "sheet.png", sheet)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "sheet.png")), sheet)
    assert read_caption(tmp_path / "a" / "sheet.png") == ""
    write_png(tmp_path / "b.png", sheet, "größer")
    assert read_caption(tmp_path / "b.png") == "größer"


@pytest.mark.parametrize(("count", "shown", "chosen"), [(3, 8, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [0])])
def test_evenly_keeps_the_ends(count: int, shown: int, chosen: list[int]) -> None:
    assert evenly(count, shown) == chosen


def test_the_artist_draws_only_what_was_foreseen() -> None:
    image = np.full((32, 32, 3), 70, np.uint8)
    artist = ForesightArtist()
    assert (artist(image, None) == 70).all() and artist(image, None).shape == (64, 64, 3)
    assert (
        artist(image, np.pad(path((0.1, 0.1), (0.8, 0.8)), ((0, 0), (0, 0), (0, 1))).astype(np.float32)) != 70
    ).any()
