"""Alembic's entry point; `broker.projections.schema` gives it the connection."""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run `./broker migrate`; it knows the database and takes the migration lock.")

context.configure(connection=connection, target_metadata=None, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
