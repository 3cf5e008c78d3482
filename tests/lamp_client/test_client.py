"""A real websocket round trip against a small server, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from lamp_client import wire
from lamp_client.client import InProcessPolicy, WebsocketPolicy, action_units
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
    assert keys == ["Api-Key secret", "Api-Key wrong"]


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
