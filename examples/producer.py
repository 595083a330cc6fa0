"""A producer in Python, with nothing but the standard library.

    python examples/producer.py +4915200000000 "Hello"
    python examples/producer.py +4915200000000 one two three      # a batch

`Producer` is meant to be taken into a program of your own.
"""

# ruff: noqa: T201 - it tells whoever runs it what became of the messages

from __future__ import annotations

import argparse
import http.client
import json
import random
import ssl
import sys
import time
import uuid
from urllib.parse import urlsplit

# What a message of a batch may be refused with and yet be taken another time.
LATER = {"log_unavailable", "log_full", "key_unavailable", "overloaded", "rate_limit_exceeded"}


class Refused(Exception):
    """The gateway will never take this message: 4xx, with what is wrong."""

    def __init__(self, status: int, problem: dict) -> None:
        self.status = status
        self.problem = problem
        super().__init__(f"{status} {problem.get('error')}: {problem.get('detail')}")


class Producer:
    """Submits messages and asks for them. One connection, opened anew when it breaks; for one thread."""

    def __init__(self, gateway: str, *, ca: str, cert: str, key: str, patience: float = 60.0) -> None:
        self._host = urlsplit(gateway)
        self._tls = ssl.create_default_context(cafile=ca)
        self._tls.load_cert_chain(cert, key)
        self._patience = patience
        self._connection: http.client.HTTPSConnection | None = None

    def submit(self, number: str, body: str, *, metadata: dict | None = None, key: str | None = None) -> str:
        """The message's id, once the message is on the broker's disk.

        `key` names the message in your own system, such as an order's number: submitted again with the same
        key it is the same message. Raises Refused, or TimeoutError when nothing is known in the end.
        """
        message = {"sender_number": number, "message_body": body}
        if metadata is not None:
            message["metadata"] = metadata
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._call("POST", "/api/v1/messages", message, headers)["message_id"]

    def submit_all(self, number: str, bodies: list[str]) -> list[str]:
        """Up to 1000 messages in one request; their ids in order. Raises Refused for the first refused."""
        messages = [
            {"sender_number": number, "message_body": body, "idempotency_key": str(uuid.uuid4())}
            for body in bodies
        ]
        deadline = time.monotonic() + self._patience
        while True:
            results = self._call("POST", "/api/v1/messages/batch", {"messages": messages})["results"]
            refused = [result for result in results if result["status"] == "error"]
            if not refused:
                return [result["message_id"] for result in results]
            for result in refused:
                if result["error"] not in LATER:
                    raise Refused(400, {"error": result["error"], "detail": result["message"]})
            # A part of the log was away. What was taken already is the same again: the keys say so.
            if time.monotonic() > deadline:
                raise TimeoutError("not every message was taken")
            time.sleep(1)

    def status(self, message_id: str) -> dict:
        """Status, attempts, next retry."""
        return self._call("GET", f"/api/v1/messages/{message_id}")

    def outcome(self, message_id: str) -> str:
        """Wait until it is `delivered` or `failed`."""
        while (status := self.status(message_id)["status"]) == "queued":
            time.sleep(0.5)
        return status

    def _call(
        self, method: str, path: str, document: dict | None = None, headers: dict | None = None
    ) -> dict:
        """No answer, 429 and 503 mean *unknown* or *later*: ask again, with the same key."""
        body = None if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json", **(headers or {})} if body else {}
        deadline = time.monotonic() + self._patience
        wait = 0.1
        while True:
            after = None
            try:
                status, answer, after = self._ask(method, path, body, headers)
                if status < 400:
                    return answer
                if status not in (429, 503):
                    raise Refused(status, answer)
            except ssl.SSLCertVerificationError:
                raise
            except (OSError, http.client.HTTPException):
                self._drop()
            wait = float(after) if after else min(wait * 2, 5.0)
            if time.monotonic() + wait > deadline:
                raise TimeoutError(f"{method} {path}: no definite answer within {self._patience:.0f} s")
            time.sleep(wait * random.uniform(0.8, 1.2))

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict) -> tuple[int, dict, str | None]:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._host.hostname, self._host.port or 443, context=self._tls, timeout=10
            )
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        answer = json.loads(response.read() or b"{}")
        return response.status, answer, response.headers.get("Retry-After")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def main() -> int:
    parser = argparse.ArgumentParser(description="Send messages and follow them.")
    parser.add_argument("number", help="the sender's number, E.164")
    parser.add_argument("body", nargs="+", help="one message each")
    parser.add_argument("--gateway", default="https://localhost:8001")
    parser.add_argument("--ca", default="certs/ca.crt")
    parser.add_argument("--cert", default="certs/clients/demo/client.crt")
    parser.add_argument("--key", default="certs/clients/demo/client.key")
    given = parser.parse_args()
    producer = Producer(given.gateway, ca=given.ca, cert=given.cert, key=given.key)
    try:
        if len(given.body) == 1:
            ids = [producer.submit(given.number, given.body[0])]
        else:
            ids = producer.submit_all(given.number, given.body)
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    for message_id in ids:
        print(f"queued {message_id}", flush=True)
    outcomes = [producer.outcome(message_id) for message_id in ids]
    for message_id, outcome in zip(ids, outcomes, strict=True):
        print(f"{outcome} {message_id}")
    return 0 if set(outcomes) == {"delivered"} else 1


if __name__ == "__main__":
    sys.exit(main())
