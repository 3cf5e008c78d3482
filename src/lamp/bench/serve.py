"""`lamp bench serve`: the server under many clients on loopback; every reply is timed and checked against its request.

The clients run in processes of their own, so that they share no interpreter with the server. By default the policy is a fake one
whose replies repeat the request (`lamp.serve.policy_spec`), so that the server is measured and not a model.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lamp.errors import ConfigError, MismatchError
from lamp.serve.config import ServerConfig
from lamp.serve.metrics import resident_bytes
from lamp.serve.policy_spec import (
    FAKE_STATE_WIDTH,
    CameraSize,
    CheckpointPolicy,
    FakePolicy,
    ServedPolicy,
    fingerprint,
    open_checkpoint,
)
from lamp.serve.server import PolicyServer, served
from lamp_client import wire
from lamp_client.child_processes import ProcessPool, available_cores
from lamp_client.layouts import RequestLayout, frame_request
from lamp_client.types import Observation

SCENES = 4
"""Different images of each client."""
REPLY_TIMEOUT_S = 60.0
"""After this time a reply counts as lost."""

Seed = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """What clients send, and how a reply is checked."""

    cameras: Sequence[CameraSize]
    state_width: int

    @property
    def layout(self) -> RequestLayout:
        """The keys of a request."""
        return frame_request([camera.name for camera in self.cameras], self.state_width)

    def scenes(self, client: int) -> list[Observation]:
        """The observations that the client's requests are made of."""
        random = np.random.default_rng(client)
        return [
            Observation(
                images={
                    camera.name: random.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
                    for camera in self.cameras
                },
                state=random.normal(size=self.state_width).astype(np.float32),
                instruction=f"do number {number}",
            )
            for number in range(SCENES)
        ]

    def request(self, scenes: Sequence[Observation], client: int, call: int) -> tuple[Observation, Seed]:
        """The client's next request and its seed."""
        raise NotImplementedError

    def error(self, actions: np.ndarray, observation: Observation, seed: Seed) -> float | None:
        """The largest difference of a reply from the expected one; None if it answers another request."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class EchoWorkload(Workload):
    """Requests to the fake policy: state, instruction and seed are new every time, and the reply repeats them."""

    @classmethod
    def of(cls, side: int) -> EchoWorkload:
        """For two square images of `side` px."""
        cameras = [CameraSize(name=name, height=side, width=side) for name in ("agentview", "wrist")]
        return cls(cameras=cameras, state_width=FAKE_STATE_WIDTH)

    def request(self, scenes: Sequence[Observation], client: int, call: int) -> tuple[Observation, Seed]:
        state = np.random.default_rng((client, call)).normal(size=FAKE_STATE_WIDTH).astype(np.float32)
        images = scenes[call % SCENES].images
        return Observation(images=images, state=state, instruction=f"client {client} call {call}"), (client, call)

    def error(self, actions: np.ndarray, observation: Observation, seed: Seed) -> float | None:
        return 0.0 if np.array_equal(actions[:2], fingerprint(observation, seed)) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointWorkload(Workload):
    """Requests to a trained policy, whose replies were computed one by one beforehand.

    A batch is rounded differently from a single observation, so a reply is right if the expected actions nearest to it, among
    those of all clients, are those of its own request.
    """

    expected: Float[np.ndarray, "c s h a"]
    """Actions for (client, scene)."""

    @classmethod
    def of(cls, policy: CheckpointPolicy, clients: int) -> CheckpointWorkload:
        """Computes the replies that `clients` clients are to get.

        Raises:
            MismatchError: Two requests get the same actions, so that swapped replies could not be noticed.
        """
        spec = policy.spec
        blank = cls(cameras=spec.cameras, state_width=spec.state_width, expected=np.zeros((0, 0, 0, 0)))
        chunks = [
            policy.act_batch([observation], [(client, number)], foresight=False)[0].actions
            for client in range(clients)
            for number, observation in enumerate(blank.scenes(client))
        ]
        if len(np.unique(np.stack(chunks).reshape(len(chunks), -1), axis=0)) < len(chunks):
            raise MismatchError("the policy gives the same actions for different observations; expected a trained one.")
        return replace(blank, expected=np.stack(chunks).reshape(clients, SCENES, *chunks[0].shape))

    def request(self, scenes: Sequence[Observation], client: int, call: int) -> tuple[Observation, Seed]:
        return scenes[call % SCENES], (client, call % SCENES)

    def error(self, actions: np.ndarray, observation: Observation, seed: Seed) -> float | None:
        distances = np.abs(self.expected - actions).max(axis=(2, 3))
        own = float(distances[seed])
        return own if own <= distances.min() else None


@dataclass(frozen=True, kw_only=True)
class ServeBench:
    """Measures the policy server on this machine: 64 clients on loopback, every reply checked against its request."""

    clients: int = 64
    """Connections that ask at the same time."""
    seconds: float = 30.0
    """How long they ask [s]."""
    alone_seconds: float = 5.0
    """How long a single client asks before, for the protocol's overhead [s]."""
    side: int = 224
    """Height and width of the two images of a request [px]."""
    think_ms: float = 0.0
    """How long a client waits between a reply and its next request [ms]; 0 loads the server fully."""
    policy_ms: float = 0.0
    """How much longer than its own arithmetic the stand-in policy takes for a batch [ms]."""
    gather_ms: float = 2.5
    """The server's wait for company [ms]."""
    checkpoint: Path | None = None
    """A trained policy in place of the stand-in; its replies are compared with those that it gives to one observation alone."""
    device: str = "cpu"
    """Where that policy computes."""
    threads: int | None = None
    """CPU threads of that policy; None leaves it to torch."""
    processes: int = field(default_factory=lambda: min(8, available_cores()))
    """Processes that the clients are shared among."""

    def __post_init__(self) -> None:
        for name in ("clients", "processes", "side"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.seconds <= 0 or self.alone_seconds <= 0:
            raise ConfigError(f"seconds is {self.seconds}, alone_seconds {self.alone_seconds}; expected more than 0.")


@dataclass(kw_only=True)
class ClientStats:
    """The figures of one process of clients."""

    total_ms: list[float] = field(default_factory=list)
    """From the request's encoding until its reply is decoded."""
    overhead_ms: list[float] = field(default_factory=list)
    """The same without the policy's time and the wait for it."""
    wrong: int = 0
    """Replies that answer another request."""
    largest_difference: float = 0.0
    """Of a right reply from the expected one."""
    lost: int = 0
    """Requests without a reply."""
    errors: Counter[str] = field(default_factory=Counter)


def bench_serving(config: ServeBench) -> dict[str, Any]:
    """Measures the server under one client and under many, and returns the figures as JSON values."""
    limits = {"max_clients": config.clients + 1, "max_queue": max(64, 2 * config.clients)}
    server_config = ServerConfig(port=0, gather_ms=config.gather_ms, **limits)  # pyright: ignore[reportArgumentType]
    if config.checkpoint is None:
        policy: ServedPolicy = FakePolicy(side=config.side, pause_s=config.policy_ms / 1000)
        workload: Workload = EchoWorkload.of(config.side)
    else:
        policy = open_checkpoint(config.checkpoint, device=config.device, threads=config.threads)
        workload = CheckpointWorkload.of(policy, config.clients)
    workers = ProcessPool(config.processes)
    with workers, served(policy, server_config) as server:
        load = partial(_apply_load, workers, server, config, workload)
        alone = load(clients=1, seconds=config.alone_seconds)
        batches = server.metrics.batch
        count, total = batches.count, batches.total
        loaded = load(clients=config.clients, seconds=config.seconds)
        mean_batch = (batches.total - total) / max(1, batches.count - count)
    return {
        "clients": config.clients,
        "seconds": config.seconds,
        "policy": "stand-in" if config.checkpoint is None else str(config.checkpoint),
        "images_px": [[camera.height, camera.width] for camera in policy.spec.cameras],
        "think_ms": config.think_ms,
        "requests": loaded["requests"],
        "wrong_replies": alone["wrong_replies"] + loaded["wrong_replies"],
        "lost_replies": alone["lost_replies"] + loaded["lost_replies"],
        "largest_difference": max(alone["largest_difference"], loaded["largest_difference"]),
        "errors": {**alone["errors"], **loaded["errors"]},
        "throughput_per_s": loaded["throughput_per_s"],
        "latency_ms": loaded["latency_ms"],
        "mean_batch": round(mean_batch, 2),
        "overhead_ms": {"alone": alone["overhead_ms"], "loaded": loaded["overhead_ms"]},
        "server_cpu_ms_per_request": {"alone": alone["cpu_ms"], "loaded": loaded["cpu_ms"]},
        "server_memory_mb": loaded["memory_mb"],
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": available_cores(),
            "load_average": [round(value, 2) for value in os.getloadavg()],
            "python": platform.python_version(),
        },
    }


def _apply_load(
    workers: ProcessPool, server: PolicyServer, config: ServeBench, workload: Workload, *, clients: int, seconds: float
) -> dict[str, Any]:
    """Runs `clients` clients for `seconds` and returns their figures and the server's."""
    shares = [len(range(number, clients, config.processes)) for number in range(min(config.processes, clients))]
    run = partial(run_clients, server.address, workload=workload, seconds=seconds, think_s=config.think_ms / 1000)
    cpu, started = time.process_time(), time.monotonic()
    running = [workers.submit(run, share, sum(shares[:number])) for number, share in enumerate(shares)]
    memory = {"before": _memory_mb()}
    # Buffers have reached their size by 30%: what grows after that is a leak. What the clients record arrives at the end.
    for share in (0.3, 0.65, 0.98):
        time.sleep(max(0.0, started + share * seconds - time.monotonic()))
        memory[f"at {share:.0%}"] = _memory_mb()
    cpu = time.process_time() - cpu
    stats = [future.result() for future in running]
    total = [value for each in stats for value in each.total_ms]
    return {
        "requests": len(total),
        "wrong_replies": sum(each.wrong for each in stats),
        "lost_replies": sum(each.lost for each in stats),
        "largest_difference": max(each.largest_difference for each in stats),
        "errors": dict(sum((each.errors for each in stats), Counter())),
        "throughput_per_s": round(len(total) / seconds, 1),
        "latency_ms": _quantiles(total),
        "overhead_ms": _quantiles([value for each in stats for value in each.overhead_ms]),
        "memory_mb": memory,
        "cpu_ms": round(1000 * cpu / max(1, len(total)), 3),
    }


def _memory_mb() -> float:
    return round((resident_bytes() or 0.0) / 1e6, 1)


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p95": None, "p99": None, "max": None}
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3), "max": round(max(values), 3)}


def run_clients(
    address: str, clients: int, first: int, *, workload: Workload, seconds: float, think_s: float
) -> ClientStats:
    """Runs clients `first` to `first + clients` in this process, each over its own connection, until the time is over."""
    stats = ClientStats()

    async def run() -> None:
        numbers = range(first, first + clients)
        await asyncio.gather(*(_client(address, number, workload, seconds, think_s, stats) for number in numbers))

    asyncio.run(run())
    return stats


async def _client(
    address: str, number: int, workload: Workload, seconds: float, think_s: float, stats: ClientStats
) -> None:
    from websockets.asyncio.client import connect

    scenes, layout = workload.scenes(number), workload.layout
    options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None, "proxy": None}
    try:
        async with connect(address, open_timeout=60, **options) as ws:
            await ws.recv()
            deadline, call = time.monotonic() + seconds, 0
            while time.monotonic() < deadline:
                observation, seed = workload.request(scenes, number, call)
                started = time.perf_counter()
                await ws.send(wire.pack({**layout.request(observation), "lamp/noise_seed": list(seed)}))
                try:
                    async with asyncio.timeout(REPLY_TIMEOUT_S):
                        reply: Mapping[str, Any] = wire.unpack(await ws.recv(decode=False))
                except TimeoutError:
                    stats.lost += 1
                    raise
                total, timing = 1000 * (time.perf_counter() - started), reply["server_timing"]
                stats.total_ms.append(total)
                stats.overhead_ms.append(total - timing["infer_ms"] - timing["queue_ms"])
                error = workload.error(reply["actions"], observation, seed)
                stats.wrong += error is None
                stats.largest_difference = max(stats.largest_difference, error or 0.0)
                call += 1
                if think_s:
                    await asyncio.sleep(think_s)
    except Exception as error:
        stats.errors[f"{type(error).__name__}: {error}"[:200]] += 1


def summary(figures: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    latency, alone, loaded = figures["latency_ms"], figures["overhead_ms"]["alone"], figures["overhead_ms"]["loaded"]
    cpu = figures["server_cpu_ms_per_request"]
    return "\n".join(
        [
            f"{figures['requests']} requests of {figures['clients']} clients in {figures['seconds']:g} s: "
            f"{figures['throughput_per_s']} per second, {figures['mean_batch']} computed together",
            f"wrong replies {figures['wrong_replies']}, lost {figures['lost_replies']}, errors {figures['errors'] or 'none'}, "
            f"largest difference by rounding {figures['largest_difference']:.2g}",
            f"latency p50 {latency['p50']} ms, p99 {latency['p99']} ms",
            f"protocol overhead p50 {alone['p50']} ms alone, {loaded['p50']} ms loaded; server's processor time "
            f"{cpu['alone']} and {cpu['loaded']} ms a request",
            "server's memory, MB: "
            + ", ".join(f"{value} {name}" for name, value in figures["server_memory_mb"].items()),
        ]
    )
