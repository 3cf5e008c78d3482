"""A trained policy behind the server, and the server as a program of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_fakes import asked, connected, running
from training_fakes import PatchBackbone, loop, motion_training, policy_training, write_dataset  # pyright: ignore[reportMissingImports]
from websockets.sync.client import connect

from lamp import cli
from lamp.policy import LaMPPolicy
from lamp.serve import server as module
from lamp.serve.policy_spec import CheckpointPolicy, policy_spec
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp_client import wire
from lamp_client.client import WebsocketPolicy
from lamp_client.types import ActionChunk, Observation


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LaMPPolicy:
    root, short = tmp_path_factory.mktemp("served"), loop(steps=2)
    data = write_dataset(root / "data", episodes=4)
    train_motion(motion_training(loop=short), data, root / "motion", backbone=PatchBackbone())
    train_policy(policy_training(loop=short), data, root / "guided", root / "motion", backbone=PatchBackbone())
    return LaMPPolicy.from_checkpoint(root / "guided", backbone=PatchBackbone())


def observation(seed: int, side: int = 64) -> Observation:
    generator = np.random.default_rng(seed)
    images = {name: generator.integers(0, 255, (side, side, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    return Observation(images=images, state=generator.normal(size=8).astype(np.float32), instruction=f"task {seed % 2}")


def test_over_the_wire_a_policy_acts_as_in_this_process(policy: LaMPPolicy) -> None:
    served = CheckpointPolicy(spec=policy_spec(policy), act_batch=policy.act_batch)
    assert served.spec.cameras[0].height == 64 and served.spec.foresees and served.spec.chunk == 5
    with running(served) as server, WebsocketPolicy("127.0.0.1", server.port, foresight=True) as client:
        for seed in range(3):
            here = policy.act_batch([observation(seed)], [(7, seed)], foresight=True)[0]
            there = client.act(observation(seed), noise_seed=(7, seed))
            np.testing.assert_allclose(there.actions, here.actions, atol=1e-6)
            assert there.foresight is not None and here.foresight is not None
            np.testing.assert_allclose(there.foresight, here.foresight, atol=1e-6)
            assert there.gate == pytest.approx(here.gate)
            assert {"policy.encode_ms", "policy.act_ms", "server.infer_ms", "server.queue_ms"} <= there.timing_ms.keys()
        with connected(server) as raw:
            assert "'observation.images.wrist'" in asked(raw, {"observation.images.agentview": 1})


SCRIPT = """
import asyncio, sys
from lamp.serve.config import ServerConfig
from lamp.serve.server import serve_until_signalled
from lamp.serve.policy_spec import FakePolicy
asyncio.run(serve_until_signalled(FakePolicy(side=32, pause_s=0.5), ServerConfig(port=0)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_program_after_what_is_in_flight(number: signal.Signals) -> None:
    program = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True)
    assert program.stderr is not None
    try:
        told = [program.stderr.readline() for _ in range(4)]
        assert told[0] == "lamp: warming up\n" and told[1].startswith("lamp: serving at ws://127.0.0.1:")
        with connect(told[1].split()[-1], compression=None, proxy=None) as client:
            client.recv()
            seen = observation(0, side=32)
            client.send(wire.pack({
                "observation/image": seen.images["agentview"], "observation/wrist_image": seen.images["wrist"],
                "observation/state": seen.state, "prompt": "x",
            }))  # fmt: skip
            time.sleep(0.2)
            program.send_signal(number)
            reply = client.recv(timeout=10)
        assert isinstance(reply, bytes) and wire.unpack(reply)["actions"].shape == (10, 7)
        assert program.wait(timeout=10) == 0
        assert "what is in flight is finished first" in program.stderr.read()
    finally:
        program.kill()
        program.stderr.close()


def test_the_command(
    policy: LaMPPolicy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: list[object] = []
    (tmp_path / "runs" / "policy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "serve", lambda config, artist: seen.append(config))
    words = "serve runs/policy --port 9000 --api-key-file keys --units libero --host 0.0.0.0"
    assert cli.main(words.split()) == 0
    (config,) = seen
    found = [getattr(config, name) for name in ("checkpoint", "port", "api_key_file", "units", "host")]
    assert found == [Path("runs/policy"), 9000, Path("keys"), "libero", "0.0.0.0"]
    monkeypatch.undo()
    assert cli.main(["serve", "no/such/run"]) == 2 and "no checkpoint at no/such/run" in capsys.readouterr().err
    assert cli.main(["serve", "no/such/run", "--api-key-file", "absent"]) == 2
    assert "no API key file at absent" in capsys.readouterr().err
    assert (
        cli.main(["serve", "x", "--units", "yards"]) == 2
        and "Known: dataset, libero, widowx" in capsys.readouterr().err
    )


@pytest.mark.long
def test_the_measurement_with_a_trained_policy(policy: LaMPPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamp.bench import serve as serving
    from lamp.bench.serve import SCENES, CheckpointWorkload

    def swapped(*arguments: Any, **options: Any) -> list[ActionChunk]:
        chunks = policy.act_batch(*arguments, **options)
        return chunks[::-1] if len(chunks) == 3 else chunks

    served = CheckpointPolicy(spec=policy_spec(policy), act_batch=swapped)
    workload = CheckpointWorkload.of(served, clients=3)
    assert workload.expected.shape == (3, SCENES, 5, 7) and not np.array_equal(
        workload.expected[0, 0], workload.expected[0, 1]
    )
    seen, seed = workload.request(workload.scenes(2), 2, 5)
    assert seed == (2, 1) and workload.error(workload.expected[2, 1], seen, seed) == 0.0
    assert workload.error(workload.expected[2, 1] + np.float32(1e-4), seen, seed) == pytest.approx(1e-4, rel=1e-2)
    assert (
        workload.error(workload.expected[1, 1], seen, seed) is None
        and workload.error(workload.expected[2, 0], seen, seed) is None
    )
    monkeypatch.setattr(serving, "open_checkpoint", lambda *_, **__: served)
    bench = serving.ServeBench(
        checkpoint=Path("x"), clients=3, seconds=2.0, alone_seconds=0.5, processes=1, gather_ms=200.0
    )
    figures = serving.bench_serving(bench)
    assert figures["lost_replies"] == 0 and figures["requests"] > 9 and figures["largest_difference"] < 1e-4
    assert figures["wrong_replies"] >= figures["requests"] // 3  # the policy swaps the replies of three


def test_the_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    flags = "--clients 4 --seconds 1 --alone-seconds 0.5 --side 32 --processes 1"
    assert cli.main(["bench", "serve", *flags.split(), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (
        figures["requests"] > 20 and figures["wrong_replies"] == figures["lost_replies"] == 0 and not figures["errors"]
    )
    assert figures["latency_ms"]["p99"] >= figures["latency_ms"]["p50"] > figures["overhead_ms"]["alone"]["p50"] * 0.1
    assert cli.main(["bench", "serve", "--clients", "0"]) == 2
