"""Backups: the whole history with its keys, in a directory that grows by what is new."""
