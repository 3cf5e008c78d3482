"""Simulators on a Ray cluster: Ray itself where it is installed, and a stand-in of the few calls that are made to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_fakes import FakePolicy, FakeSimulators, make_checkpoint

from lamp.benchmark import launchers
from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.benchmark.launchers import ClusterError, RayLauncher
from lamp.benchmark.worker_pool import SimulationStoppedError
from lamp.data.lerobot.video import video_info
from lamp.errors import ConfigError, MissingDependencyError

pytestmark = pytest.mark.long


class FakeRay:
    """Runs tasks in processes of this machine."""

    def __init__(self, cpus: int = 4) -> None:
        self.cpus, self.asked, self.tasks = cpus, list[dict[str, Any]](), list[Any]()
        self.util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Any:
        self.asked.append(options)

        def of(function: Any) -> Any:
            def begin(*arguments: Any) -> Any:
                process = multiprocessing.get_context("spawn").Process(target=function, args=arguments, daemon=True)
                process.start()
                self.tasks.append(process)
                return process

            return SimpleNamespace(remote=begin)

        return of

    def wait(self, tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        if timeout and tasks:
            tasks[0].join(timeout)
        return [task for task in tasks if not task.is_alive()], [task for task in tasks if task.is_alive()]

    def get(self, task: Any, timeout: float) -> None:
        task.join(timeout)
        raise RuntimeError(f"the worker process died with exit code {task.exitcode}\n\nmore words")

    def cancel(self, task: Any, force: bool) -> None:
        task.kill()


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[Any]:
    """A cluster of this machine, once for all tests: it takes seconds to start."""
    real = pytest.importorskip("ray", reason="the package ray is not installed: pip install 'lamp-vla[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Its processes import the fakes by name.
        patch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(Path(__file__).parent)]))
        handler = signal.getsignal(signal.SIGTERM)
        real.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield real
        real.shutdown()
        signal.signal(signal.SIGTERM, handler)  # which Ray has taken over


@pytest.fixture(params=[pytest.param("stand-in", marks=pytest.mark.slow), "ray"])
def ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "stand-in":
        fake = FakeRay()
        monkeypatch.setitem(sys.modules, "ray", fake)
        yield fake
        for task in fake.tasks:
            task.join(10)
        assert not [task for task in fake.tasks if task.is_alive()]
        return
    yield request.getfixturevalue("local_cluster")


def config(root: Path, **changes: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {"suite": "fake", "states": "0:4", "task": (0, 1), "controls": ("zero",), "workers": 2}
    return EvaluateConfig(checkpoint=make_checkpoint(root / "policy"), out=root / "out", **(settings | changes))


def test_an_evaluation_on_a_cluster_is_the_same_as_here(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    there = evaluate(config(tmp_path / "a", ray="auto", videos=1), load=FakePolicy, simulators=FakeSimulators())
    here = evaluate(config(tmp_path / "b"), load=FakePolicy, simulators=FakeSimulators())

    def told(summary: Any) -> list[tuple[Any, ...]]:
        return sorted((r.key, r.noise_seed, r.success, r.steps, r.policy_calls, r.instruction) for r in summary.records)

    assert there.complete and len(there.records) == 16 and told(there) == told(here)
    (film,) = [record.video for record in there.records if record.video]
    assert video_info(tmp_path / "a" / "out" / film).frames > 3  # it came over the connection
    if isinstance(ray, FakeRay):
        (options,) = ray.asked
        assert options["num_cpus"] == 1 and options["max_retries"] == 0
        assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.slow
def test_a_simulator_that_hangs_on_the_cluster_is_replaced(
    ray: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    simulators = FakeSimulators(journal=tmp_path / "journal", hangs_at=1)
    summary = evaluate(config(tmp_path, ray="auto", deadline_s=6.0), load=FakePolicy, simulators=simulators)
    assert summary.complete and sorted(record.attempt for record in summary.records)[-2:] == [1, 2]
    assert "stopped: its episode took longer than 6 s" in capfd.readouterr().err


@pytest.mark.slow
def test_an_error_on_the_cluster_comes_here(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(SimulationStoppedError, match="failed: RuntimeError: the simulator exploded"):
        evaluate(config(tmp_path, ray="auto"), load=FakePolicy, simulators=FakeSimulators(raises_at=1))


def test_a_cluster_that_is_too_small_or_does_not_start_simulators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay(cpus=1))
    with pytest.raises(ConfigError, match="has 1 CPUs for 2 simulators; expected --workers 1 at most"):
        evaluate(config(tmp_path, ray="auto"), load=FakePolicy, simulators=FakeSimulators())
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    monkeypatch.setattr(launchers, "simulate", sys.exit)  # a process that ends before it has called back
    with pytest.raises(ClusterError, match=r"did not start: RuntimeError: the worker process died .* same versions"):
        evaluate(config(tmp_path, ray="auto"), load=FakePolicy, simulators=FakeSimulators())


def test_an_address_where_nobody_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setattr(fake, "is_initialized", lambda: False)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"no Ray cluster at '{address}' .*refused.*`ray start --head`"):
            evaluate(config(tmp_path, ray=address), load=FakePolicy, simulators=FakeSimulators())


def test_signals_stay_the_command_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray makes SIGTERM an exit with code 15, past what the command tidies up."""
    fake, before = FakeRay(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(fake, "is_initialized", lambda: False)
    taken_over = lambda **_: signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # noqa: E731
    monkeypatch.setattr(fake, "init", taken_over, raising=False)
    monkeypatch.setitem(sys.modules, "ray", fake)
    RayLauncher.at("auto", 1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lamp-vla\[ray\]'.*--shard"):
        evaluate(config(tmp_path, ray="10.0.0.1:6379"), load=FakePolicy, simulators=FakeSimulators())


@pytest.mark.parametrize(("theirs", "number"), [(b"k" * 32, 7), (b"x" * 32, None)])
def test_only_who_knows_the_key_is_let_in(theirs: bytes, number: int | None) -> None:
    ours, caller = socket.socketpair()
    refused: list[BaseException] = []

    def call() -> None:
        try:
            launchers._authenticate_to_pool(caller, theirs, 7)
        except ClusterError as error:
            refused.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    if number is None:
        with pytest.raises(ClusterError, match="does not know the key"):
            launchers._authenticate_worker(ours, b"k" * 32)
        ours.close()
    else:
        assert launchers._authenticate_worker(ours, b"k" * 32) == number
    calling.join(10)
    assert bool(refused) == (number is None)
    caller.close()


def test_strangers_at_the_door_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that say nothing, or nonsense, before and while simulators call."""
    monkeypatch.setattr(launchers, "SHAKE_S", 3.0)
    launcher = RayLauncher(ray=FakeRay(), host="127.0.0.1")
    launcher._listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=launcher._accept_workers, args=(launcher._listener,), daemon=True).start()
    address = launcher._listener.getsockname()
    strangers = [socket.create_connection(address) for _ in range(5)]
    strangers[0].sendall(b"\x80\x04" * 60)
    caller = socket.create_connection(address)
    started = time.monotonic()
    launchers._authenticate_to_pool(caller, launcher.key, 3)
    assert launcher._arrived.get(timeout=5)[0] == 3 and time.monotonic() - started < 2
    assert launcher._arrived.empty()
    strangers[0].settimeout(5)
    with suppress(ConnectionResetError):
        while strangers[0].recv(100):  # the nonce, and then it is shown the door
            pass
    for one in (*strangers, caller, launcher._listener):
        one.close()
