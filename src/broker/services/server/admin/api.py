"""The admin API's part of the server's OpenAPI document."""

from __future__ import annotations

from typing import Final

from broker.services.server.admin import (
    certificates_api,
    clients_api,
    keys,
    projections,
    projections_rebuild,
    resend_api,
    users_api,
)
from broker.web.openapi import Operation

OPERATIONS: Final[list[Operation]] = [
    *users_api.OPERATIONS,
    *clients_api.OPERATIONS,
    *certificates_api.OPERATIONS,
    *keys.OPERATIONS,
    *resend_api.OPERATIONS,
    *projections.OPERATIONS,
    *projections_rebuild.OPERATIONS,
]
