"""One running system for the commands that work on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.system import System, running


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """What `up` runs, with retries after a second."""
    with running(tmp_path_factory.mktemp("system"), retry_interval=1.0) as found:
        yield found
