"""Files by the names of those that SimplerEnv's scenes are made of."""

from __future__ import annotations

from pathlib import Path

from lamp_client.envs import simpler_tasks


def write_assets(data: Path, stage_bytes: int = 200_000) -> None:
    """Writes them all; stages smaller than a scanned room are taken for stand-ins."""
    robot = '<robot><!-- <mesh filename="gone.stl"/> --><mesh scale="1" filename="meshes/base.stl"/></robot>'
    (data / "robots/widowx/meshes").mkdir(parents=True)
    (data / "robots/widowx/wx250s.urdf").write_text(robot)
    (data / "robots/widowx/meshes/base.stl").write_bytes(b"solid")
    for path in simpler_tasks.missing_assets(data)["bridge_v2_real2sim"]:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(b"x" * (stage_bytes if path.endswith(".glb") else 10))
