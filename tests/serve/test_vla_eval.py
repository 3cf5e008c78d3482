"""vla-eval's protocol, with a client written from what is on the wire: it says hello first, and asks at every step."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image
from serve_fakes import SIDE, observation, running
from websockets.sync.client import ClientConnection, connect

from lamp.errors import MismatchError
from lamp.serve.policy_spec import FakePolicy, fingerprint
from lamp.serve.server import PolicyServer
from lamp_client.types import GripperUnits, Observation

Encode = Callable[[np.ndarray], Any]
EXECUTE = 5


def png(image: np.ndarray) -> dict[str, Any]:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, format="PNG")
    return {"__image__": True, "format": "png", "data": encoded.getvalue(), "shape": list(image.shape)}


def raw(array: np.ndarray) -> dict[str, Any]:
    return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}


def raw_image(image: np.ndarray) -> dict[str, Any]:
    return {"__image__": True, "format": "raw", **{key: raw(image)[key] for key in ("data", "dtype", "shape")}}


class Harness:
    """Speaks as the harness' client does: its own envelope, its own arrays, a number for each message."""

    def __init__(self, connection: ClientConnection, **hello: Any) -> None:
        self.connection, self.seq = connection, 0
        self.send("hello", {"harness_version": "0.2.0", "protocol_version": 1} | hello)
        self.server = self.receive()

    def send(self, kind: str, payload: Any) -> None:
        self.seq += 1
        message = {"type": kind, "payload": payload, "seq": self.seq, "timestamp": time.time()}
        encoded = msgpack.packb(message)
        assert encoded is not None
        self.connection.send(encoded)

    def receive(self) -> dict[str, Any]:
        reply = msgpack.unpackb(self.connection.recv(timeout=20), raw=False)
        assert {"type", "payload", "seq", "timestamp"} <= reply.keys()
        return reply

    def act(self, seen: Observation, encode: Encode = png, **more: Any) -> dict[str, Any]:
        images = {name: encode(image) for name, image in seen.images.items()}
        state = raw(seen.state.astype(np.float64))
        self.send("observation", {"images": images, "states": state, "task_description": seen.instruction} | more)
        reply = self.receive()
        assert reply["seq"] == self.seq
        return reply

    def action(self, seen: Observation, **more: Any) -> np.ndarray:
        reply = self.act(seen, **more)
        assert reply["type"] == "action", reply["payload"]
        marker = reply["payload"]["actions"]
        assert marker["__ndarray__"] is True
        return np.frombuffer(marker["data"], marker["dtype"]).reshape(marker["shape"])


def connecting(server: PolicyServer, path: str = "") -> ClientConnection:
    return connect(server.address + path, compression=None, max_size=None, proxy=None)


@pytest.mark.parametrize("encode", [png, raw, raw_image])
def test_an_episode_executes_chunks_as_in_process(encode: Encode) -> None:
    policy = FakePolicy(side=SIDE)
    seen = [observation(n) for n in range(2 * EXECUTE)]
    with running(policy) as server, connecting(server, "/?seed=7") as connection:
        harness = Harness(connection)
        for _ in range(2):  # the second episode repeats the first, from the same noise
            harness.send("episode_start", {"task": {"name": "task 0", "episode_idx": 0}})
            acted = [harness.action(each, encode=encode) for each in seen]
            harness.send("episode_end", {"metrics": {"success": True}, "steps": len(acted)})
            chunks = policy.act_batch([seen[0], seen[EXECUTE]], [(7, 0), (7, 1)])
            expected = np.concatenate([chunk.actions[:EXECUTE] for chunk in chunks])
            assert expected.shape == (2 * EXECUTE, 7)
            np.testing.assert_allclose(np.stack(acted), expected, atol=1e-5)
        assert server.metrics.requests["vla-eval"]


def test_an_episode_that_begins_forgets_the_chunk_of_the_last(server: PolicyServer) -> None:
    with connecting(server, "/?seed=7") as connection:
        harness = Harness(connection)
        harness.action(observation(1))
        harness.send("episode_start", {})
        np.testing.assert_allclose(harness.action(observation(2)), fingerprint(observation(2), (7, 0))[0], atol=1e-5)


def test_hello_says_what_the_harness_is_to_send() -> None:
    policy = FakePolicy(side=SIDE)
    object.__setattr__(policy.spec, "grippers", (GripperUnits(dim=6, opened=1.0, closed=0.0),))
    with running(policy, units="libero") as server, connecting(server) as connection:
        harness = Harness(connection, benchmark="vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark")
        told = harness.server
        grip = harness.action(observation(1))[6]
    assert told["type"] == "hello" and told["payload"]["protocol_version"] == 1
    asked = told["payload"]["observation_params"]
    assert asked == {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True}
    formats = {name: spec["format"] for name, spec in told["payload"]["action_spec"].items()}
    assert formats == {"position": "delta_xyz", "rotation": "axis_angle", "gripper": "binary_close_positive"}
    opened = policy.act_batch([observation(1)], [(0,)])[0].actions[0, 6] > 0.5
    assert grip == (-1.0 if opened else 1.0)


def test_cameras_of_other_names(server: PolicyServer) -> None:
    seen = observation(3)
    names = {"agentview": "primary", "wrist": "robot0_eye_in_hand"}
    images = {names[name]: png(image) for name, image in reversed(list(seen.images.items()))}
    with connecting(server, "/?seed=7") as connection:
        action = Harness(connection).action(seen, images=images)
    np.testing.assert_allclose(action, fingerprint(seen, (7, 0))[0], atol=1e-5)


def bomb() -> dict[str, Any]:
    """A PNG of 100 megapixels in a few kilobytes."""
    encoded = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(encoded, format="PNG")
    return {"__image__": True, "format": "png", "data": encoded.getvalue(), "shape": [10_000, 10_000, 3]}


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"images": {}}, "no 'images'"),
        (
            {"images": {"agentview": png(observation().images["agentview"])}},
            "1 images: agentview. Expected agentview 32x32",
        ),
        (
            {"images": {name: {"__image__": True, "format": "png", "data": b"GIF89a"} for name in ("a", "b")}},
            "cannot be read",
        ),
        ({"images": {name: {"__image__": True, "format": "png", "data": 5} for name in ("a", "b")}}, "cannot be read"),
        ({"images": {name: {"__ndarray__": True, "data": b"", "dtype": "O"} for name in ("a", "b")}}, "the type |O"),
        (
            {"images": {name: {"__ndarray__": True, "data": b"1", "dtype": "<f8"} for name in ("a", "b")}},
            "cannot be read",
        ),
        ({"images": {"a": bomb(), "b": bomb()}}, "10000x10000; the limit is"),
        ({"states": raw(np.zeros(3))}, "'states' has 3 values; expected 8"),
        ({"states": raw(np.full(8, np.nan))}, "not finite"),
        ({"task_description": ""}, "'task_description' is '', empty"),
        ({"task_description": 5}, "expected the instruction as text"),
    ],
)
def test_what_cannot_be_answered_is_an_error_message(payload: dict[str, Any], said: str, server: PolicyServer) -> None:
    with connecting(server, "/?seed=7") as connection:
        harness = Harness(connection)
        reply = harness.act(observation(1), **payload)
        assert reply["type"] == "error" and said in reply["payload"]["error"]
        assert harness.action(observation(1)).shape == (7,)  # the connection stays


@pytest.mark.parametrize(
    ("kind", "payload", "said"),
    [
        ("dance", {}, "expected one of hello, observation, action, episode_start, episode_end, error"),
        ("observation", [], "'payload' is list; expected a map"),
        ("hello", {"protocol_version": 2}, "of version 2; this server speaks 1"),
    ],
)
def test_other_messages(kind: str, payload: Any, said: str, server: PolicyServer) -> None:
    with connecting(server) as connection:
        harness = Harness(connection)
        harness.send(kind, payload)
        reply = harness.receive()
        assert reply["type"] == "error" and said in reply["payload"]["error"] and reply["seq"] == 2
        harness.send("error", {"error": "the simulator broke"})  # the harness' own troubles are not answered
        assert harness.action(observation(1)).shape == (7,)


def test_health(server: PolicyServer) -> None:
    import json
    import urllib.error
    import urllib.request

    with urllib.request.urlopen(server.address.replace("ws", "http", 1) + "/health", timeout=10) as response:
        assert response.status == 200 and response.headers["Content-Type"] == "application/json"
        assert json.load(response) == {"status": "ok"}
    server.ready = False
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.address.replace("ws", "http", 1) + "/health", timeout=10)
    assert refused.value.code == 503 and json.load(refused.value) == {"status": "loading"}
    server.ready = True


def test_the_configuration_for_the_harness() -> None:
    yaml = pytest.importorskip("yaml")
    path = Path(__file__).parents[2] / "docs" / "vla_eval_libero.yaml"
    config = yaml.safe_load(path.read_text())
    assert config["server"]["url"] == "ws://localhost:8000"
    suites = [entry["params"]["suite"] for entry in config["benchmarks"]]
    assert suites == ["libero_spatial", "libero_object", "libero_goal", "libero_10"]
    assert all(entry["episodes_per_task"] == 50 and entry["params"]["seed"] == 7 for entry in config["benchmarks"])


def test_units_that_do_not_fit_are_refused_before_the_harness_comes() -> None:
    policy = FakePolicy(side=SIDE)
    object.__setattr__(policy.spec, "kind", "absolute")
    with pytest.raises(MismatchError, match="changes of the pose"), running(policy, units="libero"):
        pass
