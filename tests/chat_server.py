"""A server on this machine that speaks the chat completions protocol, and can fail in every way that real ones do."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What goes over the wire."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    delay: float = 0.0
    broken: bool = False
    """Hang up in the middle."""


def answer(content: Any, *, finish: str = "stop", **headers: str) -> Reply:
    """A well-formed completion; its tokens are 7 read and 5 written."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }
    return Reply(body=json.dumps(body).encode(), headers=headers)


def error(status: int, message: str, *, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    body = {"error": {"message": message, "type": "error", **fields}}
    return Reply(status=status, body=json.dumps(body).encode(), headers=headers or {})


@dataclass(kw_only=True)
class Seen:
    """What the server has got."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Reply], port: int = 0) -> Iterator[Seen]:
    """Serve `reply(body, number of the request)` on a free port, or on this one."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.bodies.append(body)
            seen.headers.append({name.lower(): value for name, value in self.headers.items()})
            told = reply(body, len(seen.bodies) - 1)
            time.sleep(told.delay)
            self.send_response(told.status)
            for name, value in {"content-type": told.content_type, **told.headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(told.body) + 10 * told.broken))
            self.send_header("connection", "close")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client may have stopped waiting
                self.wfile.write(told.body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
