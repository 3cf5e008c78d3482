"""Processes that end with the one that started them, however that ends; and how many are worth starting."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamp_client import child_processes
from lamp_client.child_processes import ChildProcess, ProcessPool, available_cores, end, open_program, run_program

SOURCES = Path(__file__).parents[2]
SCRIPT = """
import ctypes, os, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
from lamp_client import child_processes
from lamp_client.child_processes import ChildProcess, ProcessPool, open_program

kind, folder = sys.argv[1], Path(sys.argv[2])
if kind == "elsewhere":  # a system that cannot be asked to end children
    child_processes.sys = SimpleNamespace(platform="elsewhere", executable=sys.executable)

def note():
    (folder / str(os.getpid())).touch()

def rest(hold=False):
    note()
    (ctypes.PyDLL if hold else ctypes.CDLL)(None).sleep(600)  # PyDLL: no other thread of Python's runs meanwhile

def nested():
    note()
    ChildProcess(target=rest).start()
    rest()

if __name__ == "__main__":
    def start():
        if kind == "pool":
            pool = ProcessPool(2)
            for _ in range(2):
                pool.submit(rest)
        elif kind == "program":
            open_program([sys.executable, __file__, "rest", str(folder)], start_new_session=True)
        else:
            target = nested if kind == "nested" else rest
            for _ in range(1 if kind == "nested" else 2):
                ChildProcess(target=target, args=(True,) if kind == "holding" else (), daemon=kind == "process").start()
    if kind == "rest":
        rest()
    elif kind == "thread":
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    else:
        start()
    time.sleep(600)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # pyright: ignore[reportCallIssue]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begin(tmp_path: Path, kind: str, count: int = 2) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A process with children, and theirs numbers once they are at work."""
    (tmp_path / "pids").mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(script), kind, str(tmp_path / "pids")], start_new_session=True)
    wait_until(lambda: len(list((tmp_path / "pids").iterdir())) == count)
    return parent, [int(path.name) for path in (tmp_path / "pids").iterdir()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("kind", "blow"),
    [
        *[("pool", each) for each in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV)],
        *[(kind, signal.SIGKILL) for kind in ("process", "program", "holding", "nested", "elsewhere")],
    ],
)
def test_children_end_with_their_parent(tmp_path: Path, kind: str, blow: signal.Signals) -> None:
    parent, children = begin(tmp_path, kind, count=1 if kind == "program" else 2)
    assert all(map(lives, children))
    parent.send_signal(blow)
    assert parent.wait(10) == -blow
    wait_until(lambda: not any(map(lives, children)), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_children_do_not_end_with_the_thread_that_started_them(tmp_path: Path) -> None:
    parent, children = begin(tmp_path, "thread")
    time.sleep(0.5)
    assert all(map(lives, children))
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(lives, children)), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_is_the_parent_s_to_interpret(tmp_path: Path) -> None:
    parent, children = begin(tmp_path, "process")
    for child in children:
        os.kill(child, signal.SIGINT)
    time.sleep(0.3)
    assert all(map(lives, children))
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(10) != 0
    wait_until(lambda: not any(map(lives, children)), 10)


def test_a_child_whose_parent_was_dead_before_it_could_ask_ends_itself() -> None:
    code = "from lamp_client.child_processes import ChildProcess, _received; _received(ChildProcess, 1 << 22)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1
    launcher = [sys.executable, "-c", child_processes._LAUNCHER, str(1 << 22), "echo", "never"]
    done = subprocess.run(launcher, capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")


def test_ctrl_c_while_processes_start_is_not_lost() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), child_processes._without_interrupts():
        signal.raise_signal(signal.SIGINT)
        reached.append("the end of the block")
    assert reached
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def threads() -> str | None:
    return os.environ.get("OPENBLAS_NUM_THREADS")


def test_a_failing_block_ends_the_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), ProcessPool(2) as pool:
        assert pool.submit(threads).result() == "1" and "OPENBLAS_NUM_THREADS" not in os.environ
        for _ in range(8):
            pool.submit(time.sleep, 600)
        raise ZeroDivisionError
    assert time.monotonic() - began < 60
    with ProcessPool(1, single_threaded=False) as pool:
        assert pool.submit(threads).result() is None


def test_a_process_that_does_not_want_to_end_is_killed(tmp_path: Path) -> None:
    script = "import signal,time;signal.signal(15,signal.SIG_IGN);print(flush=True);time.sleep(600)"
    program = open_program([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert program.stdout is not None and program.stdout.readline()
    child = ChildProcess(target=signal.pause)
    child.start()
    end([child])
    assert child.exitcode == -signal.SIGTERM
    program.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.3)
    program.kill()
    program.wait()


def test_programs_say_what_they_have_to(tmp_path: Path) -> None:
    done = run_program(["sh", "-c", "echo $0 $1; exit 3", "one", "two words"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "one two words\n")
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run_program(["no-such-program"])
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    done = run_program([str(broken)], capture_output=True, text=True)
    assert done.returncode == 126 and "No such file" in done.stderr
    with pytest.raises(subprocess.TimeoutExpired):
        run_program(["sleep", "600"], timeout=0.2)


GROUPS = {
    "nothing to read": ({}, 64),
    "version 2, none": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 64),
    "version 2, a container": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 3),
    "version 2, less than one": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
    "version 2, around it": (
        {
            "proc/self/cgroup": "0::/slurm/job_1/step_0",
            "sys/fs/cgroup/slurm/job_1/step_0/cpu.max": "max 100000",
            "sys/fs/cgroup/slurm/job_1/cpu.max": "800000 100000",
            "sys/fs/cgroup/slurm/cpu.max": "3200000 100000",
        },
        8,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab",
            "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1, by the host's name": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/ab",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
        },
        3,
    ),
    "version 1, none": (
        {
            "proc/self/cgroup": "4:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        64,
    ),
    "odd": ({"proc/self/cgroup": "nonsense\n0::/../..", "sys/fs/cgroup/cpu.max": "lots 0"}, 64),
    "more than there are": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 64),
}


@pytest.mark.parametrize("name", GROUPS)
def test_cores_are_those_that_the_container_allows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, count = GROUPS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert available_cores(tmp_path) == count


def test_cores_are_those_that_the_process_may_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert available_cores(tmp_path) == 2


STARTS = {
    "subprocess": {"DEVNULL", "PIPE", "STDOUT", "CalledProcessError", "TimeoutExpired", "CompletedProcess"},
    "multiprocessing": {"connection", "parent_process", "queues", "reduction", "util"},
    "multiprocessing.context": set(),
    "multiprocessing.pool": set(),
    "multiprocessing.process": {"BaseProcess"},
    "concurrent.futures": {
        "FIRST_COMPLETED",
        "FIRST_EXCEPTION",
        "Future",
        "ThreadPoolExecutor",
        "as_completed",
        "wait",
    },
    "concurrent.futures.process": {"BrokenProcessPool"},
    "torch.multiprocessing": set(),
    "torch.utils.data": set(),
    "webbrowser": set(),
    "pty": set(),
}
"""Modules that start processes, and the names of theirs that do not."""
CALLS = ("fork", "forkpty", "system", "popen", "spawn", "posix_spawn", "exec", "cpu_count", "create_subprocess")


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in STARTS)
        elif isinstance(node, ast.ImportFrom) and node.module in STARTS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name not in STARTS[node.module])
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "asyncio")
        ):
            yield from (f"{node.value.id}.{node.attr}" for call in CALLS if node.attr.startswith(call))


def test_nothing_else_starts_processes() -> None:
    found = {}
    for folder in ("src", "packages/lamp-client/src", "packages/lerobot-policy-lamp/src"):
        for path in (SOURCES / folder).rglob("*.py"):
            if path != Path(child_processes.__file__) and (names := list(offences(ast.parse(path.read_text())))):
                found[str(path.relative_to(SOURCES))] = names
    assert found == {}
