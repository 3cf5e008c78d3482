"""One client's connection: its messages in turn, its episode, its noise."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed

from lamp.errors import LampError
from lamp.serve.batching import Batcher, BusyError, PolicyFailedError
from lamp.serve.connections import ClientConnection
from lamp.serve.message_values import Message, NoiseSeed, map_from
from lamp.serve.metrics import Metrics
from lamp.serve.protocols import ActReply, ErrorReply, PingRequest, PolicyRequest, ResetRequest, WireProtocol, seeds_for
from lamp_client import wire
from lamp_client.errors import LampClientError, WireError

log = logging.getLogger("lamp.serve")
_numbers = itertools.count(1)


@dataclass(kw_only=True)
class EpisodeNoise:
    """Where a client is in its episode."""

    seed: NoiseSeed | None = None
    """Its calls' noise is numbered from here; None: chance."""
    calls: int = 0

    def noise_seed(self) -> NoiseSeed:
        """The seed of the next call."""
        seed = (secrets.randbits(62),) if self.seed is None else (*self.seed, self.calls)
        self.calls += 1
        return seed


@dataclass(kw_only=True, eq=False)
class ClientSession:
    """Serves one client, one request after the other.

    Whatever the client sends, it is answered or refused, and nobody else notices.
    """

    connection: ClientConnection
    batcher: Batcher
    protocols: Sequence[WireProtocol]
    """The last one matches everything that no other does."""
    metrics: Metrics
    limits: wire.Limits
    greeting: bytes
    stopping: asyncio.Event
    send_timeout_s: float
    first_seed: NoiseSeed | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    asked_at: float = -1e9
    """When the client last asked for actions, by the monotonic clock."""
    busy: bool = False
    """Whether a request is being answered."""
    episode: EpisodeNoise = field(init=False)
    prev_total_ms: float | None = None
    _work: asyncio.Future[Any] | None = None

    def __post_init__(self) -> None:
        self.episode = EpisodeNoise(seed=self.first_seed)

    async def serve(self) -> None:
        """Answers until the client leaves or the server stops."""
        gone = asyncio.ensure_future(self.connection.wait_closed())
        gone.add_done_callback(lambda _: self._cancel_work())
        try:
            await self._send(self.greeting)
            if self.stopping.is_set():  # the server began to stop during the handshake
                await self.close_if_idle()
            while True:
                close = await self._handle_next()
                if close is not None or self.stopping.is_set():
                    await self.connection.close(*(close or (1001, "the server is stopping")))
        except ConnectionClosed:
            pass
        except TimeoutError:
            # Its buffers are full: a closing handshake would wait behind them.
            self.metrics.refusals["slow"] += 1
            self.connection.transport.abort()
        finally:
            self.busy = False
            gone.cancel()

    async def _handle_next(self) -> tuple[int, str] | None:
        """Takes the next message, answers it and forgets it; an idle client should not keep its last one in memory."""
        encoded = await self.connection.recv()
        self.busy = True
        close = await self._handle(encoded)
        self.busy = False
        self.connection.answered()
        await asyncio.sleep(0)  # a client with thousands of messages waiting takes turns with the others
        return close

    async def close_if_idle(self) -> None:
        """Tells a client that waits for nothing that the server is stopping."""
        if not self.busy:
            await self.connection.close(1001, "the server is stopping")

    async def _handle(self, encoded: str | bytes) -> tuple[int, str] | None:
        """Answers one message; returns how to close the connection, where that is due."""
        arrived = time.perf_counter()
        message: Message = {}
        protocol = self.protocols[-1]
        try:
            message = self._unpacked(encoded)
            protocol = next(protocol for protocol in self.protocols if protocol.matches(message))
            reply = await self._reply(protocol, message)
        except asyncio.CancelledError:
            if self.connection.close_code is None and not self.connection.transport.is_closing():
                raise
            return None
        except Exception as error:
            return await self._refuse(
                protocol.error_reply(message, self._error_for_client(error), busy=isinstance(error, BusyError))
            )
        if reply is not None:
            await self._send(reply)
        total = time.perf_counter() - arrived
        self.metrics.request.add(total)
        self.metrics.requests[protocol.name] += 1
        self.prev_total_ms = 1000.0 * total
        return None

    def _unpacked(self, encoded: str | bytes) -> Message:
        if isinstance(encoded, str):
            raise WireError("the message is text; expected a binary frame of msgpack.")
        return map_from(wire.unpack(encoded, limits=self.limits, copy=False), "the message is a {}; expected a map.")

    async def _reply(self, protocol: WireProtocol, message: Message) -> bytes | None:
        request = protocol.read(message)
        answers = await self._compute(request)
        reply = protocol.make_reply(message, request, answers, self.prev_total_ms)
        return None if reply is None else wire.pack(reply)

    async def _compute(self, request: PolicyRequest) -> list[ActReply]:
        match request:
            case ResetRequest():
                self.episode = EpisodeNoise(seed=request.noise_seed or self.first_seed)
                self.metrics.resets += 1
                return []
            case PingRequest():
                return []
        self.asked_at = time.monotonic()
        if request.begins:
            self.episode = EpisodeNoise(seed=self.first_seed)
        seeds = seeds_for(request, request.noise_seed or self.episode.noise_seed())
        asking = self.batcher.ask(request.observations, seeds, foresight=request.foresight, client=self.number)
        self._work = asyncio.ensure_future(asking)
        try:
            return await self._work
        finally:
            self._work = None

    def _cancel_work(self) -> None:
        """The client has gone: what it asked need not be computed."""
        if self._work is not None:
            self._work.cancel()

    def _error_for_client(self, error: Exception) -> str:
        """What the client reads; the reason is counted."""
        if isinstance(error, LampError | LampClientError):
            reason = {BusyError: "busy", PolicyFailedError: "policy"}.get(type(error), "request")
            self.metrics.refusals[reason] += 1
            return str(error)
        log.error("a request broke the server's code", exc_info=error)
        self.metrics.refusals["server"] += 1
        return f"the server failed: {type(error).__name__}: {str(error)[:300]}"

    async def _refuse(self, refusal: ErrorReply) -> tuple[int, str] | None:
        frame = refusal.frame
        await self._send(frame if isinstance(frame, str) else wire.pack(frame))
        return None if refusal.close is None else (refusal.close, "the request was refused; see the frame before")

    async def _send(self, frame: str | bytes) -> None:
        """
        Raises:
            TimeoutError: The client does not take it.
        """
        async with asyncio.timeout(self.send_timeout_s):
            await self.connection.send(frame)
