"""Robotiq 2F grippers over Modbus, on a serial port (RTU) or TCP. Never run on a gripper: see docs/rig.md.

Registers are those of Robotiq's manual: commands from 0x03E8 on, status from 0x07D0 on.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from lamp_client.errors import InvalidValueError, MissingSoftwareError
from lamp_client.rig.description import RigDescription
from lamp_client.rig.devices import RigError

_COMMAND, _STATUS = 0x03E8, 0x07D0
_READ, _WRITE = 0x03, 0x10
_SERIAL_UNIT, _BAUD = 9, 115200
_ACTIVATE, _GO = 0x01, 0x09
_FAULTS = {
    0x05: "it has to be activated again",
    0x07: "it is not activated",
    0x08: "it is too hot",
    0x09: "it has had no communication for a second",
    0x0A: "its supply is below the least voltage",
    0x0B: "it is releasing",
    0x0C: "it has an internal fault",
    0x0D: "its activation failed",
    0x0E: "its current is too high",
    0x0F: "it has released",
}


def crc16(data: bytes) -> int:
    """Modbus's checksum."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
    return crc


class Stream(Protocol):
    """Bytes both ways; `read` returns fewer than asked for when they do not come in time."""

    def write(self, data: bytes, /) -> Any: ...

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


@dataclass(kw_only=True)
class Modbus:
    """A Modbus client for one unit.

    Args:
        rtu: Frames of a serial line, with a checksum; otherwise those of TCP.
    """

    stream: Stream
    unit: int
    rtu: bool
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _transaction: int = field(default=0, init=False)

    def read_registers(self, address: int, count: int) -> bytes:
        """The registers' bytes, two each.

        Raises:
            RigError: no answer, or not one to this question.
        """
        reply = self._ask(struct.pack(">BHH", _READ, address, count), 2 + 2 * count)
        if reply[1] != 2 * count:
            raise RigError(f"the gripper answered {reply[1]} bytes to a question for {2 * count}.")
        return reply[2:]

    def write_registers(self, address: int, data: bytes) -> None:
        """
        Raises:
            RigError: no answer, or not one to this question.
        """
        count = len(data) // 2
        reply = self._ask(struct.pack(">BHHB", _WRITE, address, count, len(data)) + data, 5)
        if reply[1:] != struct.pack(">HH", address, count):
            raise RigError(f"the gripper confirmed {reply.hex()} instead of what was written.")

    def _ask(self, request: bytes, size: int) -> bytes:
        """Sends function and data, and returns those of the answer."""
        with self._lock:
            if self.rtu:
                frame = bytes([self.unit]) + request
                self.stream.write(frame + struct.pack("<H", crc16(frame)))
                head = self._read(2)
                unit, rest = head[0], head[1:] + self._read(3 if head[1] & 0x80 else size + 1)
                body, checksum = rest[:-2], rest[-2:]
                if struct.pack("<H", crc16(head[:1] + body)) != checksum:
                    self._drain()
                    raise RigError(
                        "the gripper's answer has a wrong checksum.", hint="Check the cable, and its shield."
                    )
            else:
                self._transaction = self._transaction % 0xFFFF + 1
                self.stream.write(struct.pack(">HHHB", self._transaction, 0, len(request) + 1, self.unit) + request)
                transaction, protocol, length, unit = struct.unpack(">HHHB", self._read(7))
                if not 2 <= length <= 256 or protocol:
                    raise RigError("what answers at the gripper's address does not speak Modbus.")
                body = self._read(length - 1)
                if transaction != self._transaction:
                    raise RigError("the gripper answered another question.")
            if unit != self.unit or body[0] & 0x7F != request[0]:
                raise RigError(
                    f"unit {unit} answered function {body[0] & 0x7F}; asked was unit {self.unit}, function {request[0]}."
                )
            if body[0] & 0x80:
                raise RigError(f"the gripper refused function {request[0]} with the Modbus exception {body[1]}.")
            if len(body) != size:
                raise RigError(f"the gripper answered {len(body)} bytes; expected {size}.")
            return body

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.stream.read(size - len(data))
            if not more:
                raise RigError(
                    "the gripper does not answer.",
                    hint="Is it powered, and is this its port? Another program may hold it.",
                )
            data += more
        return data

    def _drain(self) -> None:
        with contextlib.suppress(RigError):
            self._read(256)


class _Socket:
    """A TCP connection as a stream."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout_s)

    def write(self, data: bytes, /) -> None:
        self._socket.sendall(data)

    def read(self, size: int, /) -> bytes:
        try:
            return self._socket.recv(size)
        except TimeoutError:
            return b""

    def close(self) -> None:
        self._socket.close()


def open_modbus(address: str, *, timeout_s: float = 0.5) -> Modbus:
    """Opens a serial port, or HOST:PORT.

    Raises:
        InvalidValueError: the address is neither; ports are not searched, which would write to every device on this computer.
        RigError: it cannot be opened.
        MissingSoftwareError: pyserial is needed for it.
    """
    host, colon, port = address.rpartition(":")
    is_serial = address.startswith("/") or address.upper().startswith("COM")
    if not is_serial and not (colon and host and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidValueError(
            f"gripper: address is {address!r}; expected a serial port (/dev/ttyUSB0, COM3) or HOST:PORT. Ports are not searched."
        )
    try:
        if not is_serial:
            return Modbus(stream=_Socket(host, int(port), timeout_s), unit=_SERIAL_UNIT, rtu=False)
        try:
            import serial  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        except ImportError as error:
            raise MissingSoftwareError(
                "pyserial is not installed.", hint="pip install 'lamp-client[robotiq]'"
            ) from error
        return Modbus(stream=serial.Serial(address, _BAUD, timeout=timeout_s), unit=_SERIAL_UNIT, rtu=True)
    except OSError as error:
        raise RigError(f"the gripper at {address} cannot be reached: {error}.") from error


@dataclass(kw_only=True)
class RobotiqGripper:
    """A 2F-85 or 2F-140."""

    address: str
    opened: int = 0
    """Position where it is open, 0 to 255."""
    closed: int = 255
    speed: int = 255
    """0 to 255"""
    force: int = 100
    """0 to 255"""
    open_modbus: Callable[[str], Modbus] = open_modbus
    sleep: Callable[[float], None] = time.sleep
    _modbus: Modbus | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name in ("opened", "closed", "speed", "force"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
                raise InvalidValueError(f"gripper: settings.{name} is {value!r}; expected 0 to 255.")
        if self.opened == self.closed:
            raise InvalidValueError(f"gripper: opened and closed are both {self.opened}; expected two positions.")

    @classmethod
    def described(cls, rig: RigDescription) -> RobotiqGripper:
        """
        Raises:
            InvalidValueError: the description does not fit this driver.
        """
        known = ("opened", "closed", "speed", "force")
        if unknown := rig.gripper.settings.keys() - set(known):
            raise InvalidValueError(f"gripper: settings have {', '.join(sorted(unknown))}; known: {', '.join(known)}.")
        return cls(address=rig.gripper.address, **rig.gripper.settings)

    def connect(self) -> None:
        """Activates it where it is not: it then closes and opens once."""
        self._modbus = self.open_modbus(self.address)
        status = self._status()
        if status[0] >> 4 & 3 == 3 and not status[2]:
            return
        self._command(0, 0)
        self._command(_ACTIVATE, 0)
        for _ in range(100):
            self.sleep(0.1)
            status = self._status()
            if status[0] >> 4 & 3 == 3:
                self._check(status)
                return
        raise RigError("the gripper did not become active in 10 s.", hint="Is something between its fingers?")

    def openness(self) -> float:
        """See `lamp_client.rig.devices.Gripper`."""
        status = self._status()
        self._check(status)
        return min(1.0, max(0.0, (status[4] - self.closed) / (self.opened - self.closed)))

    def move_to(self, openness: float) -> None:
        """See `lamp_client.rig.devices.Gripper`."""
        self._command(_GO, round(self.closed + openness * (self.opened - self.closed)))

    def stop(self) -> None:
        """Ends the motion: the fingers stay, and go on holding."""
        self._command(_ACTIVATE, 0)

    def close(self) -> None:
        if self._modbus is not None:
            self._modbus.stream.close()
            self._modbus = None

    def _status(self) -> bytes:
        """Status, reserved, fault, requested position, position, current."""
        return self._connected().read_registers(_STATUS, 3)

    def _command(self, action: int, position: int) -> None:
        self._connected().write_registers(_COMMAND, bytes([action, 0, 0, position, self.speed, self.force]))

    def _check(self, status: bytes) -> None:
        if fault := status[2] & 0x0F:
            raise RigError(f"the gripper is in fault: {_FAULTS.get(fault, f'code {fault:#x}')}.")

    def _connected(self) -> Modbus:
        if self._modbus is None:
            raise RigError(f"the gripper at {self.address!r} is not connected.")
        return self._modbus
