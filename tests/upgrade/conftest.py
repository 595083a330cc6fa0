"""Which release the tests upgrade from: `./broker test upgrade --from v0.1.0`."""

from __future__ import annotations

import pytest

from support import releases
from support.releases import Release


def pytest_addoption(parser: pytest.Parser) -> None:
    """A tag or a commit."""
    parser.addoption("--from", dest="upgrade_from", metavar="REF", help="the release to upgrade from")


@pytest.fixture(scope="session")
def before(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release before this one, or the one asked for."""
    name = request.config.getoption("upgrade_from", default=None) or releases.newest()
    return releases.extract(name, tmp_path_factory.mktemp("release") / "source")
