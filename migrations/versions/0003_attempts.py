"""attempts: one row a delivery attempt. Keyed by position: no rule of ours can make two events collide."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE IF NOT EXISTS attempts (
      message_id  CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      ms          BIGINT UNSIGNED NOT NULL,
      seq         BIGINT UNSIGNED NOT NULL,
      client_id   VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      cycle       INT UNSIGNED NOT NULL,
      attempt     INT UNSIGNED NOT NULL,
      at          DATETIME(3) NOT NULL,
      actor       VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
      channel     VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
      succeeded   TINYINT UNSIGNED NOT NULL,
      latency_ms  BIGINT UNSIGNED NOT NULL,
      code        INT NULL,
      error       VARCHAR(500) NULL,
      PRIMARY KEY (message_id, ms, seq)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci ROW_FORMAT=DYNAMIC
    """)


def downgrade() -> None:
    op.execute("DROP TABLE attempts")
