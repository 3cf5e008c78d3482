"""Several processes fill one store: each shard is made once, whoever is killed, and a full disk is one clear error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamp.data.feature_cache import work_sharing
from lamp.data.feature_cache.work_sharing import EpisodeLocks, Workers, build_shards
from lamp.errors import ConfigError, DataError, LampError

TESTS = Path(__file__).parent


@dataclass
class Notes:
    """Writes a file an episode, and a line of who made it."""

    folder: Path
    slow: float = 0.0
    device: str | None = "not loaded"

    def load(self, device: str | None) -> None:
        self.device = device

    def is_done(self, episode: int) -> bool:
        return (self.folder / str(episode)).exists()

    def make(self, episode: int) -> None:
        with open(self.folder / "log", "a") as log:
            log.write(f"{episode} {os.getpid()} {self.device}\n")
        time.sleep(self.slow)
        if episode == 13:
            raise DataError("thirteen cannot be made")
        if episode == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / str(episode)).touch()

    @property
    def made(self) -> list[list[str]]:
        return [line.split() for line in (self.folder / "log").read_text().splitlines()]


def test_workers_share_the_episodes_and_the_devices(tmp_path: Path) -> None:
    work = Notes(tmp_path, slow=0.05)
    workers = Workers(processes=2, devices=("one", "two", "three"))
    assert sorted(build_shards(work, range(8), workers)) == list(range(8))
    assert sorted(int(episode) for episode, *_ in work.made) == list(range(8))
    assert {device for *_, device in work.made} <= {"one", "two"} and len({pid for _, pid, _ in work.made}) <= 2
    assert list(build_shards(work, range(8), Workers(devices=("four",)))) == list(range(8)) and work.device == "four"
    assert len(work.made) == 8


def test_an_error_of_a_worker_is_told_and_what_is_finished_stays(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="thirteen cannot be made"):
        list(build_shards(Notes(tmp_path), [1, 2, 13], Workers(processes=2)))
    with pytest.raises(DataError, match="thirteen cannot be made"):
        list(build_shards(Notes(tmp_path), [1, 2, 13], Workers()))
    assert Notes(tmp_path).is_done(1)
    with pytest.raises(LampError, match="a worker process died while filling the cache"):
        list(build_shards(Notes(tmp_path), [3, 99], Workers(processes=2)))
    with pytest.raises(ConfigError, match="0 processes"):
        Workers(processes=0)


SCRIPT = """
import sys
from pathlib import Path
from test_filling import Notes
from lamp.data.feature_cache.work_sharing import EpisodeLocks, Workers, build_shards
folder, slow, processes = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
print("started", flush=True)
for episode in build_shards(Notes(folder, slow), range(6), Workers(processes=processes)):
    print(episode, flush=True)
"""


def start(folder: Path, slow: float, processes: int = 1) -> subprocess.Popen[str]:
    """Another command that fills the same store."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-c", SCRIPT, str(folder), str(slow), str(processes)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that is in the middle of its first episode, and stays there."""
    process = start(tmp_path, 600.0)
    while not (tmp_path / "log").exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_what_another_command_is_making_is_waited_for_and_taken_over_when_it_is_killed(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_sharing, "RETRY_INTERVAL_S", 0.05)
    waiting: list[int] = []

    def elsewhere(count: int) -> None:
        waiting.append(count)
        if len(waiting) == 3:
            other.kill()
            other.wait()

    work = Notes(tmp_path)
    assert list(build_shards(work, range(6), Workers(), elsewhere)) == [1, 2, 3, 4, 5, 0]
    assert set(waiting) == {1} and len(waiting) >= 3
    assert [episode for episode, *_ in work.made] == ["0", "1", "2", "3", "4", "5", "0"]


def test_two_commands_at_once_make_each_episode_once(tmp_path: Path) -> None:
    both = [start(tmp_path, 0.2) for _ in range(2)]
    told = [process.communicate(timeout=120)[0].split() for process in both]
    assert all(process.returncode == 0 for process in both)
    for lines in told:
        assert lines[0] == "started" and sorted(lines[1:]) == list("012345")
    made = Notes(tmp_path).made
    assert sorted(episode for episode, *_ in made) == list("012345")


def test_workers_end_with_the_command_that_was_killed(tmp_path: Path) -> None:
    command = start(tmp_path, 600.0, processes=2)
    while not (tmp_path / "log").exists() or len(Notes(tmp_path).made) < 2:
        assert command.poll() is None
        time.sleep(0.05)
    workers = [int(pid) for _, pid, _ in Notes(tmp_path).made]
    command.kill()
    command.wait()
    deadline = time.monotonic() + 60
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its command"
        time.sleep(0.05)
    locks = EpisodeLocks(tmp_path)
    # A process counts as a zombie when its main thread has ended; its files close with its last one.
    while not (locks.take(0) and locks.take(1)):
        assert time.monotonic() < deadline, "a killed worker's claim outlives it"
        time.sleep(0.05)
    locks.close()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
