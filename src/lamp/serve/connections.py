"""What clients have sent and the server still holds: counted over all connections, bounded, and freed when a connection ends.

The websocket library bounds a message, and nothing else. Here the slowest client goes when all of them together hold too much,
and so does one that lets a message trickle, sends it in thousands of fragments, or floods the server with pings.
"""

from __future__ import annotations

import asyncio
import ctypes
import email.utils
import errno
import http
import logging
import re
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import InvalidMessage
from websockets.frames import Frame, Opcode
from websockets.protocol import State

log = logging.getLogger("lamp.serve")

MAX_FRAGMENTS = 1024
"""Frames of a message; clients of robots send one or a few."""
MAX_CONTROLS = 200
"""Pings and pongs of a client in a second; one in 20 s is usual."""
MAX_HANDSHAKES = 128
"""Connections without an open websocket: those whose TLS is not up, that have not said what they want, or that are being answered
and closed. The oldest goes where there are more."""
HANDSHAKE_S, CLOSE_S = 10.0, 5.0
"""How long TLS, and then HTTP, may take to open a connection; how long it may take to close one [s]."""
FRAME_BYTES = 400
"""What a frame takes beside its payload, measured."""
_SLICE = 16 * 1024
"""Bytes that are parsed at a time, so that a flood of tiny frames is noticed before it holds up everybody else."""
_LINGER_S = 1.0
"""How long a client that is sent away may take to read why."""
_SWEEP_S = 1.0
_TRIM_BYTES = 32_000_000
_OTHER_METHOD = re.compile(rb"(?!GET |HEAD )[A-Z]{3,10} ")
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
TRY_AGAIN_LATER, POLICY_VIOLATION = 1013, 1008


@dataclass(kw_only=True, eq=False)
class ReceiveBudget:
    """All connections, and what they hold together."""

    limit: int
    """Bytes that all clients together may have sent without an answer; beyond, the slowest is sent away."""
    patience_s: float
    """How long a message may take from its first byte to its last [s]."""
    refused: Callable[[str], None]
    """Told the reason for each client that is sent away."""
    connections: dict[ClientConnection, None] = field(default_factory=dict)
    """In the order of their arrival."""
    total: int = 0
    """Bytes held, as of each connection's last message."""
    _peak: int = 0
    """The largest total since memory was last given back."""

    def add(self, connection: ClientConnection) -> None:
        """Counts a connection; where too many have no open websocket, the oldest of those ends."""
        self.connections[connection] = None
        shaking = [each for each in self.connections if each.protocol.state is not State.OPEN]
        if len(shaking) > MAX_HANDSHAKES:
            self.refused("handshakes")
            shaking[0].transport.abort()
            self.remove(shaking[0])

    def remove(self, connection: ClientConnection) -> None:
        """Forgets a connection that has ended."""
        if connection in self.connections:
            del self.connections[connection]
            self.total -= connection.held

    def update(self, connection: ClientConnection) -> None:
        """Takes up what a connection holds now."""
        if connection in self.connections:
            before, connection.held = connection.held, connection.measured()
            self.total += connection.held - before
            self._peak = max(self._peak, self.total)

    def note(self, connection: ClientConnection) -> None:
        """Takes up what a connection holds now, and sends the slowest away where all hold too much."""
        self.update(connection)
        while self.total > self.limit and (slowest := self._slowest()) is not None:
            slowest.dismiss(TRY_AGAIN_LATER, "the server holds as much as it takes; send again later", "memory")

    def _slowest(self) -> ClientConnection | None:
        """Whose message began first and is not whole yet; where all are whole, who holds most."""
        for each in self.connections:
            each.held = each.measured()
        self.total = sum(each.held for each in self.connections)
        if self.total <= self.limit:
            return None
        candidates = [each for each in self.connections if each.held and not each.dismissed]
        begun = [each for each in candidates if each.begun is not None]
        if begun:
            return min(begun, key=lambda each: each.begun or 0.0)
        return max(candidates, key=lambda each: each.held, default=None)

    async def sweep(self) -> None:
        """Sends those away whose message takes too long; runs as long as the server does."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            if self._peak - self.total > _TRIM_BYTES:
                _trim()
                self._peak = self.total
            for each in list(self.connections):
                if each.begun is not None and each.recv_messages.paused:  # it is the server that does not read
                    each.begun = now
                elif (
                    each.begun is not None and now - each.begun > self.patience_s and each.protocol.state is State.OPEN
                ):
                    words = f"a message took more than {self.patience_s:g} s to arrive"
                    each.dismiss(POLICY_VIOLATION, words, "trickle")


def _trim() -> None:
    """Gives freed memory back to the system: glibc keeps it for later, after a few large messages for good."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class TlsHandshake(asyncio.Protocol):
    """A connection until its TLS is up; from then on it is the `ClientConnection`, which is counted from the start.

    Left to the event loop, handshakes would be made before anybody knows of the connection, and so without end.
    """

    def __init__(self, connection: ClientConnection, context: ssl.SSLContext) -> None:
        self._connection, self._context = connection, context
        self._early: list[bytes] = []
        """What arrived with the last message of the handshake."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        self._connection.transport = transport
        self._connection.budget.add(self._connection)
        self._task = self._connection.loop.create_task(self._shake(transport), name="lamp-tls")

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    async def _shake(self, transport: asyncio.Transport) -> None:
        try:
            secured = await self._connection.loop.start_tls(
                transport, self, self._context, server_side=True,
                ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=CLOSE_S,
            )  # fmt: skip
        except (OSError, asyncio.CancelledError):  # no TLS, too old a one, too slow, gone, or the server has ended
            secured = None
        if secured is None or secured.is_closing():
            transport.abort()
            self._connection.budget.remove(self._connection)
            return
        secured.set_protocol(self._connection)
        self._connection.connection_made(secured)
        for data in self._early:
            self._connection.data_received(data)


class ClientConnection(ServerConnection):
    """A connection that knows what it holds, and frees it when it ends."""

    def __init__(self, *arguments: Any, budget: ReceiveBudget, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.budget = budget
        self.held = 0
        """Bytes, as counted last."""
        self.begun: float | None = None
        """Since when a message has been arriving, by the monotonic clock; None between messages."""
        self.dismissed = False
        self.head = False
        """Whether the request's method is HEAD."""
        self._waiting: deque[int] = deque()
        """Bytes of each message that is whole and has not been read."""
        self._whole = 0
        """Their sum."""
        self._partial = self._fragments = self._answering = self._controls = 0
        self._controls_since = 0.0

    def measured(self) -> int:
        """Bytes that the server holds for this client now."""
        held = len(self.protocol.reader.buffer) + self._partial + self._whole + self._answering
        return held + self.transport.get_write_buffer_size()

    def answered(self) -> None:
        """The message that was read last is not needed any more."""
        self._answering = 0
        self.budget.update(self)

    def dismiss(self, code: int, why: str, reason: str) -> None:
        """Ends the connection from this side, and frees what it holds at once.

        Args:
            code: Of the closing frame.
            why: In the closing frame, for the client.
            reason: For the figures.
        """
        if self.dismissed:
            return
        self.dismissed = True
        self.budget.refused(reason)
        if self.protocol.state is State.OPEN:
            self.protocol.fail(code, why)
            self.send_data()
            self.loop.call_later(_LINGER_S, self.transport.abort)
        else:
            self.transport.abort()
        self._free()
        self.budget.update(self)

    async def recv(self, decode: bool | None = None) -> Any:
        message = await super().recv(decode)
        self._answering = self._waiting.popleft() if self._waiting else 0
        self._whole -= self._answering
        return message

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.budget.add(self)

    def data_received(self, data: bytes) -> None:
        if self.request is None and not self.dismissed:
            data = self._http(data)
        for start in range(0, len(data), _SLICE):
            if self.dismissed:
                return
            super().data_received(data[start : start + _SLICE])
        if self.protocol.parser_exc is not None and not self.dismissed:  # the library has said why; nobody has to agree
            self.dismissed = True
            self._free()
            self.loop.call_later(_LINGER_S, self.transport.abort)
        if not self.protocol.reader.buffer and not self._fragments:
            self.begun = None
        elif self.begun is None:
            self.begun = time.monotonic()
        self.budget.note(self)

    def process_event(self, event: Any) -> None:
        if self.dismissed:
            return
        if isinstance(event, Frame):
            (self._count_data if event.opcode in _DATA else self._count_control)(event)
        if not self.dismissed:
            super().process_event(event)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._free()
        # What is left is small, but a cycle: the parser and the traceback of its end refer to the protocol, which has them.
        self.protocol.parser = (None for _ in ())
        for error in (self.protocol.parser_exc, self.protocol.handshake_exc, self.connection_exc):
            if error is not None:
                error.__traceback__ = None
                if error.__cause__ is not None:
                    error.__cause__.__traceback__ = None
        self.budget.remove(self)

    def _count_data(self, frame: Frame) -> None:
        self._partial += len(frame.data) + FRAME_BYTES
        self._fragments += 1
        if frame.fin:
            self._waiting.append(self._partial)
            self._whole += self._partial
            self._partial, self._fragments, self.begun = 0, 0, None
        elif self._fragments >= MAX_FRAGMENTS:
            self.dismiss(POLICY_VIOLATION, f"a message has more than {MAX_FRAGMENTS} fragments", "fragments")

    def _count_control(self, _: Frame) -> None:
        now = time.monotonic()
        if now - self._controls_since > 1.0:
            self._controls_since, self._controls = now, 0
        self._controls += 1
        if self._controls > MAX_CONTROLS:
            self.dismiss(POLICY_VIOLATION, f"more than {MAX_CONTROLS} pings in a second", "pings")

    def _free(self) -> None:
        """Drops all that has arrived and was not read."""
        self.recv_messages.close()
        self.recv_messages.frames.queue.clear()
        self.protocol.reader.discard()
        self._waiting.clear()
        self._whole = self._partial = self._fragments = 0
        self.begun = None

    def _http(self, data: bytes) -> bytes:
        """The beginning of a request, as the library reads it: it knows GET, and hangs up on a body without a word."""
        begun = bytes(self.protocol.reader.buffer[:16]) + data[:16]
        if _OTHER_METHOD.match(begun):
            self.dismissed = True
            self._refuse(405, "Expected GET or HEAD, or the websocket that robots use.", "Allow: GET, HEAD\r\n")
        elif data.startswith(b"HEAD "):
            self.head, data = True, b"GET " + data[5:]
        return data

    def send_data(self) -> None:
        error = self.protocol.handshake_exc
        if isinstance(error, InvalidMessage) and not self.dismissed:  # here the library would hang up without a word
            self.dismissed = True
            self._refuse(400, f"{error.__cause__}. Expected a GET request of HTTP/1.1 without a body.")
        else:
            super().send_data()

    def _refuse(self, status: int, words: str, headers: str = "") -> None:
        """Answers a request over HTTP and ends the connection; meanwhile what still arrives is read and dropped."""
        if self.transport.is_closing():
            return
        body = f"{words}\n".encode()
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n{headers}Date: {email.utils.formatdate(usegmt=True)}\r\n"
            f"Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)


@dataclass(kw_only=True)
class AcceptErrorHandler:
    """Handles the event loop's errors: where no file descriptor is left for a connection, one line a minute says so."""

    every_s: float = 60.0
    otherwise: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
    """What handled errors before."""
    _warned_at: float = field(default=-1e9, init=False)

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            if time.monotonic() - self._warned_at >= self.every_s:
                self._warned_at = time.monotonic()
                log.warning(
                    "no new connections for now: %s; those that are open are served. Raise the limit: ulimit -n",
                    error.strerror,
                )
        elif isinstance(error, ValueError) and "_start_serving" in repr(context.get("handle")):
            pass  # the server has stopped before accepting could be tried again
        elif self.otherwise is not None:
            self.otherwise(loop, context)
        else:
            loop.default_exception_handler(context)
