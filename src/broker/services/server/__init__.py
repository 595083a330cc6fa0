"""The server: the internal API that decides from the log, never from the database."""
