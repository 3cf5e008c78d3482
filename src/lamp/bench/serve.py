"""`lamp bench serve`: the server under many clients on loopback; every reply is checked against its request, and all is timed.

The clients live in processes of their own, so that they share no interpreter with the server. By default the policy is a
stand-in whose replies repeat what was asked (`lamp.serve.fake_policy`); what is measured is then the server and not a model.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lamp.errors import ConfigError, MismatchError
from lamp.serve.config import ServerConfig
from lamp.serve.fake_policy import STATE, FakePolicy, fingerprint
from lamp.serve.metrics import resident_bytes
from lamp.serve.policy_spec import CameraSize, CheckpointPolicy, ServedPolicy, open_checkpoint
from lamp.serve.server import PolicyServer, served
from lamp_client import wire
from lamp_client.child_processes import ProcessPool, available_cores
from lamp_client.layouts import RequestLayout, frame_request
from lamp_client.types import Observation

SCENES = 4
"""Different images of each client."""

Seed = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Echoed:
    """Requests to the stand-in: state, words and seed are new every time, and the reply repeats them."""

    side: int
    """Height and width of the two images [px]."""

    @property
    def layout(self) -> RequestLayout:
        """The keys of a request."""
        return frame_request(("agentview", "wrist"), STATE)

    def scenes(self, client: int) -> list[Observation]:
        """What the client's requests begin with."""
        cameras = [CameraSize(name=name, height=self.side, width=self.side) for name in ("agentview", "wrist")]
        return _scenes(client, cameras, STATE)

    def question(self, scenes: Sequence[Observation], client: int, call: int) -> tuple[Observation, Seed]:
        """The client's next request and its seed."""
        state = np.random.default_rng((client, call)).normal(size=STATE).astype(np.float32)
        images = scenes[call % SCENES].images
        return Observation(images=images, state=state, instruction=f"client {client} call {call}"), (client, call)

    def off(self, actions: np.ndarray, seen: Observation, seed: Seed) -> float | None:
        """How far a reply is from what was expected; None: it answers another request."""
        return 0.0 if np.array_equal(actions[:2], fingerprint(seen, seed)) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """Requests to a trained policy, whose replies were computed one by one beforehand.

    A batch rounds otherwise than a single observation, so the reply to a request is the one that is nearest to what was expected
    of it, among what is expected of all requests of all clients.
    """

    cameras: tuple[CameraSize, ...]
    state_width: int
    expected: Float[np.ndarray, "c s h a"]
    """Actions for (client, scene)."""

    @classmethod
    def of(cls, policy: CheckpointPolicy, clients: int) -> Known:
        """Computes what so many clients are to get.

        Raises:
            MismatchError: Two requests get the same actions, so that a swapped reply could not be told.
        """
        spec = policy.spec
        blank = cls(cameras=spec.cameras, state_width=spec.state_width, expected=np.zeros((0, 0, 0, 0)))
        chunks = [
            policy.act_batch([seen], [(client, number)], foresight=False)[0].actions
            for client in range(clients)
            for number, seen in enumerate(blank.scenes(client))
        ]
        flat = np.stack(chunks).reshape(len(chunks), -1)
        if len(np.unique(flat, axis=0)) < len(flat):
            raise MismatchError("the policy gives the same actions for different observations; expected a trained one.")
        expected = flat.reshape(clients, SCENES, *chunks[0].shape)
        return cls(cameras=spec.cameras, state_width=spec.state_width, expected=expected)

    @property
    def layout(self) -> RequestLayout:
        """The keys of a request."""
        return frame_request([camera.name for camera in self.cameras], self.state_width)

    def scenes(self, client: int) -> list[Observation]:
        """The client's requests."""
        return _scenes(client, self.cameras, self.state_width)

    def question(self, scenes: Sequence[Observation], client: int, call: int) -> tuple[Observation, Seed]:
        """The client's next request and its seed."""
        return scenes[call % SCENES], (client, call % SCENES)

    def off(self, actions: np.ndarray, seen: Observation, seed: Seed) -> float | None:
        """How far a reply is from what was expected; None: it answers another request."""
        client, scene = seed
        distances = np.abs(self.expected - actions).max(axis=(2, 3))
        own = float(distances[client, scene])
        return own if own <= distances.min() else None


Asking = Echoed | Known


def _scenes(client: int, cameras: Sequence[CameraSize], state_width: int) -> list[Observation]:
    generator = np.random.default_rng(client)
    return [
        Observation(
            images={
                camera.name: generator.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
                for camera in cameras
            },
            state=generator.normal(size=state_width).astype(np.float32),
            instruction=f"do number {number}",
        )
        for number in range(SCENES)
    ]


REPLY_S = 60.0
"""After so long a reply is lost."""


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
class Tally:
    """What a process of clients has seen."""

    total_ms: list[float] = field(default_factory=list)
    """From the request's encoding until its reply is decoded."""
    overhead_ms: list[float] = field(default_factory=list)
    """The same without the policy's time and the wait for it."""
    wrong: int = 0
    """Replies that answer another request."""
    off: float = 0.0
    """The largest difference of a reply from what was expected; a batch rounds otherwise than a single observation."""
    lost: int = 0
    """Requests without a reply."""
    errors: dict[str, int] = field(default_factory=dict)


def bench_serving(config: ServeBench) -> dict[str, Any]:
    """Runs the measurement and returns its figures as JSON values."""
    limits = {"max_clients": config.clients + 1, "max_queue": max(64, 2 * config.clients)}
    server_config = ServerConfig(port=0, gather_ms=config.gather_ms, **limits)  # pyright: ignore[reportArgumentType]
    policy, asking = _subject(config)
    workers = ProcessPool(config.processes)
    with workers, served(policy, server_config) as server:
        phase = partial(_phase, workers, server, config, asking)
        alone = phase(clients=1, seconds=config.alone_seconds)
        counted = server.metrics.batch
        before, total = counted.count, counted.total
        loaded = phase(clients=config.clients, seconds=config.seconds)
        batches = counted.count - before
        mean_batch = (counted.total - total) / max(1, batches)
    return {
        "clients": config.clients,
        "seconds": config.seconds,
        "policy": "stand-in" if config.checkpoint is None else str(config.checkpoint),
        "images_px": [[camera.height, camera.width] for camera in policy.spec.cameras],
        "think_ms": config.think_ms,
        "requests": loaded["requests"],
        "wrong_replies": alone["wrong_replies"] + loaded["wrong_replies"],
        "lost_replies": alone["lost_replies"] + loaded["lost_replies"],
        "largest_difference": max(alone["off"], loaded["off"]),
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


def _subject(config: ServeBench) -> tuple[ServedPolicy, Asking]:
    """The policy, and what it is asked."""
    if config.checkpoint is None:
        return FakePolicy(side=config.side, pause_s=config.policy_ms / 1000), Echoed(side=config.side)
    policy = open_checkpoint(config.checkpoint, device=config.device, threads=config.threads)
    return policy, Known.of(policy, config.clients)


def _phase(
    workers: ProcessPool,
    server: PolicyServer,
    config: ServeBench,
    asking: Asking,
    *,
    clients: int,
    seconds: float,
) -> dict[str, Any]:
    """Lets so many clients ask for so long."""
    shares = [len(range(number, clients, config.processes)) for number in range(min(config.processes, clients))]
    ask = partial(ask_for, server.address, asking=asking, seconds=seconds, think_s=config.think_ms / 1000)
    cpu, begun = time.process_time(), time.monotonic()
    firsts = [sum(shares[:number]) for number in range(len(shares))]
    running = [workers.submit(ask, share, first) for share, first in zip(shares, firsts, strict=True)]
    memory = {"before": _memory_mb()}
    # Buffers have found their size by 30%: what grows after that grows for ever. What the clients noted comes here at the end.
    for share in (0.3, 0.65, 0.98):
        time.sleep(max(0.0, begun + share * seconds - time.monotonic()))
        memory[f"at {share:.0%}"] = _memory_mb()
    cpu = time.process_time() - cpu
    tallies = [future.result() for future in running]
    total = [value for tally in tallies for value in tally.total_ms]
    errors: dict[str, int] = {}
    for tally in tallies:
        for name, count in tally.errors.items():
            errors[name] = errors.get(name, 0) + count
    return {
        "requests": len(total),
        "wrong_replies": sum(tally.wrong for tally in tallies),
        "lost_replies": sum(tally.lost for tally in tallies),
        "off": max(tally.off for tally in tallies),
        "errors": errors,
        "throughput_per_s": round(len(total) / seconds, 1),
        "latency_ms": _quantiles(total),
        "overhead_ms": _quantiles([value for tally in tallies for value in tally.overhead_ms]),
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


def ask_for(address: str, clients: int, first: int, *, asking: Asking, seconds: float, think_s: float) -> Tally:
    """Runs in a process of clients: so many connections ask until the time is over."""
    tally = Tally()

    async def all_of_them() -> None:
        numbers = range(first, first + clients)
        await asyncio.gather(*(_client(address, number, asking, seconds, think_s, tally) for number in numbers))

    asyncio.run(all_of_them())
    return tally


async def _client(address: str, number: int, asking: Asking, seconds: float, think_s: float, tally: Tally) -> None:
    from websockets.asyncio.client import connect

    scenes = asking.scenes(number)
    try:
        async with connect(
            address, compression=None, max_size=None, ping_interval=None, proxy=None, open_timeout=60
        ) as ws:
            await ws.recv()
            deadline, call = time.monotonic() + seconds, 0
            while time.monotonic() < deadline:
                seen, seed = asking.question(scenes, number, call)
                await _ask(ws, asking, seen, seed, tally)
                call += 1
                if think_s:
                    await asyncio.sleep(think_s)
    except Exception as error:
        name = f"{type(error).__name__}: {error}"[:200]
        tally.errors[name] = tally.errors.get(name, 0) + 1


async def _ask(ws: Any, asking: Asking, seen: Observation, seed: Seed, tally: Tally) -> None:
    started = time.perf_counter()
    request = {**asking.layout.request(seen), "lamp/noise_seed": list(seed)}
    await ws.send(wire.pack(request))
    try:
        async with asyncio.timeout(REPLY_S):
            reply: Mapping[str, Any] = wire.unpack(await ws.recv())
    except TimeoutError:
        tally.lost += 1
        raise
    total = 1000 * (time.perf_counter() - started)
    timing = reply["server_timing"]
    tally.total_ms.append(total)
    tally.overhead_ms.append(total - timing["infer_ms"] - timing["queue_ms"])
    off = asking.off(reply["actions"], seen, seed)
    tally.wrong += off is None
    tally.off = max(tally.off, off or 0.0)


def summary(figures: Mapping[str, Any]) -> str:
    """The figures in a few lines."""
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
