"""One running system and one browser for all tests of the portal; people sign in once, where a test needs no more."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from broker.cli.readiness import pictures as shown
from broker.embedded import install
from support import browsing, measured
from support.browsing import Person, Profiles
from support.fixtures import pki, world
from support.system import System

__all__ = ["pki", "world"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`./broker test portal -- --screenshots DIR` takes pictures of every page."""
    parser.addoption("--screenshots", metavar="DIR", help="Keep pictures of all pages there.")


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest) -> Path | None:
    """Where pictures of pages go, if any are wanted."""
    given = request.config.getoption("--screenshots", None)
    if given is None:
        return None
    Path(given).mkdir(parents=True, exist_ok=True)
    return Path(given)


@pytest.fixture(scope="session")
def album(request: pytest.FixtureRequest, pictures: Path | None) -> Path | None:
    """As `pictures`; a full run takes those that the readiness report shows, where it looks for them."""
    if pictures is not None or not request.config.getoption("--full"):
        return pictures
    place = shown.directory(Path(__file__).resolve().parents[2])
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with people, clients and routes."""
    with browsing.peopled(tmp_path_factory.mktemp("portal")) as running, measured.noting(running, "portal"):
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """A real Chromium."""
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=install.browser(), args=browsing.ARGUMENTS)
        yield found
        await found.close()


@pytest.fixture(scope="session")
def tickets(system: System) -> Callable[[str], str]:
    """The cookie of each of PEOPLE, signed in once."""
    return functools.cache(functools.partial(browsing.ticket, system))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def profiles(
    system: System, browser: Browser, tickets: Callable[[str], str]
) -> AsyncIterator[Profiles]:
    """People who are signed in already, for tests that do not end their sessions."""
    found = Profiles(system, browser, tickets)
    yield found
    await found.close()


@pytest.fixture(scope="session")
def failed(system: System) -> Iterator[str]:
    """Messages of `acme` that have failed; one for each test that wants one."""
    return iter(asyncio.run(browsing.settled(system, "acme", browsing.FAILED, "failed")))


@pytest_asyncio.fixture(loop_scope="session")
async def anybody(system: System, browser: Browser) -> AsyncIterator[Person]:
    """Somebody with a fresh browser who has not signed in; complaints of the browser fail the test."""
    async with browsing.person(system, browser) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def reader(profiles: Profiles) -> AsyncIterator[Person]:
    """Signed in; sees the messages of `demo`."""
    async with profiles("reader@example.com") as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def admin(profiles: Profiles) -> AsyncIterator[Person]:
    """Signed in; sees everything."""
    async with profiles("boss@example.com") as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def auditor(profiles: Profiles) -> AsyncIterator[Person]:
    """Signed in; sees the history."""
    async with profiles("auditor@example.com") as found:
        yield found
