"""latencies: submit to delivered in the first cycle: messages per bucket of `statistics.BOUNDS_MS`."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS latencies (
      stream    VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      hour      DATETIME NOT NULL,
      bucket    SMALLINT UNSIGNED NOT NULL,
      messages  BIGINT UNSIGNED NOT NULL DEFAULT 0,
      PRIMARY KEY (stream, hour, bucket),
      KEY hour (hour)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE latencies")
