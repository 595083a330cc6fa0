"""The projector: read models and the audit log."""
