"""Plain HTTP beside the websocket: health, figures, the live page and its data."""

from __future__ import annotations

import email.utils
import json
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from lamp.serve.connections import ClientConnection
from lamp.serve.keys import ApiKeys, same_origin
from lamp.serve.live import LivePage
from lamp.serve.message_values import NoiseSeed, seed_from
from lamp_client.errors import LampClientError

PATHS = ("/healthz", "/health", "/metrics", "/", "/live.json", "/image/CAMERA.jpg")
RETRY_AFTER_S = 2
POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class Routes:
    """Answers what is no websocket, and decides who may open one.

    Args:
        keys: API keys that let a client in.
        live: Gives the page's data; None: there is no page.
        metrics: Returns the metrics as text.
        clients: How many are connected, and how many may be.
        state: ready, or why requests are not answered: loading, stopping.
        refused: Called with the reason of every refusal.
        waiting: How many observations wait, for the page.
    """

    def __init__(
        self,
        *,
        keys: ApiKeys,
        live: Callable[[], LivePage] | None,
        metrics: Callable[[], str],
        clients: Callable[[], tuple[int, int]],
        state: Callable[[], str],
        refused: Callable[[str], None],
        waiting: Callable[[], int],
    ) -> None:
        self.keys, self.live, self.metrics = keys, live, metrics
        self.clients, self.state, self.refused, self.waiting = clients, state, refused, waiting

    async def __call__(self, connection: ClientConnection, request: Request) -> Response | None:
        """Returns a response to plain requests and to clients that are refused; None lets the websocket open."""
        response = await self._response(request, head=connection.head)
        if response is not None and connection.head:
            response.body = b""  # its length stays in the headers
        return response

    async def _response(self, request: Request, *, head: bool) -> Response | None:
        try:
            path = urlsplit(request.path).path
        except ValueError:
            return text_response(f"The address {request.path[:80]!r} cannot be read.\n", HTTPStatus.BAD_REQUEST)
        upgrade = not head and "websocket" in ",".join(request.headers.get_all("Upgrade")).lower()
        if path == "/healthz" and not upgrade:
            return text_response("OK") if self.state() == "ready" else unavailable(self.state())
        if path == "/health" and not upgrade:  # as vla-eval's servers say it
            state = self.state()
            status = HTTPStatus.OK if state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
            words = json.dumps({"status": "ok" if state == "ready" else state}) + "\n"
            return full_response(words.encode(), "application/json", status)
        if not self.keys.admit(single_header(request.headers, "Authorization")):
            self.refused("key")
            response = text_response("An API key is needed: Authorization: Api-Key KEY\n", HTTPStatus.UNAUTHORIZED)
            response.headers["WWW-Authenticate"] = 'Basic realm="LaMP: any name, the API key as the password"'
            return response
        if upgrade:
            return self._admission(request)
        return unavailable("The policy is being loaded.\n") if self.state() == "loading" else await self._page(path)

    def _admission(self, request: Request) -> Response | None:
        if not same_origin(single_header(request.headers, "Origin"), single_header(request.headers, "Host")):
            self.refused("origin")
            return text_response("Pages of other origins may not connect.\n", HTTPStatus.FORBIDDEN)
        connected, most = self.clients()
        if connected >= most:
            self.refused("clients")
            return unavailable(f"The server has {connected} clients, as many as it takes; try again later.\n")
        try:
            seed_of(request.path)
        except LampClientError as error:
            self.refused("seed")
            return text_response(f"{error}\n", HTTPStatus.BAD_REQUEST)
        return None

    async def _page(self, path: str) -> Response:
        if path == "/metrics":
            return full_response(self.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        if self.live is not None:
            if path == "/":
                return full_response(page(), "text/html; charset=utf-8")
            live = self.live()
            if path == "/live.json":
                snapshot = live.snapshot(clients=self.clients()[0], waiting=self.waiting())
                return full_response(json.dumps(snapshot, allow_nan=False).encode(), "application/json")
            if path.startswith("/image/") and path.endswith(".jpg"):
                picture = await live.picture(unquote(path.removeprefix("/image/").removesuffix(".jpg")))
                if picture is not None:
                    return full_response(picture, "image/jpeg")
        known = PATHS if self.live is not None else PATHS[:3]
        return text_response(
            f"There is nothing at {path[:80]!r}. Known: {', '.join(known)}; and the websocket.\n", HTTPStatus.NOT_FOUND
        )


def seed_of(path: str) -> NoiseSeed | None:
    """The noise seed that a client gives in the address, `ws://host:port/?seed=7,3`, where its messages cannot.

    Raises:
        InvalidValueError: It is none.
    """
    text_seed = parse_qs(urlsplit(path).query).get("seed", [""])[-1]
    # Nineteen digits are enough for any seed; int() itself refuses thousands in its own words.
    whole = [part.isascii() and part.isdigit() and len(part) <= 19 for part in text_seed.split(",")]
    parts = (
        [int(part) if fits else part for part, fits in zip(text_seed.split(","), whole, strict=True)]
        if text_seed
        else None
    )
    return seed_from(parts, "seed")


def single_header(headers: Headers, name: str) -> str | None:
    """A header that must come once; several are none."""
    values = headers.get_all(name)
    return values[0] if len(values) == 1 else None


def text_response(words: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """A response of plain text."""
    return full_response(words.encode(), "text/plain; charset=utf-8", status)


def unavailable(words: str) -> Response:
    """A response to what can be answered in a moment."""
    response = text_response(words, HTTPStatus.SERVICE_UNAVAILABLE)
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def full_response(body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """A response that is complete and not to be kept."""
    headers = Headers(
        {
            "Date": email.utils.formatdate(usegmt=True),
            "Connection": "close",
            "Content-Length": str(len(body)),
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
    )
    return Response(status.value, status.phrase, headers, body)


@cache
def page() -> bytes:
    """The live page: one file, nothing from elsewhere."""
    return files("lamp.serve").joinpath("live.html").read_bytes()
