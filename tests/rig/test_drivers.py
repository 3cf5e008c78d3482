"""Drivers without hardware: against committed signatures, a Modbus server on loopback, and librealsense's software device."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rig_fakes import START, description

from lamp_client.errors import LampClientError, MissingSoftwareError
from lamp_client.rig import RigError, open_rig
from lamp_client.rig.description import ArmDescription, Calibration, CameraDescription, GripperDescription
from lamp_client.rig.flexiv import FlexivArm, _rdk
from lamp_client.rig.realsense import RealSenseCamera
from lamp_client.rig.robotiq import Modbus, RobotiqGripper, crc16, open_modbus

SIGNATURES = json.loads((Path(__file__).parents[1] / "fixtures/rig/flexivrdk_1_9_4_1.json").read_text())["classes"]


# Flexiv


class FakeRobot:
    """Takes only what the real bindings take: names, counts, plain floats; and moves only in the right mode."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.mode = "IDLE"
        self.is_fault = self.estop = self.is_operational = False
        self.busy_for = 2

    def __getattr__(self, name: str) -> Any:
        signatures = SIGNATURES["Robot"]["methods"]
        if name not in signatures:
            raise AttributeError(f"flexivrdk's Robot has no {name}")

        def call(*given: Any, **named: Any) -> Any:
            check_arguments(signatures[name][0], given, named)
            self.calls.append((name, given, named))
            return getattr(self, f"_{name}", lambda *_, **__: None)(*given, **named)

        return call

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def _fault(self) -> bool:
        return self.is_fault

    def _estop_released(self) -> bool:
        return not self.estop

    def _operational(self) -> bool:
        return self.is_operational

    def _operational_status(self) -> str:
        return "OperationalStatus.MINOR_FAULT" if self.is_fault else "OperationalStatus.READY"

    def _connected(self) -> bool:
        return True

    def _Enable(self) -> None:  # noqa: N802
        self.is_operational = True

    def _busy(self) -> bool:
        self.busy_for -= 1
        return self.busy_for > 0

    def _SwitchMode(self, mode: str) -> None:  # noqa: N802
        if not self.is_operational:
            raise RuntimeError("Robot is not operational")
        self.mode = mode

    def _ExecutePrimitive(self, name: str, parameters: Any) -> None:  # noqa: N802
        if self.mode != "NRT_PRIMITIVE_EXECUTION":
            raise RuntimeError("wrong mode")

    def _SetMaxContactWrench(self, wrench: Any) -> None:  # noqa: N802
        if self.mode != "NRT_CARTESIAN_MOTION_FORCE":
            raise RuntimeError("wrong mode")

    def _SendCartesianMotionForce(self, pose: Any, *given: Any, **named: Any) -> None:  # noqa: N802
        if self.mode != "NRT_CARTESIAN_MOTION_FORCE":
            raise RuntimeError("wrong mode")

    def _Stop(self) -> None:  # noqa: N802
        self.mode = "IDLE"

    def _states(self) -> Any:
        assert {"tcp_pose", "q", "ext_wrench_in_tcp"} <= set(SIGNATURES["RobotStates"]["attributes"])
        return SimpleNamespace(tcp_pose=[0.5, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0], q=[0.0] * 7, ext_wrench_in_tcp=[0.0] * 6)

    def _info(self) -> Any:
        names = ("serial_num", "model_name", "software_ver", "license_type", "has_FT_sensor")
        assert set(names) <= set(SIGNATURES["RobotInfo"]["attributes"])
        return SimpleNamespace(**dict.fromkeys(names, "x"))


def check_arguments(signature: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Holds a call against a line such as `Move(self: Gripper, width: float, force: float = 1) -> None`."""
    text, parts, depth = signature[signature.index("(") + 1 : signature.rindex(") ->")], [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts if not part.strip().startswith("self")]
    names = [part.split(":")[0] for part in parts]
    assert len(given) <= len(names), (signature, given)
    values = {**dict(zip(names, given, strict=False)), **named}
    assert set(named) <= set(names[len(given) :]), (signature, named)
    for part, name in zip(parts, names, strict=True):
        if name not in values:
            assert "=" in part, f"{signature} lacks {name}"
            continue
        value = values[name]
        if size := re.search(r"FixedSize\((\d+)\)", part):
            assert isinstance(value, list) and len(value) == int(size[1]), (signature, name)
            assert all(type(each) is float for each in value), f"{name}: numpy's floats are refused"
        elif ": float" in part:
            assert type(value) is float, (signature, name, type(value))


def flexiv(robot: FakeRobot, **changes: Any) -> FlexivArm:
    module = SimpleNamespace(
        __version__="1.9.4.1",
        Robot=lambda serial, network: robot,
        Mode=SimpleNamespace(**{name: name for name in SIGNATURES["Mode"]["members"]}),
    )
    settings = {
        "serial": "Rizon4-123456",
        "max_speed": 0.25,
        "max_rotation_speed": 1,
        "max_force": 40,
        "max_torque": 10,
    }
    return FlexivArm(**{**settings, "rdk": lambda: module, "sleep": lambda seconds: None, **changes})


def test_flexiv_is_readied_in_the_order_that_it_needs() -> None:
    robot = FakeRobot()
    arm = flexiv(robot, stiffness=(1000,) * 6)
    arm.connect()
    assert not {"Enable", "SwitchMode"} & set(robot.names())  # nothing moves on connecting
    arm.enable()
    moves = [name for name in robot.names() if name[0].isupper()]
    assert moves == [
        "Enable", "SwitchMode", "ExecutePrimitive", "SwitchMode", "SetCartesianImpedance", "SetMaxContactWrench",
    ]  # fmt: skip
    arm.move_to(START)
    name, given, named = robot.calls[-1]
    assert name == "SendCartesianMotionForce" and given[0] == pytest.approx([0.5, 0, 0.3, 0, 1, 0, 0])
    assert named == {"max_linear_vel": 0.25, "max_angular_vel": 1.0}
    state = arm.state()
    assert state.fault == "" and state.pose.distance(START) < 1e-12 and state.pose.angle(START) < 1e-9
    arm.stop()
    assert robot.names()[-1] == "Stop" and robot.mode == "IDLE"
    arm.enable()
    assert robot.names().count("ExecutePrimitive") == 1  # the force sensor is zeroed once, not while something is held
    assert arm.about["rdk"] == "1.9.4.1"


@pytest.mark.parametrize(
    ("fault", "message"), [("estop", "emergency stop is pressed"), ("is_fault", r"in fault \(MINOR_FAULT\)")]
)
def test_flexiv_in_fault_is_refused_and_not_cleared(fault: str, message: str) -> None:
    robot = FakeRobot()
    setattr(robot, fault, True)
    with pytest.raises(RigError, match=message):
        flexiv(robot).connect()
    assert "ClearFault" not in robot.names()
    arm = flexiv(FakeRobot())
    arm.connect()
    arm._robot.is_fault = True
    assert arm.state().fault == "MINOR_FAULT"


def test_flexiv_that_does_not_become_operational_is_given_up() -> None:
    robot = FakeRobot()
    robot._Enable = lambda: None  # type: ignore[method-assign]
    arm = flexiv(robot)
    arm.connect()
    with pytest.raises(RigError, match="did not become operational: it took more than 30 s"):
        arm.enable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 150.0}, "takes 1 to 100 targets"),
        ({"arm": ArmDescription(driver="flexiv")}, "address is empty"),
        ({"arm": ArmDescription(driver="flexiv", address="R", settings={"speed": 1})}, "settings have speed"),
        ({"arm": ArmDescription(driver="flexiv", address="R", settings={"stiffness": [1]})}, "expected six"),
    ],
)
def test_flexiv_descriptions_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LampClientError, match=message):
        FlexivArm.described(replace(description(), **{"arm": ArmDescription(driver="flexiv", address="R"), **change}))


def test_without_the_rdk_it_is_said_what_to_install() -> None:
    with pytest.raises(MissingSoftwareError, match=r"pip install 'flexivrdk>=1\.9,<2'"):
        _rdk()


# Robotiq


@dataclass
class FakeGripperRegisters:
    """A 2F-85's registers: it has to be activated, and goes where it is told."""

    status: bytearray = field(default_factory=lambda: bytearray(6))
    written: list[bytes] = field(default_factory=list)
    activating: int = 0

    def answer(self, pdu: bytes) -> bytes:
        function, address, count = struct.unpack(">BHH", pdu[:5])
        if function == 3 and (address, count) == (0x07D0, 3):
            if self.activating:
                self.activating -= 1
                if not self.activating:
                    self.status[0] = 0x31
            return bytes([3, 6]) + bytes(self.status)
        if function == 16 and address == 0x03E8:
            data = pdu[6:]
            self.written.append(data)
            if not data[0]:
                self.status[0], self.activating = 0, 0
            elif self.status[0] >> 4 & 3 != 3:
                self.status[0], self.activating = 0x11, 3
            elif data[0] == 0x09:
                self.status[0], self.status[3], self.status[4] = 0xF9, data[3], data[3]
            return pdu[:5]
        return bytes([function | 0x80, 2])


class RtuStream:
    """A serial line to the fake registers; `spoil` damages answers."""

    def __init__(self, registers: FakeGripperRegisters) -> None:
        self.registers, self.sent, self.spoil = registers, b"", lambda answer: answer
        self._answer = b""

    def write(self, data: bytes) -> None:
        self.sent = data
        assert data[0] == 9 and struct.unpack("<H", data[-2:])[0] == crc16(data[:-2])
        frame = bytes([9]) + self.registers.answer(data[1:-2])
        self._answer = self.spoil(frame + struct.pack("<H", crc16(frame)))

    def read(self, size: int) -> bytes:
        part, self._answer = self._answer[: min(size, 2)], self._answer[min(size, 2) :]  # bytes come in drops
        return part

    def close(self) -> None:
        pass


def test_frames_are_those_of_the_gripper_manual() -> None:
    """The examples that Robotiq's manual prints."""
    stream = RtuStream(FakeGripperRegisters())
    modbus = Modbus(stream=stream, unit=9, rtu=True)
    modbus.write_registers(0x03E8, bytes([0, 0, 0, 0, 0, 0]))
    assert stream.sent.hex(" ") == "09 10 03 e8 00 03 06 00 00 00 00 00 00 73 30"
    modbus.write_registers(0x03E8, bytes([9, 0, 0, 255, 255, 255]))
    assert stream.sent.hex(" ") == "09 10 03 e8 00 03 06 09 00 00 ff ff ff 42 29"


def gripper_on(stream: Any, rtu: bool = True) -> RobotiqGripper:
    return RobotiqGripper(
        address="/dev/null",
        open_modbus=lambda address: Modbus(stream=stream, unit=9, rtu=rtu),
        sleep=lambda seconds: None,
    )


def test_a_gripper_is_activated_once_and_moves() -> None:
    registers = FakeGripperRegisters()
    gripper = gripper_on(RtuStream(registers))
    gripper.connect()
    assert [each[0] for each in registers.written] == [0, 1] and gripper.openness() == 1.0
    gripper.move_to(0.25)
    assert registers.written[-1] == bytes([9, 0, 0, 191, 255, 100]) and gripper.openness() == pytest.approx(
        0.25, abs=0.002
    )
    gripper.stop()
    gripper.close()
    again = gripper_on(RtuStream(registers))
    again.connect()
    assert len(registers.written) == 4  # what is active is not activated again: it would drop what it holds
    registers.status[2] = 0x0E
    with pytest.raises(RigError, match="in fault: its current is too high"):
        again.openness()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda answer: b"", "does not answer"),
        (lambda answer: answer[:4], "does not answer"),
        (lambda answer: answer[:-1] + bytes([answer[-1] ^ 1]), "wrong checksum"),
        (lambda answer: with_crc(bytes([8]) + answer[1:-2]), "unit 8 answered"),
        (lambda answer: with_crc(bytes([9, 0x83, 2])), "refused function 3 with the Modbus exception 2"),
        (lambda answer: with_crc(bytes([9, 3, 4]) + answer[3:-2]), "answered 4 bytes"),
    ],
)
def test_damaged_answers_of_a_gripper_are_refused(spoil: Any, message: str) -> None:
    stream = RtuStream(FakeGripperRegisters())
    gripper = gripper_on(stream)
    gripper.connect()
    stream.spoil = spoil
    with pytest.raises(RigError, match=message):
        gripper.openness()


def with_crc(frame: bytes) -> bytes:
    return frame + struct.pack("<H", crc16(frame))


@contextlib.contextmanager
def modbus_server(registers: FakeGripperRegisters) -> Iterator[str]:
    """A Modbus TCP server on loopback."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                while len(head := connection.recv(7, socket.MSG_WAITALL)) == 7:
                    transaction, _, length, unit = struct.unpack(">HHHB", head)
                    answer = registers.answer(connection.recv(length - 1, socket.MSG_WAITALL))
                    connection.sendall(struct.pack(">HHHB", transaction, 0, len(answer) + 1, unit) + answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    thread.join(timeout=2)


def test_a_gripper_over_tcp_on_loopback() -> None:
    registers = FakeGripperRegisters()
    with modbus_server(registers) as address:
        gripper = RobotiqGripper(address=address, sleep=lambda seconds: None)
        gripper.connect()
        gripper.move_to(0.0)
        assert gripper.openness() == 0.0 and registers.written[-1][3] == 255
        gripper.close()


@pytest.mark.parametrize("address", ["", "auto", "ttyUSB0", "host:", "host:99999", ":502"])
def test_ports_are_not_searched(address: str) -> None:
    with pytest.raises(LampClientError, match=r"expected a serial port .* Ports are not searched"):
        open_modbus(address)


def test_a_gripper_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RigError, match="cannot be reached"):
        open_modbus(f"127.0.0.1:{port}")


def test_gripper_settings_that_cannot_be() -> None:
    for settings, message in (
        ({"speed": 300}, "speed is 300"),
        ({"opened": 255}, "both 255"),
        ({"force_n": 3}, "settings have force_n"),
    ):
        rig = description(gripper=GripperDescription(driver="robotiq", address="/dev/x", settings=settings))
        with pytest.raises(LampClientError, match=message):
            RobotiqGripper.described(rig)


# RealSense


def camera(**changes: Any) -> CameraDescription:
    return CameraDescription(**{"driver": "realsense", "width": 640, "height": 480, "depth": True, **changes})


class FakeRealSense:
    """As much of pyrealsense2 as connecting needs."""

    def __init__(self, serials: list[str], fx: float = 600.0) -> None:
        self.stream = SimpleNamespace(color="color", depth="depth")
        self.format = SimpleNamespace(rgb8="rgb8", z16="z16")
        self.camera_info = SimpleNamespace(serial_number="serial")
        self.enabled: list[Any] = []
        self.running = False
        devices = [SimpleNamespace(get_info=lambda what, serial=serial: serial) for serial in serials]
        self.context = lambda: SimpleNamespace(query_devices=lambda: devices)
        self.align = lambda stream: SimpleNamespace(process=lambda frames: frames)
        self.config = lambda: SimpleNamespace(
            enable_device=lambda serial: self.enabled.append(serial),
            enable_stream=lambda *stream: self.enabled.append(stream),
        )
        intrinsics = SimpleNamespace(fx=fx, fy=fx)
        video = SimpleNamespace(get_intrinsics=lambda: intrinsics)
        profile = SimpleNamespace(get_stream=lambda stream: SimpleNamespace(as_video_stream_profile=lambda: video))

        def start(config: Any) -> Any:
            self.running = True
            return profile

        def stop() -> None:
            self.running = False

        self.pipeline = lambda: SimpleNamespace(start=start, stop=stop, wait_for_frames=lambda wait: None)


def test_a_camera_is_looked_for_before_its_pipeline_starts() -> None:
    rs = FakeRealSense(["111", "222"])
    with pytest.raises(RigError, match=r"'front' \(333\) is not there; connected: 111, 222"):
        RealSenseCamera(name="front", description=camera(serial="333"), module=lambda: rs).connect()
    with pytest.raises(RigError, match=r"any serial number\) is not there; connected: none"):
        RealSenseCamera(name="front", description=camera(), module=lambda: FakeRealSense([])).connect()
    assert not rs.running
    one = RealSenseCamera(name="front", description=camera(serial="222"), module=lambda: rs)
    one.connect()
    assert rs.enabled == ["222", ("color", 640, 480, "rgb8", 30), ("depth", 640, 480, "z16", 30)]
    one.close()
    assert not rs.running


def test_a_calibration_of_another_lens_is_refused() -> None:
    rs = FakeRealSense(["1"], fx=600.0)
    described = camera(calibration=Calibration(focal=(700.0, 700.0)))
    with pytest.raises(RigError, match="focal length of 600 px, and its calibration 700 px"):
        RealSenseCamera(name="front", description=described, module=lambda: rs).connect()
    assert not rs.running


def test_a_camera_that_sends_nothing_says_so() -> None:
    def wait() -> Any:
        raise RuntimeError("Frame didn't arrive within 1000")

    one = RealSenseCamera(name="front", description=camera(depth=False), source=wait, module=lambda: FakeRealSense([]))
    one.connect()
    with pytest.raises(RigError, match="sends nothing: Frame didn't arrive"):
        one.frame()


def test_frames_of_a_software_device_are_aligned_and_in_metres() -> None:
    rs = pytest.importorskip("pyrealsense2")
    device, frames = software_device(rs)
    one = RealSenseCamera(name="front", description=camera(), source=frames, module=lambda: rs)
    one.connect()
    first, second = one.frame(), one.frame()
    assert first.image.shape == (480, 640, 3) and first.image.dtype == np.uint8 and second.number > first.number
    assert first.depth is not None and first.depth.shape == (480, 640)
    assert np.median(first.depth[first.depth > 0]) == pytest.approx(0.8)
    del device


def software_device(rs: Any) -> tuple[Any, Any]:
    """librealsense without a camera: colour, and a plane at 0.8 m."""
    width, height = 640, 480

    def stream(kind: Any, uid: int, form: Any, size: int, focal: float) -> Any:
        optics = rs.intrinsics()
        optics.width, optics.height, optics.fx, optics.fy, optics.ppx, optics.ppy = (
            width,
            height,
            focal,
            focal,
            320.0,
            240.0,
        )
        optics.model, optics.coeffs = rs.distortion.none, [0] * 5
        video = rs.video_stream()
        video.type, video.index, video.uid, video.width, video.height = kind, 0, uid, width, height
        video.fps, video.bpp, video.fmt, video.intrinsics = 30, size, form, optics
        return video

    device = rs.software_device()
    sensors = [device.add_sensor("Depth"), device.add_sensor("Color")]
    profiles = [
        sensors[0].add_video_stream(stream(rs.stream.depth, 1, rs.format.z16, 2, 600.0)),
        sensors[1].add_video_stream(stream(rs.stream.color, 2, rs.format.rgb8, 3, 615.0)),
    ]
    sensors[0].add_read_only_option(rs.option.depth_units, 0.001)
    place = rs.extrinsics()
    place.rotation, place.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [0.015, 0, 0]
    profiles[0].register_extrinsics_to(profiles[1], place)
    device.create_matcher(rs.matchers.default)
    syncer, number = rs.syncer(), 0
    for sensor, profile in zip(sensors, profiles, strict=True):
        sensor.open(profile)
        sensor.start(syncer)

    def frames() -> Any:
        nonlocal number
        while True:
            number += 1
            pictures = [np.full((height, width), 800, np.uint16), np.full((height, width, 3), number, np.uint8)]
            for sensor, profile, picture, size in zip(sensors, profiles, pictures, (2, 3), strict=True):
                frame = rs.software_video_frame()
                frame.stride, frame.bpp, frame.pixels, frame.timestamp = width * size, size, picture, number * 33.3
                frame.domain, frame.frame_number = rs.timestamp_domain.hardware_clock, number
                frame.profile = profile.as_video_stream_profile()
                if size == 2:
                    frame.depth_units = 0.001
                sensor.on_video_frame(frame)
            found, both = syncer.try_wait_for_frames(200)
            if found and both.size() == 2:
                return both

    return device, frames


# Which driver


def test_drivers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(LampClientError, match=r"unknown driver of the arm 'fake'"):
        open_rig(description())
    arm = ArmDescription(driver="realsense", address="x")
    with pytest.raises(RigError, match="'realsense' makes no arm"):
        open_rig(description(arm=arm))
    with pytest.raises(RigError, match="expected its world"):
        open_rig(description(arm=ArmDescription(driver="twin")))


def test_the_fake_robot_is_as_strict_as_the_bindings() -> None:
    robot = FakeRobot()
    robot.is_operational, robot.mode = True, "NRT_CARTESIAN_MOTION_FORCE"
    with pytest.raises(AssertionError):
        robot.SendCartesianMotionForce([np.float64(0)] * 7)
    with pytest.raises(AssertionError):
        robot.SendCartesianMotionForce([0.0] * 6)
    with pytest.raises(AttributeError):
        robot.MoveTo([0.0] * 7)
