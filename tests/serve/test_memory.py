"""What clients leave behind: unfinished messages, floods and half-open connections cost the server nothing that lasts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from attacks import UPGRADE, frame
from serve_fakes import asked, connected, request, running
from test_fuzz import Honest, figure, program, resident_mb
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lamp.serve import connections
from lamp.serve.server import PolicyServer

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the server's memory from /proc")


async def leave_unfinished(port: int, size: int, number: int) -> None:
    """Sends most of a message and goes: in one frame, in several, with a reset, with a closed connection."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        if number % 2:
            writer.write(b"\x82\xff" + struct.pack(">Q", size + 1000) + b"\0\0\0\0")
            for _ in range(size // 65536):
                writer.write(b"x" * 65536)
                await writer.drain()
        else:
            for part in range(4):
                writer.write(frame(b"x" * (size // 4), 0x00 if part else 0x02))
                await writer.drain()
        await asyncio.sleep(0.05)
        (writer.transport.abort if number % 3 else writer.close)()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # it was sent away


@pytest.mark.long
@linux
@pytest.mark.parametrize(
    ("rounds", "clients", "megabytes"), [(4, 10, 2.9), pytest.param(20, 120, 15.9, marks=pytest.mark.slow)]
)
def test_unfinished_messages_leave_nothing_behind(rounds: int, clients: int, megabytes: float, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "max_message_mb": megabytes + 0.1,
        "max_clients": 128.0,
        "max_buffered_mb": max(24.0, 30 * megabytes),
    }
    with program(tmp_path / "stderr", **settings) as (process, port):
        honest = Honest(port, 1)
        honest.start()

        async def one_round() -> None:
            sends = (leave_unfinished(port, int(megabytes * 1e6), number) for number in range(clients))
            await asyncio.gather(*sends)

        memory = []
        for _ in range(rounds):
            asyncio.run(one_round())
            until(lambda: figure(port, "lamp_buffered_bytes ") < 1e6, 60)
            memory.append(min(after_a_moment(process) for _ in range(4)))
        print([round(each) for each in memory])
        assert max(memory[1:]) < 1.5 * memory[0] and memory[0] < 200
        honest.over.set()
        honest.join(60)
        assert honest.failed is None and len(honest.latencies) > 10
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def after_a_moment(process: Any) -> float:
    """The server's memory; what is freed goes back to the system once a second."""
    time.sleep(0.6)
    return resident_mb(process)


def unfinished(server: PolicyServer, size: int) -> socket.socket:
    """A client that has sent so much of a message, and stays."""
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(UPGRADE + b"\r\n")
    assert b"101" in client.recv(4096)
    client.sendall(b"\x82\xff" + struct.pack(">Q", size + 1000) + b"\0\0\0\0" + b"x" * size)
    return client


def code_of(client: socket.socket) -> int | None:
    """The code with which the server closes."""
    client.settimeout(10)
    told = b""
    while part := client.recv(65536):
        told += part
    at = told.rfind(b"\x88")
    return None if at < 0 else int.from_bytes(told[at + 2 : at + 4], "big")


def until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_all_clients_together_hold_so_much_and_the_slowest_goes() -> None:
    with running(max_message_mb=1.0, max_buffered_mb=4.0) as server, connected(server) as good:
        slow = [unfinished(server, 900_000) for _ in range(4)]
        until(lambda: server.budget.total > 3.5e6)
        assert not server.metrics.refusals
        slow.append(unfinished(server, 900_000))
        until(lambda: server.metrics.refusals["memory"] == 1)
        assert code_of(slow[0]) == 1013 and server.budget.total < 4e6  # the first of them, and no other
        for _ in range(3):
            assert asked(good, request())["actions"].shape == (10, 7)
        assert server.metrics.refusals == {"memory": 1}
        for client in slow:
            client.close()
        until(lambda: server.budget.total < 100_000)


def test_the_buffers_of_all_take_two_messages_at_least() -> None:
    with running(max_message_mb=1.0, max_buffered_mb=0.1) as server, connected(server) as client:
        assert asked(client, request())["actions"].shape == (10, 7)
        assert server.budget.limit == 2_000_000


def test_a_message_that_trickles_is_not_waited_for() -> None:
    with running(message_timeout_s=0.5) as server, connected(server) as good:
        client = unfinished(server, 1000)
        until(lambda: server.metrics.refusals["trickle"] == 1)
        assert code_of(client) == 1008
        time.sleep(0.6)  # nothing is arriving from the good one, so nothing of it is late
        assert asked(good, request())["actions"].shape == (10, 7)


@pytest.mark.parametrize(
    ("flood", "reason"),
    [(frame(b"x", 0x02) + frame(b"x", 0x00) * 30_000, "fragments"), (frame(b"", 0x89) * 30_000, "pings")],
    ids=["fragments", "pings"],
)
def test_floods_of_tiny_frames_end_their_connection(flood: bytes, reason: str) -> None:
    with running() as server, connected(server) as good:
        client = unfinished(server, 0)
        client.close()
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(UPGRADE + b"\r\n")
        assert b"101" in client.recv(4096)
        started = time.perf_counter()
        try:
            client.sendall(flood)
            assert code_of(client) == 1008
        except ConnectionError:
            pass
        until(lambda: server.metrics.refusals[reason] == 1)
        assert asked(good, request())["actions"].shape == (10, 7)
        assert time.perf_counter() - started < 5


def test_a_few_pings_and_fragments_are_customary() -> None:
    with running() as server, connected(server) as client:
        for _ in range(50):
            client.ping()
        from lamp_client import wire

        whole = wire.pack(request())
        client.send([whole[start : start + 100] for start in range(0, len(whole), 100)])
        assert isinstance(client.recv(timeout=10), bytes)


def test_compression_is_not_agreed_to_so_nothing_swells() -> None:
    with running() as server:
        with connect(server.address, compression="deflate", proxy=None) as client:
            assert client.protocol.extensions == []
        with socket.create_connection(("127.0.0.1", server.port)) as bomb:
            bomb.sendall(UPGRADE + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
            answer = bomb.recv(4096)
            assert b"101" in answer and b"permessage-deflate" not in answer
            bomb.sendall(frame(b"x" * 100, 0xC2))  # compressed all the same
            assert code_of(bomb) == 1002


def test_idle_handshakes_make_room_for_those_who_want_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", 10)
    with running() as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
        with connected(server) as client:
            assert asked(client, request())["actions"].shape == (10, 7)
        assert server.metrics.refusals["handshakes"] >= 20
        for each in idle:
            each.close()


def opening(secure: ssl.SSLContext) -> bytes:
    """The first message of a TLS handshake."""
    sent = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        secure.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


def test_tls_that_is_begun_and_never_finished_makes_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", 10)
    files = Path(__file__).parents[1] / "fixtures" / "tls"
    secure = ssl.create_default_context(cafile=files / "certificate.pem")
    begun = opening(secure)
    with running(tls_certificate=files / "certificate.pem", tls_key=files / "key.pem") as server:
        started, idle = time.monotonic(), []
        for number in range(60):
            idle.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            idle[-1].sendall((b"", begun[:20], begun, b"GET / HTTP/1.1\r\n\r\n")[number % 4])
        until(lambda: 0 < len(server.budget.connections) <= 10)
        with connected(server, ssl=secure, server_hostname="localhost") as client:
            assert asked(client, request())["actions"].shape == (10, 7)
        for early in idle[:20]:  # sent away, long before the 10 s of a handshake
            with contextlib.suppress(ConnectionResetError):
                while early.recv(65536):
                    pass
        assert server.metrics.refusals["handshakes"] >= 20 and time.monotonic() - started < 8
        for each in idle:
            each.close()
        until(lambda: not server.budget.connections)


def test_clients_that_take_no_answer_make_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", 10)
    with running() as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
        for number, each in enumerate(idle):
            each.sendall(
                (b"GET / HTTP/1.1\r\n\r\n", b"GET /nowhere HTTP/1.1\r\n\r\n", b"PUT / HTTP/1.1\r\n")[number % 3]
            )
        until(lambda: server.metrics.refusals["handshakes"] >= 20)
        until(lambda: len(server.budget.connections) <= 10)
        with connected(server) as client:
            assert asked(client, request())["actions"].shape == (10, 7)
        for each in idle:
            each.close()


def test_an_idle_client_keeps_none_of_its_messages() -> None:
    with running() as server, connected(server) as client:
        assert asked(client, request())["actions"].shape == (10, 7)
        until(lambda: server.budget.total == 0)
        with pytest.raises(ConnectionClosed):
            client.send(b"\0" * 17_000_000)
            client.recv(timeout=10)
        until(lambda: server.budget.total == 0 and not server.budget.connections)


@linux
def test_without_file_descriptors_the_log_has_a_line_and_the_server_recovers(tmp_path: Path) -> None:
    with program(tmp_path / "stderr", files=40) as (process, port):
        good = Honest(port, 1)
        good.start()
        until(lambda: good.latencies, 60)
        held = []
        for _ in range(120):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            held[-1].sendall(UPGRADE + b"\r\n")
        time.sleep(3.0)
        assert len(os.listdir(f"/proc/{process.pid}/fd")) >= 38
        for each in held:
            each.close()
        assert figure(port, "lamp_clients ") >= 1
        good.over.set()
        good.join(60)
        assert good.failed is None and len(good.latencies) > 10
    told = (tmp_path / "stderr").read_text()
    assert told.count("no new connections for now: Too many open files") == 1 and "Traceback" not in told
    assert len(told) < 1500
