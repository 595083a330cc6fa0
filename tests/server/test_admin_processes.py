"""Two servers as processes of their own: what one decides holds at the other."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import msgspec
import pytest
from cryptography import x509

from broker.embedded.valkey import free_port
from broker.web import tls
from support.gateways import install, process
from support.waiting import wait_until

USERS, GENERATE, REVOKE = "/admin/users", "/admin/certificates/generate", "/admin/certificates/revoke"


async def ready(client: httpx.AsyncClient) -> bool:
    """Whether it serves, and has proved its registry fresh."""
    with contextlib.suppress(httpx.TransportError):
        checks = (await client.get("/health")).json()["checks"]
        return checks["trust"] == "ok"
    return False


@pytest.fixture
async def servers(own_valkey, tmp_path):
    """Settings, and a client of each of two servers that share log, authority and data directory."""
    settings = await install(own_valkey, tmp_path, server_port=free_port())
    both = settings, msgspec.structs.replace(settings, server_port=free_port())
    context = tls.client_context(settings.certs_dir / "ca.crt")
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for each in both:
            await stack.enter_async_context(process(each, "server"))
            base = f"https://localhost:{each.server_port}"
            client = httpx.AsyncClient(base_url=base, verify=context, timeout=60)
            clients.append(await stack.enter_async_context(client))
        for client in clients:
            await wait_until(lambda client=client: ready(client), within=60, what="a server")
        password = (settings.data_dir / "admin-password").read_text().strip()
        given = {"email": "admin@example.com", "password": password}
        token = (await clients[0].post("/portal/auth/login", json=given)).json()["access_token"]
        for client in clients:
            client.headers["authorization"] = f"Bearer {token}"
        yield settings, clients


async def test_one_of_many_at_once(servers):
    """E-mail addresses and active certificates are unique over processes; the loser is told of the conflict."""
    _, clients = servers
    person = {"email": "ann@example.com", "password": "correct horse", "role": "user", "client_ids": []}
    for path, body in ((USERS, person), (GENERATE, {"client_name": "shop"})):
        answers = await asyncio.gather(*(clients[n % 2].post(path, json=body) for n in range(6)))
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 5, path


async def test_a_revocation_reaches_the_other_process(servers, tmp_path):
    """On its open connection, and in its revocation list."""
    settings, (one, other) = servers
    made = (await one.post(GENERATE, json={"client_name": "worker-2", "role": "worker"})).json()
    pair = tmp_path / "w.crt", tmp_path / "w.key"
    pair[0].write_text(made["certificate_pem"])
    pair[1].write_text(made["private_key_pem"])
    context = tls.client_context(settings.certs_dir / "ca.crt", *pair)
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=other.base_url, verify=context, limits=limits) as worker:

        async def answers(error: str) -> bool:
            answer = await worker.post(
                "/internal/messages/status", content=b"{", headers={"content-type": "application/json"}
            )
            return answer.json()["error"] == error

        await wait_until(lambda: answers("malformed_json"))
        revoked = await one.post(REVOKE, json={"fingerprint": made["fingerprint"], "reason": "keyCompromise"})
        assert revoked.status_code == 200, revoked.text
        await wait_until(lambda: answers("certificate_revoked"))

    async def listed() -> bool:
        crl = x509.load_der_x509_crl((await other.get("/crl.der")).content)
        return int(made["serial"], 16) in {line.serial_number for line in crl}

    await wait_until(listed)
