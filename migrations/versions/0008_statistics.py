"""statistics: counts per hour of the log's clock and client; each partition has its own rows."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS statistics (
      stream           VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      hour             DATETIME NOT NULL,
      client_id        VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      submitted        BIGINT UNSIGNED NOT NULL DEFAULT 0,
      attempts         BIGINT UNSIGNED NOT NULL DEFAULT 0,
      failed_attempts  BIGINT UNSIGNED NOT NULL DEFAULT 0,
      retries          BIGINT UNSIGNED NOT NULL DEFAULT 0,
      delivered        BIGINT UNSIGNED NOT NULL DEFAULT 0,
      failed           BIGINT UNSIGNED NOT NULL DEFAULT 0,
      discarded        BIGINT UNSIGNED NOT NULL DEFAULT 0,
      parked           BIGINT UNSIGNED NOT NULL DEFAULT 0,
      resent           BIGINT UNSIGNED NOT NULL DEFAULT 0,
      PRIMARY KEY (stream, hour, client_id),
      KEY hour (hour)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE statistics")
