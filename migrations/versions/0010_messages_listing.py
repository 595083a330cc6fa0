"""messages: an index for each filter of the lists, with the order of the lists behind it."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

REPLACED = ("client_queued", "queued", "number_hash")
ADDED = {
    "client_status_queued": "(client_id, status, queued_at)",
    "number_queued": "(sender_number_hashed, status, queued_at)",
}


def upgrade() -> None:
    there = _keys()
    changes = [f"DROP KEY {name}" for name in REPLACED if name in there]
    changes += [f"ADD KEY {name} {columns}" for name, columns in ADDED.items() if name not in there]
    if changes:
        op.execute(f"ALTER TABLE messages {', '.join(changes)}")


def downgrade() -> None:
    op.execute("""
    ALTER TABLE messages
      DROP KEY client_status_queued,
      DROP KEY number_queued,
      ADD KEY client_queued (client_id, queued_at),
      ADD KEY queued (queued_at),
      ADD KEY number_hash (sender_number_hashed(16))
    """)


def _keys() -> set[str]:
    query = (
        "SELECT index_name FROM information_schema.statistics "
        "WHERE table_schema=DATABASE() AND table_name='messages'"
    )
    return {row[0] for row in op.get_bind().execute(sa.text(query))}
