"""Every read model there is."""

from __future__ import annotations

from broker.projections.attempts import Attempts
from broker.projections.audit_log import AuditLog
from broker.projections.base import Projection
from broker.projections.clients import Clients
from broker.projections.messages import Messages
from broker.projections.statistics import Statistics
from broker.projections.users import Users


def projections() -> list[Projection]:
    """A fresh one of each; they keep no state of their own."""
    return [Messages(), Attempts(), AuditLog(), Clients(), Users(), Statistics()]


def names() -> list[str]:
    """Their names."""
    return [each.name for each in projections()]
