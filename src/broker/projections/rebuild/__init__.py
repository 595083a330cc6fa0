"""Rebuilding read models: shadow tables are filled from the history, then take the place of the others."""
