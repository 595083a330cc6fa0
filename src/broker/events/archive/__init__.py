"""The archive: all events, in order, in immutable, compressed and chained segments; and trimming after it."""
