"""messages: an index that finds the parked ones, in the order of the lists."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    query = (
        "SELECT COUNT(*) FROM information_schema.statistics "
        "WHERE table_schema=DATABASE() AND table_name='messages' AND index_name='parked_queued'"
    )
    if not op.get_bind().scalar(sa.text(query)):
        op.execute("ALTER TABLE messages ADD KEY parked_queued (parked, queued_at, client_id)")


def downgrade() -> None:
    op.execute("ALTER TABLE messages DROP KEY parked_queued")
