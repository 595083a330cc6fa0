"""Repairing the log: everything in Redis built anew from archive, tables and what Redis still has."""
