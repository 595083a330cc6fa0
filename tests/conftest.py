"""Real servers, one of each for the whole run; every test has a log name and a database of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from broker.embedded.mariadb import MariaDB
from broker.embedded.valkey import Valkey
from broker.events import connection, user_commands
from support import furnishing, spreading
from support.examples import choose

# A busy machine must not fail a property: no test asserts a duration.
hypothesis.settings.register_profile("broker", deadline=None)
hypothesis.settings.load_profile("broker")


pytest_plugins = ["support.casebook", "support.helpers"]


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are collected."""
    choose(full=bool(config.getoption("--full")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long comes first: at the end it would leave the other processes of a spread run idle."""
    here, full = Path(__file__).parent, bool(config.getoption("--full"))
    items.sort(key=lambda item: spreading.rank(item.path.relative_to(here).as_posix(), full=full))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Files that share a running system go to one process."""
    return spreading.scheduler(config, log)


@pytest.fixture(scope="session", autouse=True)
def quick_passwords() -> Iterator[None]:
    """Hashing at cost 12 takes a quarter of a second; here 4 does, but in processes of the broker's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_commands, "BCRYPT_COST", 4)
        yield


@pytest.fixture
def full_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is said of the hashes themselves."""
    monkeypatch.setattr(user_commands, "BCRYPT_COST", 12)


@pytest.fixture(scope="session", autouse=True)
def furnished(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One MariaDB makes its data directory, for all processes of a spread run; the others copy it."""
    base = tmp_path_factory.getbasetemp()
    furnishing.keep_at((base.parent if spreading.beside_others() else base) / "furnished")


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey that all tests share; tests that stop or fill one use `own_valkey`."""
    with furnishing.kept(Valkey(tmp_path_factory.mktemp("valkey"), maxmemory_mb=1024)) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A MariaDB that all tests share; tests that stop one use `own_mariadb`."""
    with furnishing.kept(furnishing.furnish(MariaDB(tmp_path_factory.mktemp("mariadb")))) as server:
        yield server


@pytest.fixture
async def own_valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A Valkey for this test alone, on a port, to be killed and filled."""
    server = Valkey(tmp_path / "valkey", port=0)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def own_mariadb(tmp_path: Path) -> AsyncIterator[MariaDB]:
    """A MariaDB for this test alone, to be killed."""
    server = furnishing.furnish(MariaDB(tmp_path / "mariadb", port=0))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def log_name() -> str:
    """A log of this test's own on the shared Valkey."""
    return f"t-{secrets.token_hex(6)}"


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[connection.Redis]:
    """A client of the shared Valkey."""
    client = connection.connect(valkey.url)
    yield client
    await client.aclose()
