"""A server of S3's protocol for what is archived in buckets."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest

from support import buckets


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """The port of one for all tests."""
    with buckets.serving() as port:
        yield port


@pytest.fixture
def s3(s3_server: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """s3:// leads to it; its port."""
    monkeypatch.setitem(fsspec.config.conf, "s3", buckets.addressed(s3_server))
    return s3_server
