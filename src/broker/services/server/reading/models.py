"""The read models as the endpoints ask for them: there, or a 503."""

from __future__ import annotations

from broker.errors import StoreUnavailable
from broker.projections.queries import Queries
from broker.projections.store import Store


class Models:
    """`queries` is None where no database is configured."""

    def __init__(self, queries: Queries | None) -> None:
        self._queries = queries

    @property
    def queries(self) -> Queries:
        """Reads of single rows. Raises StoreUnavailable."""
        if self._queries is None:
            raise StoreUnavailable("None is configured.")
        return self._queries

    @property
    def store(self) -> Store:
        """The database itself. Raises StoreUnavailable."""
        return self.queries.store
