"""vLLM-Omni's robot endpoint, with requests as LeRobot's `vllm` policy sends them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serve_fakes import LIBERO, SIDE, asked, connected, observation, running
from websockets.sync.client import connect

from lamp.serve.action_conventions import DatasetUnits
from lamp.serve.message_values import array_from
from lamp.serve.policy_spec import FakePolicy, fingerprint
from lamp.serve.server import PolicyServer
from lamp.serve.vllm_omni import PATH, action_keys, policy_server_config
from lamp_client import wire
from lamp_client.types import Observation

KEYS = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
STATE = {key: {"start": n, "end": n + 1} for n, key in enumerate(KEYS)} | {"gripper": {"start": 6, "end": 8}}


def lerobot_request(seen: Observation, **more: Any) -> dict[str, Any]:
    """A named state, images in a list with the wrist's last, a session."""
    state = {key: [float(v) for v in seen.state[place["start"] : place["end"]]] for key, place in STATE.items()}
    return {
        "session_id": "5d0b",
        "embodiment": "libero_sim",
        "modality_config": {"state": STATE, "action": {}},
        "prompt": seen.instruction,
        "state": state,
        "images": list(seen.images.values()),
    } | more


def actions_in(reply: dict[str, np.ndarray]) -> np.ndarray:
    assert list(reply) == KEYS and {value.shape for value in reply.values()} == {(10, 1)}
    return np.concatenate([reply[key] for key in KEYS], axis=1)


def test_actions_are_those_of_the_policy_in_process() -> None:
    policy = FakePolicy(side=SIDE)
    seen = observation(1)
    with running(policy) as server, connected(server, path=PATH) as client:
        reply = asked(client, lerobot_request(seen, seed=7))
        again = asked(client, lerobot_request(seen, seed=7))
        other = asked(client, lerobot_request(seen, seed=8))
    expected = policy.act_batch([seen], [(7,)])[0].actions
    np.testing.assert_allclose(actions_in(reply), expected, atol=1e-5)
    np.testing.assert_array_equal(actions_in(again), actions_in(reply))
    assert not np.array_equal(actions_in(other), actions_in(reply))


def test_the_greeting_advertises_what_is_taken_and_given(server: PolicyServer) -> None:
    with connect(server.address + PATH, compression=None, proxy=None) as client:
        encoded = client.recv(timeout=5)
        assert isinstance(encoded, bytes)
        told = wire.unpack(encoded)
    assert (
        told["image_resolution"] == [SIDE, SIDE]
        and told["n_external_cameras"] == 1
        and told["needs_wrist_camera"] is True
    )
    assert told["action_keys"] == KEYS and told["action_horizon"] == 10 and told["default_action_horizon"] == 5
    assert (
        told["action_space"] == "delta_pose_dataset" and told["state_dim"] == 8 and told["needs_stereo_camera"] is False
    )
    assert "action_dim" not in told  # which vLLM-Omni defines for unnamed actions only


@pytest.mark.parametrize(
    "form",
    [
        {"images": {"external_0": "agentview", "wrist": "wrist"}},
        {"images": {"wrist": "wrist", "external_0": "agentview"}},
        {"state": "flat"},
        {"state": "unplaced"},
        {"endpoint": "infer"},
        {"images": "markers"},
    ],
)
def test_other_forms_of_the_same_observation(form: dict[str, Any], server: PolicyServer) -> None:
    seen = observation(2)
    message = lerobot_request(seen, seed=7)
    if form.get("images") == "markers":  # the msgpack-numpy package's arrays, which older vLLM clients send
        message["images"] = [
            {b"nd": True, b"type": i.dtype.str, b"kind": b"", b"shape": i.shape, b"data": i.tobytes()}
            for i in seen.images.values()
        ]
    elif "images" in form:
        message["images"] = {name: seen.images[camera] for name, camera in form["images"].items()}
    if form.get("state") == "flat":
        message["state"] = seen.state
    if form.get("state") == "unplaced":
        del message["modality_config"]
    if "endpoint" in form:
        message |= form
    with connected(server, path=PATH) as client:
        np.testing.assert_allclose(actions_in(asked(client, message))[:2], fingerprint(seen, (7,)), atol=1e-5)


def test_a_named_state_is_put_together_by_its_places(server: PolicyServer) -> None:
    seen = observation(2)
    message = lerobot_request(seen, seed=7)
    message["state"] = dict(reversed(message["state"].items()))
    with connected(server, path=PATH) as client:
        np.testing.assert_allclose(actions_in(asked(client, message))[:2], fingerprint(seen, (7,)), atol=1e-5)


def test_observations_by_openpis_keys(server: PolicyServer) -> None:
    with connected(server, path=PATH + "/") as client:
        reply = asked(client, LIBERO.request(observation(4)) | {"session_id": "a", "seed": 3})
    np.testing.assert_allclose(actions_in(reply)[:2], fingerprint(observation(4), (3,)), atol=1e-5)


def test_a_session_or_a_reset_begins_an_episode(server: PolicyServer) -> None:
    seen = observation(1)
    with connected(server, path=PATH + "?seed=9") as client:
        calls = [actions_in(asked(client, lerobot_request(seen, session_id=session))) for session in ("a", "a", "b")]
        assert asked(client, {"endpoint": "reset"}) == {"status": "reset successful"}
        calls.append(actions_in(asked(client, lerobot_request(seen, session_id="b"))))
    expected = [fingerprint(seen, (9, call)) for call in (0, 1, 0, 0)]
    np.testing.assert_allclose(np.stack(calls)[:, :2], expected, atol=1e-5)


def test_a_session_whose_first_request_is_refused_begins_with_the_next(server: PolicyServer) -> None:
    seen = observation(1)
    with connected(server, path=PATH + "?seed=9") as client:
        asked(client, lerobot_request(seen, session_id="a"))
        assert asked(client, lerobot_request(seen, session_id="b") | {"prompt": 5})["type"] == "error"
        actions = actions_in(asked(client, lerobot_request(seen, session_id="b")))
    np.testing.assert_allclose(actions[:2], fingerprint(seen, (9, 0)), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"endpoint": "train"}, "'endpoint' is 'train'; expected one of infer, reset"),
        ({"images": []}, "0 images"),
        ({"images": ["a", "b"]}, "'agentview' is str; expected a uint8 array"),
        ({"images": [{b"nd": True, b"type": "O", b"data": b""}] * 2}, "an array cannot be read"),
        ({"state": {"x": [1.0]}}, "'state' has 1 values; expected 8"),
        ({"state": {"x": "up"}}, "expected 8 numbers"),
        ({"state": None}, "expected 8 numbers"),
        ({"prompt": " "}, "'prompt' is ' ', empty"),
        ({"seed": -1}, "'seed' is -1"),
        ({"seed": 1.5}, "'seed' is 1.5"),
    ],
)
def test_what_cannot_be_answered_is_an_error_map(change: dict[str, Any], said: str, server: PolicyServer) -> None:
    with connected(server, path=PATH) as client:
        reply = asked(client, lerobot_request(observation(1)) | change)
        assert reply["type"] == "error" and said in reply["message"], reply
        assert asked(client, wire.pack([1]))["type"] == "error"
        assert set(asked(client, lerobot_request(observation(1)))) == set(KEYS)  # the connection stays


def test_names_of_the_actions() -> None:
    spec = FakePolicy(side=SIDE).spec
    arms = replace(spec, action_width=3, about={"action_names": ("shoulder", "elbow", "gripper")})
    assert action_keys(arms) == ["shoulder", "elbow", "gripper"]
    assert action_keys(replace(arms, about={"action_names": ("a", "a", "b")})) == ["action_0", "action_1", "action_2"]
    joints = replace(spec, kind="absolute", about={})
    assert action_keys(joints) == [f"action_{n}" for n in range(7)]
    assert policy_server_config(joints, DatasetUnits())["action_space"] == "absolute_dataset"
    one = policy_server_config(replace(spec, cameras=spec.cameras[:1]), DatasetUnits())
    assert one["needs_wrist_camera"] is False and one["n_external_cameras"] == 1


def test_markers_of_scalars() -> None:
    assert array_from({"nd": False, "type": "<f4", "kind": "f", "data": np.float32(2.5).tobytes()}) == 2.5
    assert array_from({"x": 1}) == {"x": 1} and array_from(3) == 3
