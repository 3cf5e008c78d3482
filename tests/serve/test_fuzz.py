"""A server in a process of its own under attack, honest clients beside it: nobody notices anything, nothing is left behind.

    LAMP_FUZZ_MESSAGES=100000 pytest tests/serve/test_fuzz.py -m slow -s

sends so many messages and prints what it saw.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from attacks import attacked
from serve_fakes import LIBERO, SIDE, observation

from lamp.serve.policy_spec import fingerprint
from lamp_client.client import WebsocketPolicy

MESSAGES = int(os.environ.get("LAMP_FUZZ_MESSAGES", "100000"))
SETTINGS = {"max_message_mb": 2.0, "max_array_mb": 1.0, "send_timeout_s": 2.0, "ping_timeout_s": 6.0, "max_clients": 64}
SCRIPT = f"""
import asyncio, resource, sys
from lamp.serve.config import ServerConfig
from lamp.serve.server import serve_until_signalled
from lamp.serve.policy_spec import FakePolicy
settings, files = eval(sys.argv[1])
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
asyncio.run(serve_until_signalled(FakePolicy(side={SIDE}), ServerConfig(port=0, **settings)))
"""


@contextlib.contextmanager
def program(errors: Path, *, files: int = 0, **settings: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The server's process and port; `files` limits its open files."""
    arguments = repr((SETTINGS | settings, files))
    with open(errors, "w", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, arguments], stderr=file, text=True)
    try:
        deadline = time.monotonic() + 60
        while "serving at" not in errors.read_text():
            assert process.poll() is None and time.monotonic() < deadline, errors.read_text()
            time.sleep(0.05)
        line = next(line for line in errors.read_text().splitlines() if "serving at" in line)
        yield process, int(line.rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait(timeout=60)


class Honest(threading.Thread):
    """Asks at a robot's pace, and checks every reply."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.number, self.over = number, threading.Event()
        self.latencies: list[float] = []
        self.failed: BaseException | None = None
        self.policy = WebsocketPolicy("127.0.0.1", port, layout=LIBERO, retries=0, reply_timeout_s=60)

    def run(self) -> None:
        try:
            with self.policy:
                while not self.over.wait(0.02):
                    call = len(self.latencies)
                    seen, started = observation(self.number * 1000 + call % 100), time.perf_counter()
                    reply = self.policy.act(seen, noise_seed=(self.number, call))
                    self.latencies.append(time.perf_counter() - started)
                    np.testing.assert_array_equal(reply.actions[:2], fingerprint(seen, (self.number, call)))
        except BaseException as error:
            self.failed = error


def resident_mb(process: subprocess.Popen[str]) -> float:
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def figure(port: int, name: str) -> float:
    """One of the server's own figures."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def settled(process: subprocess.Popen[str], port: int, clients: int) -> int:
    """Waits until only so many clients are left; the process' open files."""
    deadline = time.monotonic() + 40
    while figure(port, "lamp_clients ") > clients:
        assert time.monotonic() < deadline, "clients that have gone are still counted"
        time.sleep(0.1)
    time.sleep(0.5)
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the server's memory from /proc")
@pytest.mark.parametrize("messages", [1200, pytest.param(MESSAGES, marks=pytest.mark.slow)])
def test_attacks_harm_nobody_and_leave_nothing_behind(messages: int, tmp_path: Path) -> None:
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pool, program(tmp_path / "stderr") as (process, port):
        honest = [Honest(port, number) for number in range(4)]
        for client in honest:
            client.start()
        time.sleep(1.0)
        quiet = sorted(latency for client in honest for latency in client.latencies)
        pool.submit(attacked, port, max(500, messages // 10), 1).result()  # buffers find their size
        files, memory, begun = (
            settled(process, port, 4),
            resident_mb(process),
            [len(client.latencies) for client in honest],
        )
        did, seconds = pool.submit(attacked, port, messages, 2).result()
        files_after, memory_after = settled(process, port, 4), resident_mb(process)
        for client in honest:
            client.over.set()
            client.join(60)
        pressed = sorted(late for client, first in zip(honest, begun, strict=True) for late in client.latencies[first:])
        seen = {
            "messages": did,
            "seconds": round(seconds, 1),
            "honest_replies": len(pressed),
            "honest_p50_p99_max_ms": [round(1000 * float(np.quantile(pressed, q)), 2) for q in (0.5, 0.99, 1)],
            "honest_p50_ms_before": round(1000 * float(np.median(quiet)), 2),
            "memory_mb": [round(memory, 1), round(memory_after, 1)],
            "open_files": [files, files_after],
            "refused_requests": figure(port, 'lamp_refusals_total{reason="request"}'),
        }
        print(json.dumps(seen, indent=2))
        assert process.poll() is None
        assert [client.failed for client in honest] == [None] * 4 and min(
            len(client.latencies) for client in honest
        ) > 5
        for reason in ("server", "policy"):
            assert figure(port, f'lamp_refusals_total{{reason="{reason}"}}') == 0, (tmp_path / "stderr").read_text()
        assert seen["refused_requests"] > messages / 3
        assert memory_after - memory < 12 and files_after <= files + 4
    errors = (tmp_path / "stderr").read_text()
    assert process.returncode == 0 and "Traceback" not in errors and "Warning" not in errors, errors[-3000:]
