"""Read models in MySQL: folded from the log, exactly once."""
