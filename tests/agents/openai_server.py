"""A small OpenAI-compatible server on a real socket, whose answers a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], int], tuple[int, Any]]
"""(request body, how many came before) -> (status, JSON body, or text as it stands)."""


def completion(
    content: str | None = None,
    arguments: Any = None,
    name: str = "set_knobs",
    tokens: tuple[int, int] | None = (300, 20),
) -> dict[str, Any]:
    """A chat completion with a text or a tool call."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if arguments is not None:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        message["tool_calls"] = [{"id": "1", "type": "function", "function": {"name": name, "arguments": text}}]
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]} if tokens else None
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": usage}


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]], list[dict[str, str]]]]:
    """Serve while the block runs; gives (base URL, bodies received, headers received)."""
    bodies: list[dict[str, Any]] = []
    headers: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            before = len(bodies)
            bodies.append(body)
            headers.append({key.lower(): value for key, value in self.headers.items()})
            if self.path != "/v1/chat/completions":
                status, found = 404, {"error": "no such path"}
            else:
                status, found = answer(body, before)
            if status == 0:  # break the connection off
                self.connection.close()
                self.close_connection = True
                return
            data = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", bodies, headers
    finally:
        server.shutdown()
        server.server_close()
