"""checkpoints: a projection is held while rebuilt tables take the place of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    query = (
        "SELECT COUNT(*) FROM information_schema.columns "
        "WHERE table_schema=DATABASE() AND table_name='checkpoints' AND column_name='held'"
    )
    if not op.get_bind().scalar(sa.text(query)):
        op.execute("ALTER TABLE checkpoints ADD COLUMN held TINYINT UNSIGNED NOT NULL DEFAULT 0 AFTER halted")


def downgrade() -> None:
    op.execute("ALTER TABLE checkpoints DROP COLUMN held")
