"""Requests that no client of ours would send, one at a time: what is answered, and what it costs."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from attacks import HANDSHAKES, UPGRADE
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst
from serve_fakes import SIDE, asked, connected, example, request, running

from lamp.errors import LampError
from lamp.serve.action_conventions import DatasetUnits
from lamp.serve.config import ServerConfig
from lamp.serve.policy_spec import FakePolicy
from lamp.serve.protocols import ActRequest, OpenPi, PingRequest, ResetRequest, StarVla, WireProtocol
from lamp.serve.server import PolicyServer, served
from lamp.serve.vla_eval import VlaEval
from lamp.serve.vllm_omni import VllmOmni
from lamp_client import wire
from lamp_client.errors import InvalidValueError, LampClientError
from lamp_client.layouts import state_from

SPEC = FakePolicy(side=SIDE).spec
UNITS = DatasetUnits()
OPENPI = OpenPi.of(SPEC, UNITS)
PROTOCOLS: tuple[WireProtocol, ...] = (
    VlaEval(spec=SPEC, units=UNITS, limits=wire.Limits()),
    StarVla(spec=SPEC, max_examples=4),
    OPENPI,
)
VLLM_OMNI = (VllmOmni(spec=SPEC, units=UNITS, openpi=OPENPI),)
TYPES = st.one_of(
    nst.boolean_dtypes(), nst.integer_dtypes(), nst.unsigned_integer_dtypes(), nst.floating_dtypes(sizes=(16, 32, 64)),
    nst.unicode_string_dtypes(max_len=4), nst.byte_string_dtypes(max_len=4), nst.datetime64_dtypes(), nst.timedelta64_dtypes(),
)  # fmt: skip
ARRAYS = nst.arrays(TYPES, nst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=8))
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=9), st.binary()
)
VALUES = st.recursive(
    st.one_of(PLAIN, ARRAYS, nst.from_dtype(np.dtype("<f4")), nst.from_dtype(np.dtype("<u8"))),
    lambda inner: st.one_of(st.lists(inner, max_size=9), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=12,
)
FLAT = st.sampled_from(
    [*request(), "lamp/noise_seed", "lamp/foresight", "lamp/reset", "observation.state", "type", "payload"]
)
IN_EXAMPLE = st.sampled_from([*example(), "examples"])
BESIDE = st.sampled_from(
    ["examples", "unnorm_key", "type", "payload", "request_id", "lamp/noise_seed", "lamp/foresight"]
)


MARKERS = st.fixed_dictionaries(
    {},
    optional={"__image__": VALUES, "__ndarray__": VALUES, "nd": VALUES}
    | {"format": st.sampled_from(["png", "jpeg", "raw"]) | VALUES, "dtype": st.sampled_from(["<f4", "O"]) | VALUES}
    | {"data": VALUES, "shape": VALUES, "type": VALUES},
)
"""What says that it is an array or an image of another codec."""


def read(message: dict[Any, Any], protocols: Sequence[WireProtocol] = PROTOCOLS) -> None:
    """Reads a message as a session does, as it comes over the wire; anything but a refusal or a request comes through."""
    message = wire.unpack(wire.pack(message), copy=False)
    protocol = next(protocol for protocol in protocols if protocol.matches(message))
    try:
        found = protocol.read(message)
    except (LampError, LampClientError) as error:
        assert len(str(error)) < 1200
        refusal = protocol.error_reply(message, str(error))
        assert refusal.close is not None or wire.pack(refusal.frame)
        return
    assert isinstance(found, ActRequest | ResetRequest | PingRequest)
    if isinstance(found, ActRequest):
        for seen in found.observations:
            assert seen.state.shape == (8,) and np.isfinite(seen.state).all()
            assert all(image.shape == (SIDE, SIDE, 3) for image in seen.images.values())


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(FLAT, VALUES, min_size=1, max_size=3))
def test_any_value_under_any_key_of_openpi_is_read_or_refused(changes: dict[str, Any]) -> None:
    read(request() | changes)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(IN_EXAMPLE, VALUES, max_size=2), st.dictionaries(BESIDE, VALUES, max_size=2), st.booleans())
def test_any_value_under_any_key_of_starvla_is_read_or_refused(
    inside: dict[str, Any], beside: dict[str, Any], enveloped: bool
) -> None:
    message = {"examples": [example() | inside]} | beside
    read({"type": "infer", "payload": message} if enveloped else message)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["type", "payload", "seq", "timestamp"]), VALUES, max_size=1),
    st.dictionaries(
        st.sampled_from(["images", "states", "task_description", "protocol_version"]), VALUES | MARKERS, max_size=2
    ),
    st.dictionaries(st.sampled_from(["agentview", "wrist", "x"]), VALUES | MARKERS, max_size=2),
    st.sampled_from(["hello", "observation", "episode_start", "error"]),
)
def test_any_value_under_any_key_of_vla_eval_is_read_or_refused(
    envelope: dict[str, Any], payload: dict[str, Any], images: dict[str, Any], kind: str
) -> None:
    seen = example()
    named = dict(zip(("agentview", "wrist"), seen["image"], strict=True))
    observed = {"images": named | images, "states": seen["state"], "task_description": seen["lang"]}
    read({"type": kind, "payload": observed | payload, "seq": 1, "timestamp": 0.0} | envelope)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["images", "state", "prompt", "seed", "session_id", "endpoint", "modality_config"]),
        VALUES | MARKERS | st.dictionaries(st.sampled_from(["x", "state"]), VALUES | MARKERS, max_size=2),
        min_size=1,
        max_size=3,
    ),
)
def test_any_value_under_any_key_of_vllm_omni_is_read_or_refused(changes: dict[str, Any]) -> None:
    seen = example()
    read({"images": seen["image"], "state": seen["state"], "prompt": seen["lang"]} | changes, VLLM_OMNI)
    read(request() | changes, VLLM_OMNI)


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 200_000, *["a"] * 2000],
        [["x" * 200_000], *[["a"]] * 2000],
        [np.zeros(200_000, np.uint8), *[1] * 2000],
        [*range(15_000)],
        np.zeros(2_000_000, np.uint8),
    ],
    ids=["a long text", "inside lists", "an array", "many numbers", "a large array"],
)
def test_a_state_that_is_none_costs_nothing(value: Any) -> None:
    """NumPy makes room for the longest text in every place of an array: gigabytes, of a message that has a megabyte."""
    tracemalloc.start()
    with pytest.raises(InvalidValueError, match="expected 8"):
        state_from(value, "state", 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    "value", [[1, 2.5, True], [[1.0], [2.5, 1]], np.array([[1, 2.5, 1]]), [np.float32(1), np.array([2.5, 1])]]
)
def test_numbers_are_read_from_whatever_holds_them(value: Any) -> None:
    np.testing.assert_array_equal(state_from(value, "state", 3), np.array([1, 2.5, 1], np.float32))


def test_states_beyond_all_measure_are_refused(server: PolicyServer) -> None:
    for state, words in ((np.full(8, 3e38, np.float32), "beyond 1e[+]09"), (np.full(8, 1e300), "beyond 1e[+]09")):
        with pytest.raises(InvalidValueError, match=words):
            state_from(state, "state", 8)
        with connected(server) as client:
            assert "expected 8 smaller numbers" in asked(client, request() | {"observation/state": state})


def test_long_keys_are_not_sent_back(server: PolicyServer) -> None:
    with connected(server) as client:
        reply = asked(client, {"k" * 100_000: 1})
        assert "it has 'kkk" in reply and len(reply) < 500


def test_handshakes_that_cannot_be_read_are_told_so(server: PolicyServer) -> None:
    """Not one of them is a failure of the server, which would be answered with 500."""
    expected = (b"400", b"400", b"403", b"101")
    for head, status in zip(HANDSHAKES, expected, strict=False):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(head)
            assert client.recv(4096).split()[1] == status
    from lamp.serve.keys import ApiKeys

    for header in ("Basic \u00e9\u00e9", "Basic \udcff", "Basic =", "\udcff \udcff", "Bearer \udcff"):
        assert not ApiKeys.of(["some-secret"]).admit(header)


def test_everything_else_goes_on_while_the_policy_computes() -> None:
    """Computing beside the event loop: what needs no policy is answered meanwhile."""
    policy = FakePolicy(side=SIDE, pause_s=1.5)
    with running(policy, max_batch=1) as server, connected(server) as asking, connected(server) as other:
        computed = len(policy.batches)
        asking.send(wire.pack(request()))
        while len(policy.batches) == computed:
            time.sleep(0.01)
        started = time.perf_counter()
        for _ in range(5):
            assert asked(other, {"type": "ping"})["ok"] is True
        assert "lacks" in asked(other, {"x": 1})
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert time.perf_counter() - started < 0.75
        assert isinstance(asking.recv(timeout=10), bytes)


def test_a_stop_does_not_wait_for_those_who_never_finish_connecting() -> None:
    silent: list[socket.socket] = []
    with served(FakePolicy(side=SIDE), ServerConfig(port=0)) as server:
        for beginning in (b"", UPGRADE, b"GET / HT"):
            silent.append(socket.create_connection(("127.0.0.1", server.port)))
            silent[-1].sendall(beginning)
        time.sleep(0.2)
        started = time.monotonic()
    assert time.monotonic() - started < 4 and not [t for t in threading.enumerate() if t.name == "lamp-server"]
    for client in silent:
        client.close()
