"""An OpenAI-compatible server in a thread that gives the answers a test chooses: right, wrong, late or none at all."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

MODEL = "judge-1"


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        status: HTTP status.
        body: a value that is sent as JSON, or raw bytes.
        delay_s: wait before anything is sent.
        drip_s: wait between two bytes of the body.
        headers: headers in addition to the content's type and length.
        hang_up: if true, the connection is closed without an answer.
        times: how often the answer is sent.
    """

    status: int = 200
    body: Any = None
    delay_s: float = 0.0
    drip_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    times: int = 1


def chat(text: str | None, *, model: str = MODEL, finish: str = "stop", refusal: str | None = None, **how: Any) -> Reply:
    """A chat completion with this text."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    body = {"id": "c", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}
    return Reply(body=body, **how)


def models(*names: str) -> Reply:
    """A list of models."""
    return Reply(body={"object": "list", "data": [{"id": n, "object": "model", "created": 0, "owned_by": "t"} for n in names]})


NO_ENDPOINT = Reply(404, {"error": {"message": "no such endpoint"}})
"""Reply of a server that lists no models."""


class FaultyServer:
    """Serves on the loopback interface while its context is open.

    Attributes:
        answer: maps a chat request's number (0, 1, …) and body to the reply.
        listing: reply to a request for the list of models.
        asked: bodies of all chat requests so far.
        keys: the ``Authorization`` headers of all requests so far.
        most: the largest number of chat requests in progress at once.
    """

    def __init__(self, answer: Callable[[int, dict[str, Any]], Reply], listing: Reply | None = None) -> None:
        self.answer = answer
        self.listing = listing or models(MODEL)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._open = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                """Logs nothing, so that the terminal stays clean."""

            def do_GET(self) -> None:
                outer.keys.append(self.headers.get("Authorization", ""))
                self._send(outer.listing if self.path == "/v1/models" else NO_ENDPOINT)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.asked)
                    outer.asked.append(body)
                    outer.keys.append(self.headers.get("Authorization", ""))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                try:
                    self._send(outer.answer(number, body) if self.path == "/v1/chat/completions" else NO_ENDPOINT)
                finally:
                    with outer._lock:
                        outer._now -= 1

            def _send(self, reply: Reply) -> None:
                if reply.delay_s:
                    outer._open.wait(reply.delay_s)  # returns early when the server is closed
                if reply.hang_up:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                try:
                    self._send_raw(reply, raw)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client timed out

            def _send_raw(self, reply: Reply, raw: bytes) -> None:
                for _ in range(reply.times):
                    self.send_response(reply.status)
                    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    size = 1 if reply.drip_s else max(1, len(raw))
                    for i in range(0, len(raw), size):
                        self.wfile.write(raw[i : i + size])
                        outer._open.wait(reply.drip_s)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.set()
        self._server.shutdown()
        self._server.server_close()


def dead_url() -> str:
    """An address on this machine where no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def always(reply: Reply) -> Callable[[int, dict[str, Any]], Reply]:
    """The same reply to each request."""
    return lambda number, body: reply


def in_turn(*replies: Reply) -> Callable[[int, dict[str, Any]], Reply]:
    """One reply after the other; the last one repeats."""
    return lambda number, body: replies[min(number, len(replies) - 1)]
