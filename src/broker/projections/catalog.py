"""Every read model there is."""

from __future__ import annotations

from typing import Final

from broker.projections.attempts import Attempts
from broker.projections.audit_log import AuditLog
from broker.projections.base import Projection
from broker.projections.clients import Clients
from broker.projections.messages import Messages
from broker.projections.statistics import Statistics
from broker.projections.users import Users

VERSIONS: Final[dict[str, int]] = {}
"""Current version of each read model that is past version 1: another one fills other tables."""


def projections() -> list[Projection]:
    """A fresh one of each; they keep no state of their own."""
    return [Messages(), Attempts(), AuditLog(), Clients(), Users(), Statistics()]


def names() -> list[str]:
    """Their names."""
    return [each.name for each in projections()]


def version(name: str) -> int:
    """The version of a read model that this program keeps."""
    return VERSIONS.get(name, 1)
