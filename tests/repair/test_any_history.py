"""Whatever happened to a log: what a repair makes of its history is what the scripts had made, step by step."""

from __future__ import annotations

import os
import random

import pytest

from broker import clock
from broker.domain import ids
from broker.errors import Conflict
from broker.events import envelope, types
from broker.events.claims import Settlement
from broker.events.delivery_log import DeliveryLog
from broker.events.key_commands import KeyCommands
from broker.events.reopening import Asked
from broker.events.user_commands import UserCommands
from support.log import OUTCOMES_KEPT_MS
from support.repairs import World, certificate

STEPS = 80


class Life:
    """Does things to a log at random, through the scripts that roles use."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.any = world, random.Random(seed)
        self.sent: list[bytes] = []
        self.clients = ["demo"]
        self.users: list[str] = []
        self.certificates = 0
        self.renewed()

    def renewed(self) -> None:
        """The log begins another life."""
        world = self.world
        self.logs = [
            DeliveryLog(
                world.redis, keys, world.identity, f"w-{ids.new(0).hex()}", outcomes_kept_ms=OUTCOMES_KEPT_MS
            )
            for keys in world.keys.partitions
        ]
        self.keys = KeyCommands(world.registry, world.keyring)
        self.people = UserCommands(world.registry)

    async def live(self, steps: int) -> None:
        acts = [self.submit] * 4 + [self.work] * 6 + [self.by_hand] * 3 + [self.administer] * 2 + [self.keep]
        for _ in range(steps):
            await self.any.choice(acts)()

    async def submit(self) -> None:
        client = self.any.choice(self.clients)
        if self.world.trust.client(client) is None or self.world.trust.client(client).status != "active":
            return
        options = {}
        if self.any.random() < 0.3:
            options = {"idempotency": self.any.randbytes(16), "request_hash": self.any.randbytes(32)}
        partition = self.any.randrange(2)
        draft = self.world.draft(partition, client=client, **options)
        await self.world.appender.append([draft])
        self.sent.append(draft.message_id)

    async def work(self) -> None:
        log = self.any.choice(self.logs)
        await log.ensure_group()
        if self.any.random() < 0.3:
            due = await self.world.redis.zrange(log.partition.due, 0, 2)
            for one in due:
                await self.world.redis.zadd(log.partition.due, {one: 1})
            await log.pump()
        claims = await log.read(3, self.world.redis, 1)
        tasks = await log.admit(claims)
        await log.settle([self._settled(task) for task in tasks])

    def _settled(self, task) -> Settlement:
        kind = self.any.choice(["delivered", "failed", "retry", "retry", "park"])
        facts = (task.open.client_id, task.open.cycle, task.attempt)
        attempted = types.DeliveryAttempted(*facts, "simulated", kind == "delivered", 1)
        events = {
            "delivered": ("done", types.Delivered(*facts)),
            "failed": ("done", types.Failed(*facts, "no")),
            "retry": ("retry", types.RetryScheduled(*facts, 3_600_000)),
            "park": ("park", types.MessageParked(facts[0], facts[1], facts[2] - 1, "asked to")),
        }
        now = clock.now_ms()
        return Settlement(
            events[kind][0],
            task.claim.message_id,
            *facts,
            envelope=envelope.splice(now, "worker:w", task.open.correlation, None),
            claim=task.claim,
            attempted=None if kind == "park" else attempted,
            event=events[kind][1],
            outcome=kind if kind in {"delivered", "failed"} else None,
            at_ms=now,
            delay_ms=3_600_000 if kind == "retry" else 0,
        )

    async def by_hand(self) -> None:
        if not self.sent:
            return
        one = self.any.choice(self.sent)
        now = await self.world.state(one)
        if now is None:
            return
        asked = Asked("user:1", clock.now_ms(), "c0ffee")
        act = self.any.choice(["resend", "unpark", "discard"])
        try:
            if act == "resend":
                event = types.ResendRequested(now.client_id, now.cycle + 1, b"sealed anew")
                await self.world.reopening.resend(one, event, asked)
            elif act == "unpark":
                await self.world.reopening.unpark(one, now.client_id, now.cycle, asked)
            else:
                await self.world.reopening.discard(one, now.cycle, "asked to", asked)
        except Conflict:
            pass

    async def administer(self) -> None:
        world, number = self.world, len(self.clients)
        act = self.any.choice(
            ["client", "route", "erase", "rotate", "issue", "renew", "revoke", "user", "user"]
        )
        name = self.any.choice(self.clients)
        entry = world.trust.client(name)
        active = name != "demo" and entry is not None and entry.status == "active"
        try:
            if act == "client":
                await world.clients.register_client(f"c{number}", f"d{number}", actor="system")
                self.clients.append(f"c{number}")
                await world.trust.poll()
                await world.copy_keys()
            elif act == "user":
                await self._user()
            elif not active:
                return
            elif act == "route":
                await world.clients.change_route(
                    name, "webhook", "https://a.example", b"secret", actor="system"
                )
            elif act == "rotate":
                await self.keys.activate(
                    name, (await self.keys.add(name, actor="system")).value, actor="system"
                )
                # As for a new client: the archiver copies keys within a second, also where tables are ahead.
                await world.copy_keys()
            elif act == "erase" and self.any.random() < 0.4:
                await world.clients.erase_client(name, "asked to", actor="system")
                await world.trust.poll()
            elif act in {"issue", "renew"}:
                await self._certificate(name, act)
            elif act == "revoke":
                await world.certificates.revoke_certificate(
                    client_id=name, reason="superseded", actor="system"
                )
        except (Conflict, LookupError):
            pass
        except Exception as error:
            if getattr(error, "code", "") not in {"not_found", "conflict", "validation_error"}:
                raise

    async def _certificate(self, name: str, act: str) -> None:
        self.certificates += 1
        one = certificate(name, self.certificates)
        commands = self.world.certificates
        if act == "issue":
            await commands.record_certificate(one, actor="system")
        else:
            await commands.renew_certificate(one, actor="system")

    async def _user(self) -> None:
        if not self.users or self.any.random() < 0.3:
            role = self.any.choice(["admin", "user", "auditor"])
            await self._create(f"u{len(self.users)}@example.com", role)
            return
        one = self.any.choice(self.users)
        act = self.any.choice(["role", "disable", "clients"])
        if act == "role":
            await self.people.change_role(one, self.any.choice(["admin", "user"]), actor="system")
        elif act == "disable":
            await self.people.disable_user(one, actor="system")
        else:
            await self.people.change_clients(one, ["demo"], actor="system")

    async def _create(self, email: str, role: str) -> None:
        done = await self.people.create_user(email, "correct horse", role, actor="system")
        self.users.append(done.value.user_id)

    async def keep(self) -> None:
        if self.any.random() < 0.5:
            await self.world.archive(trim=self.any.random() < 0.5)
        else:
            await self.world.project()


@pytest.mark.parametrize("loss", ["emptied", "rolled back"])
async def test_any_history_comes_back_as_it_was(world, loss, monkeypatch):
    """⚠ Messages, outcomes, keys, clients, certificates, users: equal, wherever archive and tables stood."""
    # What a password's hash costs is shown elsewhere.
    monkeypatch.setattr("broker.events.user_commands.BCRYPT_COST", 4)
    # As Hypothesis does: something new each time by hand, the same where a change is checked.
    seed = 1 if os.environ.get("CI") else random.randrange(1 << 32)
    life = Life(world, seed)
    for _ in range(2):
        await life.live(STEPS // 2)
        old = await world.snapshot()
        await life.live(STEPS)
        await (world.project() if life.any.random() < 0.5 else world.archive())
        before = await world.derived()
        await (world.empty() if loss == "emptied" else world.roll_back(old))
        report = await world.repaired()
        assert (report.lost, report.keys_lost, report.rebuild) == (0, [], [])
        assert all((one.void, one.moved, one.completed) == (0, 0, 0) for one in report.streams)
        assert await world.derived() == before, f"seed {seed}"
        assert await world.unreadable() == []
        life.renewed()
    await world.archive()
    await world.project()
