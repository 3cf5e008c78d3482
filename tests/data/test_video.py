from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from demonstrations import number_in, numbered
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.data.lerobot import video
from lamp.data.lerobot.video import join_videos, read_frames, video_info, write_video
from lamp.errors import DataError

FPS = 20


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    folder = tmp_path_factory.mktemp("videos")
    sources, number = [], 0
    for part, length in enumerate((31, 1, 8, 20)):
        sources.append(folder / f"{part}.mp4")
        write_video(sources[-1], np.stack([numbered(number + i) for i in range(length)]), FPS)
        number += length
    return folder / "joined.mp4", join_videos(sources, folder / "joined.mp4", FPS)


def test_joined_videos_start_where_the_one_before_ends(joined: tuple[Path, list[int]]) -> None:
    path, first = joined
    assert first == [0, 31, 32, 40]
    assert video_info(path).frames == 60


@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(0, 59), max_size=12).map(sorted))
def test_every_frame_of_a_joined_video_is_the_one_asked_for(joined: tuple[Path, list[int]], numbers: list[int]) -> None:
    assert [number_in(image) for image in read_frames(joined[0], numbers, FPS)] == numbers


def test_joining_does_not_change_a_pixel(joined: tuple[Path, list[int]]) -> None:
    path, _ = joined
    alone = read_frames(path.parent / "3.mp4", range(20), FPS)
    np.testing.assert_array_equal(read_frames(path, range(40, 60), FPS), alone)


def test_quality_on_a_smooth_picture(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:64, 0:96]
    images = np.stack([np.stack([rows * 3 + i, columns * 2, rows + columns], axis=-1) for i in range(16)]).astype(
        np.uint8
    )
    write_video(tmp_path / "video.mp4", images, FPS)
    error = read_frames(tmp_path / "video.mp4", range(16), FPS).astype(float) - images
    assert 10 * np.log10(255**2 / (error**2).mean()) > 34


@pytest.mark.parametrize("size", [(63, 64), (64, 63), (75, 101), (1, 1)])
def test_odd_sizes_come_back(size: tuple[int, int], tmp_path: Path) -> None:
    images = np.stack([np.full((*size, 3), 40 * number, np.uint8) for number in range(5)])
    write_video(tmp_path / "odd.mp4", images, FPS)
    back = read_frames(tmp_path / "odd.mp4", range(5), FPS)
    assert back.shape == images.shape and np.abs(back.astype(int) - images).max() <= 4


@pytest.mark.parametrize("fps", [29.97, 30000 / 1001, 12.5, 7.3])
def test_fractional_rates_do_not_drift_in_joined_files(fps: float, tmp_path: Path) -> None:
    images = np.stack([np.full((2, 2, 3), number % 250, np.uint8) for number in range(1000)])
    write_video(tmp_path / "one.mp4", images, fps)
    assert join_videos([tmp_path / "one.mp4"] * 8, tmp_path / "all.mp4", fps) == list(range(0, 8000, 1000))
    wanted = [0, 999, 1000, 4321, 7999]
    back = read_frames(tmp_path / "all.mp4", wanted, fps).mean((1, 2, 3))
    assert np.abs(back - np.array(wanted) % 1000 % 250).max() <= 3


def test_empty_videos_and_odd_sizes_for_other_encoders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="0 frames"):
        write_video(tmp_path / "none.mp4", np.zeros((0, 64, 64, 3), np.uint8), FPS)
    monkeypatch.setattr(video, "encoder", lambda: "mpeg4")
    with pytest.raises(DataError, match="even size"):
        write_video(tmp_path / "odd.mp4", np.zeros((3, 63, 64, 3), np.uint8), FPS)


def test_truncated_missing_and_short_videos_are_told_apart(tmp_path: Path, joined: tuple[Path, list[int]]) -> None:
    content = joined[0].read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="truncated or corrupt"):
        read_frames(tmp_path / "cut.mp4", [0], FPS)
    with pytest.raises(DataError, match="no video at"):
        read_frames(tmp_path / "absent.mp4", [0], FPS)
    with pytest.raises(DataError, match="ends before frame 60"):
        read_frames(joined[0], [60], FPS)
    with pytest.raises(DataError, match="does not run at 40"):
        read_frames(joined[0], [1], 40.0)


def test_videos_of_different_sizes_cannot_share_a_file(tmp_path: Path) -> None:
    for side in (32, 64):
        write_video(tmp_path / f"{side}.mp4", np.zeros((3, side, side, 3), np.uint8), FPS)
    with pytest.raises(DataError, match="encoded differently"):
        join_videos([tmp_path / "32.mp4", tmp_path / "64.mp4"], tmp_path / "joined.mp4", FPS)
