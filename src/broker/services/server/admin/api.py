"""The admin API's part of the server's OpenAPI document."""

from __future__ import annotations

from typing import Final

from broker.web.openapi import Operation

OPERATIONS: Final[list[Operation]] = []
