"""The files that SimplerEnv's WidowX scenes are made of: whether they are there, which they are, and how to get them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

SCENES = Path("tasks/bridge_v2_real2sim_dataset")
ROBOT = Path("robots/widowx/wx250s.urdf")
STAND_INS = "STAND_INS"
"""A file in the folder of the assets, a line for each that is not the original: results then bear another name."""

_MODELS = (
    "baked_green_cube_3cm",
    "baked_yellow_cube_3cm",
    "bridge_carrot_generated_modified",
    "bridge_plate_objaverse_larger",
    "bridge_spoon_generated_modified",
    "table_cloth_generated_shorter",
    "eggplant",
    "dummy_sink_target_plane",
    "sink",
)
_OTHERS = (
    "custom/info_bridge_custom_v0.json",
    "custom/info_bridge_custom_baked_tex_v0.json",
    "real_inpainting/bridge_real_eval_1.png",
    "real_inpainting/bridge_sink.png",
)
_STAGES = ("stages/bridge_table_1_v1.glb", "stages/bridge_table_1_v2.glb")
_VISUALS = ("textured.obj", "textured.dae", "textured.glb")
_SCANNED_BYTES = 100_000
"""The original stages are scanned rooms of many megabytes; less than this is a box."""


def folder(chosen: Path | None = None) -> Path:
    """Where ManiSkill looks for its data: `data` in the chosen folder, in `$MS_ASSET_DIR`, or in `~/.maniskill`."""
    root = chosen or Path(os.environ.get("MS_ASSET_DIR") or Path.home() / ".maniskill")
    return root / "data"


def missing(data: Path) -> dict[str, list[str]]:
    """Returns what is missing under ManiSkill's `data` folder: the name of each download -> its missing files."""
    lacking = {
        "bridge_v2_real2sim": [str(path) for path in _scene_files(data) if not (data / path).is_file()],
        "widowx250s": [str(path) for path in _robot_files(data) if not (data / path).is_file()],
    }
    return {download: files for download, files in lacking.items() if files}


def stand_ins(data: Path) -> list[str]:
    """Names what is not the original, as far as that can be told: what the folder itself says, and stages that are no scans."""
    said = data / STAND_INS
    named = [line.strip() for line in said.read_text().splitlines() if line.strip()] if said.is_file() else []
    boxes = [str(SCENES / stage) for stage in _STAGES if (data / SCENES / stage).stat().st_size < _SCANNED_BYTES]
    return sorted({*named, *boxes})


def fingerprint(data: Path) -> str:
    """Returns 16 hexadecimal digits that name the content of all files that the scenes are made of."""
    digest = hashlib.sha256()
    for path in sorted({*_scene_files(data), *_robot_files(data)}):
        digest.update(f"{path}\0".encode())
        digest.update(hashlib.sha256((data / path).read_bytes()).digest())
    return digest.hexdigest()[:16]


def _scene_files(data: Path) -> Iterator[Path]:
    for name in (*_OTHERS, *_STAGES):
        yield SCENES / name
    for model in _MODELS:
        place = SCENES / "custom" / "models" / model
        yield place / "collision.obj"
        yield next((place / name for name in _VISUALS if (data / place / name).is_file()), place / _VISUALS[0])


def _robot_files(data: Path) -> Iterator[Path]:
    yield ROBOT
    if (data / ROBOT).is_file():
        text = re.sub(r"<!--.*?-->", "", (data / ROBOT).read_text(errors="replace"), flags=re.DOTALL)
        for name in sorted(set(re.findall(r'<mesh[^>]*\bfilename="([^"]+)"', text))):
            yield ROBOT.parent / name.removeprefix("package://")
