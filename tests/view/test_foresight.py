from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_fakes import GRID, HORIZON, SIDE, STRIDE, PatchBackbone  # pyright: ignore[reportMissingImports]

from lamp import cli
from lamp.errors import DataError, MismatchError
from lamp.sceneflow.store import SceneFlowStore
from lamp.view.foresight import ForesightRenderer, MotionPredictor, ViewConfig, view


def test_without_a_checkpoint_the_true_motion_is_drawn(root: Path, tmp_path: Path) -> None:
    shown = view(ViewConfig(data=root / "data", episode=1, frame=5, out=tmp_path / "view.png"))
    assert shown.frame in (4, 6) and shown.caption == f"task 1 (episode 1, frame {shown.frame})"
    picture = np.asarray(Image.open(tmp_path / "view.png"))
    assert picture.shape[1] == 2 * 2 * SIDE + 8
    plain, drawn = picture[: 2 * SIDE, : 2 * SIDE], picture[: 2 * SIDE, 2 * SIDE + 8 :]
    changed = (plain != drawn).any(axis=-1)
    # Points of the upper half move, so lines are drawn there; the lower half holds faint dots only.
    assert changed[:SIDE].sum() > 3 * changed[SIDE:].sum() > 0


def test_the_true_paths_are_those_of_the_store(root: Path) -> None:
    renderer = ForesightRenderer(root / "data", root / "motion", backbone=PatchBackbone())
    paths = renderer.truth(2, 4)
    assert paths.shape == (GRID[0] * GRID[1], HORIZON + 1, 3)
    tracks, _ = SceneFlowStore(root / "data" / "sceneflow").read(2, [4])
    np.testing.assert_array_equal(paths, tracks.points[0, :, ::STRIDE].numpy())
    late = renderer.truth(2, 22)
    assert np.isnan(late[:, -1]).all() and np.isfinite(late[:, 0]).all()


def test_the_liveliest_frame_leaves_time_to_move(root: Path) -> None:
    frame = ForesightRenderer(root / "data").frame_with_most_motion(0)
    assert frame + HORIZON * STRIDE < 24


@pytest.mark.parametrize("run", ["motion", "guided"])
def test_either_stage_foresees_and_repeats_itself(root: Path, run: str) -> None:
    renderer = ForesightRenderer(root / "data", root / run, samples=2, backbone=PatchBackbone())
    shown = renderer.draw(0)
    assert shown.image.shape[1] == 3 * 2 * SIDE + 2 * 8
    np.testing.assert_array_equal(shown.image, renderer.draw(0).image)
    predictor = renderer.predictor
    assert predictor is not None
    images = {camera: renderer.dataset.frames(camera, 0, [4])[0] for camera in renderer.dataset.cameras}
    one = predictor.points(images, "task 0", samples=1, seed=0)
    other = predictor.points(images, "task 0", samples=1, seed=1)
    assert one.shape == (GRID[0] * GRID[1], HORIZON + 1, 3) and not np.array_equal(one, other)
    np.testing.assert_array_equal(one[:, 0], other[:, 0])


def test_what_was_drawn_is_said_with_its_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    renderer = ForesightRenderer(root / "data", root / "motion", samples=2, backbone=PatchBackbone())
    shown = renderer.draw(2, 4)
    errors = shown.errors
    assert errors is not None and errors.points == GRID[0] * GRID[1] // 2
    # The upper half moves by 0.012 of the image a frame, of which the model sees every second: steps 1 to 4.
    assert errors.no_motion == pytest.approx(256 * 0.012 * STRIDE * 2.5, rel=1e-4)
    assert f"{errors.predicted:.1f} px of a 256-px image (the mean of 2 samples, 8 points that move)" in str(shown)
    out = tmp_path / "view.png"
    assert cli.main(["view", str(root / "data"), "--episode", "1", "--frame", "4", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said == f"{out}: true motion of task 1 (episode 1, frame 4); --checkpoint draws a prediction beside it\n"


def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="no motion prior"):
        MotionPredictor(root / "plain", backbone=PatchBackbone())
    with pytest.raises(DataError, match=r"episode 9 is not in the scene-flow store .* \(4 episodes are\)"):
        ForesightRenderer(root / "data").draw(9)
    with pytest.raises(DataError, match="not a LeRobot dataset"):
        view(ViewConfig(data=tmp_path))
