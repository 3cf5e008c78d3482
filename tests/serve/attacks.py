"""Clients that misbehave in every way that we could think of, over raw sockets: what a library would not send is sent too."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from serve_fakes import example, request
from test_wire_hostile import array_of, hostile  # pyright: ignore[reportMissingImports]

from lamp_client import wire

PATIENCE_S = 30.0
"""A server that leaves a client without a word for so long hangs."""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
HANDSHAKES = (
    b"GET /?seed=" + b"9" * 5000 + b" HTTP/1.1\r\n" + UPGRADE[16:] + b"\r\n",
    b"GET //[ HTTP/1.1\r\n" + UPGRADE[16:] + b"\r\n",
    UPGRADE + b"Origin: http://[\r\n\r\n",
    UPGRADE + b"Authorization: Basic \xff\xe9\r\n\r\n",
    b"GET /image/%ff%00.jpg HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS where there is none
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
)
"""Beginnings of connections."""


def odd_value(generator: random.Random) -> Any:
    """What stands where an image, a state, a text or a flag should be."""
    return generator.choice(
        [
            None, True, -1, 2**63, 1e308, float("nan"), "", "x" * 5000, b"\xff\x00", [], {}, [[]], [None] * 50, ["a", 1.0],
            ["x" * 100_000, *["a"] * 400], [[1, 2], [3]], {"a": {"b": []}}, list(range(3000)), np.zeros(0, np.float32),
            np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0, 3), np.uint8), np.zeros((1, 90_000, 3), np.uint8),
            np.zeros((300, 300, 3), np.uint8), np.zeros((1,) * 30, np.uint8), np.zeros((3, 32, 32), np.uint8),
            np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3), np.float64), np.full(8, np.inf), np.full(8, 3e38, np.float32),
            np.zeros(8, "<M8[s]"), np.array(["a" * 9] * 8), np.zeros(8, "S5"), np.zeros((32, 32, 3), np.int8),
            np.zeros(8, np.float16), np.arange(8, dtype=np.uint64), np.zeros((2, 4)), np.float32(1), np.bool_(True), np.zeros(()),
        ]
    )  # fmt: skip


KEYS = (
    *("observation/image", "observation/wrist_image", "observation/state", "prompt", "lamp/noise_seed"),
    *("lamp/foresight", "lamp/reset", "observation.images.agentview", "observation.state", "task", "type", "__ctrl__"),
)
EXAMPLE_KEYS = ("image", "lang", "state")
OBSERVATION_KEYS = ("images", "states", "task_description", "protocol_version")
ENVELOPE_KEYS = ("examples", "unnorm_key", "lamp/noise_seed", "lamp/foresight")


def odd_request(generator: random.Random) -> dict[Any, Any]:
    """An openpi request with something out of place."""
    message: dict[Any, Any] = request(generator.randrange(4))
    for _ in range(generator.randrange(1, 4)):
        key = generator.choice(KEYS)
        if generator.random() < 0.2:
            message.pop(key, None)
        else:
            message[key] = odd_value(generator)
    return message


def odd_envelope(generator: random.Random) -> dict[Any, Any]:
    """A request of starVLA with something out of place; as errors keep the connection, many follow each other."""
    one: dict[str, Any] = example(generator.randrange(4))
    if generator.random() < 0.6:
        one[generator.choice(EXAMPLE_KEYS)] = generator.choice([odd_value(generator), [odd_value(generator)] * 2])
    payload: dict[str, Any] = {"examples": [one] * generator.choice([1, 1, 2, 70])}
    if generator.random() < 0.6:
        payload[generator.choice(ENVELOPE_KEYS)] = odd_value(generator)
    kind = generator.choice(["infer", "predict_action", "ping", "reset"])
    number = generator.choice([1, "r", "x" * 500, None, [1]])
    return {"type": kind, "request_id": number, "payload": payload}


def odd_vla_eval(generator: random.Random) -> dict[Any, Any]:
    """A message of vla-eval with something out of place."""
    one: dict[str, Any] = example(generator.randrange(4))
    payload: dict[str, Any] = {"images": one["image"], "states": one["state"], "task_description": one["lang"]}
    payload[generator.choice(OBSERVATION_KEYS)] = odd_value(generator)
    kind = generator.choice(["observation", "observation", "hello", odd_value(generator)])
    return {"type": kind, "payload": payload, "seq": odd_value(generator), "timestamp": 0.0}


def object_array(generator: random.Random) -> bytes:
    """A pickle, or what says that it is one."""
    dtype, data = generator.choice(["|O", "O", "|V8", "<c8", "O8"]), generator.choice([b"\x80\x04.", b"cos\nsystem\n."])
    return b"\x81\xb1observation/image" + array_of(dtype, [1], data)


def frame(payload: bytes, opcode: int = 0x82) -> bytes:
    """One masked websocket frame (the mask is zero)."""
    size = len(payload)
    if size < 126:
        head = bytes([opcode, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([opcode, 0xFE]) + struct.pack(">H", size)
    else:
        head = bytes([opcode, 0xFF]) + struct.pack(">Q", size)
    return head + b"\0\0\0\0" + payload


def broken_frames(generator: random.Random) -> bytes:
    """Frames that a websocket library does not send."""
    return generator.choice(
        [
            frame(b"x" * 100)[: generator.randrange(1, 100)],  # cut short
            frame(b"x" * 130, 0x89),  # a ping that is too long
            frame(b"x", 0x83),  # an opcode that does not exist
            frame(b"x", 0xC2),  # a reserved bit
            frame(b"x", 0x80),  # goes on with what has not begun
            frame(b"x", 0x02) + frame(b"y", 0x82),  # a message inside another
            frame(b"\xff\xfe", 0x81),  # text that is none
            b"\x82\x01x",  # without a mask
            b"\x82\xff" + struct.pack(">Q", 2**63 - 1) + b"\0" * 40,  # announces everything there is
            frame(b"\x00\x01", 0x88),  # closes with a code that does not exist
            generator.randbytes(generator.randrange(1, 300)),
        ]
    )


@dataclass
class Attack:
    """Attacks an address with so many messages, several connections at a time; counts what it did."""

    port: int
    messages: int
    seed: int = 0
    at_once: int = 24
    hold_s: float = 1.0
    """How long slow clients keep their connections."""
    did: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._generator = random.Random(self.seed)
        self._valid = wire.pack(request())

    async def run(self) -> None:
        """Sends all of them."""
        await asyncio.gather(*(self._worker() for _ in range(self.at_once)))

    async def _worker(self) -> None:
        kinds: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self.hostile, 0.58), (self.odd, 0.15), (self.envelopes, 0.03), (self.objects, 0.05), (self.text, 0.02),
            (self.frames, 0.05), (self.handshake, 0.02), (self.vanish, 0.025), (self.slow, 0.005), (self.aborted, 0.02),
            (self.oversized, 0.01), (self.fragments, 0.005), (self.pings, 0.005), (self.methods, 0.01),
        ]  # fmt: skip
        doings, weights = zip(*kinds, strict=True)
        while self.did.total() < self.messages:
            (doing,) = self._generator.choices(doings, weights)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await doing()
            except (ConnectionError, asyncio.IncompleteReadError, BrokenPipeError):
                pass  # it was shown the door

    async def _opened(self, *, upgrade: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # From many addresses of loopback: ports of one would run out.
        here = f"127.{self._generator.randrange(1, 200)}.{self._generator.randrange(256)}.{self._generator.randrange(1, 255)}"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(here, 0))
        if upgrade:
            writer.write(UPGRADE + b"\r\n")
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            await _message(reader)
        return reader, writer

    async def _send_invalid(self, message: bytes, kind: str, opcode: int = 0x82) -> None:
        """Sends one message and takes whatever is answered."""
        self.did[kind] += 1
        reader, writer = await self._opened()
        try:
            writer.write(frame(message, opcode))
            await _message(reader)
        finally:
            writer.close()

    async def hostile(self) -> None:
        """Noise, truncated and damaged messages, headers that lie."""
        await self._send_invalid(hostile(self._generator, self._valid), "hostile bytes")

    async def odd(self) -> None:
        """Well-formed messages with something wrong in them: types, shapes, sizes."""
        await self._send_invalid(
            wire.pack(self._generator.choice([odd_request, odd_vla_eval])(self._generator)), "odd requests"
        )

    async def objects(self) -> None:
        """Pickles."""
        await self._send_invalid(object_array(self._generator), "object arrays")

    async def text(self) -> None:
        """Text frames."""
        await self._send_invalid(self._generator.choice([b"", b"hello", b'{"prompt": 1}', b"x" * 9000]), "text", 0x81)

    async def envelopes(self) -> None:
        """Odd requests of starVLA, one after another over one connection, which is good afterwards."""
        reader, writer = await self._opened()
        try:
            for _ in range(8):
                self.did["odd envelopes"] += 1
                writer.write(frame(wire.pack(odd_envelope(self._generator))))
                opcode, payload = await _message(reader)
                if (
                    opcode != 0x82
                ):  # too large for a message, or for the codec, which has no protocol: that ends a connection
                    return
                reply = wire.unpack(payload)
                assert reply["ok"] in (True, False) and reply["request_id"] in (1, "r", "default"), reply
        finally:
            writer.close()

    async def frames(self) -> None:
        """Broken frames, and then nothing: the server's patience, or ours, ends it."""
        self.did["broken frames"] += 1
        reader, writer = await self._opened()
        writer.write(broken_frames(self._generator))
        try:
            async with asyncio.timeout(0.2):
                await reader.read(1 << 16)
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()

    async def handshake(self) -> None:
        """Beginnings that are none."""
        self.did["handshakes"] += 1
        reader, writer = await self._opened(upgrade=False)
        writer.write(self._generator.choice([*HANDSHAKES, self._generator.randbytes(400)]))
        try:
            async with asyncio.timeout(0.5):
                await reader.read(1 << 16)
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()

    async def vanish(self) -> None:
        """Asks something good and is gone, with a reset, before the answer."""
        self.did["vanished"] += 1
        _, writer = await self._opened()
        writer.write(frame(self._valid))
        await asyncio.sleep(self._generator.random() * 0.01)
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def aborted(self) -> None:
        """Sends much of a message that never ends, in one frame or several, and is gone."""
        self.did["aborted"] += 1
        _, writer = await self._opened()
        size = self._generator.randrange(1_000_000, 1_900_000)
        try:
            if self._generator.random() < 0.5:
                writer.write(frame(b"x" * size)[: size // 2])
            else:
                for number in range(8):
                    writer.write(frame(b"x" * (size // 8), 0x02 if number == 0 else 0x00))
            async with asyncio.timeout(5.0):
                await writer.drain()
        except TimeoutError:
            pass
        finally:
            (writer.close if self._generator.random() < 0.5 else writer.transport.abort)()

    async def oversized(self) -> None:
        """Sends more than a message may have, at once or piece by piece; the server says so."""
        self.did["oversized"] += 1
        reader, writer = await self._opened()
        try:
            if self._generator.random() < 0.5:
                writer.write(frame(b"x" * 2_100_000))
            else:
                for number in range(30):
                    writer.write(frame(b"x" * 100_000, 0x02 if number == 0 else 0x00))
            opcode, payload = await _message(reader)
            assert opcode == 0x88 and payload[:2] == (1009).to_bytes(2, "big"), payload
        finally:
            writer.transport.abort()

    async def fragments(self) -> None:
        """Sends a message byte by byte, each in a frame of its own."""
        self.did["fragments"] += 1
        reader, writer = await self._opened()
        try:
            writer.write(frame(b"x", 0x02) + frame(b"x", 0x00) * 40_000)
            opcode, payload = await _message(reader)
            assert opcode == 0x88 and payload[:2] == (1008).to_bytes(2, "big"), payload
        finally:
            writer.transport.abort()

    async def pings(self) -> None:
        """Sends pings without end and reads nothing."""
        self.did["pings"] += 1
        _, writer = await self._opened()
        writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            writer.write(frame(b"x" * 125, 0x89) * 5000)
            async with asyncio.timeout(5.0):
                await writer.drain()
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()

    async def methods(self) -> None:
        """Other methods than GET, with and without a body."""
        self.did["methods"] += 1
        reader, writer = await self._opened(upgrade=False)
        try:
            method, body = (
                self._generator.choice([b"POST", b"PUT", b"DELETE", b"PATCH"]),
                b"x" * self._generator.choice([0, 9000]),
            )
            writer.write(method + b" / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 405 " in answer and b"Allow: GET, HEAD" in answer, answer
        finally:
            writer.transport.abort()

    async def slow(self) -> None:
        """Sends a request drop by drop, or asks for a lot and reads nothing."""
        self.did["slow"] += 1
        _, writer = await self._opened()
        try:
            if self._generator.random() < 0.5:
                whole = frame(self._valid)
                for start in range(0, 100, 10):
                    writer.write(whole[start : start + 10])
                    await asyncio.sleep(self.hold_s / 10)
            else:
                writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
                asked = frame(wire.pack(request(0, lamp_foresight=True)))
                for _ in range(20):
                    writer.write(asked)
                await asyncio.sleep(self.hold_s)
        finally:
            writer.transport.abort()


def attacked(port: int, messages: int, seed: int) -> tuple[dict[str, int], float]:
    """Attacks, in a process of its own; what was done, and how long it took [s]."""
    attack, started = Attack(port=port, messages=messages, seed=seed), time.monotonic()
    asyncio.run(attack.run())
    return dict(attack.did), time.monotonic() - started


async def _message(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The first byte and the payload of the server's next frame that is no ping: on a busy machine one may come first."""
    opcode, payload = await _frame(reader)
    while opcode == 0x89:
        opcode, payload = await _frame(reader)
    return opcode, payload


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    opcode, size = await reader.readexactly(2)
    if size == 126:
        (size,) = struct.unpack(">H", await reader.readexactly(2))
    elif size == 127:
        (size,) = struct.unpack(">Q", await reader.readexactly(8))
    return opcode, await reader.readexactly(size)
