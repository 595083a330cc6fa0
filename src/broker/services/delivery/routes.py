"""Which channel a client's messages take, and everything its attempt needs: the plain text and the target."""

from __future__ import annotations

from typing import Protocol

from broker.domain import ids
from broker.domain.clients import ClientEntry
from broker.domain.message import Answer, Erased, NeedsPerson, OwnSideAway
from broker.errors import KeyErased, KeyUnavailable, Undecryptable
from broker.events.claims import Task
from broker.events.sealing import Plain
from broker.services.delivery.channels.base import Delivery


class Clients(Protocol):
    """The registry, as `Trust` follows it."""

    def client(self, client_id: str) -> ClientEntry | None: ...


class Opener(Protocol):
    """Reads what was sealed; `Sealer` does."""

    def unseal(self, client_id: str, message_id: bytes, sealed: bytes) -> Plain: ...

    def unseal_secret(self, client_id: str, sealed: bytes) -> bytes: ...


class Routes:
    """Prepares attempts."""

    def __init__(self, clients: Clients, opener: Opener, default_channel: str, worker_id: str) -> None:
        self._clients = clients
        self._opener = opener
        self._default = default_channel
        self._worker_id = worker_id

    def prepare(self, task: Task) -> tuple[str, Delivery] | Answer:
        """The channel's name and the delivery, or the answer where it does not come to an attempt."""
        opened, claim = task.open, task.claim
        client_id = opened.client_id
        if task.sealed is None:
            return NeedsPerson("its ciphertext is gone")
        entry = self._clients.client(client_id)
        channel = (entry.channel if entry is not None else None) or self._default
        secret = None
        try:
            plain = self._opener.unseal(client_id, opened.message_id, task.sealed)
            if entry is not None and entry.sealed_secret is not None:
                secret = self._opener.unseal_secret(client_id, entry.sealed_secret)
        except KeyErased:
            return Erased()
        except KeyUnavailable as error:
            return OwnSideAway(str(error), scope="client")
        except Undecryptable as error:
            return NeedsPerson(str(error))
        return channel, Delivery(
            message_id=opened.message_id,
            client_id=client_id,
            plain=plain,
            cycle=opened.cycle,
            attempt=opened.attempts + 1,
            worker_id=self._worker_id,
            entry=claim.entry,
            count=claim.count,
            queued_at=ids.created_ms(opened.message_id),
            target=entry.target if entry is not None else None,
            secret=secret,
        )
