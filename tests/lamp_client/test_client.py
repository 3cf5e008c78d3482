"""A real websocket round trip against a small server, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from lamp_client import wire
from lamp_client.chunks import OpenLoop
from lamp_client.client import InProcessPolicy, WebsocketPolicy, action_units, chunk_from_reply
from lamp_client.connection import checked_metadata
from lamp_client.control import drive
from lamp_client.errors import ConnectionFailedError, InvalidValueError, LampClientError, ServerError, WireError
from lamp_client.layouts import DROID_REQUEST, LIBERO_REQUEST
from lamp_client.types import ActionChunk, Observation

Handler = Callable[[ServerConnection], None]


def observation(size: int = 8) -> Observation:
    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    return Observation(images=images, state=np.arange(8, dtype=np.float32), instruction="put it down")


@contextlib.contextmanager
def server(handler: Handler, **options: Any) -> Iterator[int]:
    with serve(handler, "127.0.0.1", 0, compression=None, max_size=None, **options) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running.socket.getsockname()[1]
        running.shutdown()
        thread.join()


def answering(metadata: dict[str, Any], requests: list[dict[str, Any]]) -> Handler:
    def handle(connection: ServerConnection) -> None:
        connection.send(wire.pack(metadata))
        for message in connection:
            assert isinstance(message, bytes)
            request = wire.unpack(message)
            requests.append(request)
            actions = np.tile(request["observation/state"][:7], (3, 1)).astype(np.float64)
            timing = {"infer_ms": 12.5}
            connection.send(wire.pack({"actions": actions, "policy_timing": timing, "server_timing": timing}))

    return handle


def test_a_request_and_its_reply() -> None:
    requests: list[dict[str, Any]] = []
    with server(answering({"name": "other"}, requests)) as port, WebsocketPolicy("127.0.0.1", port) as policy:
        assert policy.metadata == {"name": "other", "action_units": "environment"}
        assert action_units(policy) == "environment"
        seen = observation(256)
        policy.act(seen)
        chunk = policy.act(seen, noise_seed=(1, 2))
    assert set(requests[0]) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    assert requests[0]["observation/image"].shape == (224, 224, 3)
    assert requests[0]["observation/image"].dtype == np.uint8
    assert requests[0]["prompt"] == "put it down"
    np.testing.assert_array_equal(requests[1]["observation/state"], seen.state)
    np.testing.assert_array_equal(chunk.actions, np.tile(np.arange(7, dtype=np.float32), (3, 1)))
    assert chunk.actions.dtype == np.float32
    assert chunk.timing_ms["policy.infer_ms"] == 12.5 and chunk.timing_ms["client.total_ms"] > 0


def test_a_lamp_server_is_told_the_noise_seed_and_returns_foresight() -> None:
    requests: list[dict[str, Any]] = []
    points = np.zeros((4, 3, 3), dtype=np.float32)

    def handle(connection: ServerConnection) -> None:
        connection.send(wire.pack({"lamp": {"protocol": 1}, "action_units": "dataset"}))
        message = connection.recv()
        assert isinstance(message, bytes)
        requests.append(wire.unpack(message))
        reply = {"actions": np.zeros((2, 7), dtype=np.float32), "lamp/foresight": points, "lamp/gate": np.float32(0.5)}
        connection.send(wire.pack(reply))

    with server(handle) as port, WebsocketPolicy("127.0.0.1", port, foresight=True) as policy:
        assert action_units(policy) == "dataset"
        chunk = policy.act(observation(), noise_seed=(7, 3, 0))
    assert requests[0]["lamp/noise_seed"] == [7, 3, 0] and requests[0]["lamp/foresight"] is True
    assert chunk.foresight is not None and chunk.foresight.shape == points.shape and chunk.gate == 0.5


def test_a_servers_traceback_becomes_one_line_and_the_next_request_reconnects() -> None:
    connections = []

    def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send(wire.pack({}))
        connection.recv()
        if len(connections) == 1:
            connection.send("Traceback (most recent call last):\n  File ...\nKeyError: 'prompt'\n")
            connection.close(1011)
        else:
            connection.send(wire.pack({"actions": np.ones((1, 7))}))

    with server(handle) as port, WebsocketPolicy("127.0.0.1", port) as policy:
        with pytest.raises(ServerError, match=r"failed: KeyError: 'prompt'$"):
            policy.act(observation())
        assert policy.act(observation()).actions.shape == (1, 7)


def test_the_api_key_is_sent_and_its_refusal_is_named() -> None:
    keys: list[str | None] = []

    def check(connection: ServerConnection, request: Any) -> Any:
        keys.append(request.headers.get("Authorization"))
        if keys[-1] != "Api-Key secret":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no")
        return None

    with server(answering({}, []), process_request=check) as port:
        with WebsocketPolicy("127.0.0.1", port, api_key="secret") as policy:
            policy.act(observation())
        with pytest.raises(ConnectionFailedError, match=r"refused the API key \(HTTP 401\)"):
            WebsocketPolicy("127.0.0.1", port, api_key="wrong").act(observation())
        with pytest.raises(ConnectionFailedError, match=r"requires an API key \(HTTP 401\)"):
            WebsocketPolicy("127.0.0.1", port).act(observation())
        with WebsocketPolicy("127.0.0.1", port, api_key=" secret\r\n") as policy:
            policy.act(observation())
        with pytest.raises(InvalidValueError, match="the API key holds a line break"):
            WebsocketPolicy("127.0.0.1", port, api_key="secret\nother")
    assert keys == ["Api-Key secret", "Api-Key wrong", None, "Api-Key secret"]


def test_nobody_listening() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(
            ConnectionFailedError, match=rf"cannot connect.*ws://127\.0\.0\.1:{port} within 0\.3 s.*lamp serve"
        ):
            WebsocketPolicy("127.0.0.1", port, connect_timeout_s=0.3).act(observation())


def test_a_server_that_starts_late_is_waited_for() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    running: list[Any] = []

    def start() -> None:
        running.append(serve(answering({}, []), "127.0.0.1", port, compression=None))
        running[0].serve_forever()

    timer = threading.Timer(0.5, start)
    timer.start()
    with WebsocketPolicy("127.0.0.1", port, connect_timeout_s=10) as policy:
        assert policy.act(observation()).actions.shape == (3, 7)
    running[0].shutdown()
    timer.join()


ANSWERS = {
    "closes": b"",
    "half an answer": b"HTTP/1.1 10",
    "bad gateway": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
    "no gateway": b"HTTP/1.1 504 x\r\nContent-Length: 0\r\n\r\n",
    "unavailable": b"HTTP/1.1 503 x\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
    "too many": b"HTTP/1.1 429 x\r\nContent-Length: 0\r\n\r\n",
    "other protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a web page": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "not found": b"HTTP/1.1 404 x\r\nContent-Length: 4\r\n\r\nnope",
    "forbidden": b"HTTP/1.1 403 x\r\nContent-Length: 0\r\n\r\n",
    "broken": b"HTTP/1.1 500 x\r\nContent-Length: 4\r\n\r\noops",
}


def answering_raw(answer: bytes | None, port: int, connections: int, tried: list[float]) -> None:
    """Takes so many connections, gives each the same answer (None: a reset), and leaves the port."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        for _ in range(connections):
            connection, _ = listening.accept()
            tried.append(time.monotonic())
            with connection, contextlib.suppress(OSError):
                if answer is None:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    connection.recv(65536)
                    connection.sendall(answer)


def free_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return reserved.getsockname()[1]


@pytest.mark.parametrize(
    "answer",
    [None, *map(ANSWERS.get, ("closes", "half an answer", "bad gateway", "no gateway", "unavailable", "too many"))],
)
def test_a_port_that_is_open_before_its_server_is_waited_for(
    answer: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A container's port, a tunnel, a proxy: what answers until the server is there differs."""
    port, tried, running = free_port(), list[float](), list[Any]()

    def start() -> None:
        answering_raw(answer, port, 5, tried)
        running.append(serve(answering({}, []), "127.0.0.1", port, compression=None))
        running[0].serve_forever()

    threading.Thread(target=start, daemon=True).start()
    with WebsocketPolicy("127.0.0.1", port, connect_timeout_s=20) as policy:
        assert policy.act(observation()).actions.shape == (3, 7)
    assert len(tried) == 5
    running[0].shutdown()
    told = [record.getMessage() for record in caplog.records if record.name == "lamp_client"]
    assert len(told) == 1 and f"waiting up to 20 s for the policy server at ws://127.0.0.1:{port}" in told[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("other protocol", "is no policy server"),
        ("a web page", "is no policy server .HTTP 200: hi"),
        ("not found", "refused .HTTP 404: nope"),
        ("forbidden", "refused the API key .HTTP 403"),
        ("broken", "refused .HTTP 500: oops"),
    ],
)
def test_what_waiting_cannot_mend_is_said_at_once(kind: str, words: str) -> None:
    port, tried = free_port(), list[float]()
    threading.Thread(target=answering_raw, args=(ANSWERS[kind], port, 1, tried), daemon=True).start()
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match=words):
        WebsocketPolicy("127.0.0.1", port, connect_timeout_s=60).act(observation())
    assert len(tried) == 1 and time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ws://no-such-host.invalid:80", r"cannot connect.* within 0\.5 s: gaierror"),
        ("http://127.0.0.1:1", "is no address .*scheme isn't ws or wss"),
        ("ws://127.0.0.1:99999", "is no address .*expected such as ws://host:8000"),
    ],
)
def test_addresses_where_nobody_is(address: str, words: str) -> None:
    with pytest.raises(ConnectionFailedError, match=words):
        WebsocketPolicy(address, connect_timeout_s=0.5).act(observation())


def test_a_server_that_greets_late_is_waited_for_and_one_that_never_does_is_named() -> None:
    def late(connection: ServerConnection) -> None:
        time.sleep(1.0)
        answering({}, [])(connection)

    with server(late) as port:
        with WebsocketPolicy("127.0.0.1", port, connect_timeout_s=20) as policy:
            assert policy.act(observation()).actions.shape == (3, 7)
        with pytest.raises(ConnectionFailedError, match=r"did not greet within 0\.3 s.*still be loading"):
            WebsocketPolicy("127.0.0.1", port, connect_timeout_s=0.3).act(observation())


@pytest.mark.parametrize("code", [1001, 1012, 1013])
def test_a_server_that_goes_before_its_greeting_is_asked_again(code: int) -> None:
    came: list[int] = []

    def handle(connection: ServerConnection) -> None:
        came.append(len(came))
        if len(came) < 3:
            connection.close(code)
        else:
            answering({}, [])(connection)

    with server(handle) as port, WebsocketPolicy("127.0.0.1", port, connect_timeout_s=20) as policy:
        assert policy.act(observation()).actions.shape == (3, 7) and len(came) == 3


GREETING = {"lamp": {"protocol": 1}, "action_width": 3, "chunk": 4, "action_low": [-1.0] * 3, "action_high": [1, 1, 2]}
GOOD = np.full((4, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (GOOD[:, :2], r"shape \(4, 2\); its greeting promised action_width 3"),
        (GOOD[:3], r"shape \(3, 3\); its greeting promised chunk 4"),
        (GOOD.reshape(2, 6), "promised chunk 4"),
        (GOOD * 3e38, "nothing beyond 1e[+]09 is executed"),
        (GOOD.astype(np.float64) * 1e300, "not finite"),
        (GOOD * np.nan, "not finite"),
        (GOOD * 2.1, "replied with 1.05 for value 0 of action 0; its data have -1 to 1 there"),
        (GOOD * -3, "data have -1 to 1"),
        (GOOD > 0, "type |b1; expected numbers"),
        (np.full((4, 3), "0.5"), "expected numbers"),
        ([["0.5"] * 3] * 4, "expected numbers"),
        (GOOD.astype("M8[s]"), "expected numbers"),
        (GOOD[0], "2 dimension"),
        ([[0.5] * 3, [0.5]], "cannot be read"),
        (None, "expected numbers"),
    ],
)
def test_replies_that_contradict_the_greeting_reach_no_robot(actions: Any, words: str) -> None:
    with pytest.raises(LampClientError, match=words):
        chunk_from_reply({"actions": actions}, GREETING)


def test_replies_as_promised_pass() -> None:
    for actions in (GOOD, GOOD.astype(np.float64), GOOD.tolist(), GOOD.astype(np.float16), np.ones((4, 3), np.int64)):
        assert chunk_from_reply({"actions": actions}, GREETING).actions.dtype == np.float32
    # openpi's own server promises nothing.
    assert chunk_from_reply({"actions": GOOD * 9}, {"chunk": 2}).actions.shape == (4, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"chunk": 0}, {"chunk": True}, {"chunk": "4"}, {"chunk": 10**9}, {"action_width": -1}, {"action_width": 2.5},
        {"state_width": [8]}, {"cameras": ["a"]}, {"cameras": {1: [2, 3]}}, {"limits": 7}, {"fps": "20"}, {"fps": -1},
        {"fps": float("nan")}, {"action_low": [0.0]}, {"action_low": [float("nan")] * 3}, {"action_high": None},
        {"action_high": "abc"},
    ],
)  # fmt: skip
def test_greetings_with_impossible_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="greeted with"):
        checked_metadata(GREETING | change, "ws://there")
    assert checked_metadata(GREETING, "ws://there")["action_width"] == 3


def test_a_robot_is_sent_nothing_of_a_reply_that_contradicts_the_greeting() -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(wire.pack(GREETING))
        for _ in connection:
            connection.send(wire.pack({"actions": GOOD * 3e38}))

    class Arm:
        sent = 0

        def observe(self, instruction: str) -> Observation:
            return observation()

        def send(self, action: np.ndarray) -> None:
            self.sent += 1

    arm = Arm()
    with server(handle) as port, WebsocketPolicy("127.0.0.1", port, layout=LIBERO_REQUEST) as policy:
        with pytest.raises(WireError, match="is executed"):
            drive(arm, policy, OpenLoop(), instruction="go", fps=50, steps=3)
        assert arm.sent == 0


@pytest.mark.parametrize(
    ("greeting", "kind", "words"),
    [
        (wire.pack({"lamp": {"protocol": 99}}), ConnectionFailedError, "version 99.*speaks 1"),
        (wire.pack({"lamp": "old"}), ConnectionFailedError, "version 'old'"),
        (wire.pack([1]), WireError, "greeted with a list"),
        (b"\xc1", WireError, "cannot be decoded"),
        ("overloaded", ServerError, "failed: overloaded"),
    ],
)
def test_a_greeting_that_does_not_fit(greeting: bytes | str, kind: type[LampClientError], words: str) -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(greeting)

    with server(handle) as port, pytest.raises(kind, match=words):
        WebsocketPolicy("127.0.0.1", port).act(observation())


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        ({"action": 1}, WireError, "a map with action; expected a map with 'actions'"),
        ([1, 2], WireError, "list"),
        ({"actions": np.zeros(7)}, InvalidValueError, "actions is float32"),
        ({"actions": [["a"]]}, WireError, "cannot be read"),
        ({"actions": [[1], [2, 3]]}, WireError, "cannot be read"),
        ({"actions": np.zeros((1, 7)), "server_timing": 5}, WireError, "cannot be read"),
        ({"actions": np.full((1, 7), np.inf)}, InvalidValueError, "not finite"),
    ],
)
def test_a_reply_that_does_not_fit(reply: Any, kind: type[LampClientError], words: str) -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(wire.pack({}))
        connection.recv()
        connection.send(wire.pack(reply))

    with server(handle) as port, pytest.raises(kind, match=words), WebsocketPolicy("127.0.0.1", port) as policy:
        policy.act(observation())


def test_a_reply_that_never_comes_and_a_server_that_leaves() -> None:
    leave = threading.Event()

    def handle(connection: ServerConnection) -> None:
        connection.send(wire.pack({}))
        connection.recv()
        leave.wait(2)

    with server(handle) as port:
        with pytest.raises(ConnectionFailedError, match=r"did not reply within 0\.2 s"):
            WebsocketPolicy("127.0.0.1", port, reply_timeout_s=0.2).act(observation())
        leave.set()
        with pytest.raises(ConnectionFailedError, match="went away"):
            WebsocketPolicy("127.0.0.1", port).act(observation())


def test_a_question_whose_connection_breaks_is_asked_again_with_the_same_seed() -> None:
    requests: list[dict[str, Any]] = []

    def handle(connection: ServerConnection) -> None:
        connection.send(wire.pack({"lamp": {"protocol": 1}, "action_units": "dataset"}))
        for message in connection:
            assert isinstance(message, bytes)
            requests.append(wire.unpack(message))
            if len(requests) < 3:
                connection.socket.shutdown(socket.SHUT_RDWR)  # no closing handshake, in the middle of a question
                return
            connection.send(wire.pack({"actions": np.full((1, 7), len(requests))}))

    with server(handle) as port, WebsocketPolicy("127.0.0.1", port, layout=LIBERO_REQUEST, retries=2) as policy:
        np.testing.assert_array_equal(policy.act(observation(), noise_seed=(4, 2)).actions, np.full((1, 7), 3))
        assert [request["lamp/noise_seed"] for request in requests] == [[4, 2]] * 3
        requests.clear()
        with pytest.raises(ConnectionFailedError, match="went away"):
            WebsocketPolicy("127.0.0.1", port, layout=LIBERO_REQUEST, retries=1).act(observation())
        assert len(requests) == 2


def test_what_is_too_large_for_the_server_is_not_sent() -> None:
    requests: list[dict[str, Any]] = []
    told = {"limits": {"message_bytes": 10_000, "array_bytes": 8_000}}
    words = r"has 301\d\d\d bytes; the server at ws://\S+ takes 10000\. Send smaller"
    with server(answering(told, requests)) as port, pytest.raises(WireError, match=words):
        WebsocketPolicy("127.0.0.1", port).act(observation())
    assert not requests


def test_layouts_and_their_inverses() -> None:
    seen = observation(224)
    back = LIBERO_REQUEST.observation(wire.unpack(wire.pack(LIBERO_REQUEST.request(seen))))
    np.testing.assert_array_equal(back.state, seen.state)
    np.testing.assert_array_equal(back.images["wrist"], seen.images["wrist"])
    assert back.instruction == seen.instruction
    droid = Observation(
        images={"exterior": seen.images["agentview"], **seen.images}, state=seen.state, instruction="go"
    )
    message = DROID_REQUEST.request(droid)
    assert message["observation/joint_position"].shape == (7,) and message["observation/gripper_position"] == [7.0]
    np.testing.assert_array_equal(DROID_REQUEST.observation(message).state, seen.state)


def test_layouts_name_what_is_missing() -> None:
    with pytest.raises(InvalidValueError, match="no camera 'exterior'"):
        DROID_REQUEST.request(observation())
    with pytest.raises(WireError, match="lacks 'prompt'"):
        LIBERO_REQUEST.observation(
            {key: 0 for key in ("observation/image", "observation/wrist_image", "observation/state")}
        )
    short = Observation(images=observation().images, state=np.zeros(3, dtype=np.float32), instruction="")
    with pytest.raises(InvalidValueError, match="has 3 values; the request takes 8"):
        LIBERO_REQUEST.request(short)


def test_a_function_becomes_a_policy() -> None:
    policy = InProcessPolicy(lambda seen, seed: np.full((2, 7), len(seed or ())), {"name": "constant"})
    assert policy.metadata == {"name": "constant"} and action_units(policy) == "dataset"
    np.testing.assert_array_equal(policy.act(observation(), noise_seed=(1, 2, 3)).actions, np.full((2, 7), 3.0))
    ready = ActionChunk(actions=np.zeros((1, 7), dtype=np.float32))
    assert InProcessPolicy(lambda *_: ready).act(observation()) is ready
    with pytest.raises(LampClientError, match="action_units are 'metres'"):
        action_units(InProcessPolicy(lambda *_: ready, {"action_units": "metres"}))
