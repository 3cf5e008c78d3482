"""Settings of the server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from lamp.errors import ConfigError, DataError
from lamp.serve.action_conventions import check_units
from lamp.serve.policy_spec import RealTimeName
from lamp_client.wire import Limits


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where the server listens, whom it lets in, and how much it takes."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets other machines in over IPv4; `::` listens on IPv6 only."""
    port: int = 8000
    """0 takes any free port."""
    api_key_file: Path | None = None
    """One key a line; clients then need one of them. Lines that begin with # do not count."""
    tls_certificate: Path | None = None
    """PEM file with the certificate chain; clients then connect with wss:// and browsers with https://."""
    tls_key: Path | None = None
    """PEM file with its private key; None where the certificate's file holds both."""
    units: str = "dataset"
    """Of the actions in replies to openpi's, vla-eval's and LeRobot's requests: dataset, libero or widowx."""
    gather_ms: float = 2.5
    """How long a request waits for others to be computed with [ms]; one that is alone does not wait."""
    max_batch: int = 16
    """Observations computed together."""
    max_queue: int = 64
    """Observations that wait; a request beyond that is refused."""
    max_clients: int = 128
    """Connections; one beyond that is refused."""
    max_message_mb: float = 16.0
    """Size of a request [MB]; a connection that sends more is closed."""
    max_array_mb: float = 12.0
    """Size of one array [MB]: a full-HD image has 6.2."""
    max_buffered_mb: float = 512.0
    """What all clients together may have sent and the server not yet answered [MB], at least two of the largest messages; beyond,
    the client whose message began first and is not whole is disconnected (code 1013)."""
    message_timeout_s: float = 30.0
    """A client whose message takes longer to arrive is disconnected [s]."""
    send_timeout_s: float = 10.0
    """A client that does not take its reply for so long is disconnected [s]."""
    ping_timeout_s: float = 60.0
    """A client that has vanished is noticed after about so long [s]."""
    stop_timeout_s: float = 30.0
    """How long a stop waits for what is in flight [s]."""
    page: bool = True
    """Offer the live page, which shows the cameras' images to whoever may connect."""

    def __post_init__(self) -> None:
        check_units(self.units)
        for name in ("max_batch", "max_queue", "max_clients"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535.")
        for name in (
            "max_message_mb", "max_array_mb", "max_buffered_mb", "message_timeout_s", "send_timeout_s", "ping_timeout_s",
            "stop_timeout_s",
        ):  # fmt: skip
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a number above 0.")
        if not 0 <= self.gather_ms <= 1000:
            raise ConfigError(f"gather_ms is {self.gather_ms}; expected 0 to 1000.")
        if self.tls_key is not None and self.tls_certificate is None:
            raise ConfigError("tls_key is given without tls_certificate; expected both, or the certificate alone.")

    @property
    def limits(self) -> Limits:
        """What a message may hold."""
        return Limits(message_bytes=int(self.max_message_mb * 1e6), array_bytes=int(self.max_array_mb * 1e6))

    @property
    def buffered_bytes(self) -> int:
        """What all clients together may have sent without an answer."""
        return int(max(self.max_buffered_mb, 2 * self.max_message_mb) * 1e6)

    def tls(self) -> ssl.SSLContext | None:
        """Opens the certificate.

        Raises:
            DataError: A file is missing or no certificate.
        """
        if self.tls_certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for file in (self.tls_certificate, self.tls_key):
            if file is not None and not file.is_file():
                raise DataError(f"no file {file}; expected a PEM file of the certificate or its key.")
        try:
            context.load_cert_chain(self.tls_certificate, self.tls_key)
        except (ssl.SSLError, OSError) as error:
            raise DataError(
                f"{self.tls_certificate} and its key cannot be used ({error}); expected a PEM certificate chain and its key."
            ) from None
        return context


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServerConfig):
    """Answers robots and simulators with a checkpoint's actions, in openpi's and starVLA's protocols, until it is stopped."""

    checkpoint: tyro.conf.Positional[Path]
    """The policy's checkpoint, or the run that holds it."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or auto for the GPU where there is one."""
    threads: int | None = None
    """CPU threads of the policy; None leaves it to torch."""
    fast: bool = True
    """Take the policy's fast path: the same actions within rounding (docs/speed.md)."""
    dataset: str | None = None
    """Of a policy that was trained on several datasets, the one whose robot it acts as, by its folder's name; None: the first."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the experts; auto is bfloat16 where the fast path runs on a GPU, and float32 elsewhere."""
    real_time: RealTimeName = "auto"
    """How chunks go on from the actions that a robot executes meanwhile (docs/realtime.md): guided, identity, which is faster and
    coarser, or trained, where the policy was trained for it; auto is trained where it was, else guided."""
