"""Both protocols end to end on loopback, told apart by each message; what does not fit is answered with what was expected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serve_fakes import SIDE, asked, connected, example, observation, request, running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lamp.errors import MismatchError
from lamp.serve.action_conventions import UNITS, LiberoUnits, WidowXUnits, action_units
from lamp.serve.policy_spec import CameraSize, FakePolicy, PolicySpec, fingerprint
from lamp.serve.protocols import greeting, layouts_for
from lamp.serve.server import PolicyServer
from lamp_client import wire
from lamp_client.client import WebsocketPolicy
from lamp_client.errors import InvalidValueError
from lamp_client.types import GripperUnits, Observation


def test_openpi_requests(server: PolicyServer) -> None:
    with connected(server) as client:
        first = asked(client, request(1, lamp_noise_seed=[7, 3]))
        second = asked(client, request(2, lamp_noise_seed=8))
    np.testing.assert_array_equal(first["actions"][:2], fingerprint(observation(1), (7, 3)))
    np.testing.assert_array_equal(second["actions"][:2], fingerprint(observation(2), (8,)))
    assert first["actions"].shape == (10, 7) and first["actions"].dtype == np.float32
    # openpi's client slices every array by the step: there is no other than the actions.
    assert set(first) == {"actions", "policy_timing", "server_timing", "lamp/gate"} and first["lamp/gate"] == 0.5
    assert first["policy_timing"]["infer_ms"] > 0 and first["server_timing"]["infer_ms"] > 0
    assert "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]
    for reply in (first, second):
        for part in ("policy_timing", "server_timing"):
            assert all(isinstance(value, int | float) for value in reply[part].values())


def test_the_greeting_serves_all_clients(server: PolicyServer) -> None:
    with connect(server.address, compression=None, proxy=None) as client:
        told = client.recv(timeout=5)
    assert isinstance(told, bytes)
    greeting = wire.unpack(told)
    assert greeting["lamp"] == {"protocol": 1} and greeting["action_units"] == "dataset"
    assert greeting["action_chunk_size"] == 10 and greeting["available_unnorm_keys"] == ["stand-in"]
    assert greeting["cameras"] == {"agentview": [SIDE, SIDE], "wrist": [SIDE, SIDE]} and greeting["execute"] == 5


@pytest.mark.parametrize("envelope", [None, "infer", "predict_action"])
def test_starvla_requests(envelope: str | None, server: PolicyServer) -> None:
    message: dict[str, Any] = {"examples": [example(1), example(2)], "unnorm_key": "stand-in", "lamp/noise_seed": [5]}
    if envelope is not None:
        message = {"type": envelope, "request_id": "r-1", "payload": message}
    with connected(server) as client:
        reply = asked(client, message)
    assert reply["status"] == "ok" and reply["ok"] is True and reply["type"] == "inference_result"
    assert reply["request_id"] == ("default" if envelope is None else "r-1")
    assert reply["data"]["actions"].shape == (2, 10, 7) and set(reply["data"]) == {"actions"}
    for number, seed in enumerate((1, 2)):
        np.testing.assert_array_equal(reply["data"]["actions"][number, :2], fingerprint(observation(seed), (5, number)))


def test_starvla_pings_resets_and_errors_keep_the_connection(server: PolicyServer) -> None:
    with connected(server) as client:
        assert asked(client, {"type": "ping", "request_id": 3}) == {
            "status": "ok",
            "ok": True,
            "type": "ping",
            "request_id": 3,
        }
        for message, words in (
            ({"type": "infer", "payload": {"examples": []}}, "'examples' is 0 of them; expected a list of 1 to 64"),
            ({"examples": [{"image": [], "lang": "x"}]}, "expected 2: agentview, wrist"),
            ({"examples": [example()], "unnorm_key": "bridge"}, "unnorm_key is 'bridge'; expected 'stand-in'"),
            ({"examples": [example() | {"lang": ""}]}, "'lang' is '', empty; expected the instruction in words"),
            ({"examples": [example() | {"lang": "  "}]}, "'lang' is '  ', empty"),
            ({"examples": [{"image": example()["image"], "state": example()["state"]}]}, "'lang' is NoneType"),
            ({"examples": [example() | {"lang": 5}]}, "'lang' is int; expected the instruction as text"),
            ({"examples": [example() | {"state": None}]}, "has no 'state'; expected 8 numbers"),
            ({"examples": [example()], "unnorm_key": np.zeros(3)}, "expected 'stand-in'"),
            ({"type": "infer", "payload": 3}, "'payload' is int; expected a map"),
            ({"examples": [example()] * 65}, "'examples' is 65 of them"),
            ({"examples": [1]}, "an example is no map"),
            ({"type": "train", "payload": {}}, "expected one of ping, infer, predict_action, reset"),
        ):
            reply = asked(client, message)
            assert reply["ok"] is False and reply["status"] == "error" and words in reply["error"]["message"]
        assert asked(client, {"type": "reset"})["type"] == "reset"
        # The very same connection goes on, in either protocol.
        assert asked(client, {"examples": [example()]})["ok"] is True
        assert asked(client, request())["actions"].shape == (10, 7)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in request().items() if name != key}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (without("observation/wrist_image"), r"lacks 'observation/wrist_image'; it has .* Expected 'observation/image'"),
        (without("prompt"), "lacks 'prompt'"),
        ({"foo": 1}, "lacks 'observation/image'.*it has 'foo'"),
        ({}, "it has nothing"),
        (request() | {"observation/image": np.zeros((8, 8, 3), np.float32)}, r"is float32 \(8, 8, 3\); expected a uint8"),
        (request() | {"observation/image": np.zeros((3, 8, 8), np.uint8)}, r"is uint8 \(3, 8, 8\); expected a uint8"),
        (request() | {"observation/image": np.zeros((0, 8, 3), np.uint8)}, "empty image"),
        (request() | {"observation/image": np.zeros((32, 48, 3), np.uint8)}, "48x32, of other.*Expected agentview 32x32"),
        (request() | {"observation/image": [[1]]}, "is list; expected a uint8"),
        (request() | {"observation/state": np.zeros(7)}, "has 7 values; expected 8"),
        (request() | {"observation/state": np.full(8, np.nan)}, "not finite"),
        (request() | {"observation/state": ["a"] * 8}, "expected 8 numbers"),
        (request() | {"observation/state": {"a": 1}}, "expected 8 numbers"),
        (request() | {"prompt": 7}, "'prompt' is int; expected the instruction as text"),
        (request() | {"prompt": ""}, "'prompt' is '', empty; expected the instruction in words"),
        (request() | {"prompt": " \n\t"}, "'prompt' is .* empty"),
        (request() | {"prompt": "\ufeff\u200b"}, "'prompt' is .* empty"),
        (request() | {"prompt": np.zeros(3)}, "'prompt' is ndarray; expected the instruction as text"),
        (request() | {"prompt": ["a"]}, "'prompt' is list; expected the instruction as text"),
        (request() | {"prompt": None}, "'prompt' is NoneType; expected the instruction as text"),
        (request() | {"prompt": "x" * 3000}, "3000 characters; expected at most 2000"),
        (request(lamp_noise_seed="x"), "'lamp/noise_seed' is .*expected 1 to 8 whole numbers"),
        (request(lamp_noise_seed=[-1]), "whole numbers"),
        (request(lamp_noise_seed=[0.5]), "whole numbers"),
        (request(lamp_noise_seed=np.zeros(9, np.int64)), "whole numbers"),
        (request(lamp_reset=np.zeros(3)), "expected true or false"),
        ({"type": np.zeros(3)}, "lacks 'observation/image'"),
        (request(lamp_foresight="yes"), "'lamp/foresight' is yes; expected true or false"),
        ([1, 2], "the message is a list; expected a map"),
        (b"\xc1", "cannot be decoded"),
        ("hello", "expected a binary frame"),
    ],
)  # fmt: skip
def test_openpi_mistakes_are_told_in_a_text_frame_that_closes(message: Any, words: str, server: PolicyServer) -> None:
    import re

    with connected(server) as client:
        reply = asked(client, message)
        assert isinstance(reply, str) and re.search(words, reply) and "Traceback" not in reply
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=5)
        assert client.close_code == 1011
    with connected(server) as client:
        assert asked(client, request())["actions"].shape == (10, 7)


def test_foresight_comes_when_asked_for(server: PolicyServer) -> None:
    with connected(server) as client:
        assert asked(client, request(lamp_foresight=True))["lamp/foresight"].shape == (400, 9, 3)
        reply = asked(client, {"examples": [example(0), example(1)], "lamp/foresight": True})
    assert reply["data"]["lamp/foresight"].shape == (2, 400, 9, 3)


def test_droid_and_lerobot_keys(server: PolicyServer) -> None:
    seen = observation(4)
    droid = {
        "observation/exterior_image_1_left": seen.images["agentview"],
        "observation/wrist_image_left": seen.images["wrist"],
        "observation/joint_position": seen.state[:7],
        "observation/gripper_position": seen.state[7:],
        "prompt": seen.instruction,
    }
    frame = {
        "observation.images.agentview": seen.images["agentview"],
        "observation.images.wrist": seen.images["wrist"],
        "observation.state": seen.state,
        "task": seen.instruction,
    }
    with connected(server) as client:
        for message in (droid, frame):
            reply = asked(client, message | {"lamp/noise_seed": 1})
            np.testing.assert_array_equal(reply["actions"][:2], fingerprint(seen, (1,)))


def test_images_of_another_size_are_resized_to_the_policy_s(server: PolicyServer) -> None:
    grey = np.full((64, 64, 3), 90, np.uint8)
    with connected(server) as client:
        reply = asked(client, request(0, lamp_noise_seed=1) | {"observation/image": grey})
    # The fingerprint holds the sum over the image that the policy saw: a grey one stays grey.
    assert reply["actions"][1, 1] == SIDE * SIDE * 3 * 90


def test_an_episode_s_noise_can_be_repeated(server: PolicyServer) -> None:
    def seeds(client: Any) -> list[tuple[float, float]]:
        return [tuple(asked(client, request())["actions"][1, [3, 5]]) for _ in range(3)]

    with connected(server) as client:
        assert asked(client, {"lamp/reset": True, "lamp/noise_seed": [7, 2]}) == {"lamp/reset": True}
        first = seeds(client)
        asked(client, {"lamp/reset": True, "lamp/noise_seed": [7, 2]})
        assert seeds(client) == first == [(9.0, 3.0), (10.0, 3.0), (11.0, 3.0)]
        asked(client, {"lamp/reset": True})
        assert len(set(seeds(client))) == 3
        # The control messages of newer openpi clients begin an episode too.
        assert asked(client, {"__ctrl__": "episode_start", "__experiment__": "x"}) == {"lamp/reset": True}
    with connected(server, path="/?seed=7,2") as client:
        assert seeds(client) == first
        assert asked(client, {"type": "reset"})["ok"] and seeds(client) == first


def test_units_of_the_environment() -> None:
    with running(units="libero") as server, connected(server) as client:
        grippers = asked(client, request())["actions"][:, 6]
        plain = asked(client, {"examples": [example()]})["data"]["actions"][0, :, 6]
    assert set(grippers.tolist()) <= {-1.0, 1.0}
    np.testing.assert_array_equal(grippers, 1 - 2 * (plain > 0.5))  # starVLA's clients convert by themselves
    actions = np.array([[0.1, 0, 0, 0, 0, 0.3, 0.9], [0, 0, 0, 0.2, 0, 0, 0.1], [0, 0, 0, 0, 0, 0, 0.5]], np.float32)
    np.testing.assert_allclose(LiberoUnits()(actions)[:, 6], [-1, 1, 1])
    converted = WidowXUnits()(actions)
    np.testing.assert_allclose(converted[:, 6], [1, -1, -1])
    np.testing.assert_allclose(converted[:, :6], actions[:, :6], atol=1e-7)  # about one axis the two agree
    both = WidowXUnits()(np.array([[0, 0, 0, 0.4, -0.7, 1.1, 1]], np.float32))[0, 3:6]
    np.testing.assert_allclose(rotation(both), turned(0.4, -0.7, 1.1), atol=1e-6)


@pytest.mark.parametrize(("opened", "closed"), [(70.0, 10.0), (-1.0, 1.0), (0.0, 255.0)])
def test_grippers_in_units_of_their_own(opened: float, closed: float) -> None:
    """As recorded by default; where an environment is named, as its clients of either protocol execute it."""
    gripper = GripperUnits(opened=opened, closed=closed)
    openness = np.array([1.0, 0.0, 0.9, 0.2], np.float32)
    actions = gripper.from_openness(np.stack([*np.zeros((6, 4), np.float32), openness], axis=1))
    spec = replace(FakePolicy(side=SIDE).spec, grippers=(gripper,))
    plain, libero, widowx = (action_units(name, spec) for name in UNITS)
    assert plain(actions) is actions and plain.for_starvla(actions) is actions and plain.sent == (gripper,)
    np.testing.assert_array_equal(libero(actions)[:, 6], [-1, 1, -1, 1])
    np.testing.assert_array_equal(widowx(actions)[:, 6], [1, -1, 1, -1])
    np.testing.assert_allclose(libero.for_starvla(actions)[:, 6], openness, atol=1e-6)
    assert greeting(spec, plain, {})["gripper"] == {"dim": -1, "opened": opened, "closed": closed}
    assert greeting(spec, libero, {})["gripper"] == {"dim": 6, "opened": -1.0, "closed": 1.0}
    assert "gripper" not in greeting(
        FakePolicy(side=SIDE).spec, action_units("dataset", FakePolicy(side=SIDE).spec), {}
    )
    for wrong, words in (
        (replace(spec, action_width=8), "needs actions of 7 values; this policy's have 8"),
        (replace(spec, kind="absolute"), "are absolute targets"),
        (replace(spec, grippers=(GripperUnits(dim=2),)), "has it at 2"),
    ):
        with pytest.raises(MismatchError, match=words):
            action_units("libero", wrong)


def rotation(vector: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def turned(roll: float, pitch: float, yaw: float) -> np.ndarray:
    (cr, cp, cy), (sr, sp, sy) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def test_requests_of_policies_with_other_cameras() -> None:
    def spec(*cameras: str, state: int) -> PolicySpec:
        sizes = tuple(CameraSize(name=name, height=8, width=8) for name in cameras)
        return PolicySpec(cameras=sizes, state_width=state, action_width=7, chunk=4, execute=2)

    one = layouts_for(spec("front", state=3))
    assert one[0].keys == ("observation/image", "observation/state", "prompt") and one[0].images[0][0] == "front"
    swapped = layouts_for(spec("left", "hand", state=8))
    assert swapped[0].images == (("left", "observation/image"), ("hand", "observation/wrist_image"))
    three = layouts_for(spec("a", "b", "c", state=1))
    assert len(three) == 1 and three[0].keys[0] == "observation.images.a"


def test_the_stand_in_says_which_request_it_answers() -> None:
    prints = {fingerprint(observation(seed), (seed, call)).tobytes() for seed in range(5) for call in range(5)}
    assert len(prints) == 25
    chunks = FakePolicy(side=SIDE).act_batch([observation(0), observation(1)], [(1,), (2,)])
    assert not np.array_equal(chunks[0].actions[2:], chunks[1].actions[2:])


def test_a_policy_without_language_needs_no_prompt() -> None:
    class Mute(FakePolicy):
        def __init__(self) -> None:
            super().__init__(side=SIDE)
            self.spec = replace(self.spec, takes_language=False)

    openpi, starvla = request(), example()
    with running(Mute()) as server, connected(server) as client:
        for prompt in ({}, {"prompt": ""}, {"prompt": "anything"}):
            rest = {key: value for key, value in openpi.items() if key != "prompt"}
            assert asked(client, rest | prompt)["actions"].shape == (10, 7)
        for lang in ({}, {"lang": ""}):
            rest = {key: value for key, value in starvla.items() if key != "lang"}
            assert asked(client, {"examples": [rest | lang]})["ok"] is True
        assert "'prompt' is int" in asked(client, openpi | {"prompt": 5})
        with WebsocketPolicy(server.address) as policy:
            told = policy.act(Observation(images=observation().images, state=observation().state, instruction=""))
            assert told.actions.shape == (10, 7)
    silent = Observation(images=observation().images, state=observation().state, instruction="")
    refused = pytest.raises(InvalidValueError, match="'instruction' is '', empty")
    with running() as server, WebsocketPolicy(server.address) as policy, refused:
        policy.act(silent)
