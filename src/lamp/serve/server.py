"""The policy server: listens, opens its policy and warms up, answers, and stops when what is in flight has been answered."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.server import Server
from websockets.asyncio.server import serve as listen
from websockets.protocol import State

from lamp.errors import ConfigError, LampError
from lamp.serve.action_conventions import action_units
from lamp.serve.batching import Batcher, ComputedBatch
from lamp.serve.config import ServeConfig, ServerConfig
from lamp.serve.connections import (
    CLOSE_S,
    HANDSHAKE_S,
    MAX_HANDSHAKES,
    AcceptErrorHandler,
    ClientConnection,
    ReceiveBudget,
    TlsHandshake,
)
from lamp.serve.keys import ApiKeys
from lamp.serve.live import Artist, LivePage
from lamp.serve.metrics import Metrics
from lamp.serve.policy_spec import ServedPolicy, open_checkpoint
from lamp.serve.protocols import OpenPi, StarVla, greeting
from lamp.serve.routes import Routes, seed_of
from lamp.serve.sessions import ClientSession
from lamp.serve.vla_eval import VlaEval, hello_fields
from lamp.serve.vllm_omni import PATH as VLLM_OMNI_PATH
from lamp.serve.vllm_omni import VllmOmni, policy_server_config
from lamp_client import wire
from lamp_client.types import ActionChunk

log = logging.getLogger("lamp.serve")
ACTIVE_CLIENT_S = 1.0
"""A client that has asked so recently may ask again soon [s]."""
SPARE_FILES = 256
"""Files that the process may need beside its connections."""
HANDSHAKE_GRACE_S = 0.5
"""How long a stop waits for those who have not finished connecting [s]."""


class PolicyServer:
    """Serves a policy on one port.

    Args:
        config: Where and for whom.
        artist: Draws the predicted flow for the live page.

    Raises:
        DataError: The key file or the certificate cannot be used.
    """

    policy: ServedPolicy
    live: LivePage
    batcher: Batcher
    openpi: OpenPi
    starvla: StarVla
    greeting: bytes
    vllm_omni_greeting: bytes

    def __init__(self, config: ServerConfig, *, artist: Artist | None = None) -> None:
        self.config, self.artist = config, artist
        self.keys = ApiKeys.read(config.api_key_file) if config.api_key_file is not None else ApiKeys()
        self.tls = config.tls()
        self.metrics = Metrics()
        self.sessions: set[ClientSession] = set()
        self.ready = False
        """Whether requests are answered."""
        self._clients: set[ClientConnection] = set()
        self._picture: asyncio.Task[None] | None = None
        self._server: Server | None = None
        self._port = config.port

    async def listen(self) -> None:
        """Takes the port. Who connects waits for the policy, and is greeted when it is ready.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        config = self.config
        self._stopping, self._readiness = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(AcceptErrorHandler(otherwise=loop.get_exception_handler()))
        self.budget = ReceiveBudget(
            limit=config.buffered_bytes, patience_s=config.message_timeout_s, refused=self._refused
        )
        try:
            self._server = await listen(
                self._handle_connection, config.host, config.port, process_request=self._routes(),  # pyright: ignore[reportArgumentType]
                create_connection=self._connection,  # pyright: ignore[reportArgumentType]
                compression=None, max_size=config.limits.message_bytes, max_queue=1, server_header="lamp",
                ping_interval=config.ping_timeout_s / 2, ping_timeout=config.ping_timeout_s / 2,
                open_timeout=HANDSHAKE_S, close_timeout=CLOSE_S, logger=_silenced_logger(),
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {config.host}:{config.port} ({error.strerror}); expected a free port of this machine: "
                "give another --port or --host, or 0 for any port."
            ) from None
        self._port = next(iter(self._server.sockets)).getsockname()[1]
        self._sweeping = loop.create_task(self.budget.sweep(), name="lamp-sweep")

    async def answer(self, policy: ServedPolicy) -> None:
        """Warms the policy up, and answers with it from then on.

        Raises:
            MismatchError: The units do not fit the policy's actions.
            LampError: The policy fails on an example of its own.
        """
        config = self.config
        units = action_units(config.units, policy.spec)
        self.policy = policy
        self.live = LivePage(spec=policy.spec, metrics=self.metrics, artist=self.artist)
        self.openpi = OpenPi.of(policy.spec, units)
        self.starvla = StarVla(spec=policy.spec, units=units, max_examples=config.max_queue)
        limits = {"message_bytes": config.limits.message_bytes, "array_bytes": config.limits.array_bytes}
        self.greeting = wire.pack(greeting(policy.spec, units, limits) | hello_fields(policy.spec, units))
        self.vllm_omni_greeting = wire.pack(policy_server_config(policy.spec, units))
        self.batcher = Batcher(
            policy,
            gather_s=config.gather_ms / 1000,
            max_batch=config.max_batch,
            max_queue=config.max_queue,
            active_clients=self._active_clients,
            on_done=self._note,
        )
        await self._warm_up()
        self.batcher.start()
        self.metrics.started = time.time()
        self.ready = True
        self._readiness.set()

    async def stop(self) -> None:
        """Lets nobody else in, answers what has been asked, closes all connections."""
        self._stopping.set()
        if self._server is not None:
            self._server.close(close_connections=False)
            self._readiness.set()  # who waits for the policy is told that there will be none
            await asyncio.gather(*(session.close_if_idle() for session in list(self.sessions)), return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.stop_timeout_s):
                    while self.sessions:
                        await asyncio.sleep(0.01)
            for session in list(self.sessions):
                session.connection.transport.abort()
            with contextlib.suppress(TimeoutError):  # who has begun to connect and says nothing more is not waited for
                async with asyncio.timeout(HANDSHAKE_GRACE_S):
                    await self._server.wait_closed()
            self._sweeping.cancel()
        if self._picture is not None:
            self._picture.cancel()
        if hasattr(self, "batcher"):
            await self.batcher.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def address(self) -> str:
        """The websocket's address."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'wss' if self.tls else 'ws'}://{host}:{self.port}"

    async def _warm_up(self) -> None:
        """Computes at every size at which something may be compiled or allocated, and flow."""
        example, spec = self.policy.spec.example(), self.policy.spec
        # Powers of two: the fast path fills up batches to these on a GPU.
        sizes = sorted(
            {min(1 << power, self.config.max_batch) for power in range(self.config.max_batch.bit_length() + 1)}
        )
        for size, foresight in [*((size, False) for size in sizes), *([(1, True)] if spec.foresees else [])]:
            done = await self.batcher.compute([example] * size, [(0, number) for number in range(size)], foresight)
            for chunk in done.chunks:
                if isinstance(chunk, Exception):
                    raise LampError(f"the policy fails on an example of its own cameras and state: {chunk}")

    def _connection(self, *arguments: Any, **options: Any) -> ClientConnection | TlsHandshake:
        """What the event loop makes of each connection that it accepts."""
        connection = ClientConnection(*arguments, budget=self.budget, **options)
        return connection if self.tls is None else TlsHandshake(connection, self.tls)

    def _refused(self, reason: str) -> None:
        self.metrics.refusals[reason] += 1

    def _routes(self) -> Routes:
        def gauges() -> str:
            shown = self.live.shown
            return self.metrics.text(
                {
                    "lamp_clients": ("Connected clients.", float(len(self.sessions))),
                    "lamp_buffered_bytes": ("What clients have sent and the server holds.", float(self.budget.total)),
                    "lamp_waiting_observations": ("Observations in the queue.", float(self.batcher.waiting)),
                    "lamp_gate": ("Opening of the motion gate.", shown.chunk.gate if shown else None),
                }
            )

        return Routes(
            keys=self.keys,
            live=(lambda: self.live) if self.config.page else None,
            metrics=gauges,
            clients=lambda: (len(self._clients), self.config.max_clients),
            state=lambda: "stopping" if self._stopping.is_set() else "ready" if self.ready else "loading",
            refused=self._refused,
            waiting=lambda: self.batcher.waiting,
        )

    async def _handle_connection(self, connection: ClientConnection) -> None:
        if len(self._clients) >= self.config.max_clients:  # several may have passed the gate at once
            await connection.close(1013, "the server has as many clients as it takes; try again later")
            return
        self._clients.add(connection)
        try:
            if not self.ready:
                await self._wait_until_ready(connection)
            if self.ready and connection.protocol.state is State.OPEN:
                await self._serve(connection)
        finally:
            self._clients.discard(connection)

    async def _wait_until_ready(self, connection: ClientConnection) -> None:
        """Keeps a client until the policy is there, it goes, or the server stops."""
        waits = [asyncio.ensure_future(wait) for wait in (self._readiness.wait(), connection.wait_closed())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not self.ready:
            await connection.close(1001, "the server is stopping")

    async def _serve(self, connection: ClientConnection) -> None:
        spec, units = self.policy.spec, self.openpi.units
        path, limits = urlsplit(connection.request.path).path if connection.request else "", self.config.limits
        at_vllm_omni = path.rstrip("/") == VLLM_OMNI_PATH
        session = ClientSession(
            connection=connection,
            batcher=self.batcher,
            protocols=(VllmOmni(spec=spec, units=units, openpi=self.openpi),)
            if at_vllm_omni
            else (VlaEval(spec=spec, units=units, limits=limits), self.starvla, self.openpi),
            metrics=self.metrics,
            limits=limits,
            greeting=self.vllm_omni_greeting if at_vllm_omni else self.greeting,
            stopping=self._stopping,
            send_timeout_s=self.config.send_timeout_s,
            first_seed=seed_of(connection.request.path) if connection.request else None,
        )
        self.sessions.add(session)
        self.metrics.connections += 1
        try:
            await session.serve()
        finally:
            self.sessions.discard(session)

    def _active_clients(self) -> int:
        since = time.monotonic() - ACTIVE_CLIENT_S
        return sum(session.asked_at >= since for session in self.sessions)

    def _note(self, done: ComputedBatch) -> None:
        """Counts a batch, shows it, and predicts flow for the page where nobody waits."""
        self.metrics.observations += len(done.requests)
        self.metrics.batch.add(float(len(done.requests)))
        self.metrics.infer.add(done.infer_s)
        begun = time.perf_counter() - done.infer_s
        for request in done.requests:
            self.metrics.queue.add(max(begun - request.arrived, 0.0))
        request, chunk = done.requests[-1], done.chunks[-1]
        if not isinstance(chunk, ActionChunk):
            return
        self.live.note(request, chunk, infer_ms=1000 * done.infer_s, batch=len(done.requests))
        drawing = self._picture is not None and not self._picture.done()
        if self.live.wants_flow and not self.batcher.waiting and not drawing and chunk.foresight is None:
            self._picture = asyncio.get_running_loop().create_task(self._foresee(done))

    async def _foresee(self, done: ComputedBatch) -> None:
        request = done.requests[-1]
        seen = await self.batcher.compute([request.observation], [request.noise_seed], True)
        chunk, self.live.picture_s = seen.chunks[0], seen.infer_s
        if isinstance(chunk, ActionChunk):
            self.live.note(request, chunk, infer_ms=1000 * done.infer_s, batch=len(done.requests))


@asynccontextmanager
async def serving(
    policy: ServedPolicy, config: ServerConfig, *, artist: Artist | None = None
) -> AsyncIterator[PolicyServer]:
    """Serves a policy while the block runs."""
    server = PolicyServer(config, artist=artist)
    try:
        await server.listen()
        await server.answer(policy)
        yield server
    finally:
        await server.stop()


@contextmanager
def served(policy: ServedPolicy, config: ServerConfig, *, artist: Artist | None = None) -> Iterator[PolicyServer]:
    """Serves a policy from a thread of its own while the block runs: for notebooks, tests and measurements."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        server = PolicyServer(config, artist=artist)
        try:
            loop.run_until_complete(server.listen())
            loop.run_until_complete(server.answer(policy))
        except BaseException:
            loop.run_until_complete(server.stop())
            raise
        thread = threading.Thread(target=loop.run_forever, name="lamp-server", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


def serve(config: ServeConfig, *, artist: Artist | None = None) -> None:
    """Serves a checkpoint until SIGTERM or Ctrl-C; a second one stops at once.

    Raises:
        DataError: There is no such checkpoint, key file or certificate.
        ConfigError: The address cannot be listened on.
    """

    def open_policy() -> ServedPolicy:
        return open_checkpoint(
            config.checkpoint,
            device=_device(config.device),
            threads=config.threads,
            fast=config.fast,
            precision=config.precision,
            dataset=config.dataset,
            real_time=config.real_time,
        )

    asyncio.run(serve_until_signalled(open_policy, config, artist=artist))


async def serve_until_signalled(
    policy: ServedPolicy | Callable[[], ServedPolicy], config: ServerConfig, *, artist: Artist | None = None
) -> None:
    """Serves a policy until SIGTERM or Ctrl-C, and finishes what is in flight.

    Args:
        policy: What answers, or what opens it: that is called when the port has been taken, in a thread of its own.
        config: Where and for whom.
        artist: Draws the predicted flow for the live page.
    """
    loop, stop_requested = asyncio.get_running_loop(), asyncio.Event()
    server = PolicyServer(config, artist=artist)

    def on_signal(number: int) -> None:
        if stop_requested.is_set() or not server.ready:
            words = "stopped at once" if stop_requested.is_set() else "stopped while loading; nothing was in flight"
            print(f"lamp: {words}", file=sys.stderr, flush=True)
            os._exit(
                1 if stop_requested.is_set() else 128 + number
            )  # anything gentler would wait for the policy's thread
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    allow_open_files(config.max_clients + MAX_HANDSHAKES)
    try:
        await server.listen()
        if callable(policy):
            print(f"lamp: loading; who connects to {server.address} waits", file=sys.stderr, flush=True)
            policy = await asyncio.to_thread(policy)
        print("lamp: warming up", file=sys.stderr, flush=True)
        await server.answer(policy)
        # What is there now stays; looking for garbage then is quick, however large the policy is.
        gc.collect()
        gc.freeze()
        for line in announcement(server):
            print(line, file=sys.stderr, flush=True)
        await stop_requested.wait()
        print("lamp: stopping; what is in flight is finished first", file=sys.stderr, flush=True)
    finally:
        await server.stop()


def allow_open_files(connections: int) -> None:
    """Raises this process' limit of open files, where so many connections would not fit and the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        target = min(target, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def announcement(server: PolicyServer) -> Iterator[str]:
    """What the user is told once clients may connect."""
    config, spec = server.config, server.policy.spec
    yield f"lamp: serving at {server.address}"
    if config.page:
        yield f"lamp: live page at {server.address.replace('ws', 'http', 1)}/"
    takes = spec.expected.removeprefix("Expected ").removesuffix(".")
    gives = f"{spec.chunk}x{spec.action_width} in {config.units} units"
    yield f"lamp: {takes}, state {spec.state_width}, actions {gives}"
    if not server.keys.needed and config.host not in ("127.0.0.1", "localhost", "::1"):
        yield "lamp: anybody who reaches this port may use it and see the cameras; --api-key-file asks for a key"


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _silenced_logger() -> logging.Logger:
    """The library's log of handshakes that fail is noise on an open port."""
    logger = logging.getLogger("lamp.serve.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
