"""What the live page shows: the last observation, the predicted flow over it, the actions, and how long things take."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from lamp.serve.batching import QueuedRequest
from lamp.serve.metrics import Metrics, quantile
from lamp.serve.policy_spec import PolicySpec
from lamp_client.types import ActionChunk

Artist = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""(image, predicted points or None) -> picture."""

WATCHED_S = 4.0
"""The page is being looked at as long as it has asked for news so recently."""
PICTURE_EVERY_S = 1.0
"""Flow is predicted for the page this often at most."""
PICTURE_SHARE = 0.1
"""Share of the policy's time that predictions for the page may take: a request that arrives meanwhile has to wait."""
STALE_S = 2.0
"""An observation without flow replaces one with it when the next prediction is so late."""


@dataclass(frozen=True, kw_only=True)
class DisplayedReply:
    """The last thing that was computed."""

    number: int
    request: QueuedRequest
    chunk: ActionChunk
    infer_ms: float
    batch: int
    at: float
    foresight: np.ndarray | None = None
    """The predicted flow; it may be of an observation somewhat older than the newest, and then belongs to this picture."""


@dataclass(kw_only=True)
class LivePage:
    """Keeps what the page shows.

    Args:
        artist: Draws predicted points over the reference camera's image; None leaves images as they are.
    """

    spec: PolicySpec
    metrics: Metrics
    artist: Artist | None = None
    shown: DisplayedReply | None = None
    _watched: float = field(default=-1e9, init=False)
    picture_s: float = 0.0
    """How long the last prediction for the page took."""
    _pictured: float = field(default=-1e9, init=False)
    _jpegs: dict[tuple[int, str], bytes] = field(default_factory=dict, init=False)

    @property
    def watched(self) -> bool:
        """Whether somebody is looking."""
        return time.monotonic() - self._watched < WATCHED_S

    @property
    def wants_flow(self) -> bool:
        """Whether a prediction for the page is due."""
        due = time.monotonic() - self._pictured >= self._every
        return self.spec.foresees and self.artist is not None and self.watched and due

    def note(self, request: QueuedRequest, chunk: ActionChunk, *, infer_ms: float, batch: int) -> None:
        """Shows an answer from now on.

        While flow is being shown, plain answers do not replace it, unless the server has been too busy to predict any.
        """
        now = time.monotonic()
        if chunk.foresight is not None:
            self._pictured = now
        elif self._keeps_flow(now):
            return
        number = 1 if self.shown is None else self.shown.number + 1
        self.shown = DisplayedReply(
            number=number, request=request, chunk=chunk, infer_ms=infer_ms, batch=batch, at=time.time(),
            foresight=chunk.foresight,
        )  # fmt: skip
        self._jpegs.clear()

    def _keeps_flow(self, now: float) -> bool:
        shown = self.shown
        return (
            shown is not None
            and shown.foresight is not None
            and self.watched
            and now - self._pictured < self._every + STALE_S
        )

    @property
    def _every(self) -> float:
        """Seconds between two predictions for the page."""
        return max(PICTURE_EVERY_S, self.picture_s / PICTURE_SHARE)

    def snapshot(self, *, clients: int, waiting: int) -> dict[str, Any]:
        """The page's data, as JSON values; asking for it counts as looking."""
        self._watched = time.monotonic()
        metrics, about = self.metrics, self.spec.about
        return {
            "clients": clients,
            "waiting": waiting,
            "requests": sum(metrics.requests.values()),
            "refusals": sum(metrics.refusals.values()),
            "observations": metrics.observations,
            "uptime_s": round(time.time() - metrics.started, 1),
            "latency_ms": {
                name: {"p50": _ms(histogram.recent, 0.5), "p99": _ms(histogram.recent, 0.99)}
                for name, histogram in (
                    ("infer", metrics.infer),
                    ("queue", metrics.queue),
                    ("request", metrics.request),
                )
            },
            "recent_ms": [round(1000 * value, 2) for value in list(metrics.request.recent)[-120:]],
            "batch": round(float(np.mean(metrics.batch.recent)), 2) if metrics.batch.recent else None,
            "policy": {
                "chunk": self.spec.chunk,
                "execute": self.spec.execute,
                "dataset": self.spec.dataset,
                "foresees": self.spec.foresees,
                "checkpoint": about.get("checkpoint"),
                "step": about.get("step"),
                "weights": str(about.get("weights_sha256") or "")[:12],
                "uses_motion": about.get("uses_motion"),
                "names": about.get("action_names") or [],
                "units": about.get("action_value_units") or [],
            },
            "shown": self._shown(),
        }

    def _shown(self) -> dict[str, Any] | None:
        if self.shown is None:
            return None
        shown, seen = self.shown, self.shown.request.observation
        return {
            "number": shown.number,
            "client": shown.request.client,
            "at": round(shown.at, 3),
            "instruction": seen.instruction,
            "cameras": [camera.name for camera in self.spec.cameras],
            "flow": shown.foresight is not None,
            "gate": shown.chunk.gate,
            "state": [round(float(value), 4) for value in seen.state],
            "actions": [[round(float(value), 4) for value in action] for action in shown.chunk.actions],
            "infer_ms": round(shown.infer_ms, 2),
            "batch": shown.batch,
        }

    async def picture(self, camera: str) -> bytes | None:
        """The last image of a camera as JPEG, drawn and encoded beside the event loop; None where there is none."""
        shown = self.shown
        if shown is None or camera not in shown.request.observation.images:
            return None
        key = (shown.number, camera)
        if key not in self._jpegs:
            flow = shown.foresight if camera == self.spec.reference else None
            image = shown.request.observation.images[camera]
            content = await asyncio.to_thread(_jpeg, image, flow, self.artist)
            if self.shown is not shown:
                return content
            self._jpegs[key] = content
        return self._jpegs[key]


def _jpeg(image: np.ndarray, flow: np.ndarray | None, artist: Artist | None) -> bytes:
    drawn = image if artist is None else artist(image, flow)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(drawn)).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _ms(values: Any, share: float) -> float | None:
    value = quantile(values, share)
    return None if value is None else round(1000.0 * value, 2)
