"""Behind a reverse proxy: whose word on where a request comes from is taken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from broker.errors import SettingsError
from broker.settings import load
from broker.web import application, peer
from broker.web.serving import serve_surface

FORWARDED = {"x-forwarded-for": "203.0.113.9, 198.51.100.7, 10.1.2.3"}


async def shown(request: Request) -> PlainTextResponse:
    return PlainTextResponse(peer.address(request.scope))


@contextlib.asynccontextmanager
async def surface(trusted: str, *, proxied: bool = True) -> AsyncIterator[str]:
    """The address of a surface that answers with where it thinks a request comes from."""
    stop = asyncio.Event()
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve_surface(
            application.build([Route("/", shown)], role="test"),
            load(environ={}, trusted_proxies=trusted),
            None,
            host="127.0.0.1",
            port=0,
            stop=stop,
            proxied=proxied,
            on_bound=bound.set_result,
        )
    )
    yield f"http://127.0.0.1:{await bound}/"
    stop.set()
    await serving


async def asked(url: str, headers: dict[str, str], source: str = "127.0.0.1") -> str:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(local_address=source)) as client:
        return (await client.get(url, headers=headers)).text


async def test_only_trusted_proxies_are_believed() -> None:
    """The last address that no trusted proxy wrote counts; from anybody else, the connection's own."""
    async with surface("127.0.0.1, 10.0.0.0/8") as url:
        assert await asked(url, FORWARDED) == "198.51.100.7"
        assert await asked(url, {}) == "127.0.0.1"
        assert await asked(url, FORWARDED, source="127.0.0.2") == "127.0.0.2"


async def test_without_trusted_proxies_nobody_is() -> None:
    """Nor where TLS ends at the listener itself, whatever is trusted elsewhere."""
    async with surface("") as url:
        assert await asked(url, FORWARDED) == "127.0.0.1"
    async with surface("127.0.0.1", proxied=False) as url:
        assert await asked(url, FORWARDED) == "127.0.0.1"


@pytest.mark.parametrize("wrong", ["*", "proxy.example", "10.0.0.1/8", "10.0.0.0/8, 300.0.0.1"])
def test_what_is_no_network_stops_the_start(wrong: str) -> None:
    """Naming the setting, what it is and what it takes."""
    with pytest.raises(SettingsError) as caught:
        load(environ={"BROKER_TRUSTED_PROXIES": wrong})
    assert "trusted_proxies (BROKER_TRUSTED_PROXIES)" in str(caught.value)
    assert "IP addresses and networks" in str(caught.value)
