"""The readiness report: what was shown by which tests, and whether that is enough for production."""
