"""A collector of traces: takes OTLP over HTTP as JSON, on a real port."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector:
    """Spans by arrival, each with its process' `service`; answers with `status`."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(self.path, self.headers["content-type"], body)
                answer = b"{}"
                self.send_response(collector.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def take(self, path: str, kind: str, body: bytes) -> None:
        assert kind == "application/json"
        self.paths.add(path)
        self.bodies.append(body)
        if self.status != 200:
            return
        for resource in json.loads(body)["resourceSpans"]:
            service = plain(resource["resource"]["attributes"])["service.name"]
            for scope in resource["scopeSpans"]:
                self.spans += [{"service": service, **span} for span in scope["spans"]]

    def of(self, message_id: bytes) -> dict[str, dict[str, Any]]:
        """The spans of a message, by name."""
        return {one["name"]: one for one in self.spans if one["traceId"] == message_id.hex()}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """Attributes as a plain object."""
    return {one["key"]: next(iter(one["value"].values())) for one in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector for the body."""
    made = Collector()
    try:
        yield made
    finally:
        made.close()
