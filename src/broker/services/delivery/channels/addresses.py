"""Which addresses a webhook may reach, decided on the address that is connected to.

A name is resolved here, once, and the connection goes to the address that was checked, so that a name that
changes its answer (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

import httpcore

from broker.errors import BrokerError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# Metadata services that have addresses of the public space.
_METADATA: Final = frozenset({ipaddress.ip_address("168.63.129.16")})


class AddressRefused(BrokerError):
    """The webhook's host has an address that may not be reached."""

    code = "address_refused"


def public(text: str) -> bool:
    """Whether an address is of the public internet: not private, loopback, link-local, multicast, metadata"""
    address = ipaddress.ip_address(text)
    return all(
        one.is_global and not one.is_multicast and one not in _METADATA
        for one in (address, *_inside(address))
    )


def _inside(address: Address) -> Iterable[ipaddress.IPv4Address]:
    """IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF),)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    return address.teredo or ()


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, unless `allow_private`."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Try the allowed addresses in their order. Raises AddressRefused, httpcore.ConnectError."""
        failure: Exception | None = None
        for address in await self._allowed(host, port):
            try:
                stream = await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            reached = stream.get_extra_info("server_addr")
            if reached is not None and not self._may(str(reached[0])):
                await stream.aclose()
                raise AddressRefused(host)
            return stream
        raise failure or AddressRefused(host)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002 - the interface's
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - the interface's
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise AddressRefused(path)

    async def sleep(self, seconds: float) -> None:
        """Wait between tries."""
        await asyncio.sleep(seconds)

    async def _allowed(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} has no address: {error.strerror}") from error
        return list(dict.fromkeys(str(info[4][0]) for info in found if self._may(str(info[4][0]))))

    def _may(self, address: str) -> bool:
        return self._allow_private or public(address)
