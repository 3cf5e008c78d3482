"""The server among many clients: batches, order, limits, keys, TLS, slow and vanishing clients, stopping."""

from __future__ import annotations

import base64
import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from serve_fakes import SIDE, asked, connected, observation, request, running
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lamp.errors import ConfigError, DataError, LampError, MismatchError
from lamp.serve.config import ServerConfig
from lamp.serve.keys import ApiKeys
from lamp.serve.policy_spec import FakePolicy, fingerprint
from lamp.serve.server import PolicyServer, announcement, served
from lamp_client import wire
from lamp_client.types import ActionChunk, Observation

TLS = Path(__file__).parents[1] / "fixtures" / "tls"


class Failing(FakePolicy):
    """Breaks on an instruction, and with it the whole batch."""

    def act_batch(
        self, observations: Sequence[Observation], noise_seeds: Sequence[tuple[int, ...]], foresight: bool = False
    ) -> list[ActionChunk]:
        for seen in observations:
            if seen.instruction == "mismatch":
                raise MismatchError("this does not fit")
            if seen.instruction == "break":
                raise RuntimeError("out of memory")
        return super().act_batch(observations, noise_seeds, foresight)


def fetch(server: PolicyServer, path: str, **headers: str) -> tuple[int, bytes, str]:
    """Status, body and kind of a plain HTTP request."""
    address = server.address.replace("ws", "http", 1) + path
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as response:
            return response.status, response.read(), response.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["Content-Type"]


def until(condition: object, seconds: float = 10.0) -> None:
    """Waits for something that comes soon."""
    deadline = time.monotonic() + seconds
    while not condition():  # pyright: ignore[reportCallIssue]
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def test_requests_of_several_clients_are_computed_together_in_one_thread() -> None:
    policy = FakePolicy(side=SIDE, pause_s=0.01)
    with running(policy, gather_ms=400.0, max_batch=8) as server:
        warm, together = len(policy.batches), threading.Barrier(6)

        def one(number: int) -> None:
            with connected(server) as client:
                for call in range(3):
                    together.wait()
                    reply = asked(client, request(number, lamp_noise_seed=[call]))
                    np.testing.assert_array_equal(reply["actions"][:2], fingerprint(observation(number), (call,)))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(one, range(6)))
    batches = policy.batches[warm:]
    assert sum(batches) == 18 and len(batches) <= 8 and max(batches) >= 5
    assert policy.threads.isdisjoint({threading.main_thread().ident}) and len(policy.threads) == 1


def test_one_that_is_alone_does_not_wait_for_others() -> None:
    with running(gather_ms=500.0) as server, connected(server) as client:
        started = time.perf_counter()
        for _ in range(5):
            asked(client, request())
        assert time.perf_counter() - started < 1.5


def test_no_reply_is_lost_or_swapped_among_many_clients() -> None:
    """Every reply repeats its request: state, images, seed, instruction."""
    from lamp.bench.serve import EchoWorkload, run_clients

    with running(max_batch=7, max_queue=64) as server:
        tally = run_clients(server.address, 24, 0, workload=EchoWorkload.of(SIDE), seconds=2.0, think_s=0.0)
        assert server.metrics.batch.count > 0 and max(server.metrics.batch.recent) == 7
    assert (tally.wrong, tally.lost, tally.errors) == (0, 0, {}) and len(tally.total_ms) > 100


def test_the_check_of_replies_can_fail() -> None:
    from lamp.bench.serve import EchoWorkload, run_clients

    class Swapping(FakePolicy):
        def act_batch(
            self, observations: Sequence[Observation], noise_seeds: Sequence[tuple[int, ...]], foresight: bool = False
        ) -> list[ActionChunk]:
            return super().act_batch(observations, noise_seeds, foresight)[::-1]

    with running(Swapping(side=SIDE), gather_ms=20.0) as server:
        assert run_clients(server.address, 6, 0, workload=EchoWorkload.of(SIDE), seconds=0.5, think_s=0.0).wrong > 0


def test_one_observation_that_breaks_the_policy_does_not_spoil_the_batch() -> None:
    with running(Failing(side=SIDE), gather_ms=100.0) as server:

        def one(words: str) -> object:
            with connected(server) as client:
                asked(client, request())  # from now on, its company is waited for
                return asked(client, request() | {"prompt": words})

        with ThreadPoolExecutor(4) as pool:
            broken, mismatch, *fine = pool.map(one, ["break", "mismatch", "a", "b"])
        assert broken == "the policy failed: RuntimeError: out of memory" and mismatch == "this does not fit"
        assert all(isinstance(reply, dict) and reply["actions"].shape == (10, 7) for reply in fine)
        with connected(server) as client:
            assert asked(client, request())["actions"].shape == (10, 7)
        assert server.metrics.refusals == {"policy": 1, "request": 1}


def test_a_full_queue_refuses_and_says_so() -> None:
    with running(FakePolicy(side=SIDE, pause_s=0.4), max_queue=2, max_batch=1) as server, ThreadPoolExecutor(5) as pool:

        def one(_: int) -> tuple[object, int | None]:
            with connected(server) as client:
                client.send(wire.pack(request()))
                reply = client.recv(timeout=20)
                if isinstance(reply, str):
                    with pytest.raises(ConnectionClosed):
                        client.recv(timeout=5)
                return reply, client.close_code

        replies = list(pool.map(one, range(5)))
        refused = [(reply, code) for reply, code in replies if isinstance(reply, str)]
        assert 1 <= len(refused) <= 2
        for reply, code in refused:
            assert isinstance(reply, str) and "busy: 2 observations wait, and it accepts 2" in reply and code == 1013
        with connected(server) as client:
            examples = [{"image": list(observation().images.values()), "lang": "x", "state": [0.0] * 8}]
            assert asked(client, {"examples": examples * 2})["ok"] is True


def test_more_clients_than_allowed_are_turned_away() -> None:
    with running(max_clients=2) as server, connected(server), connected(server):
        with pytest.raises(InvalidStatus) as refusal, connected(server):
            pass
        assert refusal.value.response.status_code == 503
        assert b"has 2 clients, as many as it takes" in (refusal.value.response.body or b"")
        assert fetch(server, "/healthz")[0] == 200


def test_messages_beyond_the_limit_close_their_connection_only() -> None:
    with running(max_message_mb=0.05, max_array_mb=0.03) as server, connected(server) as other:
        with connected(server) as client:
            client.send(b"\0" * 60_000)
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=5)
            assert client.close_code == 1009
        with connected(server) as client:
            reply = asked(client, {"x": np.zeros(40_000, np.uint8)})
            assert "an array has 40000 bytes; the limit is 30000" in reply
        assert asked(other, request())["actions"].shape == (10, 7)


def test_api_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# robots\nfirst-secret\n\n  second-secret\n")
    file.chmod(0o600)
    with running(api_key_file=file) as server:
        for key in ("first-secret", "second-secret"):
            with connected(server, additional_headers={"Authorization": f"Api-Key {key}"}) as client:
                assert asked(client, request())["actions"].shape == (10, 7)
        for headers in (
            {},
            {"Authorization": "Api-Key wrong"},
            {"Authorization": "Api-Key "},
            {"Authorization": "first-secret"},
        ):
            with pytest.raises(InvalidStatus) as refusal, connected(server, additional_headers=headers):
                pass
            assert refusal.value.response.status_code == 401
        assert fetch(server, "/healthz") == (200, b"OK", "text/plain; charset=utf-8")
        for path in ("/", "/metrics", "/live.json", "/image/agentview.jpg"):
            assert fetch(server, path)[0] == 401
        basic = "Basic " + base64.b64encode(b"anyone:first-secret").decode()
        assert fetch(server, "/", Authorization=basic)[0] == 200
        assert fetch(server, "/metrics", Authorization="Bearer second-secret")[0] == 200
        assert fetch(server, "/", Authorization="Basic !!!")[0] == 401
        assert "key" in server.metrics.refusals


def test_key_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no API key file"):
        ApiKeys.read(tmp_path / "absent")
    file = tmp_path / "keys"
    for text, mode, words in (
        ("long-enough-key\n", 0o644, "others may read.*chmod 600"),
        ("# nothing\n", 0o600, "holds no key"),
        ("long-enough-key\nshort\n", 0o600, "key 2 .* too short; expected at least 8"),
    ):
        file.write_text(text)
        file.chmod(mode)
        with pytest.raises(DataError, match=words):
            ApiKeys.read(file)
    assert ApiKeys().admit(None) and not ApiKeys.of(["a"]).admit(None) and ApiKeys.of(["a"]).needed


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    original = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or original(a, b))
    keys = ApiKeys.of(["first-secret", "second-secret", "third-secret"])
    assert keys.admit("Api-Key first-secret") and len(compared) == 3
    assert not keys.admit("Api-Key " + "x" * 5000) and len(compared) == 6
    assert {len(value) for pair in compared for value in pair} == {32}


def test_tls() -> None:
    with running(tls_certificate=TLS / "certificate.pem", tls_key=TLS / "key.pem", host="localhost") as server:
        context = ssl.create_default_context(cafile=TLS / "certificate.pem")
        assert server.address.startswith("wss://localhost:")
        with connected(server, ssl=context) as client:
            assert asked(client, request())["actions"].shape == (10, 7)
        with urllib.request.urlopen(
            f"https://localhost:{server.port}/healthz", context=context, timeout=10
        ) as response:
            assert response.read() == b"OK"
        with pytest.raises(ssl.SSLError), connected(server):
            pass
        with socket.create_connection(("localhost", server.port)) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        with connected(server, ssl=context) as client:
            assert asked(client, request())["actions"].shape == (10, 7)


def test_pages_of_other_origins_may_not_connect(server: PolicyServer) -> None:
    with pytest.raises(InvalidStatus) as refusal, connected(server, origin="http://elsewhere.example"):
        pass
    assert refusal.value.response.status_code == 403
    with connected(server, origin=server.address.replace("ws", "http", 1)) as client:
        assert asked(client, request())["actions"].shape == (10, 7)


def test_http_beside_the_websocket(server: PolicyServer) -> None:
    assert fetch(server, "/live.json")[0] == 200
    assert json.loads(fetch(server, "/live.json")[1])["shown"] is None
    assert fetch(server, "/image/agentview.jpg")[0] == 404
    with connected(server) as client:
        asked(client, request(3))
        status, figures, kind = fetch(server, "/metrics")
        assert status == 200 and kind.startswith("text/plain; version=0.0.4")
        lines = figures.decode().splitlines()
        for line in (
            "lamp_clients 1", 'lamp_requests_total{dialect="openpi"} 1', "lamp_observations_total 1", "lamp_gate 0.5",
            'lamp_batch_size_bucket{le="1.0"} 1', "lamp_infer_seconds_count 1",
        ):  # fmt: skip
            assert line in lines
        for name in {line.split()[2] for line in lines if line.startswith("# TYPE")}:
            assert f"# HELP {name} " in figures.decode()
        news = json.loads(fetch(server, "/live.json")[1])
        assert news["shown"]["instruction"] == "task 3" and len(news["shown"]["actions"]) == 10
        for camera in ("agentview", "wrist"):
            status, picture, kind = fetch(server, f"/image/{camera}.jpg?n=1")
            assert status == 200 and kind == "image/jpeg" and picture[:2] == b"\xff\xd8"
    status, words, _ = fetch(server, "/nothing")
    assert status == 404 and b"Known: /healthz, /health, /metrics, /" in words
    assert fetch(server, "/image/../../etc/passwd.jpg")[0] == 404
    with running(page=False) as bare:
        assert fetch(bare, "/")[0] == 404 and fetch(bare, "/live.json")[0] == 404 and fetch(bare, "/healthz")[0] == 200
    with pytest.raises(InvalidStatus) as refusal, connected(server, path="/?seed=x"):
        pass
    assert refusal.value.response.status_code == 400


def raw(server: PolicyServer) -> socket.socket:
    """A websocket by hand, so that frames can be broken."""
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert b"101" in client.recv(4096)
    return client


def test_clients_that_vanish_are_forgotten_and_not_computed_for() -> None:
    policy = FakePolicy(side=SIDE, pause_s=0.3)
    with running(policy, max_batch=1) as server, connected(server) as other:
        done = len(policy.batches)
        for _ in range(6):
            client = connect(server.address, compression=None, proxy=None)
            client.recv()
            client.send(wire.pack(request()))
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()  # a reset, without a closing handshake
        assert asked(other, request(1))["actions"].shape == (10, 7)
        until(lambda: len(server.sessions) == 1)
        # The first of them was being computed when it left; the others had not been begun.
        assert len(policy.batches) - done <= 3


@pytest.mark.long
def test_truncated_frames_hold_up_nobody() -> None:
    with running(ping_timeout_s=0.6) as server:
        half = raw(server)
        half.sendall(b"\x82\xff" + struct.pack(">Q", 1_000_000) + b"\0\0\0\0" + b"x" * 1000)
        garbage = raw(server)
        garbage.sendall(bytes(range(256)) * 4)
        with connected(server) as client:
            started = time.perf_counter()
            assert asked(client, request())["actions"].shape == (10, 7)
            assert time.perf_counter() - started < 3.0
            # Neither answers pings, so both are dropped.
            until(lambda: len(server.sessions) == 1)
        half.close()
        garbage.close()


def test_a_client_that_does_not_read_is_dropped() -> None:
    with running(FakePolicy(side=SIDE), send_timeout_s=0.5) as server, connected(server) as other:
        slow = raw(server)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        frame = wire.pack(request(lamp_foresight=True))
        masked = b"\x82\xfe" + struct.pack(">H", len(frame)) + b"\0\0\0\0" + frame
        slow.settimeout(0.2)

        def feed() -> None:
            try:
                for _ in range(2000):
                    slow.sendall(masked)
            except OSError:
                return

        feeding = threading.Thread(target=feed)
        feeding.start()
        for _ in range(5):
            assert asked(other, request())["actions"].shape == (10, 7)
        until(lambda: server.metrics.refusals["slow"] == 1)
        until(lambda: len(server.sessions) == 1)
        slow.close()
        feeding.join()


def test_stopping_finishes_what_is_in_flight() -> None:
    policy, replies = FakePolicy(side=SIDE, pause_s=0.5), list[object]()
    with running(policy) as server:
        idle, busy = (connect(server.address, compression=None, proxy=None) for _ in range(2))
        for client in (idle, busy):
            client.recv()
        busy.send(wire.pack(request(1, lamp_noise_seed=3)))
        computed = len(policy.batches)
        until(lambda: len(policy.batches) > computed)
        waiting = threading.Thread(target=lambda: replies.append(busy.recv(timeout=10)))
        waiting.start()
    waiting.join()
    (reply,) = replies
    assert isinstance(reply, bytes)
    np.testing.assert_array_equal(wire.unpack(reply)["actions"][:2], fingerprint(observation(1), (3,)))
    for client in (idle, busy):
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=5)
        assert client.close_code == 1001
    with pytest.raises(OSError), connected(server):
        pass


def test_it_warms_up_before_it_listens() -> None:
    policy = FakePolicy(side=SIDE)
    with running(policy, max_batch=5):
        assert policy.batches == [1, 2, 4, 5, 1]  # powers of two, a full batch, and flow
    with pytest.raises(
        LampError, match="fails on an example of its own cameras and state: the policy failed: ValueError"
    ):

        class Broken(FakePolicy):
            def act_batch(self, *_: object, **__: object) -> list[ActionChunk]:
                raise ValueError("no")

        with running(Broken(side=SIDE)):
            pass


LOADING = """
import asyncio, sys, time
from lamp.serve.config import ServerConfig
from lamp.serve.server import serve_until_signalled
from lamp.serve.policy_spec import FakePolicy
from lamp.errors import DataError

def load():
    time.sleep(float(sys.argv[2]))
    if sys.argv[3] == "fail":
        raise DataError("the weights are damaged")
    return FakePolicy(side=32)

try:
    asyncio.run(serve_until_signalled(load, ServerConfig(port=int(sys.argv[1]))))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def loading(port: int, seconds: float, end: str = "") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", LOADING, str(port), str(seconds), end]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def health(port: int) -> tuple[int, str | None]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as reply:
            return reply.status, reply.headers["Retry-After"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Retry-After"]


def test_the_port_is_taken_before_the_policy_is_loaded_and_clients_wait() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    program = loading(port, 3.0)
    assert program.stderr is not None
    try:
        assert program.stderr.readline() == f"lamp: loading; who connects to ws://127.0.0.1:{port} waits\n"
        assert health(port) == (503, "2")
        second = loading(port, 60)
        assert second.wait(timeout=60) == 1
        assert second.stderr is not None and "ConfigError: cannot listen" in second.stderr.read()
        second.stderr.close()
        # openpi's own client waits for a greeting without end, and gives up at anything but a refused connection.
        with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as client:
            assert "cameras" in wire.unpack(cast(bytes, client.recv(timeout=60)))
            assert asked(client, request())["actions"].shape == (10, 7)
        assert health(port) == (200, None)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=20) == 0
    finally:
        program.kill()
        program.stderr.close()


@pytest.mark.parametrize("end", ["fail", "signal"])
def test_loading_that_comes_to_nothing_ends_the_server(end: str) -> None:
    program = loading(0, 1.0 if end == "fail" else 60.0, end)
    assert program.stderr is not None
    try:
        address = program.stderr.readline().split()[-2]
        with connect(address, compression=None, proxy=None) as client:
            if end == "signal":
                program.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=20)
        assert program.wait(timeout=20) == (1 if end == "fail" else 128 + signal.SIGTERM)
        told = program.stderr.read()
        assert ("DataError: the weights are damaged" if end == "fail" else "stopped while loading") in told
        assert "Traceback" not in told
    finally:
        program.kill()
        program.stderr.close()


def told_over_http(server: PolicyServer, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to a plain request."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request)
        told = b""
        while part := client.recv(65536):
            told += part
    head, _, body = told.partition(b"\r\n\r\n")
    return head, body


def test_other_methods_get_an_answer(server: PolicyServer) -> None:
    for path, status in ((b"/", b"200"), (b"/healthz", b"200"), (b"/metrics", b"200"), (b"/nothing", b"404")):
        head, body = told_over_http(server, b"HEAD " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.split()[1] == status and body == b""
        assert b"Content-Length: 0" not in head
    for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"):
        for body in (b"", b"x" * 200_000):
            length = b"Content-Length: %d\r\n" % len(body)
            head, words = told_over_http(server, method + b" / HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n" + body)
            assert head.split()[1] == b"405" and b"Allow: GET, HEAD" in head and words.startswith(b"Expected GET")
    head, body = told_over_http(
        server, b"HEAD / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    )
    assert head.split()[1] == b"200" and body == b""
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    assert told_over_http(server, chunked)[0].split()[1] == b"405"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:  # letter by letter
        for letter in b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc":
            client.sendall(bytes([letter]))
            time.sleep(0.002)
        assert client.recv(4096).split()[1] == b"405"
    with connected(server) as client:
        assert asked(client, request())["actions"].shape == (10, 7)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", b"unsupported request body"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"transfer codings",
        ),
        (b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", b"HTTP/9.9"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", b"header"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"ascii"),
        (b"\x00\x01\x02\r\n\r\n", b"request line"),
        (b"GET / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, b"unsupported request body"),
    ],
)
def test_requests_that_cannot_be_read_get_an_answer(sent: bytes, words: bytes, server: PolicyServer) -> None:
    head, body = told_over_http(server, sent)
    assert head.startswith(b"HTTP/1.1 400 Bad Request") and words in body and b"Expected a GET request" in body


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}")
        with refused, served(FakePolicy(side=SIDE), ServerConfig(port=port)):
            pass
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"units": "metres"}, "unknown units 'metres'.*dataset, libero, widowx"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"port": 70000}, "port is 70000"),
        ({"gather_ms": -1.0}, "gather_ms is -1"),
        ({"tls_key": tmp_path}, "tls_key is given without"),
    ]
    for settings, words in mistakes:
        with pytest.raises(ConfigError, match=words):
            ServerConfig(**settings)
    with pytest.raises(DataError, match="no file"):
        ServerConfig(tls_certificate=tmp_path / "absent").tls()
    (tmp_path / "no.pem").write_text("hello")
    with pytest.raises(DataError, match="expected a PEM certificate"):
        ServerConfig(tls_certificate=tmp_path / "no.pem").tls()


def test_the_announcement_says_who_may_come() -> None:
    with running() as server:
        told = list(announcement(server))
        assert told[0] == f"lamp: serving at ws://127.0.0.1:{server.port}" and not any(
            "anybody" in line for line in told
        )
    with running(host="0.0.0.0") as server:
        assert "anybody who reaches this port" in list(announcement(server))[-1]
