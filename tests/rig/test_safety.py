"""Limits on targets, and the watchdog under injected faults."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from rig_fakes import START, Fakes, description, fake_rig

from lamp_client.envs.rotations import matrix_from_axis_angle
from lamp_client.rig import Limits, Pose, RigError, RigStoppedError, SimulatedClock, WallClock, admit
from lamp_client.rig.description import WatchdogSettings
from lamp_client.rig.safety import STOP_WITHIN_S

LIMITS = description().limits


def moved(x: float = 0.0, y: float = 0.0, z: float = 0.0, turn: float = 0.0) -> Pose:
    rotation = matrix_from_axis_angle(np.array([0.0, 0.0, turn])) @ START.rotation
    return Pose(position=START.position + np.array([x, y, z]), rotation=rotation)


def changed(**changes: object) -> Limits:
    return Limits(**{**LIMITS.__dict__, **changes})


def test_a_target_within_the_limits_is_commanded_as_it_is() -> None:
    admitted = admit(moved(0.01, turn=0.02), START, LIMITS, 0.05)
    assert admitted.notes == ()
    assert admitted.pose.distance(moved(0.01)) < 1e-12 and admitted.pose.angle(moved(0.01, turn=0.02)) < 1e-9


def test_a_fast_target_is_cut_in_proportion_and_stays_on_the_way() -> None:
    admitted = admit(moved(0.05, turn=0.1), START, LIMITS, 0.05)  # 1 m/s and 2 rad/s; the limits are 0.25 and 1
    assert admitted.pose.position == pytest.approx(START.position + np.array([0.0125, 0, 0]))
    assert admitted.pose.angle(START) == pytest.approx(0.025)  # the same quarter
    assert "m/s" in admitted.notes[0]
    half = admit(moved(0.05), START, LIMITS, 0.05, speed=0.5)
    assert half.pose.distance(START) == pytest.approx(0.00625)


def test_a_long_pause_earns_no_jump() -> None:
    admitted = admit(moved(0.14), START, changed(max_step=1.0), 100.0)
    assert admitted.pose.distance(START) == pytest.approx(0.125)


def test_outside_of_the_workspace_is_clipped_or_rejected() -> None:
    near = Pose(position=np.array([0.695, 0.0, 0.3]), rotation=START.rotation)
    beyond = Pose(position=np.array([0.704, 0.0, 0.3]), rotation=START.rotation)
    admitted = admit(beyond, near, LIMITS, 0.05)
    assert admitted.pose.position[0] == pytest.approx(0.7) and "outside of the workspace" in admitted.notes[0]
    with pytest.raises(RigError, match=r"0\.4 cm outside of the workspace"):
        admit(beyond, near, changed(outside="reject"), 0.05)


def test_a_jump_is_rejected_with_the_reason_or_cut() -> None:
    with pytest.raises(RigError, match=r"20\.0 cm and 0 degrees from the one before; the limits are 15\.0 cm"):
        admit(moved(0.2), START, LIMITS, 0.05)
    with pytest.raises(RigError, match="57 degrees"):
        admit(moved(turn=1.0), START, LIMITS, 0.05)
    assert admit(moved(0.2), START, changed(too_far="clip"), 0.05).pose.distance(START) == pytest.approx(0.0125)
    with pytest.raises(RigError, match="needs 1"):
        admit(moved(0.05), START, changed(too_fast="reject"), 0.05)


@pytest.mark.parametrize("seed", range(20))
def test_no_admitted_target_breaks_a_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limits, before = changed(too_far="clip"), START
    for _ in range(50):
        turn = matrix_from_axis_angle(rng.normal(size=3) * rng.choice([0.01, 1.0]))
        target = Pose(
            position=before.position + rng.normal(size=3) * rng.choice([0.001, 0.1, 10]),
            rotation=turn @ before.rotation,
        )
        pose = admit(target, before, limits, 0.05).pose
        assert (pose.position >= np.array(limits.workspace_low) - 1e-9).all()
        assert (pose.position <= np.array(limits.workspace_high) + 1e-9).all()
        assert pose.distance(before) <= 0.05 * limits.max_speed + 1e-9 and pose.angle(before) <= 0.05 + 1e-6
        before = pose


# What can go wrong: caused at a moment; returns when the stop is due, and of which kind it is. Called with the rig running.
Fault = Callable[[Fakes], tuple[Callable[[], float], str]]


def _stalls(fakes: Fakes) -> tuple[Callable[[], float], str]:
    fakes.camera.stalled = True
    return lambda: fakes.camera.new_s + settings(fakes).image_s, "image"


def _freezes(fakes: Fakes) -> tuple[Callable[[], float], str]:
    fakes.camera.frozen = True
    return lambda: fakes.camera.changed_s + settings(fakes).frozen_s, "frozen"


def _unplugged(fakes: Fakes) -> tuple[Callable[[], float], str]:
    fakes.camera.fails = True
    return _now(fakes), "image"


def _arm_fault(fakes: Fakes) -> tuple[Callable[[], float], str]:
    fakes.arm.fault = "MINOR_FAULT"
    return _now(fakes), "fault"


def _arm_unreachable(fakes: Fakes) -> tuple[Callable[[], float], str]:
    fakes.arm.fails = True
    return _now(fakes), "fault"


def _gripper_lost(fakes: Fakes) -> tuple[Callable[[], float], str]:
    fakes.gripper.fails = True
    return _now(fakes), "fault"


def _collides(fakes: Fakes) -> tuple[Callable[[], float], str]:
    fakes.arm.wrench = np.array([0, 0, 60.0, 0, 0, 0])
    return _now(fakes), "limit"


def _blocked(fakes: Fakes) -> tuple[Callable[[], float], str]:
    fakes.arm.follows = False
    fakes.arm.pose = Pose(position=fakes.arm.pose.position - [0.0, 0.2, 0.0], rotation=START.rotation)
    return _now(fakes), "limit"


def _key(fakes: Fakes) -> tuple[Callable[[], float], str]:
    due = _now(fakes)
    fakes.rig.stop()
    return due, "key"


def _server_silent(fakes: Fakes) -> tuple[Callable[[], float], str]:
    within = settings(fakes).reply_s
    due = fakes.rig.clock.now() + within
    fakes.rig.watchdog.expect("reply", "server", within, "the policy has not answered")
    return lambda: due, "server"


def _rejected(fakes: Fakes) -> tuple[Callable[[], float], str]:
    due = _now(fakes)
    with pytest.raises(RigStoppedError):
        fakes.rig.send(np.array([0.5, 0.0, np.nan, 0, 0, 0, 1], np.float32))
    return due, "limit"


def _state_hangs(fakes: Fakes) -> tuple[Callable[[], float], str]:
    last = fakes.rig.clock.now()
    next(job for job in fakes.rig._jobs if getattr(job, "name", "") == "arm").cancel()
    # The last state came up to one reading before.
    return lambda: last + settings(fakes).state_s, "state"


def _loop_hangs(fakes: Fakes) -> tuple[Callable[[], float], str]:
    last = max(at for name, at in fakes.arm.calls if name == "move")
    return lambda: last + settings(fakes).missed_periods / 20, "period"


def settings(fakes: Fakes) -> WatchdogSettings:
    return fakes.rig.description.watchdog


def _now(fakes: Fakes) -> Callable[[], float]:
    moment = fakes.rig.clock.now()
    return lambda: moment


FAULTS: list[Fault] = [
    _stalls, _freezes, _unplugged, _arm_fault, _arm_unreachable, _gripper_lost, _collides, _blocked, _key, _server_silent,
    _rejected, _state_hangs, _loop_hangs,
]  # fmt: skip


class StoppedBeforeError(Exception):
    """The arm was stopped before the fault was there."""


def run_with_fault(fakes: Fakes, fault: Fault, at_s: float) -> tuple[float, float, str]:
    """Runs a rig until a fault stops it; returns when that was due, when the stop was commanded, and its kind."""
    rig, clock = fakes.rig, fakes.rig.clock
    start, due, sends, until = clock.now(), None, True, None
    target = rig.values(START, 1.0)
    with rig:
        while rig.watchdog.stopped is None or fakes.arm.stopped_s() is None:
            if due is None and clock.now() - start >= at_s:
                due, _ = fault(fakes)
                sends = fault is not _loop_hangs
                until = clock.now() + 3.0
            if until is not None and clock.now() > until:
                raise AssertionError(f"nothing stopped the arm 3 s after {fault.__name__}")
            if sends and rig.watchdog.stopped is None:
                try:
                    target = target + np.array([0.0005, 0, 0, 0, 0, 0, 0], np.float32)
                    rig.send(target)
                except RigStoppedError:
                    continue
            clock.sleep(random.Random(at_s).choice([0.05, 0.05, 0.01]))
        stopped = rig.watchdog.stopped
        commanded = fakes.arm.stopped_s()
        clock.sleep(0.05)
        after = fakes.arm.names()[fakes.arm.names().index("stop") :]
        # In real time one target may be on its way while the stop is commanded; the stop is then commanded after it once more.
        assert after[-1] == "stop" and after.count("move") <= isinstance(clock, WallClock)
        with pytest.raises(RigStoppedError):
            rig.send(target)
    if due is None:
        raise StoppedBeforeError
    assert commanded is not None and stopped is not None
    return due(), commanded, stopped.kind


@pytest.mark.parametrize("count", [65, pytest.param(1000, marks=pytest.mark.long)])
def test_each_fault_stops_the_arm_within_a_tenth_of_a_second(count: int) -> None:
    rng, kinds = random.Random(3), set()
    expected = {fault: fault(fake_running())[1] for fault in FAULTS}
    for number in range(count):
        fault = FAULTS[number % len(FAULTS)]
        due, commanded, kind = run_with_fault(fake_rig(SimulatedClock()), fault, rng.uniform(0.06, 0.5))
        assert kind == expected[fault], (fault.__name__, kind)
        # The last sign of life may be a reading older than the test knows of.
        assert -0.021 <= commanded - due <= STOP_WITHIN_S, (fault.__name__, commanded - due)
        kinds.add(kind)
    assert kinds == {"image", "frozen", "fault", "limit", "key", "server", "state", "period"}


def fake_running() -> Fakes:
    fakes = fake_rig(SimulatedClock())
    fakes.rig.connect()
    fakes.rig.start()
    fakes.rig.send(fakes.rig.values(START, 1.0))
    return fakes


@pytest.mark.long
def test_fifty_faults_in_real_time() -> None:
    hiccup, late, too_slow = Hiccups(), [], 0
    patient = WatchdogSettings(image_s=0.3, frozen_s=0.5, state_s=0.3, reply_s=0.4, missed_periods=8)
    while len(late) < 50:
        fault = FAULTS[len(late) % len(FAULTS)]
        try:
            fakes = fake_rig(WallClock(), watchdog=patient)
            due, commanded, _ = run_with_fault(fakes, fault, 0.08 + 0.002 * len(late))
        except StoppedBeforeError:  # a machine so busy that a sign of life came late, and rightly stopped
            too_slow += 1
            assert too_slow < 10
            continue
        late.append(commanded - due)
        # What the machine takes from every thread, it takes from the watchdog too.
        assert commanded - due <= STOP_WITHIN_S + hiccup.worst(), (fault.__name__, commanded - due)
    hiccup.end()
    assert np.median(late) <= 0.05


class Hiccups:
    """How much later than asked a thread of this process wakes up."""

    def __init__(self) -> None:
        self._worst, self._ended = 0.0, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            before = time.monotonic()
            time.sleep(0.005)
            self._worst = max(self._worst, time.monotonic() - before - 0.005)

    def worst(self) -> float:
        worst, self._worst = self._worst, 0.0
        return worst

    def end(self) -> None:
        self._ended = True
        self._thread.join()


def test_a_stop_command_that_fails_is_tried_again() -> None:
    fakes, failures = fake_rig(), [3]
    real = fakes.arm.stop

    def stop() -> None:
        if failures[0]:
            failures[0] -= 1
            raise RuntimeError("busy")
        real()

    fakes.arm.stop = stop  # type: ignore[method-assign]
    with fakes.rig as rig:
        rig.send(rig.values(START, 1.0))
        rig.stop()
        rig.clock.sleep(0.1)
        assert failures[0] == 0 and fakes.arm.stopped_s() is not None


def test_nothing_is_commanded_when_nobody_watches() -> None:
    fakes = fake_rig()
    fakes.rig.connect()
    with pytest.raises(RigStoppedError, match="watchdog has not looked"):
        fakes.rig.send(fakes.rig.values(START, 1.0))
    assert "move" not in fakes.arm.names() and fakes.arm.names()[-1] == "stop"


def test_a_device_that_hangs_does_not_hold_up_the_stop() -> None:
    fakes, release = fake_rig(WallClock()), threading.Event()
    with fakes.rig as rig:
        rig.send(rig.values(START, 1.0))
        fakes.camera.frame = lambda: release.wait(5) and None  # type: ignore[method-assign, assignment, return-value]
        fakes.arm.state = lambda: release.wait(5) and None  # type: ignore[method-assign, assignment, return-value]
        began = time.monotonic()
        while rig.watchdog.stopped is None and time.monotonic() - began < 3:
            rig.clock.sleep(0.01)
        assert rig.watchdog.stopped is not None and rig.watchdog.stopped.kind in ("state", "image", "period")
        assert fakes.arm.stopped_s() is not None
        release.set()


def test_after_a_stop_the_rig_goes_on_only_when_told_and_able() -> None:
    fakes = fake_rig()
    with fakes.rig as rig:
        rig.send(rig.values(START, 1.0))
        fakes.arm.fault = "MINOR_FAULT"
        rig.clock.sleep(0.1)
        with pytest.raises(RigStoppedError, match=r"stopped \(fault\): the arm is in fault: MINOR_FAULT"):
            rig.send(rig.values(START, 1.0))
        with pytest.raises(RigError, match="cannot go on"):
            rig.resume()
        fakes.arm.fault = ""
        rig.resume()
        rig.send(rig.values(START, 1.0))
        assert fakes.arm.names()[-1] == "move" and fakes.arm.names().count("enable") == 2
