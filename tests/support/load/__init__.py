"""Load on a running system: offering it, watching what it does, accounting for every message."""
