"""A worker in a process of its own, to be killed. Its one argument is a JSON object; see `main`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import msgspec

from broker import lifecycle
from broker.domain.message import Accepted
from broker.domain.retry import RetryPolicy
from broker.events import connection
from broker.events.keyring import Keyring
from broker.events.keys import LogKeys
from broker.events.log_identity import LogIdentity
from broker.events.sealing import Sealer
from broker.events.trust import Trust
from broker.services.delivery.channels.base import Channel
from broker.services.delivery.worker import Limits, Worker


class Journal(Channel):
    """Writes what it delivers to a file; dies of bodies called `poison`, hangs on `hang`, waits on `wait`.

    What waits is answered once there is a file beside the journal whose name ends in `.go`.
    """

    name = "simulated"

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._go = Path(path + ".go")

    async def deliver(self, deliveries, report) -> None:
        for delivery in deliveries:
            os.write(self._file, f"{delivery.message_id.hex()} {os.getpid()}\n".encode())
            if delivery.plain.message_body == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            if delivery.plain.message_body not in {"hang", "wait"}:
                report(delivery, Accepted())
        waiting = [delivery for delivery in deliveries if delivery.plain.message_body == "wait"]
        while waiting and not self._go.exists():
            await asyncio.sleep(0.01)
        for delivery in waiting:
            report(delivery, Accepted())
        if any(delivery.plain.message_body == "hang" for delivery in deliveries):
            await asyncio.Event().wait()


async def main(options: dict) -> None:
    """Options: url, log_name, partitions, incarnations, keyring, journal, limits (as Limits), retry."""
    identity = LogIdentity(options["log_name"], options["partitions"], options["incarnations"])
    keys = LogKeys(options["log_name"], options["partitions"])
    keyring = Keyring.load(Path(options["keyring"]))
    stop = asyncio.Event()
    lifecycle.stop_on_signals(stop)
    redis, trust_redis = connection.connect(options["url"]), connection.connect(options["url"])
    trust = Trust(trust_redis, keys.control, identity.incarnations["control"], keyring)
    following = asyncio.create_task(trust.run(stop))
    await trust.wait_fresh()
    limits = msgspec.convert(options["limits"], Limits)
    worker = Worker(
        redis=redis,
        redis_url=options["url"],
        keys=keys,
        identity=identity,
        clients=trust,
        opener=Sealer(keyring, trust.keys),
        channels={"simulated": Journal(options["journal"])},
        limits=msgspec.structs.replace(limits, retry=RetryPolicy(interval=0.05)),
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await worker.run(stop)
    await following
    await redis.aclose()
    await trust_redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
