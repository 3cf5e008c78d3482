"""Depth is a feature of its own, in metres; what is no depth and no colours is refused rather than clipped."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_datasets import DATA30, EPISODES30, FRONT, png, write_frames, write_v30
from PIL import Image
from test_metadata import told

from lamp.cli import main
from lamp.data.embodiment import Embodiment
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, DataError

DEPTH = "observation.images.front_depth"
SIDE, FRAMES = 32, 17
CODED = {
    "is_depth_map": True,
    "video.depth_min": 0.01,
    "video.depth_max": 10.0,
    "video.shift": 3.5,
    "video.use_log": True,
}


def millimetres(frame: int) -> np.ndarray:
    """0.4 to 4 m, with a hole."""
    found = np.tile(np.linspace(400, 4000, SIDE), (SIDE, 1)) + 10 * frame
    found[3, 4] = 0
    return found.astype(np.uint16)


def metres(frame: int) -> np.ndarray:
    found = millimetres(frame) / 1000
    found[3, 4] = np.nan
    return found.astype(np.float32)


def with_images(
    root: Path, images: list[Any], info: dict[str, Any] | None, shape: tuple[int, ...] = (SIDE, SIDE, 1)
) -> Path:
    """A dataset with a column of encoded images."""
    write_v30(
        root,
        side=SIDE,
        edit=lambda table: table.append_column(DEPTH, pa.array(images)),
        edit_info=lambda described: described["features"].update(
            {DEPTH: {"dtype": "image", "shape": list(shape), "names": ["height", "width", "channels"], "info": info}}
        ),
    )
    return root


def with_video(root: Path, frames: list[np.ndarray], info: dict[str, Any], **encoding: Any) -> Path:
    """A dataset with a second video, of codes of depth."""
    places = {f"videos/{DEPTH}/{part}": 0 for part in ("chunk_index", "file_index")}

    def placed(row: dict[str, Any]) -> None:
        row |= places | {
            f"videos/{DEPTH}/{part}": row[f"videos/{FRONT}/{part}"] for part in ("from_timestamp", "to_timestamp")
        }

    write_v30(
        root,
        side=SIDE,
        edit_row=placed,
        edit_info=lambda described: described["features"].update(
            {
                DEPTH: {
                    "dtype": "video",
                    "shape": [SIDE, SIDE, 1],
                    "names": ["height", "width", "channels"],
                    "info": info,
                }
            }
        ),
    )
    write_frames(root / f"videos/{DEPTH}/chunk-000/file-000.mp4", frames, **encoding)
    return root


def codes(frame: int, use_log: bool = True) -> np.ndarray:
    """As LeRobot quantises: 12 bits between 0.01 and 10 m, 0 where nothing was seen."""
    true = millimetres(frame) / 1000
    ends = np.log(np.array([0.01, 10.0]) + 3.5) if use_log else np.array([0.01, 10.0])
    share = ((np.log(true + 3.5) if use_log else true) - ends[0]) / (ends[1] - ends[0])
    return np.rint(share * 4095).clip(0, 4095).astype(np.uint16)


def test_sixteen_bit_images_are_depth_in_metres_and_no_camera(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = with_images(tmp_path / "data", [png(millimetres(t)) for t in range(FRAMES)], {"is_depth_map": True})
    dataset = LeRobotDataset(root)
    assert dataset.cameras == ("front",) and dataset.depth_cameras == ("front_depth",)
    found = dataset.depth("front_depth", 1, [0, 4])  # rows 6 and 10 of the file
    assert found.dtype == np.float32 and np.isnan(found[:, 3, 4]).all()
    np.testing.assert_allclose(found, [metres(6), metres(10)], rtol=1e-6)
    assert dataset.depth("front_depth", 2).shape == (6, SIDE, SIDE)
    assert told(root) == [] and dataset.describe()["depth"] == {"front_depth": [SIDE, SIDE]}
    with pytest.raises(ConfigError, match=r"front_depth is a depth map .* read it with `depth`"):
        dataset.frames("front_depth", 0)
    with pytest.raises(ConfigError, match=f"{DEPTH} is a depth map, not a camera's picture"):
        Embodiment(name="mine", cameras={"front": DEPTH}).open(root)
    assert main(["recipe", "fit", str(root), "--cameras", f"front={DEPTH}", "--out", str(tmp_path / "r.json")]) == 2
    assert "is a depth map" in capsys.readouterr().err and not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("image", "info", "scale"),
    [
        ("tiff float", {"is_depth_map": True}, 1.0),
        ("tiff float", {"is_depth_map": True, "depth_unit": "mm"}, 1e-3),
        ("tiff 16", {"video.is_depth_map": True}, 1.0),
        ("png 16", {"is_depth_map": True, "depth_unit": "mm"}, 1.0),
        ("png 16", None, 1.0),  # one channel under a name that says it
    ],
)
def test_images_of_either_unit(tmp_path: Path, image: str, info: dict[str, Any] | None, scale: float) -> None:
    kind = "TIFF" if "tiff" in image else "PNG"
    made = [metres(t) if "float" in image else millimetres(t) for t in range(FRAMES)]
    dataset = LeRobotDataset(with_images(tmp_path / "data", [png(one, kind=kind) for one in made], info))
    np.testing.assert_allclose(dataset.depth("front_depth", 0, [2])[0], metres(2) * np.float32(scale), rtol=1e-6)


@pytest.mark.parametrize("use_log", [True, False])
@pytest.mark.parametrize(("codec", "pixels"), [("libx265", "gray12le"), ("ffv1", "gray12le"), ("ffv1", "gray16le")])
def test_quantised_video_is_metres(tmp_path: Path, codec: str, pixels: str, use_log: bool) -> None:
    options = {"x265-params": "lossless=1:log-level=0", "g": "2", "bf": "0"} if codec == "libx265" else {}
    frames = [codes(t, use_log) for t in range(FRAMES)]
    info = CODED | {"video.use_log": use_log}
    root = with_video(tmp_path / "data", frames, info, codec=codec, pixels=pixels, **options)
    dataset = LeRobotDataset(root)
    assert dataset.cameras == ("front",)
    found = dataset.depth("front_depth", 2)
    step = (13.5 * np.log(13.5 / 3.51) if use_log else 9.99) / 4095  # the widest, at 10 m
    for frame in range(6):
        np.testing.assert_allclose(found[frame], metres(11 + frame), atol=step)
    assert np.isnan(found[:, 3, 4]).all()
    assert told(root) == []


def test_sixteen_bit_video_without_a_scale_is_millimetres(tmp_path: Path) -> None:
    frames = [millimetres(t) for t in range(FRAMES)]
    root = with_video(tmp_path / "data", frames, {"video.is_depth_map": True}, codec="ffv1", pixels="gray16le")
    np.testing.assert_allclose(LeRobotDataset(root).depth("front_depth", 0, [5])[0], metres(5), rtol=1e-6)


def test_depth_whose_metres_nobody_knows_is_refused_when_it_is_read(tmp_path: Path) -> None:
    bare = {"is_depth_map": True}
    root = with_video(tmp_path / "twelve", [codes(t) for t in range(FRAMES)], bare, codec="ffv1", pixels="gray12le")
    with pytest.raises(DataError, match=r"depth in 12 bits.*video\.depth_min"):
        LeRobotDataset(root).depth("front_depth", 0)
    (fault,) = told(root)
    assert "lacks the depth they stand for" in fault
    gray = [np.full((SIDE, SIDE, 3), 10 * t, np.uint8) for t in range(FRAMES)]
    root = with_video(tmp_path / "eight", gray, bare)
    assert LeRobotDataset(root).cameras == ("front",)
    (fault,) = told(root)
    assert "yuv420p, of 8 bits: it shows depth, but not in metres" in fault
    with pytest.raises(DataError, match="yuv420p, of 8 bits: it shows depth, but not in metres"):
        LeRobotDataset(root).depth("front_depth", 0)
    root = with_images(tmp_path / "image", [png(one[..., 0]) for one in gray], bare)
    with pytest.raises(DataError, match="a picture of depth"):
        LeRobotDataset(root).depth("front_depth", 0)
    assert any("a picture of depth" in line for line in told(root))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("video.depth_min", "x", "expected a number"),
        ("video.depth_max", 0.001, "expected more than video.depth_min"),
        ("video.shift", -0.01, "above 0 for a logarithm"),
        ("video.use_log", 3, "expected true or false"),
        ("depth_unit", "feet", "expected 'm' or 'mm'"),
    ],
)
def test_a_scale_that_is_none_is_a_fault(tmp_path: Path, name: str, value: Any, words: str) -> None:
    root = with_video(
        tmp_path / "data", [codes(t) for t in range(FRAMES)], CODED | {name: value}, codec="ffv1", pixels="gray12le"
    )
    assert (
        f"features.{DEPTH}.info.video.{'use_log' if name == 'video.shift' else name.removeprefix('video.')}".replace(
            "video.depth_unit", "depth_unit"
        )
        in (line := told(root)[0])
        and words in line
    )


def test_gray_of_many_bits_is_no_picture(tmp_path: Path) -> None:
    sixteen = [png(millimetres(t)) for t in range(FRAMES)]
    root = with_images(tmp_path / "image", sixteen, {"is_depth_map": False})
    dataset = LeRobotDataset(root)
    assert dataset.cameras == ("front", "front_depth")
    with pytest.raises(DataError, match=r"gray of more than 8 bits .*is_depth_map"):
        dataset.frames("front_depth", 0)
    assert any("gray of more than 8 bits" in line for line in told(root))
    info = {"video.is_depth_map": False}
    root = with_video(
        tmp_path / "video", [millimetres(t) for t in range(FRAMES)], info, codec="ffv1", pixels="gray16le"
    )
    with pytest.raises(DataError, match="gray of 16 bits, which 8 bits cannot show"):
        LeRobotDataset(root).frames("front_depth", 0)


def test_pictures_of_other_kinds_keep_their_colours(tmp_path: Path) -> None:
    colours = np.zeros((SIDE, SIDE, 3), np.uint8)
    colours[:, : SIDE // 2], colours[:, SIDE // 2 :] = (204, 51, 102), (0, 255, 51)
    alpha = np.concatenate([colours, np.full((SIDE, SIDE, 1), 128, np.uint8)], axis=2)
    made = [
        png(colours),
        png(colours, "P"),
        png(alpha),
        png(colours[..., 0]),
        png(colours, "L"),
        png(colours, kind="BMP"),
    ]
    gray = np.asarray(Image.fromarray(colours).convert("L"))[..., None].repeat(3, 2)
    expected = [colours, colours, colours, colours[..., :1].repeat(3, 2), gray, colours]
    root = with_images(tmp_path / "data", (made * 3)[:FRAMES], None, shape=(SIDE, SIDE, 3))
    found = LeRobotDataset(root).frames("front_depth", 0)
    for image, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(image, wanted)


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "text", None]
)
def test_what_is_no_image_is_named(tmp_path: Path, content: Any) -> None:
    images = [{"bytes": content, "path": None}] * FRAMES if not isinstance(content, str) else [content] * FRAMES
    root = with_images(tmp_path / "data", images, None, shape=(SIDE, SIDE, 3))
    with pytest.raises(DataError, match=f"episode 1, camera front_depth: {DEPTH} in row 8 of .*{DATA30}"):
        LeRobotDataset(root).frames("front_depth", 1, [2])


def test_a_small_file_that_claims_a_huge_picture_is_not_decoded(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(content, "PNG")
    root = with_images(tmp_path / "data", [{"bytes": content.getvalue(), "path": None}] * FRAMES, None, (SIDE, SIDE, 3))
    with pytest.raises(DataError, match=r"30000x30000; the description says 32x32|is no image"):
        LeRobotDataset(root).frames("front_depth", 0, [0])


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "images/../../secret.png"])
def test_a_path_of_an_image_does_not_lead_out(tmp_path: Path, path: str) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(tmp_path / "secret.png")
    root = with_images(tmp_path / "data", [{"bytes": None, "path": path}] * FRAMES, None, (SIDE, SIDE, 3))
    with pytest.raises(DataError, match="leads out of"):
        LeRobotDataset(root).frames("front_depth", 0, [0])
    inside = {"bytes": None, "path": "images/0.png"}
    root = with_images(tmp_path / "inside", [inside] * FRAMES, None, (SIDE, SIDE, 3))
    (root / "images").mkdir()
    shutil.copy(tmp_path / "secret.png", root / "images/0.png")
    assert LeRobotDataset(root).frames("front_depth", 0, [0]).shape == (1, SIDE, SIDE, 3)


def test_depth_that_is_not_placed_does_not_hinder_the_colours(tmp_path: Path) -> None:
    root = with_video(tmp_path / "data", [codes(t) for t in range(FRAMES)], CODED, codec="ffv1", pixels="gray12le")
    table = pq.read_table(root / EPISODES30)
    pq.write_table(table.drop_columns([name for name in table.column_names if DEPTH in name]), root / EPISODES30)
    dataset = LeRobotDataset(root)
    assert dataset.frames("front", 0).shape == (6, SIDE, SIDE, 3)
    with pytest.raises(DataError, match=f"videos/{DEPTH}/chunk_index is missing"):
        dataset.depth("front_depth", 0)
    assert json.loads((root / "meta/info.json").read_text())["features"][DEPTH]["shape"] == [SIDE, SIDE, 1]
