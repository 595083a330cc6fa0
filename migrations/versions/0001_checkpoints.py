"""checkpoints: how far each read model is, per stream; moves in the transaction of its rows."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS checkpoints (
      projection   VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      stream       VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      ms           BIGINT UNSIGNED NOT NULL DEFAULT 0,
      seq          BIGINT UNSIGNED NOT NULL DEFAULT 0,
      events       BIGINT UNSIGNED NOT NULL DEFAULT 0,
      incarnation  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      epoch        BIGINT UNSIGNED NOT NULL DEFAULT 0,
      state        BLOB NULL,
      halted       VARCHAR(500) NULL,
      updated_at   DATETIME(3) NOT NULL,
      PRIMARY KEY (projection, stream)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE checkpoints")
