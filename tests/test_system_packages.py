"""What scripts/system-packages installs, with an apt that only takes notes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "system-packages"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The only folder that programs are looked for in: no browser, no apt, nobody's rights."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "env").symlink_to(str(shutil.which("env")))
    add(folder, "id", "echo 1000")
    return folder


def add(folder: Path, name: str, line: str) -> None:
    program = folder / name
    program.write_text(f"#!{shutil.which('bash')}\n{line}\n")
    program.chmod(0o755)


def ran(programs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The script looks in the system's sbin folders as well, which hold no browser and no apt.
    command = [str(shutil.which("bash")), str(SCRIPT), *arguments]
    return subprocess.run(command, env=os.environ | {"PATH": str(programs)}, capture_output=True, text=True)


def test_a_browser_is_installed_where_apt_is_allowed(programs: Path, tmp_path: Path) -> None:
    add(programs, "id", "echo 0")
    add(programs, "apt-get", f'echo "$*" >> {tmp_path}/asked')
    assert ran(programs, "browser").returncode == 0
    update, install = (tmp_path / "asked").read_text().splitlines()
    assert update.startswith("update") and install.startswith("install -y") and install.endswith(" chromium")


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome", "chrome"])
def test_a_browser_that_works_is_enough(programs: Path, name: str) -> None:
    add(programs, name, '[ "$1" = --version ]')
    done = ran(programs, "browser")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_browser_that_only_says_how_to_get_one_is_none(programs: Path) -> None:
    add(programs, "chromium-browser", "echo 'needs the snap' >&2; exit 1")
    assert ran(programs, "browser").returncode == 1


def test_what_to_install_is_said_where_apt_is_not_allowed(programs: Path) -> None:
    add(programs, "apt-get", "exit 3")
    add(programs, "sudo", "exit 1")
    done = ran(programs, "browser")
    assert done.returncode == 1
    assert done.stderr == "Missing system packages. Install them with:  sudo apt-get install -y chromium\n"


def test_another_word_is_refused(programs: Path) -> None:
    done = ran(programs, "browsers")
    assert done.returncode == 2 and done.stderr.startswith("usage: scripts/system-packages gl | venv PYTHON | browser")
