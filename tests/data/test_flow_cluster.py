"""`lamp flow build --executor ray`: the same as here, on a cluster whose tasks may die."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_clips import sliding_square
from test_flow_from_video import FRAMES, settings, write_recording

from lamp.cluster import ClusterError
from lamp.data import flow_from_video
from lamp.data.flow_executor import run_on_cluster
from lamp.data.flow_from_video import build_from_video
from lamp.errors import MissingDependencyError
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.validate import manifest_counts, validate


class FakeRay:
    """Runs each task when it is asked for; those of a name die so often."""

    def __init__(self, dies: dict[str, int] | None = None, cpus: int = 2) -> None:
        self.dies, self.cpus = dict(dies or {}), cpus
        self.options: list[dict[str, Any]] = []
        self.begun: list[str] = []
        self.cancelled: list[Any] = []
        self.most = 0
        self.open = 0

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def remote(self, **options: Any) -> Any:
        self.options.append(options)

        def of(function: Any) -> Any:
            def begin(work: Any, job: Any) -> Any:
                self.begun.append(job[-1])
                self.open += 1
                self.most = max(self.most, self.open)
                return (function, work, job, len(self.begun))

            return type("Remote", (), {"remote": staticmethod(begin)})

        return of

    def wait(self, tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, task: Any) -> Any:
        function, work, job, _ = task
        self.open -= 1
        if self.dies.get(job[-1], 0) > 0:
            self.dies[job[-1]] -= 1
            raise RuntimeError("the worker died unexpectedly\n  a trace")
        return function(work, job)

    def cancel(self, task: Any, force: bool) -> None:
        self.cancelled.append(task)


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeRay) -> FakeRay:
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def length(name: str) -> int:
    if name == "full":
        raise OSError(28, "No space left on device")
    return len(name)


def run(names: list[str], **more: Any) -> dict[str, Any]:
    jobs = {name: (name,) for name in names}
    return dict(run_on_cluster(length, jobs, "auto", lambda name, why: f"{name}: {why}", lambda: None, **more))


def test_tasks_that_die_are_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, FakeRay({"once": 1, "always": 9}))
    found = run(["a", "once", "always", "bb", "ccc", "dddd", "eeeee"])
    assert {name: found[name] for name in ("a", "once", "eeeee")} == {"a": 1, "once": 4, "eeeee": 5}
    assert found["always"] == "always: its task on the cluster died: RuntimeError: the worker died unexpectedly"
    assert fake.begun.count("once") == fake.begun.count("always") == 2 and fake.most == 4, "two tasks a CPU at once"
    (options,) = fake.options
    assert (options["num_cpus"], options["max_retries"], options["num_gpus"]) == (1, 0, 0.0)
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]


def test_a_full_disk_stops_everything_and_other_tasks_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, FakeRay())
    with pytest.raises(ClusterError, match=r"full: OSError: .*No space left on device; run the command again to go on"):
        run(["full", "b", "c", "d", "e", "f"])
    assert len(fake.cancelled) == 3


def test_a_cluster_without_room_and_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay())
    with pytest.raises(ClusterError, match=r"has 2 CPUs and 0 GPUs; expected 1 and 1"):
        run(["a"], gpus=1.0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingDependencyError, match=r"--executor ray: .*pip install 'lamp-vla\[ray\]'.*lamp flow merge"
    ):
        run(["a"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of this machine."""
    real = pytest.importorskip("ray", reason="the package ray is not installed: pip install 'lamp-vla[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(Path(__file__).parent)]))
        handler = signal.getsignal(signal.SIGTERM)
        real.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield real
        real.shutdown()
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.long
def test_a_build_on_a_cluster_is_the_same_as_here(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = sliding_square(FRAMES)
    for name in ("one", "two", "without_words"):
        write_recording(tmp_path / "source" / name, clip)
    (tmp_path / "source/without_words/lang.txt").unlink()
    monkeypatch.chdir(tmp_path)  # the tasks run elsewhere
    there = build_from_video(settings(Path("source"), Path("there"), executor="ray"))
    here = build_from_video(settings(Path("source"), Path("here")))
    assert (there.built, there.failed) == (here.built, here.failed) and there.built == 2
    assert validate(Path("there")) == [] and manifest_counts(Path("there/sceneflow"))["built"] == 2
    one, other = (SceneFlowStore(tmp_path / name / "sceneflow") for name in ("here", "there"))
    for episode in (0, 1):
        frames = one.frames(episode)
        assert other.read(episode, frames)[0].points.equal(one.read(episode, frames)[0].points)
    again = build_from_video(settings(Path("source"), Path("there"), executor="ray"))
    assert (again.built, again.kept) == (0, 2)


WORK = flow_from_video._work


def deadly(*job: Any) -> Any:
    if job[3] == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return WORK(*job)


@pytest.mark.slow
def test_a_clip_that_kills_its_task_costs_itself_alone(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("deadly", "one"):
        write_recording(tmp_path / "source" / name, sliding_square(FRAMES))
    monkeypatch.setattr(flow_from_video, "_work", deadly)
    report = build_from_video(settings(tmp_path / "source", tmp_path / "out", executor="ray"))
    assert report.built == 1 and "its task on the cluster died" in report.failed["deadly"]
    assert validate(tmp_path / "out") == []
