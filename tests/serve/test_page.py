"""The live page in a browser that nobody sees; skipped where there is no Chromium."""

from __future__ import annotations

import dataclasses
import functools
import html
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serve_fakes import SIDE, asked, connected, request, running

from lamp.serve.batching import QueuedRequest
from lamp.serve.live import LivePage
from lamp.serve.metrics import Metrics
from lamp.serve.policy_spec import FakePolicy, PolicySpec
from lamp.serve.routes import page
from lamp.serve.server import PolicyServer
from lamp.view.overlay import ForesightArtist
from lamp_client.types import ActionChunk

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_the_page_is_one_file_without_outside_resources() -> None:
    text = page().decode()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert not re.search(r"(src|href)=\"?(//|http)", text) and "innerHTML" not in text


@pytest.fixture
def asking() -> Iterator[PolicyServer]:
    """A server that a robot asks several times a second, in an odd task."""
    policy = FakePolicy(side=SIDE, pause_s=0.005)
    with running(policy, artist=ForesightArtist()) as server:
        stop = threading.Event()

        def robot() -> None:
            with connected(server) as client:
                while not stop.is_set():
                    asked(client, request() | {"prompt": "pick up <img src=x onerror=alert(1)> & go"})
                    time.sleep(0.05)

        thread = threading.Thread(target=robot)
        thread.start()
        yield server
        stop.set()
        thread.join()


@functools.cache
def works(browser: str) -> bool:
    """Ubuntu's chromium-browser may be a script that only says how to get one."""
    return subprocess.run([browser, "--version"], capture_output=True).returncode == 0


def browse(server: PolicyServer, profile: Path, *flags: str, credentials: str = "") -> str:
    browser = next((path for name in BROWSERS if (path := shutil.which(name)) and works(path)), None)
    if browser is None:
        pytest.skip(f"no browser is installed; any of {', '.join(BROWSERS)} will do (scripts/system-packages browser)")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
        "--no-first-run", "--disable-background-networking", "--virtual-time-budget=8000", *flags,
        server.address.replace("ws://", f"http://{credentials}", 1) + "/",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_browser_shows_what_the_robot_sees_and_does(asking: PolicyServer, tmp_path: Path) -> None:
    shown = browse(asking, tmp_path / "profile", "--window-size=1200,1200", "--dump-dom")
    text = html.unescape(re.sub(r"<[^>]+>", " ", shown[shown.index("<main") : shown.index("<script")]))
    assert "pick up <img src=x onerror=alert(1)> & go" in text  # shown as it is, and not as a picture
    assert re.search(r"motion gate\s+0\.500", text) and re.search(r"clients\s+1\b", text)
    assert re.search(r"computing\s+\d+\.\d+\s+\d+\.\d+", text) and "5 are executed" in text
    assert re.search(r"predicted motion, now", text), "the flow of an idle moment is drawn while somebody looks"
    assert shown.count('class="line"') == 8  # seven action values and one line of times
    assert len(re.findall(r'src="[^"]*/image/(agentview|wrist)\.jpg\?n=\d+"', shown)) == 2
    assert "client" in re.findall(r'id="status"[^>]*>([^<]*)<', shown)[0]


ABOUT = {
    "fps": 20, "uses_motion": False, "checkpoint": "runs/policy", "step": 1000, "weights_sha256": "ab12" * 16,
    "action_names": ["x", "y", "z", "rx", "ry", "rz", "<b>gripper"], "action_value_units": ["m"] * 3 + ["rad"] * 3 + ["1 = open"],
}  # fmt: skip


def plain_policy() -> FakePolicy:
    """A policy without a motion prior, which says what it is."""
    policy = FakePolicy(side=SIDE)
    policy.spec = dataclasses.replace(policy.spec, foresees=False, about=ABOUT)
    return policy


def test_the_page_is_told_which_checkpoint_acts_and_what_its_actions_are() -> None:
    told = LivePage(spec=plain_policy().spec, metrics=Metrics()).snapshot(clients=0, waiting=0)["policy"]
    assert (told["checkpoint"], told["step"], told["weights"]) == ("runs/policy", 1000, "ab12ab12ab12")
    assert (
        told["names"] == ABOUT["action_names"] and told["units"] == ABOUT["action_value_units"] and not told["foresees"]
    )
    assert told["uses_motion"] is False


def test_a_browser_shows_what_the_policy_is(tmp_path: Path) -> None:
    with running(plain_policy(), artist=ForesightArtist()) as server:
        with connected(server) as client:
            asked(client, request())
        shown = browse(server, tmp_path / "profile", "--dump-dom")
    text = html.unescape(re.sub(r"<[^>]+>", " ", shown[shown.index("<main") : shown.index("<script")]))
    assert "runs/policy, step 1,000, weights ab12ab12ab12, no motion prior" in text
    assert "x [m]" in text and "<b>gripper [1 = open]" in text and "action 0" not in text
    assert "This policy has no motion prior" in text


def test_a_browser_gets_in_with_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-long-secret\n")
    keys.chmod(0o600)
    with running(api_key_file=keys) as server:
        with connected(server, additional_headers={"Authorization": "Api-Key a-long-secret"}) as client:
            asked(client, request(7))
        shown = browse(server, tmp_path / "one", "--dump-dom", credentials="me:a-long-secret@")
        assert "task 7" in shown and "no news from the server" not in shown[: shown.index("<script")]
        assert "task 7" not in browse(server, tmp_path / "two", "--dump-dom", credentials="me:another@")


def test_flow_is_predicted_for_lookers_only(asking: PolicyServer) -> None:
    time.sleep(0.4)
    shown = asking.live.shown
    assert shown is not None and shown.foresight is None
    asking.live.snapshot(clients=0, waiting=0)
    deadline = time.monotonic() + 5
    while asking.live.shown is None or asking.live.shown.foresight is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_observation_with_flow_stays_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from lamp.serve import live as module

    spec: PolicySpec = FakePolicy(side=SIDE).spec
    live = LivePage(spec=spec, metrics=Metrics(), artist=ForesightArtist())
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    loop = asyncio.new_event_loop()
    request = QueuedRequest(
        observation=spec.example(), noise_seed=(1,), foresight=False, client=1, answer=loop.create_future()
    )
    loop.close()
    plain = ActionChunk(actions=np.zeros((2, 7), np.float32))
    foreseen = ActionChunk(actions=np.zeros((2, 7), np.float32), foresight=np.zeros((4, 3, 3), np.float32))
    numbers = []
    for chunk, seconds in ((plain, 0.0), (foreseen, 0.1), (plain, 0.5), (plain, 3.0)):
        clock[0] += seconds
        live.snapshot(clients=1, waiting=0)
        live.note(request, chunk, infer_ms=1.0, batch=1)
        assert live.shown is not None
        numbers.append(live.shown.number)
    assert numbers == [1, 2, 2, 3]
    # Predictions that take half a second come every five: a tenth of the policy's time.
    live.picture_s = 0.5
    due = []
    for _ in range(4):
        clock[0] += 1.0
        live.snapshot(clients=1, waiting=0)
        due.append(live.wants_flow)
    assert due == [False, True, True, True]  # the last one was 3.5 s ago when this began
