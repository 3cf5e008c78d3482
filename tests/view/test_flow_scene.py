"""`lamp view flow`: what is shown of stored scene flow, and a file that the viewer opens."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lamp.cli import main
from lamp.data.lerobot.staging import EpisodeData
from lamp.data.lerobot.writer import LeRobotWriter
from lamp.errors import ConfigError, MismatchError
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription
from lamp.sceneflow.tracks import grid_pixels, pixel_centres
from lamp.types import Camera, Tracks
from lamp.view.flow_scene import FlowViewConfig, read_scene

FRAMES, HORIZON, GRID = 12, 6, (4, 5)
DESCRIPTION = StoreDescription(
    sampling=Sampling(grid=GRID, horizon=HORIZON),
    cameras=("front",),
    image_size=(64, 48),
    mirrored=True,
    every=1,
    estimator="simulation 1, RayCast",
    source="data",
)


def tracks_of(shift: float) -> tuple[Tracks, Camera]:
    """Points at 1 m; the first three move to the right from frame 3 on, the third is hidden from the fourth moment on."""
    start = pixel_centres(grid_pixels(*GRID, 64, 48), 64, 48).float()
    points = torch.cat([start, torch.ones(20, 1)], dim=-1)[None, :, None].repeat(FRAMES, 1, HORIZON + 1, 1)
    for frame in range(3, FRAMES):
        points[frame, :3, :, 0] += (0.03 + shift) * torch.arange(HORIZON + 1)
    valid = (torch.arange(FRAMES)[:, None] + torch.arange(HORIZON + 1) < FRAMES)[:, None].repeat(1, 20, 1)
    visible = valid.clone()
    visible[:, 2, 4:] = False
    points[:, 19, :, 2] = torch.nan
    matrix = torch.tensor([[-1.0, 0, 0.5], [0, 4 / 3, 0.5], [0, 0, 1]]).expand(FRAMES, 3, 3)
    return Tracks(points=points, visible=visible, valid=valid), Camera(
        intrinsics=matrix, world_from_cam=torch.eye(4).expand(FRAMES, 4, 4)
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset with exact scene flow and with an estimate that is wrong by 0.003 of the image a step."""
    root = tmp_path / "data"
    writer = LeRobotWriter(root, fps=10)
    images = np.zeros((FRAMES, 48, 64, 3), np.uint8)
    images[:, :, :8] = 200  # on the left, which is the right of a mirrored image
    frames = {"observation.fresh": np.ones(FRAMES, bool)}
    writer.add_episode(EpisodeData(frames=frames, images={"front": images}, task="go"))
    writer.finalize()
    for folder, estimator, shift in (("sceneflow", DESCRIPTION.estimator, 0.0), ("sceneflow-other", "rgbd 1", 0.003)):
        store = SceneFlowStore.create(root / folder, replace(DESCRIPTION, estimator=estimator))
        tracks, camera = tracks_of(shift)
        store.write(0, {"front": CameraFlow(frames=np.arange(FRAMES, dtype=np.int32), tracks=tracks, camera=camera)})
    return root


def test_true_and_estimated_are_shown_unmirrored_with_their_error(data: Path) -> None:
    scene = read_scene(FlowViewConfig(clip=data))
    assert set(scene.layers) == {"true", "estimated"} and scene.title == "data episode 0 frame 3"
    true = scene.layers["true"]
    assert scene.images.shape == (7, 48, 64, 3) and scene.images[0, 0, -1, 0] > 150 > scene.images[0, 0, 0, 0]
    start = pixel_centres(grid_pixels(*GRID, 64, 48), 64, 48)
    np.testing.assert_allclose(true.image[:, 0, 0], 1 - start[:, 0], atol=1e-6)
    np.testing.assert_allclose(true.space[0, :, 0], true.image[0, :, 0] - 0.5, atol=1e-6)  # 1 m away, focal length 1
    assert true.moves.tolist() == [True] * 3 + [False] * 17 and not true.visible[2, 4:].any()
    errors = scene.errors()
    assert errors is not None
    np.testing.assert_allclose(errors[0], 0.003 * 64 * np.arange(7), atol=1e-4)
    np.testing.assert_allclose(errors[1], 3.0 * np.arange(7), atol=1e-3)


def test_stores_and_frames_are_chosen(data: Path) -> None:
    alone = read_scene(FlowViewConfig(clip=data, scene_flow="sceneflow", frame=10))
    assert set(alone.layers) == {"true"} and alone.errors() is None
    assert not alone.layers["true"].valid[:, 2:].any(), "frame 10 of 12 has one frame after it"
    with pytest.raises(ConfigError, match=r"unknown scene-flow store of .*'sceneflow-no'"):
        read_scene(FlowViewConfig(clip=data, scene_flow="sceneflow-no"))
    with pytest.raises(ConfigError, match=r"episode 7 has no scene flow"):
        read_scene(FlowViewConfig(clip=data, episode=7))
    SceneFlowStore.create(data / "sceneflow-short", replace(DESCRIPTION, sampling=Sampling(grid=GRID, horizon=2)))
    with pytest.raises(MismatchError, match=r"cannot be compared; expected the same points, steps and camera"):
        read_scene(FlowViewConfig(clip=data, scene_flow="sceneflow-other", against="sceneflow-short"))
    with pytest.raises(ConfigError, match=r"expected a file FILE.rrd"):
        FlowViewConfig(clip=data, save=Path("x.png"))


def test_without_rerun_the_command_says_how_to_get_it(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["view", "flow", str(data), "--save", "x.rrd"]) == 2
    assert "pip install 'lamp-vla[rerun]'" in capsys.readouterr().err and not Path("x.rrd").exists()


def test_a_file_is_written_that_rerun_reads(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rerun")
    out = tmp_path / "scene.rrd"
    assert main(["view", "flow", str(data), "--save", str(out)]) == 0
    assert f"{out}: data episode 0 frame 3" in capsys.readouterr().out
    shown = subprocess.run(
        [sys.executable, "-m", "rerun", "rrd", "print", str(out)], capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    for entity in ("world/cloud", "camera/image", "world/true/trails", "world/estimated/trails", "error/median_px"):
        assert entity in shown.stdout, shown.stdout[:2000]


@pytest.mark.long
def test_the_viewer_is_served_to_browsers(data: Path) -> None:
    pytest.importorskip("rerun")
    process = subprocess.Popen(
        [sys.executable, "-m", "lamp", "view", "flow", str(data), "--web", "--port", "19310"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://127.0.0.1:19310/?url=rerun%2Bhttp" in line
        for _ in range(50):
            with contextlib.suppress(OSError):
                page = urllib.request.urlopen("http://127.0.0.1:19310/", timeout=5).read().decode()
                assert "<canvas" in page or "rerun" in page.lower()
                break
            time.sleep(0.2)
        else:
            pytest.fail("the web viewer was not served")
    finally:
        process.terminate()
        process.wait(timeout=20)
