"""Our client with our server: episodes, reconnecting, refusals, certificates; and openpi's own client, where it is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_fakes import SIDE, observation, request, running

from lamp.serve.config import ServerConfig
from lamp.serve.policy_spec import FakePolicy, fingerprint
from lamp.serve.server import served
from lamp_client.asynchronous import Asynchronous
from lamp_client.client import WebsocketPolicy
from lamp_client.errors import ConnectionFailedError, ServerBusyError, ServerError
from lamp_client.layouts import LIBERO_REQUEST

TLS = Path(__file__).parents[1] / "fixtures" / "tls"
OPENPI_PYTHON = os.environ.get("LAMP_OPENPI_PYTHON", "")
"""The interpreter of an environment that holds openpi-client; see docs/serving.md."""


def test_cameras_are_sent_by_name_and_as_they_are() -> None:
    with running() as server, WebsocketPolicy("127.0.0.1", server.port) as policy:
        assert policy.layout.keys[0] == "observation.images.agentview" and policy.layout.image_size is None
        seen = observation(1)
        chunk = policy.act(seen, noise_seed=(7, 1))
        np.testing.assert_array_equal(chunk.actions[:2], fingerprint(seen, (7, 1)))
        assert chunk.foresight is None and chunk.gate == 0.5
    with (
        running() as server,
        WebsocketPolicy("127.0.0.1", server.port, layout=LIBERO_REQUEST, foresight=True) as policy,
    ):
        chunk = policy.act(observation(1, side=256))
        assert chunk.actions.shape == (10, 7) and chunk.foresight is not None and chunk.foresight.shape == (400, 9, 3)


def seeds(policy: WebsocketPolicy, calls: int) -> list[float]:
    return [float(policy.act(observation(0)).actions[1, 3]) for _ in range(calls)]


def test_an_episode_can_be_repeated() -> None:
    with running() as server, WebsocketPolicy("127.0.0.1", server.port) as policy:
        policy.reset((7, 3))
        assert seeds(policy, 3) == [10.0, 11.0, 12.0]
        policy.reset((7, 3))
        assert seeds(policy, 1) == [10.0]
        policy.reset()
        assert seeds(policy, 1) != [10.0]


def test_a_server_that_restarts_is_found_again() -> None:
    config = ServerConfig(port=0)
    with served(FakePolicy(side=SIDE), config) as server:
        port = server.port
        policy = WebsocketPolicy("127.0.0.1", port, connect_timeout_s=10)
        policy.reset((5,))
        assert seeds(policy, 2) == [5.0, 6.0]
    started = threading.Event()

    def restart() -> None:
        time.sleep(0.6)
        with served(FakePolicy(side=SIDE), ServerConfig(port=port)):
            started.set()
            done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=restart)
    thread.start()
    assert seeds(policy, 1) == [5.0]  # told of the episode again, it begins to number anew
    assert started.is_set()
    done.set()
    policy.close()
    thread.join()


def test_a_busy_server_is_asked_again() -> None:
    with running(FakePolicy(side=SIDE, pause_s=0.15), max_queue=1, max_batch=1) as server:

        def one(retries: int) -> Any:
            with WebsocketPolicy("127.0.0.1", server.port, retries=retries) as policy:
                try:
                    return policy.act(observation(0)).actions.shape
                except ServerError as error:
                    return error

        with ThreadPoolExecutor(4) as pool:
            hasty = list(pool.map(one, [0] * 4))
        refused = [reply for reply in hasty if isinstance(reply, ServerBusyError)]
        assert refused and "too busy: the server is busy: 1 observations wait" in str(refused[0])
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(one, [8] * 4)) == [(10, 7)] * 4


@pytest.mark.long
def test_refusals_are_told_in_the_server_s_words(tmp_path: Path) -> None:
    with running(max_clients=1) as server, WebsocketPolicy("127.0.0.1", server.port) as first:
        assert first.metadata["policy"] == "lamp"
        with pytest.raises(
            ConnectionFailedError, match=r"refused .*\(HTTP 503: The server has 1 clients, as many as it takes"
        ):
            WebsocketPolicy("127.0.0.1", server.port).act(observation(0))
    with running() as server, WebsocketPolicy("127.0.0.1", server.port, retries=0) as policy:
        with pytest.raises(ServerError, match=r"failed: image 'agentview' is 16x32, of other proportions"):
            seen = observation(0)
            policy.act(type(seen)(
                images={"agentview": seen.images["agentview"][:, :16], "wrist": seen.images["wrist"]},
                state=seen.state, instruction="x",
            ))  # fmt: skip
        assert policy.act(observation(0)).actions.shape == (10, 7)


def test_certificates() -> None:
    files = {"tls_certificate": TLS / "certificate.pem", "tls_key": TLS / "key.pem"}
    with running(host="localhost", **files) as server:
        with WebsocketPolicy(server.address, ca_file=TLS / "certificate.pem") as policy:
            assert policy.act(observation(0)).actions.shape == (10, 7)
        with pytest.raises(ConnectionFailedError, match=r"no trusted connection.*ca_file"):
            WebsocketPolicy(server.address).act(observation(0))
        with pytest.raises(ConnectionFailedError, match="cannot read the certificates in absent"):
            WebsocketPolicy(server.address, ca_file="absent").act(observation(0))


def test_an_asynchronous_robot_over_the_wire() -> None:
    executor = Asynchronous(every=3)
    with running(FakePolicy(side=SIDE, pause_s=0.03)) as server, WebsocketPolicy("127.0.0.1", server.port) as policy:
        for step in range(25):
            executor.next_action(partial(observation, step), policy, (7,))
            time.sleep(0.02)
        executor.close()
        assert executor.calls >= 4 and executor.waits == 0
        assert server.metrics.requests["openpi"] == executor.calls


OPENPI = """
import json, sys
import numpy as np
from openpi_client import websocket_client_policy as wcp
policy = wcp.WebsocketClientPolicy(sys.argv[1], int(sys.argv[2]), api_key=sys.argv[3])
told = policy.get_server_metadata()
seen = np.load(sys.argv[4])
request = {key: seen[key] for key in seen.files} | {"prompt": "task 0"}
replies = [policy.infer(request) for _ in range(3)]
try:
    policy.infer({"prompt": "x"})
    error = ""
except RuntimeError as caught:
    error = str(caught)
print(json.dumps({
    "metadata": sorted(told), "shape": [list(reply["actions"].shape) for reply in replies],
    "first": replies[0]["actions"][:2].tolist(), "keys": sorted(replies[1]),
    "timing": replies[1]["server_timing"], "error": error,
}))
"""


def openpi_python() -> str:
    if OPENPI_PYTHON:
        return OPENPI_PYTHON
    if find_spec("openpi_client") is None:
        pytest.skip("openpi-client is not here; LAMP_OPENPI_PYTHON names the interpreter of an environment that has it")
    import sys

    return sys.executable


def test_openpi_s_own_client(tmp_path: Path) -> None:
    python, keys = openpi_python(), tmp_path / "keys"
    keys.write_text("some-long-secret\n")
    keys.chmod(0o600)
    message = {name: value for name, value in request(0).items() if name != "prompt"}
    np.savez(tmp_path / "seen.npz", **message)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with running(api_key_file=keys) as server:
        arguments = ["127.0.0.1", str(server.port), "some-long-secret", str(tmp_path / "seen.npz")]
        done = subprocess.run(
            [python, "-c", OPENPI, *arguments], capture_output=True, text=True, timeout=60, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        told = json.loads(done.stdout)
    assert {"action_chunk_size", "action_units", "cameras"} <= set(told["metadata"])
    assert told["shape"] == [[10, 7]] * 3
    expected = fingerprint(observation(0), (0,))
    np.testing.assert_array_equal(np.array(told["first"], np.float32)[:1], expected[:1])
    assert {"actions", "policy_timing", "server_timing"} <= set(told["keys"]) and told["timing"]["prev_total_ms"] > 0
    assert told["error"].startswith("Error in inference server:\nthe request lacks 'observation/image'")
